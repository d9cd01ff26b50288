"""One score everywhere: bits, lanes and special values."""

from __future__ import annotations

import numpy as np
import pytest

from nlattn import _check
from nlattn.kernels import scores
from nlattn.runtime import jit


@jit.function
def all_pairs(kind: int, factor: np.ndarray, q: np.ndarray, k: np.ndarray, out: np.ndarray) -> None:
    for i in range(len(q)):
        for j in range(len(k)):
            out[i, j] = scores.score(kind, factor[0], q[i], k[j])


def run(kind: int, factor: float, q: np.ndarray, k: np.ndarray) -> np.ndarray:
    out = np.empty((len(q), len(k)), q.dtype)
    all_pairs(kind, np.array([factor], q.dtype), _check.frozen(q), _check.frozen(k), out)
    return out


def folded(terms: np.ndarray) -> np.floating:
    """Sixteen lanes, folded in halves, then what is left in order."""
    lanes = np.zeros(16, terms.dtype)
    whole = len(terms) // 16 * 16
    for start in range(0, whole, 16):
        lanes += terms[start : start + 16]
    while len(lanes) > 1:
        lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    total = lanes[0]
    for term in terms[whole:]:
        total += term
    return total


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", [1, 15, 16, 17, 32, 50])
def test_sums_are_bitwise_those_of_sixteen_lanes(d: int, dtype: type) -> None:
    rng = np.random.default_rng(d)
    q, k = (rng.standard_normal((n, d)).astype(dtype) for n in (3, 4))
    factor = dtype(0.3)
    dot = np.array([[folded(a * b) for b in k] for a in q]) * factor
    distance = np.array([[folded((a - b) * (a - b)) for b in k] for a in q]) * factor
    np.testing.assert_array_equal(run(scores.DOT, 0.3, q, k), dot)
    np.testing.assert_array_equal(run(scores.ABSDOT, 0.3, q, k), np.abs(dot))
    np.testing.assert_array_equal(run(scores.NEG_L2, 0.3, q, k), -distance)


def test_by_hand() -> None:
    q, k = np.array([[3.0, 4.0]]), np.array([[0.0, 5.0], [-3.0, -4.0]])
    np.testing.assert_array_equal(run(scores.DOT, 0.5, q, k), [[10, -12.5]])
    np.testing.assert_array_equal(run(scores.ABSDOT, 0.5, q, k), [[10, 12.5]])
    np.testing.assert_array_equal(run(scores.NEG_L2, 1, q, k), [[-10, -100]])


def test_nan_and_infinity_keep_their_meaning() -> None:
    q, k = np.ones((1, 17)), np.ones((3, 17))
    k[0, 3], k[1, 16], k[2, 5] = np.nan, np.inf, -np.inf
    got = run(scores.DOT, 1.0, q, k)[0]
    assert np.isnan(got[0])
    assert got[1] == np.inf
    assert got[2] == -np.inf


@jit.function
def sums(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    out[0] = scores.terms(scores.DOT, a, 2, b, 1, 17)
    out[1] = scores.terms(scores.NEG_L2, a, 2, b, 1, 17)
    out[2] = scores.terms(scores.DOT, a, 3, b, 5, 0)


def test_sums_begin_where_they_are_told() -> None:
    """Small integers: every order of the sum is exact."""
    rng = np.random.default_rng(0)
    a, b, out = rng.integers(-9, 9, 20).astype(float), rng.integers(-9, 9, 19) * 1.0, np.empty(3)
    sums(a, b, out)
    x, y = a[2:19], b[1:18]
    np.testing.assert_array_equal(out, [x @ y, (x - y) @ (x - y), 0])


@jit.function
def fetched(a: np.ndarray, out: np.ndarray) -> None:
    scores.fetch(a, 3)
    out[0] = a[3]


def test_what_is_fetched_ahead_stays_as_it_is() -> None:
    a, out = np.arange(5.0), np.empty(1)
    fetched(a, out)
    assert out[0] == 3
