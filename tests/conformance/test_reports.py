"""Reports: lines, failures, JSON, JUnit, a page; what changed; tests for others' pytest."""

from __future__ import annotations

import importlib
import json
import math
import shlex
import sys
import types
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from nlattn import conformance
from nlattn.cli import main
from nlattn.conformance import assert_conforms, conformance_tests, testing
from nlattn.conformance.backends.backend import FunctionBackend
from nlattn.conformance.judge.verdict import Verdict
from nlattn.conformance.report.files import difference, junit, page
from nlattn.conformance.report.text import (
    Report,
    as_data,
    failure,
    from_data,
    lines,
    number,
    summary,
)
from nlattn.conformance.runner import factor
from nlattn.conformance.testing import spelt
from nlattn.conformance.truth.transcription import transcription

pytestmark = pytest.mark.plain

NAME = "attention/forward/float32/"
VERDICTS = [
    Verdict(NAME + "a", "pass", 0.5, "out", (1, 2), 1.0, 1.0, 1e-7, 17.0, 1.0),
    Verdict(NAME + "b", "fail", 80.0, "out", (0,), 1.5, 1.0, 1e-7, 0.3, 900.0, "", "q is <k>"),
    Verdict(NAME + "c", "crash", math.inf, detail="killed by SIGABRT\x00"),
    Verdict("attention/vjp/float64/a", "unsupported", detail="no float64"),
]
REPORT = Report("mine", "nlattn validate 'my file.py'", "smoke", VERDICTS, 1.25)


def test_a_line_for_each_operator_and_dtype() -> None:
    heads, one, two = lines(REPORT)
    assert heads[:3] == ("operator", "dtype", "passed")
    assert one == ("attention", "float32", "1", "-", "2", "-", "80", f"{NAME}b out[0]")
    assert two == ("attention", "float64", "-", "-", "-", "1", "", "no float64")
    assert summary(REPORT) == "mine, smoke: 1 pass, 1 fail, 1 crash, 1 unsupported in 1.2 s"
    assert summary(Report("x", "", "smoke", [])) == "x, smoke: no cases in 0.0 s"
    assert number(math.inf) == "inf"


def test_a_failure_says_all() -> None:
    assert failure(REPORT, VERDICTS[1]).splitlines() == [
        f"FAIL {NAME}b",
        "  out[0]: got 1.5, want 1, bound 1e-07, error/bound 80, 0.3 digits right, "
        "900 times NumPy's error",
        "  q is <k>",
        f"  seed 0; again: nlattn validate 'my file.py' --case {NAME}b",
    ]


def test_reports_come_back_from_json() -> None:
    data = json.loads(json.dumps(as_data(REPORT)))
    again = from_data(data)
    assert again.counts() == REPORT.counts()
    assert again.verdicts[1] == VERDICTS[1]
    for damaged in (None, {}, {"verdicts": [3]}, {**data, "verdicts": [{"x": 1}]}):
        with pytest.raises(ValueError, match="is no report of nlattn validate"):
            from_data(damaged)


def test_junit_counts() -> None:
    suite = ElementTree.fromstring(junit(REPORT).split("\n", 1)[1])
    assert suite.attrib["tests"] == "4"
    assert suite.attrib["failures"] == "2"
    assert suite.attrib["skipped"] == "1"
    tests = suite.findall("testcase")
    assert tests[1].attrib["classname"] == "attention.forward.float32"
    assert "q is <k>" in (tests[1].find("failure").text or "")  # type: ignore[union-attr]


def test_the_page_is_whole_and_safe() -> None:
    text = page(REPORT)
    assert text.count("<tr>") == 3 + 4
    assert "q is &lt;k&gt;" in text
    assert 'name="viewport"' in text
    assert not any(word in text for word in ("http:", "https:", "src=", "<script", "@import"))


def test_what_changed() -> None:
    after = [
        Verdict(NAME + "a", "pass", 8.0),
        Verdict(NAME + "b", "pass", 0.2),
        Verdict(NAME + "c", "crash", math.inf),
        Verdict(NAME + "new", "suspicious", 2.0),
    ]
    assert difference(REPORT, Report("mine", "", "smoke", after)) == [
        f"{NAME}a: pass, error/bound 0.5 -> 8",
        f"{NAME}b: fail -> pass",
        "attention/vjp/float64/a: unsupported -> gone",
        f"{NAME}new: not there -> suspicious",
    ]


def test_files_and_their_difference(capsys: Any, tmp_path: Path) -> None:
    paths = {kind: tmp_path / f"r.{kind}" for kind in ("json", "junit", "html")}
    words = ["validate", "numpy", "--case", "attention/forward/float32/causal", "--quiet"]
    words += [x for kind, path in paths.items() for x in (f"--{kind}", str(path))]
    assert main(words) == 0
    assert capsys.readouterr().out == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in paths.values())
    assert main(words) == 2
    assert f"{paths['json']} exists; --force overwrites it" in capsys.readouterr().err
    data = json.loads(paths["json"].read_text())
    data["verdicts"][0]["status"] = "fail"
    (tmp_path / "worse.json").write_text(json.dumps(data))
    worse = [str(paths["json"]), str(tmp_path / "worse.json")]
    assert main(["validate", "--diff", *worse]) == 1
    assert capsys.readouterr().out == "attention/forward/float32/causal: pass -> fail\n"
    assert main(["validate", "--diff", *reversed(worse)]) == 0
    (tmp_path / "worse.json").write_text("{}")
    assert main(["validate", "--diff", *worse]) == 2
    assert "worse.json: is no report" in capsys.readouterr().err
    assert main(["validate", "numpy", "--case", "*/causal", "--html", "/nowhere/x.html"]) == 2


def test_wrong_words(capsys: Any) -> None:
    assert main(["validate"]) == 2
    assert "give a BACKEND or --diff OLD.json NEW.json, one of them" in capsys.readouterr().err
    assert main(["validate", "numpy", "--tolerance", "4"]) == 2
    assert "'4' is not PATTERN=FACTOR" in capsys.readouterr().err


def test_names_are_found_when_asked_for() -> None:
    with pytest.raises(AttributeError, match="no attribute 'verdicts'"):
        _ = conformance.verdicts  # type: ignore[attr-defined]


def test_overrides_by_pattern() -> None:
    assert factor(NAME + "a", {"*": 2.0, "attention/*/float16/*": 9.0}) == 2
    assert factor(NAME + "a", {"*": 2.0, "attention/*/float32/*": 9.0}) == 9
    assert factor(NAME + "a", {}) == 1


def right(q: Any, k: Any, v: Any, *, causal: bool = False) -> Any:
    return transcription("attention", {"q": q, "k": k, "v": v}, {"causal": causal})


def test_a_function_conforms_or_not() -> None:
    assert_conforms(right, op="attention", dtypes=("float32",))
    with pytest.raises(AssertionError, match=r"(?s)\d+ of \d+ cases fail.*FAIL attention/forward"):
        assert_conforms(lambda q, k, v: 0 * right(q, k, v), op="attention", dtypes=("float64",))
    with pytest.raises(AssertionError, match="computed no case of qna_vjp"):
        assert_conforms(lambda x: x, op="qna_vjp", dtypes=("float32",))


DEVIATION = {"pattern": "*/causal-nothing", "reason": "rows of nothing", "link": "docs#rows"}


class Mine:
    name = "mine"

    def attention(self, q: Any, k: Any, v: Any, *, causal: bool = False) -> Any:
        return right(q, k, v, causal=causal and len(q) == 0)


def made(**options: Any) -> Any:
    found = conformance_tests(Mine(), operators=("attention",), dtypes=("float32",), **options)
    return found["test_conformance"]


def test_pytest_sees_a_test_for_each_case(tmp_path: Path) -> None:
    known = {**DEVIATION, "pattern": "attention/forward/float32/causal*"}
    (tmp_path / "known.json").write_text(json.dumps([known]))
    test = made(deviations=tmp_path / "known.json")
    parameters = {p.id: p for p in test.pytestmark[0].args[1]}
    assert parameters["attention/forward/float32/causal"].marks[0].name == "xfail"
    assert not parameters["attention/forward/float32/primes"].marks
    test(parameters["attention/forward/float32/primes"].values[0])
    with pytest.raises(pytest.fail.Exception, match="FAIL attention/forward/float32/causal"):
        test(parameters["attention/forward/float32/causal"].values[0])
    with pytest.raises(pytest.skip.Exception, match="takes no softcap"):
        test(parameters["attention/forward/float32/softcap"].values[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a list of objects"),
        ("[{}]", "is not a list of objects"),
        (json.dumps([{**DEVIATION, "link": ""}]), "needs a reason and a link"),
        (json.dumps([{**DEVIATION, "pattern": "x*"}]), "'x\\*' matches no case"),
    ],
)
def test_a_deviations_file_must_be_right(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "known.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        made(deviations=tmp_path / "known.json")


def test_numbers_that_are_none_are_nan() -> None:
    assert np.isnan(from_data(as_data(REPORT) | {"seconds": 0.0}).verdicts[2].want)


@pytest.mark.parametrize("rule", ["behaviour", "search"])
def test_pytest_sees_behaviour_and_searches(rule: str, tmp_path: Path) -> None:
    class Writing:
        name = "writing"

        def run(self, op: str, arrays: Any, options: Any) -> Any:
            out = transcription(op, arrays, options)
            if arrays["q"].flags.writeable:
                arrays["q"][...] = 0
            return out

    ops = {"behaviour": ("attention",), "search": ("patchmatch",)}[rule]
    name = f"{ops[0]}/{rule}/float32/" + {"behaviour": "inputs", "search": "own"}[rule]
    tests = conformance_tests(Writing(), operators=ops, dtypes=("float32",))
    with pytest.raises(pytest.fail.Exception, match=f"FAIL {name}"):
        tests[f"test_{rule}"](ops[0], "float32")
    (tmp_path / "known.json").write_text(json.dumps([{**DEVIATION, "pattern": name}]))
    known = {"deviations": tmp_path / "known.json"}
    tests = conformance_tests(Writing(), operators=ops, dtypes=("float32",), **known)
    if rule == "behaviour":
        tests["test_behaviour"]("attention", "float32")
        return
    with pytest.raises(pytest.skip.Exception, match="known deviations alone"):
        tests["test_search"]("patchmatch", "float32")


def test_a_replay_from_pytest_is_a_command() -> None:
    with pytest.raises(AssertionError) as error:
        assert_conforms(transposing, op="attention", dtypes=("float32",))
    (line, *_) = (x for x in str(error.value).splitlines() if "again: " in x)
    words = shlex.split(line.split("again: nlattn ")[1])
    assert words[:2] == ["validate", f"{__file__}:transposing"]
    assert main([*words, "--quiet"]) == 1


def transposing(q: Any, k: Any, v: Any) -> Any:
    return right(q, k, v).swapaxes(-1, -2)


def renamed(function: Any) -> Any:
    """As decorators do that copy a name."""

    def inner(*arrays: Any) -> Any:
        return function(*arrays)

    inner.__qualname__ = inner.__name__ = "main"  # something else in this file
    return inner


wrapped = wraps(transposing)(renamed(transposing))
hidden = renamed(transposing)


class Outer:
    class Inner:
        attention = staticmethod(transposing)


def test_a_replay_names_what_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    op = ["--op", "attention"]
    assert spelt(FunctionBackend(wrapped, "attention")) == [f"{__file__}:wrapped", *op]
    assert spelt(FunctionBackend(hidden, "attention")) == [f"{__file__}:hidden", *op]
    assert spelt(FunctionBackend(renamed(len), "attention")) == ["main", *op]
    assert spelt(FunctionBackend(partial(len), "attention")) == ["partial", *op]
    assert spelt(Outer.Inner()) == [f"{__file__}:Outer.Inner"]
    lazy = types.ModuleType("lazy")
    lazy.__dict__["__getattr__"] = lambda name: importlib.import_module(f"missing.{name}")
    monkeypatch.setitem(sys.modules, "lazy", lazy)
    assert spelt(FunctionBackend(renamed(len), "attention")) == ["main", *op]


def lost(q: Any, k: Any, *, iterations: int, seed: int, topk: int = 1) -> Any:
    """The first key for every query, and those that follow."""
    assert q.shape[-1] == k.shape[-1]
    assert (iterations, seed) >= (2, 0)
    return np.broadcast_to(np.arange(topk), (*q.shape[:2], topk))


def test_a_function_that_searches_is_judged_by_what_it_finds() -> None:
    with pytest.raises(AssertionError, match=r"(?s)1 of 1 cases fail.*regret is worse on \d+ of"):
        assert_conforms(lost, op="patchmatch", dtypes=("float64",))
    with pytest.raises(AssertionError, match=r"no case of patchmatch.*: takes no iterations, seed"):
        assert_conforms(lambda q, k: lost(q, k, iterations=1, seed=0), op="patchmatch")


def test_a_function_is_judged_by_how_it_behaves() -> None:
    given = []

    def keeping(q: Any, k: Any, v: Any) -> Any:
        given.append(right(q, k, v))
        return given[-1] + (0 if len(given) % 2 else np.spacing(given[-1]))

    with pytest.raises(AssertionError, match="FAIL attention/behaviour/float64/repeatable"):
        assert_conforms(keeping, op="attention", dtypes=("float64",))


def test_what_is_suspicious_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    doubtful = Verdict(NAME + "a", "suspicious", 0.5, detail="ties the other way")
    monkeypatch.setattr(testing, "run", lambda *_: [doubtful, replace(doubtful, case=NAME + "b")])
    with pytest.warns(UserWarning, match=rf"ties the other way \({NAME}a and 1 more\)") as told:
        assert_conforms(right, op="attention", dtypes=("float32",))
    assert told[0].filename == __file__
