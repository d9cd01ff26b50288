"""Lewis weights and sensitivities against their oracle, and the bounds against queries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nlattn
from nlattn import _check
from nlattn.engines import whitened
from nlattn.ops.lewis import Bracket
from nlattn.oracle import lewis as oracle

POWERS = (0.5, 1, 1.5, 2, 3, 4, 6)


def keys(seed: int, n: int = 30, d: int = 4) -> Any:
    return np.random.default_rng(seed).standard_normal((n, d))


def hard_keys() -> dict[str, Any]:
    """Keys that are hard on a factorisation: the exact leverage is that of the floats given."""
    K, rng = keys(0), np.random.default_rng(1)
    U, _, V = np.linalg.svd(K, full_matrices=False)
    graded = K * 1e-8
    graded[3] = 1e8 * keys(2)[0]
    wide = K * 10.0 ** rng.uniform(-8, 8, (30, 1))
    return {
        "plain": K,
        "columns": K * 10.0 ** np.array([-8, 0, 3, 8]),
        "kappa 1e4": U * np.geomspace(1, 1e-4, 4) @ V,
        "kappa 1e7": U * np.geomspace(1, 1e-7, 4) @ V,
        "one huge key": graded,
        "rows of all sizes": wide,
        "fewer keys than channels": keys(3, 3, 5),
        "zero rows": np.where(np.arange(30)[:, None] % 3, K, 0),
        "a zero channel": K * [1, 0, 1, 1],
        "duplicates": np.repeat(K[:6], 5, axis=0),
        "huge": K * 1e300,
        "tiny": K * 1e-300,
    }


@pytest.mark.parametrize("name", hard_keys())
def test_leverage_errs_by_no_more_than_it_says(name: str) -> None:
    K = hard_keys()[name]
    found = whitened.factor(_check.frozen(K))
    exact = oracle.leverage(K.astype(np.longdouble))
    assert found.rank == round(float(exact.sum()))
    error = abs(np.sqrt(found.tau) - np.sqrt(exact))
    assert (error <= found.error + 1e-16).all()
    assert found.error.max() < 4e-6  # a key whose leverage is 1 to rounding: by how much, counts
    X = found.basis(_check.frozen(K))
    np.testing.assert_allclose(X.T @ X, np.eye(found.rank), atol=1e-8)
    rebuilt = (X @ found.root) / abs(K).max()
    np.testing.assert_allclose(rebuilt, K / abs(K).max(), atol=1e-14)


def test_a_rank_that_rounding_made_is_not_seen() -> None:
    K = keys(0, 50, 3) @ keys(1, 3, 6)
    found = whitened.factor(_check.frozen(K))
    assert found.rank == 3
    np.testing.assert_allclose(found.tau.sum(), 3, rtol=1e-12)
    few = keys(3, 2, 3)[[0, 0, 1, 0]]
    found = whitened.factor(_check.frozen(few))
    np.testing.assert_allclose(found.tau, [1 / 3, 1 / 3, 1, 1 / 3], rtol=1e-13)
    found = whitened.factor(_check.frozen(np.zeros((4, 2))))
    assert (found.rank, found.tau.tolist()) == (0, [0, 0, 0, 0])


def test_keys_that_cannot_be_scored_are_given_up_for_certain() -> None:
    """Large keys in few directions hide small ones: no digit is sure, and the bound says so."""
    K = keys(0) * 1e-8
    K[:9] = 1e8 * keys(1, 9, 2) @ keys(2, 2, 4)
    _, upper = nlattn.sensitivity_bounds(K, 2)
    exact = oracle.leverage(K.astype(np.longdouble))
    assert (upper >= exact).all()


@pytest.mark.parametrize("n", [1023, 1024, 1025, 2100])
def test_blocks_of_rows_meet(n: int) -> None:
    K = keys(n, n, 3)
    found = whitened.factor(_check.frozen(K))
    np.testing.assert_allclose(found.tau, oracle.leverage(K), rtol=1e-12)
    row = _check.frozen(np.exp(keys(1, n, 1)[:, 0]))
    for k in (K, K.astype(np.float32)):
        found = whitened.factor(_check.frozen(k), row)
        want = oracle.leverage(row[:, None] * k.astype(np.float64))
        np.testing.assert_allclose(found.tau, want, rtol=1e-12)
    X = found.basis(_check.frozen(K.astype(np.float32)))
    np.testing.assert_allclose(X @ found.root, K.astype(np.float32), atol=1e-13)


@pytest.mark.parametrize("p", POWERS)
def test_weights_and_bounds_are_the_oracle_s(p: float) -> None:
    K = keys(5)
    K[4] = 0
    got = nlattn.lewis_weights(K, p)
    want, _ = oracle.lewis_weights(K, p, steps=300)
    np.testing.assert_allclose(got.weights, want, rtol=1e-11)
    assert got.residual <= 1e-12
    assert got.iterations < 150
    np.testing.assert_allclose(got.weights.sum(), 4, rtol=1e-11)
    lower, upper = nlattn.sensitivity_bounds(K, p, weights=np.where(want == 0, 7, want))
    for a, b in zip((lower, upper), oracle.sensitivity_bounds(K, p), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)
    _, own = nlattn.sensitivity_bounds(K, p)
    np.testing.assert_allclose(own, upper, rtol=1e-9)


@pytest.mark.parametrize("p", [1.0, 1.5, 3.0, 6.0])
def test_few_steps_are_the_oracle_s(p: float) -> None:
    K = keys(6)
    got = nlattn.lewis_weights(K, p, steps=3, eta=0.4)
    want, residual = oracle.lewis_weights(K, p, steps=3, eta=0.4)
    np.testing.assert_allclose(got.weights, want, rtol=1e-12)
    np.testing.assert_allclose(got.residual, residual, rtol=1e-10)
    assert got.iterations == 3


@pytest.mark.parametrize("name", [n for n in hard_keys() if n not in ("huge", "tiny")])
@pytest.mark.parametrize("p", [0.5, 1, 3, 6])
def test_hard_keys_have_weights(name: str, p: float) -> None:
    K = hard_keys()[name]
    got = nlattn.lewis_weights(K, p)
    assert got.residual <= 1e-11
    np.testing.assert_allclose(got.weights.sum(), whitened.factor(_check.frozen(K)).rank)
    np.testing.assert_array_equal(got.weights == 0, ~K.any(1))


def test_an_undamped_step_does_not_converge() -> None:
    K = keys(7)
    assert nlattn.lewis_weights(K, 4, eta=1.0, steps=200).residual > 0.1
    assert nlattn.lewis_weights(K, 3, eta=1.0, steps=200).residual < 1e-11


def test_the_average_is_the_oracle_s() -> None:
    K = keys(8, 60)
    got = nlattn.lewis_weights(K, 4, average=0.1)
    want, residual = oracle.lewis_weights(K, 4, average=0.1)
    np.testing.assert_allclose(got.weights, want, rtol=1e-11)
    np.testing.assert_allclose(got.residual, residual, rtol=1e-9)
    assert got.iterations == 28
    assert not nlattn.lewis_weights(np.zeros((3, 2)), 4, average=0.1).weights.any()


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 12),
    d=st.integers(1, 4),
    p=st.sampled_from([0.5, 1.0, 1.3, 2.0, 3.0, 4.0, 6.0]),
    size=st.sampled_from([1e-8, 1.0, 1e8]),
)
def test_bounds_hold_for_any_weights_and_queries(
    seed: int, n: int, d: int, p: float, size: float
) -> None:
    rng = np.random.default_rng(seed)
    K = size * rng.standard_normal((n, d))
    K[rng.random(n) < 0.2] = 0
    weights = None if seed % 2 else np.exp(3 * rng.standard_normal(n))
    lower, upper = nlattn.sensitivity_bounds(K, p, weights=weights)
    assert (lower >= 0).all()
    assert (upper <= 1).all()
    assert (lower <= upper).all()
    queries = np.concatenate([rng.standard_normal((20, d)), K, np.linalg.pinv(K).T])
    f = abs(queries @ K.T) ** p
    total = f.sum(1, keepdims=True)
    A = np.where(total > 0, f / np.where(total > 0, total, 1), 0)
    assert (A.max(0) <= upper * (1 + 1e-9)).all()


@pytest.mark.parametrize("p", [1, 1.2, 1.5, 2, 3, 4, 6, 8])
def test_brackets_close_around_the_sensitivity(p: float) -> None:
    K = keys(9, 40)
    K[5] = 0
    lower, upper = nlattn.sensitivity_bounds(K, p)
    for i in (0, 5, 7, 20):
        low, high = nlattn.lp_sensitivity(K, i, p)
        assert 0 <= high - low <= 1e-7
        assert lower[i] <= high
        assert low <= upper[i]
        if 1 < p < 8:
            want = oracle.lp_sensitivity(K, i, p)
            np.testing.assert_allclose([low, high], want, atol=1e-7)


def test_a_bracket_holds_before_it_closes() -> None:
    K = keys(10, 40)
    exact = np.mean(oracle.lp_sensitivity(K, 3, 6))
    widths = []
    for steps in (0, 1, 2, 4, 300):
        low, high = nlattn.lp_sensitivity(K, 3, 6, steps=steps, tol=0)
        assert low <= exact + 1e-9
        assert exact - 1e-9 <= high
        widths.append(float(high - low))
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 1e-3


def test_more_keys_never_raise_a_sensitivity_and_scale_does_not_matter() -> None:
    K = keys(11, 20, 3)
    for p in (1.5, 3.0):
        low, high = nlattn.lp_sensitivity(K, 0, p)
        more, _ = nlattn.lp_sensitivity(np.vstack([K, keys(12, 5, 3)]), 0, p)
        assert more <= high
        T = keys(13, 3, 3)
        for other in (1e-7 * K, K @ T):
            np.testing.assert_allclose(nlattn.lp_sensitivity(other, 0, p)[0], low, atol=1e-8)


def test_steps_are_counted() -> None:
    K = np.stack([keys(0), keys(1)])
    for p, least in ((1.0, 1), (1.5, 1), (2.0, 0), (3.0, 1)):
        found = nlattn.lp_sensitivity(K, 0, p)
        assert found.iterations.shape == (2,)
        assert (found.iterations >= least).all()
        if p in (1.5, 3.0):
            fewer = nlattn.lp_sensitivity(K, 0, p, steps=int(found.iterations[0]) - 1)
            assert fewer.iterations[0] == found.iterations[0] - 1
            assert fewer.upper[0] - fewer.lower[0] > 1e-9
    assert (nlattn.lp_sensitivity(K, 0, 2.0).iterations == 0).all()
    own = nlattn.lewis_weights(K, 3.0, eta=4 / 5)
    np.testing.assert_array_equal(nlattn.sensitivity_bounds(K, 3.0).iterations, own.iterations)
    given = nlattn.sensitivity_bounds(K, 3.0, weights=own.weights)
    assert (given.iterations == 0).all()
    assert (nlattn.sensitivity_bounds(K, 2.0).iterations == 0).all()


def test_heads_are_apart_and_a_bad_one_is_nan() -> None:
    K = np.stack([keys(0), keys(1)])
    got = nlattn.lewis_weights(K, 3)
    assert (got.weights.shape, got.residual.shape, got.iterations.shape) == ((2, 30), (2,), (2,))
    np.testing.assert_array_equal(got.weights[1], nlattn.lewis_weights(K[1], 3).weights)
    bounds = nlattn.sensitivity_bounds(K, 3)
    assert isinstance(bounds, Bracket)
    np.testing.assert_array_equal(bounds.upper[1], nlattn.sensitivity_bounds(K[1], 3).upper)
    K[0, 2, 1] = np.nan
    got = nlattn.lewis_weights(K, 3, nonfinite="propagate")
    assert np.isnan(got.weights[0]).all()
    assert not np.isnan(got.weights[1]).any()
    low, high = nlattn.lp_sensitivity(K, 0, 3, nonfinite="propagate")
    np.testing.assert_array_equal(np.isnan([low, high]), [[True, False]] * 2)


BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("lewis_weights", {"p": 0}, ValueError, "p=0.0, expected a positive number"),
    ("lewis_weights", {"p": "2"}, TypeError, "p='2' is no number"),
    ("lewis_weights", {"p": np.inf}, ValueError, "p=inf is not finite"),
    ("lewis_weights", {"p": 2, "eta": 0}, ValueError, "eta=0.0, expected a positive number"),
    ("lewis_weights", {"p": 2, "steps": -1}, ValueError, "steps=-1, expected at least 0"),
    (
        "lewis_weights",
        {"p": 1.5, "average": 0.1},
        ValueError,
        r"average=0.1 needs p of at least 2, got p=1.5",
    ),
    ("sensitivity_bounds", {"p": -1}, ValueError, "p=-1.0, expected a positive number"),
    (
        "sensitivity_bounds",
        {"p": 3, "weights": np.ones(3)},
        ValueError,
        r"weights has shape \(3,\), expected \(4,\) from k",
    ),
    (
        "sensitivity_bounds",
        {"p": 3, "weights": np.array([1.0, 0, 1, 1])},
        ValueError,
        r"weights\[1\] is 0.0, expected a positive number for a key that is not 0",
    ),
    (
        "lp_sensitivity",
        {"i": 0, "p": 0.5},
        ValueError,
        "p=0.5 is not convex, expected at least 1; use sensitivity_bounds",
    ),
    ("lp_sensitivity", {"i": 4, "p": 2}, ValueError, "i=4, expected at most 3"),
]


@pytest.mark.parametrize(("name", "options", "error", "text"), BAD)
def test_bad_arguments_are_refused(name: str, options: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=f"^{name}: {text}$"):
        getattr(nlattn, name)(np.ones((4, 2)), **options)
