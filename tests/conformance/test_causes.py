"""One mistake is one block; what was judged and what was not is said; nothing judged is no pass."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from nlattn.cli import main
from nlattn.conformance.backends.capabilities import Capabilities, capable
from nlattn.conformance.cases import suite
from nlattn.conformance.judge.verdict import Verdict
from nlattn.conformance.report.causes import causes, doubts, others, raised, unjudged
from nlattn.conformance.table import TABLE

pytestmark = pytest.mark.plain

A = "attention/forward/float32/"


def test_failures_of_one_mistake_are_together() -> None:
    same = "your output equals ours "
    verdicts = [
        Verdict(A + "a", "fail", 8.0, diagnosis=same + "without the scale"),
        Verdict(A + "b", "fail", 9.0, diagnosis=same + "without the mask or without the scale"),
        Verdict(A + "c", "fail", 7.0, diagnosis=same + "without the mask"),
        Verdict(A + "d", "fail", math.inf, detail="raised KeyError: 7 (x.py:3)"),
        Verdict(A + "e", "fail", math.inf, detail="raised KeyError: 9 (x.py:3)"),
        Verdict(A + "f", "fail", math.nan),
        Verdict("qna" + A[9:] + "a", "fail", 3.0, diagnosis=same + "without the scale"),
        Verdict(A + "g", "pass", 0.1),
    ]
    found = causes(verdicts)
    labels = [[v.case.replace(A, "") for v in (c.worst, *c.others)] for c in found]
    assert labels == [["b", "a"], ["d", "e"], ["c"], ["qna/forward/float32/a"], ["f"]]
    assert others(found[0]) == f"the same in 1 other cases: {A}a"
    assert others(found[4]) == ""


def test_names_that_differ_in_numbers_are_one_mistake() -> None:
    root = "your output equals ours with `x` times sqrt(d), with d = "
    blocks = "your output equals ours without rescaling blocks of 32"
    verdicts = [
        *(Verdict(f"{A}{d}", "fail", d, diagnosis=f"{root}{d}") for d in (5.0, 65.0, 17.0, 65.0)),
        Verdict(A + "a", "fail", 2.0, diagnosis=f"{blocks} or without rescaling blocks of 64"),
        Verdict(A + "b", "fail", 1.0, diagnosis=blocks.replace("32", "64")),
    ]
    root_cause, block_cause = causes(verdicts)
    assert root_cause.worst.diagnosis == f"{root}65.0"
    assert others(root_cause).startswith("the same in 3 other cases, there with 17.0; 5.0: ")
    assert block_cause.worst.diagnosis == blocks.replace("32", "64")  # explains both
    assert others(block_cause) == f"the same in 1 other cases: {A}b"


@pytest.mark.parametrize(
    ("operators", "verdicts", "said"),
    [
        (None, [("attention", "pass", "")], ""),
        (None, [("attention", "unsupported", "no d of 5")], "nothing was judged: no d of 5"),
        (["attention"], [("attention", "unsupported", "refuses: d")],
         "no case of attention was judged: refuses: d"),
        (["attention"], [("attention", "fail", "")], ""),
        (["attention", "qna"], [("attention", "pass", ""), ("qna", "unsupported", "no")],
         "no case of qna was judged: no"),
        (["attention", "qna"], [("attention", "pass", "")], ""),  # qna was not asked for
    ],
)  # fmt: skip
def test_nothing_judged_is_said(operators: Any, verdicts: Any, said: str) -> None:
    found = [Verdict(f"{op}/forward/float32/x", status, detail=d) for op, status, d in verdicts]
    assert unjudged(operators, found) == said
    assert unjudged(["attention"], [Verdict("attention/jvp/float32/x", "pass")]) == ""
    some = ["attention", "attention_vjp"]  # of which forward cases alone were asked for
    assert unjudged(some, [Verdict("attention/forward/float32/x", "pass")]) == ""


def test_what_is_suspicious_is_said() -> None:
    verdicts = [
        Verdict(A + "a", "suspicious", 1.2),
        Verdict(A + "b", "suspicious", detail="query [3] holds other keys"),
        Verdict(A + "c", "suspicious", detail="query [12] holds other keys"),
        Verdict(A + "d", "fail", 8.0),
    ]
    assert list(doubts(verdicts)) == [
        f"suspicious, attention: query [3] holds other keys ({A}b and 1 more)",
        f"suspicious, attention: 1.2 times the bound; NumPy's own is as far off ({A}a)",
    ]


REFUSING = """
class Backend:
    def capabilities(self):
        return {"operators": ["attention"], "dtypes": ["float16"], "refusals": PATTERNS}
    def run(self, op, arrays, options):
        raise RuntimeError("head dimension must be 64")
"""


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        ('["dimension"]', "FAIL no case of attention was judged: refuses: RuntimeError: head dim"),
        ("[]", "FAIL attention/forward/float16/primes"),
    ],
)
def test_a_backend_that_refuses_everything_does_not_pass(
    patterns: str, said: str, tmp_path: Path, capsys: Any
) -> None:
    file = tmp_path / "refusing.py"
    file.write_text(REFUSING.replace("PATTERNS", patterns))
    assert main(["validate", str(file)]) == 1
    out = capsys.readouterr().out
    assert said in out
    assert f"not asked: {len(TABLE) - 1} operators that it does not name (nonlocal_mean, " in out


def test_a_replay_has_every_flag(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "refusing.py"
    file.write_text(REFUSING.replace("PATTERNS", "[]"))
    words = ["--dtypes", "float16", "--timeout", "99", "--tolerance", "*=2", "--memory", "3"]
    assert main(["validate", str(file), *words, "--json"]) == 1
    command = json.loads(capsys.readouterr().out)["command"]
    assert command == (
        f"nlattn validate {file} --dtypes float16 --timeout 99 --memory 3 --tolerance '*=2'"
    )


def test_words_of_capabilities() -> None:
    @capable(dtypes=("float16",), d=(64, 128), e="d", accumulate="float16")
    def kernel() -> None: ...

    told: Any = kernel
    able = Capabilities.of({"operators": ["attention"], **told.capabilities})
    assert able.dtypes == ("float16",)
    assert able.shapes["attention"].fit({"d": 5, "e": 3}) == {"d": 64, "e": 64}
    assert able.arithmetic("float16").sums.unit == 2**-11
    assert Capabilities().arithmetic("float16").sums.unit == 2**-24
    assert Capabilities.of({"products": "tf32"}).arithmetic("float32").factors is not None
    assert able.refused("RuntimeError: no")
    assert not able.refused("IndexError: out of range")
    assert not able.refused("WrongResult: gave 3 results")


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ({"operater": []}, "capabilities name 'operater', expected some of accumulate, compiles"),
        ({"operators": "atention"}, "operators name 'atention'; nlattn list names them"),
        ({"operators": ["attn"]}, "operators name 'attn'; expected some of attention, att"),
        ({"dtypes": ["half"]}, "dtypes name 'half'; expected some of float64, float32"),
        ({"options": {"attn": []}}, "options name 'attn'"),
        ({"shapes": {"attention": {"D": 3}}}, "shapes name 'D', expected some of n, d, m, e"),
        ({"accumulate": "int8"}, "accumulate name 'int8'; expected some of float32"),
    ],
)
def test_words_that_mean_nothing_are_an_error(told: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Capabilities.of(told)


def test_calls_that_raise_where_others_do_not_are_told() -> None:
    some = list(suite.cases("smoke", ("enlca_loss",), ("float64",), "*/forward/*"))[:5]
    found = [Verdict(c.name, "pass") for c in some[:3]]
    found += [Verdict(c.name, "unsupported", detail="refuses: LinAlgError: no") for c in some[3:]]
    assert list(raised(some, found)) == [
        "NOTE enlca_loss: 2 calls raised, 3 did not: LinAlgError: no; "
        "if that is no bug, raise Unsupported"
    ]
    assert list(raised(some, found[3:])) == []
