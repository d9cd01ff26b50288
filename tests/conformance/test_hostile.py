"""Whatever a backend does, every case has its verdict, and nothing outlives the run."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nlattn.conformance.backends.backend import FunctionBackend
from nlattn.conformance.backends.process import HANGS, Process, marked
from nlattn.conformance.case import Case
from nlattn.conformance.cases import suite
from nlattn.conformance.report.files import junit, page
from nlattn.conformance.report.text import Report
from nlattn.conformance.runner import Here, run
from tests.conformance import hostile

CASES = [c for c in suite.cases("smoke", ("attention",), ("float32",)) if c.kind == "forward"]
FILE = str(Path(hostile.__file__))


def small(n: int) -> Case:
    arrays = {name: np.ones((n, 2)) for name in "qkv"}
    return Case(f"attention/forward/float64/n{n}", "attention", "forward", "float64", arrays)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("transposed", "out has shape (3, 17), expected (17, 3), its axes in another order"),
        ("scalar", "out has shape ()"),
        ("flat", "out has shape (51,)"),
        ("short", "out has shape (16, 3)"),
        ("words", "raised WrongResult: out has dtype <U7"),
        ("ragged", "raised WrongResult"),
        ("surrogate", "raised KeyError: '\\ud800'"),
        ("wordless", "refuses: SilentError: an error without words"),
        ("leaving", "raised SystemExit: 3"),
    ],
)
def test_every_case_is_judged(name: str, told: str) -> None:
    subject = Here(FunctionBackend(getattr(hostile, name), "attention"))
    verdicts = list(run(subject, CASES))
    assert [v.case for v in verdicts[: len(CASES)]] == [c.name for c in CASES]
    (primes,) = (v for v in verdicts if v.case.endswith("/forward/float32/primes"))
    assert told in f"{primes.detail} {primes.diagnosis}"
    assert primes.status == ("unsupported" if name == "wordless" else "fail")
    report = Report(name, "nlattn validate x", "smoke", verdicts)
    junit(report).encode()
    page(report).encode()


def test_capabilities_that_are_misspelt_are_an_error() -> None:
    with pytest.raises(ValueError, match="operators name 'atention'"):
        Here(hostile.Misspelt())
    with pytest.raises(ValueError, match="operators name 'atention'"):
        Process(f"{FILE}:Misspelt", timeout=60)
    Process.close_all()


def test_a_file_that_exits_while_it_is_loaded_is_refused(tmp_path: Path) -> None:
    for text, told in (("import sys; sys.exit(0)", "SystemExit: 0"), ("1 / 0", "ZeroDivision")):
        file = tmp_path / "bad.py"
        file.write_text(text)
        with pytest.raises(ValueError, match=told):
            Process(str(file), timeout=60)
    Process.close_all()


def test_a_run_of_calls_that_hang_is_given_up() -> None:
    with Process(f"{FILE}:hanging", "attention", timeout=0.3) as subject:
        start = time.monotonic()
        verdicts = list(run(subject, [small(n) for n in range(1, 40)]))
    assert {v.status for v in verdicts} == {"timeout"}
    assert verdicts[HANGS].detail == f"not asked: {HANGS} calls in a row did not end"
    assert len(verdicts) == 39
    assert time.monotonic() - start < 100  # and not 39 calls of 0.3 s and as many processes


@pytest.mark.skipif(sys.platform != "linux", reason="marks are read from /proc")
def test_children_end_with_the_run() -> None:
    with Process(f"{FILE}:Parent", timeout=60) as subject:
        assert subject.ask(small(3)).outputs
        token: Any = subject._token
        assert len(list(marked(token))) == 2
    for _ in range(50):
        if not list(marked(token)):
            break
        time.sleep(0.1)
    assert list(marked(token)) == []
