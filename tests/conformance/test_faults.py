"""The kit is judged by planted faults: all rejected, most named, right code not blamed."""

from __future__ import annotations

from pathlib import Path

import pytest

from nlattn.conformance.backends.backend import Unsupported
from tests.conftest import NO_JIT
from tests.faults import FAULTS, RIGHT, TRAPS, Fault, Outcome, cases, judge, matrix, trapped
from tests.faults.generated import examine, sample
from tests.faults.report import lines, summary

PAGE = Path(__file__).parents[2] / "docs/conformance.md"


once = pytest.mark.skipif(NO_JIT, reason="no kernel runs here: compiled, all faults are judged")
"""CI has a run of each kind, and long tests in which nothing is compiled are in one of them."""


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return list(matrix(enough=2))


@once
def test_every_fault_is_rejected(outcomes: list[Outcome]) -> None:
    assert len(FAULTS) >= 60
    assert [o.fault.name for o in outcomes if not o.failed] == []


@once
def test_most_faults_are_named(outcomes: list[Outcome]) -> None:
    missed = [(o.fault.name, o.said) for o in outcomes if not o.named]
    assert len(missed) <= 0.05 * len(outcomes), missed


@once
def test_the_page_has_the_matrix(outcomes: list[Outcome]) -> None:
    assert summary(outcomes) in PAGE.read_text()
    assert len(lines(outcomes)) == len(outcomes) + 1


@pytest.mark.plain
@pytest.mark.parametrize("fault", RIGHT, ids=lambda fault: fault.op)
def test_the_same_code_without_a_fault_passes(fault: Fault) -> None:
    given = cases(fault.op)
    outcome = judge(fault, given[:: max(1, len(given) // 24)])  # enough of each, in time
    assert outcome.cases >= 4
    assert outcome.failed == ()
    assert outcome.said == ""


def test_a_fault_computes_its_own_function_only() -> None:
    with pytest.raises(Unsupported, match="computes attention only"):
        FAULTS[0].run("enla", {}, {})


@once
def test_traps_of_real_kernels_are_rejected() -> None:
    passed = [o.fault.name for o in trapped(TRAPS[::16], enough=1) if not o.failed]
    assert passed == []
    assert len(FAULTS) + len(TRAPS) >= 320


@pytest.mark.plain
def test_faults_that_a_machine_makes_are_rejected() -> None:
    found = [examine(m, ("smoke",), told=False) for m in sample(40, ops=("attention",))]
    real = [f for f in found if f.rejected != "same"]
    assert sum(bool(f.rejected) for f in real) >= 0.9 * len(real) >= 20
