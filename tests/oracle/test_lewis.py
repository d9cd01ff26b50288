"""The oracle of Lewis weights and sensitivities: numbers by hand, invariants, certificates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlattn.oracle.lewis import (
    basis,
    certificate,
    features,
    leverage,
    lewis_weights,
    lp_sensitivity,
    s,
    sensitivity_bounds,
)

POWERS = (0.5, 1, 1.5, 2, 3, 4, 6)


def keys(seed: int = 0, n: int = 12, d: int = 3) -> Any:
    return np.random.default_rng(seed).standard_normal((n, d))


def test_leverage_by_hand() -> None:
    """Rank 2 in three channels; an unpivoted QR would give a sum of 3."""
    K = np.arange(1, 13.0).reshape(4, 3)
    np.testing.assert_allclose(leverage(K), [0.7, 0.3, 0.3, 0.7], atol=1e-13)
    assert leverage(K.astype(np.longdouble)).dtype == np.longdouble
    np.testing.assert_array_equal(leverage(np.zeros((3, 2))), 0)


def test_leverage_is_that_of_a_singular_value_decomposition() -> None:
    K = keys(n=30, d=5) @ np.diag([1, 1e-3, 1, 1e3, 0])
    U, sizes, _ = np.linalg.svd(K, full_matrices=False)
    np.testing.assert_allclose(leverage(K), (U[:, sizes > 1e-10] ** 2).sum(1), atol=1e-13)
    np.testing.assert_allclose(basis(K).T @ basis(K), np.eye(4), atol=1e-14)


@pytest.mark.parametrize("p", POWERS)
def test_orthogonal_keys_by_hand(p: float) -> None:
    """Two keys in one direction, one in another: they share, whatever their lengths."""
    K = np.array([[2.0, 0], [2, 0], [0, 5]])
    w, residual = lewis_weights(K, p)
    np.testing.assert_allclose(w, [0.5, 0.5, 1], rtol=1e-12)
    assert residual < 1e-11
    lower, upper = sensitivity_bounds(K, p)
    assert (lower <= np.array([0.5, 0.5, 1]) + 1e-12).all()
    assert (upper >= np.array([0.5, 0.5, 1]) - 1e-12).all()


@pytest.mark.parametrize("p", POWERS)
def test_weights_are_a_fixed_point_of_sum_rank(p: float) -> None:
    K = keys()
    w, residual = lewis_weights(K, p, steps=400)
    assert residual < 1e-11
    np.testing.assert_allclose(w.sum(), 3, rtol=1e-12)
    np.testing.assert_allclose(leverage(w[:, None] ** (1 / 2 - 1 / p) * K), w, rtol=1e-10)
    T = np.random.default_rng(1).standard_normal((3, 3))
    np.testing.assert_allclose(lewis_weights(1e3 * K @ T, p, steps=400)[0], w, rtol=1e-9)
    if p == 2:
        np.testing.assert_allclose(w, leverage(K), rtol=1e-13)


@pytest.mark.parametrize("p", POWERS)
def test_a_row_split_into_copies_splits_its_weight(p: float) -> None:
    K = keys()
    w = lewis_weights(K, p, steps=400)[0]
    split = np.vstack([K[1:], np.repeat(K[:1] * 3 ** (-1 / p), 3, axis=0)])
    halves = lewis_weights(split, p, steps=400)[0]
    np.testing.assert_allclose(halves, [*w[1:], *[w[0] / 3] * 3], rtol=1e-9)


@pytest.mark.parametrize(("p", "rate"), [(3, 1 / 3), (4, 1 / 2), (6, 2 / 3), (1, 1 / 3)])
def test_the_residual_falls_at_the_derived_rate(p: float, rate: float) -> None:
    K = keys(n=40)
    first, then = (lewis_weights(K, p, steps=n)[1] for n in (12, 14))
    np.testing.assert_allclose(then / first, rate**2, rtol=0.1)


def test_the_average_keeps_its_promise() -> None:
    K = keys(n=60, d=4)
    w, _ = lewis_weights(K, 4, average=0.1)
    np.testing.assert_allclose(w.sum(), 4, rtol=1e-12)
    assert (s(K, w, 4) / w ** (2 / 4)).max() <= 1.1


def test_the_average_of_as_many_keys_as_channels_is_the_first_iterate() -> None:
    w, left = lewis_weights(np.array([[2.0, 1.0], [0.0, 3.0]]), 4, average=0.1)
    np.testing.assert_allclose(w, 1, rtol=1e-14)
    assert left < 1e-14


def test_columns_beyond_their_squares_have_leverage() -> None:
    K = keys(n=6, d=3)
    far = K * np.array([1e200, 1, 1e-200])
    np.testing.assert_allclose(leverage(far), leverage(K), rtol=1e-12)


@pytest.mark.parametrize("p", [1.2, 1.5, 2, 2.5, 3, 4, 6])
def test_any_weights_certify(p: float) -> None:
    rng = np.random.default_rng(2)
    K = keys(2)
    v = np.exp(2 * rng.standard_normal(12))
    lower, upper = sensitivity_bounds(K, p, weights=v)
    assert (lower <= upper + 1e-14).all()
    for i in range(3):
        low, high = lp_sensitivity(K, i, p)
        assert high - low < 1e-7
        assert lower[i] <= low + 1e-12
        assert certificate(s(K, v, p), v, p)[i] >= low - 1e-12
        assert upper[i] >= low - 1e-12
        for y in rng.standard_normal((50, 3)):
            z = abs(K @ y) ** p
            assert z[i] / z.sum() <= high + 1e-12


def test_sensitivity_by_hand() -> None:
    """One direction: the share of the key; p = 2: leverage; zero: nothing."""
    K = np.array([[1.0], [2.0], [0.0]])
    for p in (1.5, 3, 4):
        low, high = lp_sensitivity(K, 1, p)
        np.testing.assert_allclose([low, high], 2**p / (1 + 2**p), rtol=1e-12)
    assert lp_sensitivity(K, 2, 3) == (0, 0)
    np.testing.assert_allclose(lp_sensitivity(keys(), 4, 2), leverage(keys())[4], rtol=1e-13)


def test_features_multiply_as_powers() -> None:
    x, y = keys(3), keys(4)
    for h in (1, 2, 3):
        phi = features(x, h) @ features(y, h).T
        np.testing.assert_allclose(phi, (x @ y.T) ** h, rtol=1e-12, atol=1e-12)
    assert features(x, 2).shape == (12, 6)
    assert features(np.ones((2, 40)), 2).shape == (2, 820)  # of 3^40 exponents


def test_longdouble_stays_longdouble() -> None:
    K = keys().astype(np.longdouble)
    assert lewis_weights(K, 3, steps=3)[0].dtype == np.longdouble
    assert all(x.dtype == np.longdouble for x in sensitivity_bounds(K, 3))
    low, high = lp_sensitivity(K, 0, 3.0, steps=30)
    assert high - low < 1e-15
