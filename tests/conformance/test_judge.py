"""Verdicts: the right pass in every dtype, zeros and small errors do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nlattn.conformance.case import DTYPES
from nlattn.conformance.cases import suite
from nlattn.conformance.judge.errors import agreeing_digits, cut, varied
from nlattn.conformance.judge.sensitivity import least, table
from nlattn.conformance.judge.verdict import LEAK, judge
from nlattn.conformance.table import find
from nlattn.conformance.table.recipe import Recipe
from nlattn.conformance.truth.arithmetic import TF32, Arithmetic
from nlattn.conformance.truth.bounds import allowed, exact, ratios, transcribed, typical

pytestmark = pytest.mark.plain

CASES = {case.name: case for case in suite.cases("smoke", ("attention",))}
CAUSAL = CASES["attention/forward/float32/causal"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_truth_and_the_plain_transcription_pass(dtype: str) -> None:
    for case in (c for c in CASES.values() if c.dtype == dtype):
        verdict = judge(case, exact(case))
        assert (verdict.status, verdict.ratio) == ("pass", 0)
        verdict = judge(case, transcribed(case))
        assert verdict.status == "pass", verdict
        assert verdict.ratio < 1 if "16" in dtype else 0.5, verdict
        assert not verdict.failed


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_do_not_pass_for_small_results(dtype: str) -> None:
    for case in (c for c in CASES.values() if c.dtype == dtype):
        want = exact(case)
        zeros = {name: np.zeros_like(x) for name, x in want.items()}
        if all(abs(x).max(initial=0) < 1e-9 for x in want.values()):
            continue  # such as gradients of equal scores
        verdict = judge(case, zeros)
        assert verdict.failed, verdict


def test_the_bound_follows_what_is_summed() -> None:
    """One value of 1e6 among ones loosens the bound where it has weight, and nowhere else."""
    case = replace(CAUSAL, options={"causal": True}, dtype="float64")
    v = np.ones_like(case.arrays["v"], dtype=np.float64)
    v[5, 0] = 1e6
    arrays = {n: np.asarray(x, np.float64) for n, x in case.arrays.items()} | {"v": v}
    each = allowed(replace(case, arrays=arrays))["out"]
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
    verdict = judge(CAUSAL, {"out": spoil(exact(CAUSAL)["out"])})
    assert verdict.status == status
    assert verdict.detail == text


def test_a_missing_result_fails() -> None:
    assert judge(CAUSAL, {}).detail == "out is missing"


def test_what_is_beyond_its_bound_fails() -> None:
    want, each = exact(CAUSAL)["out"], allowed(CAUSAL)["out"]
    one = np.zeros_like(want)
    one[7, 1] = 1
    for factor, status in ((0.1, "pass"), (1.5, "fail"), (8, "fail")):
        verdict = judge(CAUSAL, {"out": want + factor * each * one})
        assert verdict.status == status
        assert verdict.ratio == pytest.approx(factor)
    assert judge(CAUSAL, {"out": want + 1.5 * each * one}, factor=4).status != "fail"
    assert verdict.output == "out"
    assert verdict.index == (7, 1)
    assert verdict.bound == each[verdict.index]
    assert verdict.got - verdict.want == pytest.approx(8 * verdict.bound)


def test_what_is_no_number_must_be_so_in_both() -> None:
    got = np.array([np.nan, np.nan, 1.0, np.inf, -np.inf, 1.0, 1.0])
    want = np.array([np.nan, 1.0, np.nan, np.inf, np.inf, 2.0, 1.0])
    wide = np.array([0.0, 0.0, 0.0, 0.0, 0.0, np.inf, 0.0])
    assert ratios(got, want, wide).tolist() == [0, np.inf, np.inf, 0, np.inf, 0, 0]


def test_digits() -> None:
    assert agreeing_digits(1.0, 1.0) == 17
    assert agreeing_digits(1.001, 1.0) == pytest.approx(3)
    assert (
        agreeing_digits(0.0, 1.0) == agreeing_digits(1.0, 0.0) == agreeing_digits(np.nan, 1.0) == 0
    )


def test_causal_universal_sets_are_judged_prefix_by_prefix() -> None:
    cases = suite.cases("smoke", ("universal_set",), ("float32",))
    (case,) = (c for c in cases if c.name.endswith("/causal"))
    want = exact(case)["out"]
    assert np.isfinite(allowed(case)["out"]).all()  # every key is surely in or surely out
    assert judge(case, {"out": want}).status == "pass"
    late = np.tril(np.broadcast_to(want[-1], want.shape))
    assert (late != want).any()
    assert judge(case, {"out": late}).status == "fail"


TILES = CASES["attention/forward/float32/tiles"]


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda x, _: x * (1 + 1e-6), "out is too large by 1e-06 of itself"),
        (lambda x, _: x * (1 - 1e-6), "out is too small by 1e-06 of itself"),
        (lambda x, r: x * (1 + 3e-6 * r), "errors of out are "),
    ],
)
def test_errors_within_every_bound_that_no_rounding_makes(spoil: Any, text: str) -> None:
    rng = np.random.default_rng(3)
    want = exact(TILES)["out"]
    verdict = judge(TILES, {"out": spoil(want, rng.standard_normal(want.shape))})
    assert verdict.ratio < 1
    assert verdict.failed
    assert verdict.detail.startswith(text)


def test_rounding_towards_zero_is_a_bias() -> None:
    """It stays within all bounds, and is no rounding to nearest."""
    case = replace(TILES, dtype="float16")
    case = replace(case, arrays={n: x.astype(np.float16) for n, x in case.arrays.items()})
    want = exact(case)["out"]
    near = want.astype(np.float16)
    assert judge(case, {"out": near}).status == "pass"
    cut = np.where(abs(near) > abs(want), np.nextafter(near, np.float16(0)), near)
    verdict = judge(case, {"out": cut})
    assert (verdict.failed, verdict.ratio < 1) == (True, True)
    assert verdict.detail.startswith("out is too small by 0.0003")


def test_no_ratio_excuses_a_wrong_nan_or_a_number_in_its_place() -> None:
    case = CASES["attention/forward/float32/nan-rows"]
    want = exact(case)["out"]
    assert np.isnan(want).any()
    for spoilt in (np.nan_to_num(want), np.where(np.isnan(want), 123, want), np.nan * want):
        verdict = judge(case, {"out": spoilt})
        assert (verdict.status, verdict.ratio) == ("fail", np.inf)


def test_an_infinite_bound_accepts_nothing_of_which_the_plain_transcription_knows_better(
    monkeypatch: Any,
) -> None:
    want = exact(CAUSAL)["out"]
    endless = {"out": np.full_like(want, np.inf)}
    monkeypatch.setattr("nlattn.conformance.judge.verdict.allowed", lambda *_: endless)
    assert judge(CAUSAL, {"out": want}).status == "pass"
    assert judge(CAUSAL, transcribed(CAUSAL)).status == "pass"
    for spoilt in (np.nan * want, 1.01 * want, 0 * want):
        assert judge(CAUSAL, {"out": spoilt}).failed


def test_where_16_bits_may_do_anything_a_kernel_with_float32_inside_has_its_bound() -> None:
    sizes = {"n": 1, "m": 2, "d": 1, "e": 1, "r": 2}
    recipe = Recipe("sweep", values="channel", lead=(2, 3), sizes=sizes)
    case = suite.make(find("favor_attention"), recipe, "vjp", "float16", 1)
    want, bounds = exact(case), allowed(case)
    wide = allowed(case, Arithmetic.of("float32"))["dq"]
    at = np.isinf(bounds["dq"]) & (abs(transcribed(case)["dq"] - want["dq"]) < wide / 1e3)
    assert at.any()  # the transcription was lucky there
    for far, status in ((0.9, "pass"), (4.0, "fail")):
        off = np.where(at, far * wide, 0)
        assert judge(case, {**want, "dq": want["dq"] + off}).status == status


@pytest.mark.parametrize("extra", [(), ("bias",), ("groups:2",)])
def test_gradients_far_below_the_maximum_share_what_exponents_lose(extra: Any) -> None:
    """Scores are 24 apart: what the constant ``scale log2 e`` loses, weights lose 24 times."""
    sizes = {"n": 13, "m": 2, "d": 15, "e": 1}
    options = {"gqa": True} if "groups:2" in extra else {}
    recipe = Recipe("sweep", options, sizes, (2, 4), extra, values="faint")
    case = suite.make(find("attention"), recipe, "vjp", "float64", 1)
    want, unit = exact(case), np.finfo(float).eps / 2
    for units, failed in ((40, False), (400, True)):
        off = {"dq": want["dq"] * (1 - units * unit), "dk": want["dk"] * (1 - units * unit)}
        assert judge(case, want | off).failed == failed


def test_an_error_of_the_plain_transcription_is_excused_and_no_more(monkeypatch: Any) -> None:
    """Where the bound itself is too small, twice the transcription's error is suspicious."""
    tight = {"out": allowed(CAUSAL)["out"] / 1e3}
    monkeypatch.setattr("nlattn.conformance.judge.verdict.allowed", lambda *_: tight)
    want, other = exact(CAUSAL)["out"], transcribed(CAUSAL)["out"]
    assert judge(CAUSAL, {"out": other}).status == "suspicious"
    assert judge(CAUSAL, {"out": want + 1.9 * (other - want)}).status == "suspicious"
    assert judge(CAUSAL, {"out": want + 2.1 * (other - want)}).status == "fail"


def test_a_single_element_that_is_hardly_possible_is_suspicious() -> None:
    got = transcribed(TILES)["out"].copy()
    got[3, 4] += 8 * typical(TILES)["out"][3, 4]
    verdict = judge(TILES, {"out": got})
    assert verdict.status == "suspicious"
    assert "typical errors off, where 6 are unlikely" in verdict.detail


def test_errors_that_are_all_one_are_not_averaged() -> None:
    assert not varied(CASES["attention/forward/float32/constant"])
    assert varied(TILES)


def test_the_least_error_that_is_rejected() -> None:
    """A bound is worth what it rejects: a few units, and not a thousand."""
    some = [CASES[f"attention/forward/float32/{label}"] for label in ("primes", "tiles")]
    assert 1e-7 < least(some) < 1e-6
    rows = list(table(("refined_self_attention",)))
    row = next(x for x in rows if x.startswith("| `refined_self_attention`"))
    cells = [float(x) for x in row.split("|")[2:-1]]
    assert cells == sorted(cells)
    assert cells[1] < 1e-6


@pytest.mark.parametrize("label", ["even", "large", "heads-more"])
def test_factors_that_are_cut_off_are_those_of_tf32(label: str) -> None:
    """Tensor cores drop bits: results are too small, by more than float32 or rounding allows."""
    case = CASES[f"attention/forward/float32/{label}"]
    arrays = {name: cut(x, TF32.unit) for name, x in case.arrays.items()}
    got = transcribed(replace(case, arrays=arrays))
    how = Arithmetic.of("float32", products="tf32")
    assert judge(case, got).failed == (label != "large")  # few rows differ, each one key's values
    three = judge(case, got, how=Arithmetic.of("float32", products="3xtf32"))
    assert three.failed == (label != "large")  # whose scores of 1e4 lose all in either
    assert judge(case, got, how=how).status == "pass"
    assert judge(case, {"out": exact(case)["out"] * (1 - 40 * TF32.unit)}, how=how).failed


def test_rows_that_share_a_sum_share_its_error() -> None:
    """Where values hardly differ, gradients of linear attention are small beside such errors."""
    (case,) = suite.cases("smoke", ("favor_attention",), ("float32",), "*/vjp/*/offset")
    want = exact(case)
    for error, failed in ((1.5e-5, False), (1e-3, True)):
        assert judge(case, {**want, "dq": want["dq"] * (1 + error)}).failed == failed


def test_nan_of_masked_keys_that_leaks_is_suspicious() -> None:
    """Most plain softmaxes do that, and right numbers beside it are not blamed."""
    case = CASES["attention/forward/float32/mask-nan"]
    want = exact(case)["out"]
    assert np.isfinite(want).all()
    verdict = judge(case, {"out": np.nan * want})
    assert (verdict.status, verdict.detail) == ("suspicious", LEAK)
    got = np.where(np.arange(len(want))[:, None] < 3, np.nan, want + 0.1)
    assert judge(case, {"out": got}).failed
    plain = CASES["attention/forward/float32/nan"]
    assert judge(plain, {"out": np.nan_to_num(exact(plain)["out"])}).failed


def test_what_a_rounded_constant_of_exponents_does_to_all_is_no_bias() -> None:
    """With ``log2 e`` in float32, small weights beside one of e^24 are all off by the same part."""
    faint = CASES["attention/forward/float32/faint"]
    got = {"out": exact(faint)["out"] * (1 + 24 * 2.0**-24)}
    assert judge(faint, got).status == "pass"
    primes = CASES["attention/forward/float32/even"]
    assert judge(primes, {"out": exact(primes)["out"] * (1 + 24 * 2.0**-24)}).failed


def test_zeros_where_the_truth_is_its_own_error_are_no_bias() -> None:
    """The gradient of queries whose two keys are equal is 0; what the oracle says is rounding."""
    sizes = {"n": 6, "m": 2, "d": 1, "e": 1}
    recipe = Recipe("equal", {}, sizes, lead=(512,))
    case = suite.make(find("attention"), recipe, "vjp", "float64", 1)
    k = case.arrays["k"].copy()
    k[:, 1] = k[:, 0]
    case = replace(case, arrays={**case.arrays, "k": k})
    want = exact(case)
    assert np.count_nonzero(want["dq"]) > 100
    assert judge(case, {**want, "dq": 0 * want["dq"]}).status == "pass"
    assert judge(case, {**want, "dv": want["dv"] * (1 + 1e-9)}).status == "fail"


@pytest.mark.parametrize("op", ["lev_attention", "qna", "sparse_attention"])
def test_every_case_of_shared_heads_has_a_bound(op: str) -> None:
    """Arrays beside q, k and v have axes of their own: an index by head, a bias of windows."""
    for case in suite.cases("smoke", (op,), ("float16",)):
        if case.kind == "vjp" and ("group" in case.name or "bias" in case.name):
            for name, bound in allowed(case).items():
                assert not np.isnan(bound).any(), (case.name, name)
