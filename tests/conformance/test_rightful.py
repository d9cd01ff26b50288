"""No right implementation is blamed, whatever its order, exponents, blocks or formats within."""

from __future__ import annotations

import pytest

from nlattn.conformance.backends.perform import perform
from nlattn.conformance.case import DTYPES
from nlattn.conformance.cases.suite import cases
from nlattn.conformance.judge.verdict import judge
from tests.conformance.rightful import WAYS, Rightful


@pytest.mark.parametrize("dtype", DTYPES)
def test_right_implementations_pass_everywhere(dtype: str) -> None:
    backends = [Rightful(way) for way in WAYS]
    for case in cases("smoke", ("attention",), (dtype,)):
        for backend in backends:  # truth and bounds are computed once
            reply = perform(backend, case)
            verdict = judge(case, reply.outputs)
            assert verdict.status == "pass", (backend.name, reply.raised, verdict)
