"""No right implementation is blamed, whatever its order, exponents, blocks or formats within."""

from __future__ import annotations

from functools import cache

import pytest

from nlattn.conformance.backends.perform import perform
from nlattn.conformance.case import Case
from nlattn.conformance.cases.suite import cases
from nlattn.conformance.judge.verdict import judge
from tests.conformance.rightful import WAYS, Rightful


@cache
def suite() -> list[Case]:
    return list(cases("standard", ("attention",)))


@pytest.mark.parametrize("way", WAYS)
def test_a_right_implementation_passes_everywhere(way: str) -> None:
    backend = Rightful(way)
    for case in suite():
        reply = perform(backend, case)
        assert not reply.raised, (case.name, reply)
        verdict = judge(case, reply.outputs)
        assert verdict.status == "pass", verdict
