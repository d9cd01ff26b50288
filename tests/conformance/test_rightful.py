"""No right implementation is blamed, whatever its order, exponents, blocks or formats within."""

from __future__ import annotations

import pytest

from nlattn.conformance.backends.perform import perform
from nlattn.conformance.case import DTYPES
from nlattn.conformance.cases.suite import cases
from nlattn.conformance.judge.bias import Lean, pooled
from nlattn.conformance.judge.verdict import LEAK, judge
from tests.conformance.rightful import WAYS, Rightful
from tests.conftest import NO_JIT

pytestmark = pytest.mark.plain

ARRAYS = {"q", "k", "v", "dout", "dlse", "bias", "mask"}
OPTIONS = {
    *("scale", "softcap", "causal", "causal_offset", "window", "gqa", "masked_rows", "return_lse")
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_right_implementations_pass_everywhere(dtype: str) -> None:
    backends = [Rightful(way) for way in WAYS]
    some = [
        case
        for case in cases("smoke", ("attention",), (dtype,))
        if {*case.arrays} <= ARRAYS
        and {*case.options} <= OPTIONS
        and isinstance(case.options.get("causal_offset", 0), int)
    ]
    assert len(some) > 150
    leans: dict[str, list[Lean]] = {}
    for case in some[:: 8 if NO_JIT else 1]:  # no kernel runs here
        for backend in backends:  # truth and bounds are computed once
            reply = perform(backend, case)
            verdict = judge(case, reply.outputs)
            leaks = case.name.endswith(("/mask-nan", "/mask-nan-keys")) and verdict.detail == LEAK
            assert verdict.status == "pass" or leaks, (backend.name, reply.raised, verdict)
            if verdict.lean is not None:
                leans.setdefault(backend.name, []).append(verdict.lean)
    assert {name: said for name, found in leans.items() if (said := pooled(found))} == {}
