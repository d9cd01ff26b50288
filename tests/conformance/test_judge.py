"""Verdicts: the right pass in every dtype, zeros and small errors do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nlattn.conformance.case import DTYPES, bound, suite, truth
from nlattn.conformance.judge.verdict import CLOSE, digits, judge, ratios
from nlattn.conformance.truth.bounds import plain

CASES = {case.name: case for case in suite("smoke", ("attention",))}
CAUSAL = CASES["attention/forward/float32/causal"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_truth_and_the_plain_transcription_pass(dtype: str) -> None:
    for case in (c for c in CASES.values() if c.dtype == dtype):
        verdict = judge(case, truth(case))
        assert (verdict.status, verdict.ratio) == ("pass", 0)
        verdict = judge(case, plain(case))
        assert verdict.status == "pass", verdict
        assert verdict.ratio < 0.5, verdict
        assert not verdict.failed


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_do_not_pass_for_small_results(dtype: str) -> None:
    for case in (c for c in CASES.values() if c.dtype == dtype):
        want = truth(case)
        zeros = {name: np.zeros_like(x) for name, x in want.items()}
        if all(abs(x).max(initial=0) < 1e-9 for x in want.values()):
            continue  # such as gradients of equal scores
        verdict = judge(case, zeros)
        assert verdict.status in (("fail", "close") if "16" in dtype else ("fail",)), verdict


def test_the_bound_follows_what_is_summed() -> None:
    """One value of 1e6 among ones loosens the bound where it has weight, and nowhere else."""
    case = replace(CAUSAL, options={"causal": True}, dtype="float64")
    v = np.ones_like(case.arrays["v"], dtype=np.float64)
    v[5, 0] = 1e6
    arrays = {n: np.asarray(x, np.float64) for n, x in case.arrays.items()} | {"v": v}
    each = bound(replace(case, arrays=arrays))["out"]
    assert (each[:5] < 2e-14).all()
    assert (each[5:, 0] > 1e-13).all()
    assert (each[:, 1:] < 2e-14).all()


@pytest.mark.parametrize(
    ("spoil", "status", "text"),
    [
        (lambda x: x[:-1], "fail", "out has shape (16, 3), not (17, 3)"),
        (lambda x: x.astype(complex), "fail", "out has dtype complex128"),
        (lambda x: x * (1 + 1e-3), "fail", ""),
        (lambda x: np.where(x == x.max(), np.nan, x), "fail", ""),
        (lambda x: np.where(x == x.max(), np.inf, x), "fail", ""),
        (lambda x: x.astype(np.float32), "pass", ""),
    ],
)
def test_what_is_wrong_fails(spoil: Any, status: str, text: str) -> None:
    verdict = judge(CAUSAL, {"out": spoil(truth(CAUSAL)["out"])})
    assert verdict.status == status
    assert verdict.detail == text


def test_a_missing_result_fails() -> None:
    assert judge(CAUSAL, {}).detail == "out is missing"


def test_close_is_between() -> None:
    want, each = truth(CAUSAL)["out"], bound(CAUSAL)["out"]
    for factor, status in ((0.9, "pass"), (1.5, "close"), (2 * CLOSE, "fail")):
        verdict = judge(CAUSAL, {"out": want + factor * each})
        assert verdict.status == status
        assert verdict.ratio == pytest.approx(factor)
    assert judge(CAUSAL, {"out": want + 1.5 * each}, factor=2).status == "pass"
    assert verdict.output == "out"
    assert verdict.bound == each[verdict.index]
    assert verdict.got - verdict.want == pytest.approx(8 * verdict.bound)


def test_what_is_no_number_must_be_so_in_both() -> None:
    got = np.array([np.nan, np.nan, 1.0, np.inf, -np.inf, 1.0, 1.0])
    want = np.array([np.nan, 1.0, np.nan, np.inf, np.inf, 2.0, 1.0])
    wide = np.array([0.0, 0.0, 0.0, 0.0, 0.0, np.inf, 0.0])
    assert ratios(got, want, wide).tolist() == [0, np.inf, np.inf, 0, np.inf, 0, 0]


def test_digits() -> None:
    assert digits(1.0, 1.0) == 17
    assert digits(1.001, 1.0) == pytest.approx(3)
    assert digits(0.0, 1.0) == digits(1.0, 0.0) == digits(np.nan, 1.0) == 0


def test_causal_universal_sets_are_judged_prefix_by_prefix() -> None:
    (case,) = (c for c in suite("smoke", ("universal_set",), ("float32",)) if "causal" in c.name)
    want = truth(case)["out"]
    assert np.isfinite(bound(case)["out"]).all()  # every key is surely in or surely out
    assert judge(case, {"out": want}).status == "pass"
    late = np.tril(np.broadcast_to(want[-1], want.shape))
    assert (late != want).any()
    assert judge(case, {"out": late}).status == "fail"
