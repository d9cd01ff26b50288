"""The kit is judged by planted faults: all rejected, most named, right code not blamed."""

from __future__ import annotations

from pathlib import Path

import pytest

from nlattn.conformance.backends.backend import Unsupported
from tests.faults import FAULTS, RIGHT, Fault, Outcome, cases, judge, matrix
from tests.faults.report import lines, summary

PAGE = Path(__file__).parents[2] / "docs/conformance.md"


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return list(matrix(enough=2))


def test_every_fault_is_rejected(outcomes: list[Outcome]) -> None:
    assert len(outcomes) == len(FAULTS) >= 60
    assert [o.fault.name for o in outcomes if not o.failed] == []


def test_most_faults_are_named(outcomes: list[Outcome]) -> None:
    missed = [(o.fault.name, o.said) for o in outcomes if not o.named]
    assert len(missed) <= 0.05 * len(outcomes), missed


def test_the_page_has_the_matrix(outcomes: list[Outcome]) -> None:
    assert summary(outcomes) in PAGE.read_text()
    assert len(lines(outcomes)) == len(outcomes) + 1


@pytest.mark.parametrize("fault", RIGHT, ids=lambda fault: fault.op)
def test_the_same_code_without_a_fault_passes(fault: Fault) -> None:
    outcome = judge(fault, cases(fault.op))
    assert outcome.cases >= 4
    assert outcome.failed == ()
    assert outcome.said == ""


def test_a_fault_computes_its_own_function_only() -> None:
    with pytest.raises(Unsupported, match="computes attention only"):
        FAULTS[0].run("enla", {}, {})
