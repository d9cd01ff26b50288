"""Cases past the limits of 32 bits, here past a limit of 16: what they are and what they find."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlattn.conformance.case import Case
from nlattn.conformance.cases import large
from nlattn.conformance.judge.verdict import judge
from nlattn.conformance.large_call import FAR, TOWARDS, LongRows, made, needed
from nlattn.conformance.runner import Here, attempt
from nlattn.conformance.table import TABLE
from nlattn.conformance.truth.bounds import exact, transcribed
from tests.faults.offsets import Backend

pytestmark = pytest.mark.plain

BITS = 18


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "LIMIT", 1 << (BITS - 1))


def cases(pattern: str = "*", **given: Any) -> list[Case]:
    return list(large.large(pattern=pattern, **given))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_truth_of_the_whole_is_that_of_the_part(dtype: str) -> None:
    """`sampled_truth` reads the long arrays, the oracle the short ones."""
    found = cases(dtypes=[dtype])
    assert {case.op for case in found} == {spec.name for spec in TABLE if spec.cases.large}
    for case in found:
        part = Case(case.name, case.op, case.kind, case.dtype, case.arrays, case.options)
        for name, x in exact(case).items():
            np.testing.assert_allclose(x, exact(part)[name], rtol=1e-12, atol=1e-13)


def test_a_dimension_passes_the_limit() -> None:
    for case in cases():
        arrays = made(case)
        first = case.spec.arrays
        for name in "qkv":
            assert arrays[name].shape[0] == case.sizes()[first[name].split()[0]]
        if case.spec.arrays["q"].startswith("H"):
            places = case.sizes()["H"] * case.sizes()["W"]
            most = places << 10 if "places" in case.name else places * case.sizes()["d"] * 4
            assert most > large.LIMIT
        elif "band" not in case.name:
            rows = max(place["size"] for place in case.whole.values())
            item = 1 if "elements" in case.name else 4
            assert rows * max(case.sizes()[name] for name in "de") * item > large.LIMIT
            assert needed(case) >= sum(x.nbytes for n, x in arrays.items() if "." not in n)
        for place in case.whole.values():
            assert place["at"][-1] == place["size"] - 1


def test_rows_in_between_weigh_nothing_in_any_format() -> None:
    for case in cases("attention/forward/*"):
        score = TOWARDS * FAR * case.arrays["q"].shape[1] ** -0.5
        assert score > 900, "exp(-900) is 0 in float64"


def test_rows_are_the_same_by_block_and_at_once() -> None:
    own = np.arange(6.0).reshape(3, 2)
    x = LongRows("q", own, 10_000, [0, 5000, 9999])
    np.testing.assert_array_equal(x.made()[4990:5010], x[4990:5010])
    np.testing.assert_array_equal(x[5000:5001], own[1:2])


def test_right_results_pass() -> None:
    for case in cases():
        verdict = judge(case, transcribed(case))
        assert not verdict.failed, verdict


def test_an_offset_cut_short_is_found_and_named() -> None:
    """The planted fault: a gradient whose byte offsets have fewer bits than the array."""
    verdicts = {}
    for case in cases(ops=("attention",)):
        if "band" not in case.name:
            verdicts[case.name.split("/", 1)[1]] = attempt(Here(Backend(BITS)), case)[0]
    failed = {name for name, verdict in verdicts.items() if verdict.failed}
    assert failed == {"vjp/float32/queries", "vjp/float32/elements"}
    said = verdicts["vjp/float32/queries"].diagnosis
    assert said.startswith("dq is right in the first rows and wrong from row 128 of")
    assert "an offset cut to 32 bits?" in said
    for case in cases(ops=("attention",)):
        if "band" not in case.name:
            assert attempt(Here(Backend(63)), case)[0].status == "pass"


def test_an_offset_cut_short_in_a_grid_is_found_and_named() -> None:
    """NATTEN#347: gradients of more than 2**21 places."""
    for case in cases(ops=("neighbourhood_attention",)):
        if case.kind == "vjp":
            assert attempt(Here(Backend(63)), case)[0].status == "pass"
    (case,) = cases("neighbourhood_attention/vjp/float32/places")
    verdict = attempt(Here(Backend(BITS)), case)[0]
    assert verdict.failed
    assert verdict.diagnosis.startswith("dq is right in the first rows and wrong from row")
    assert "an offset cut to 32 bits?" in verdict.diagnosis


def test_rows_that_nobody_writes_are_found() -> None:
    class Unwritten(Backend):
        def attention_vjp(self, q: Any, k: Any, v: Any, dout: Any) -> Any:
            dq, dk, dv = super().attention_vjp(q, k, v, dout)
            dq[len(dq) // 2 + 3] = np.nan
            return dq, dk, dv

    (case,) = cases("attention/vjp/float32/queries")
    verdict = attempt(Here(Unwritten(63)), case)[0]
    assert verdict.failed
    assert "dq is not 0 in row" in verdict.detail
