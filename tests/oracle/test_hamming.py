"""Hamming attention by hand, by ordinary attention over signs, and by the complex step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlattn.oracle.dense import attention
from nlattn.oracle.hamming import hamming_attention, hamming_attention_vjp, nearest, signs
from tests.helpers import assert_gradients


def sets(n: int, m: int, d: int, e: int = 2, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(shape) for shape in ((n, d), (m, d), (m, e)))


def test_one_query_by_hand() -> None:
    q = np.array([[1.0, -2, 3]])
    k = np.array([[1.0, -1, -1], [-1, 1, -1], [2, -2, 2], [-0.0, -1, 0]])
    v = np.array([[1.0], [10], [100], [1000]])
    # Signs that agree: 2, 0, 3, 3 of 3; scores 1, -3, 3, 3.
    np.testing.assert_allclose(hamming_attention(q, k, v, keys=1, scale=1.0), [[100]])
    np.testing.assert_allclose(hamming_attention(q, k, v, keys=2, scale=1.0), [[550]])
    w = np.exp([1.0, 3, 3])
    want = w @ [1, 100, 1000] / w.sum()
    out, lse = hamming_attention(q, k, v, keys=3, scale=1.0, return_lse=True)
    np.testing.assert_allclose(out, [[want]])
    np.testing.assert_allclose(lse, [np.log(w.sum())])


def test_zero_minus_zero_and_nan_are_positive() -> None:
    x = np.array([0.0, -0.0, np.nan, -np.nan, 5e-324, -5e-324, np.inf, -np.inf])
    np.testing.assert_array_equal(signs(x), [1, 1, 1, 1, 1, -1, 1, -1])


def test_ties_go_to_the_lowest_index() -> None:
    np.testing.assert_array_equal(nearest(np.array([[1.0, 3, 1, 3, 1]]), 3), [[0, 1, 3]])
    np.testing.assert_array_equal(nearest(np.array([[1.0, 1]]), 5), [[0, 1]])


def test_all_keys_are_softmax_attention_over_signs() -> None:
    q, k, v = sets(5, 7, 6)
    want = attention(np.sign(q), np.sign(k), v, return_lse=True)
    got = hamming_attention(q, k, v, keys=99, return_lse=True)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14)
    np.testing.assert_array_equal(hamming_attention(3 * q, k / 7, v, keys=99), got[0])


@pytest.mark.parametrize("through", ["identity", "clip"])
@pytest.mark.parametrize("keys", [1, 3, 20])
def test_gradients_are_the_complex_step(through: str, keys: int) -> None:
    q, k, v = sets(4, 6, 5, seed=keys)
    rng = np.random.default_rng(5)
    dout, dlse = rng.standard_normal((4, 2)), rng.standard_normal(4)
    options: dict[str, Any] = {"keys": keys, "scale": 0.4, "straight_through": through}

    def loss(q: Any, k: Any, v: Any) -> Any:
        out, lse = hamming_attention(q, k, v, **options, return_lse=True)
        return (dout * out).sum() + (dlse * lse).sum()

    got = hamming_attention_vjp(q, k, v, dout, dlse=dlse, **options)
    assert_gradients(got, loss, (q, k, v))
    assert got[0].any()


def test_without_it_the_gradient_of_queries_and_keys_is_zero() -> None:
    q, k, v = sets(4, 6, 5)
    dq, dk, dv = hamming_attention_vjp(q, k, v, np.ones((4, 2)), straight_through="none")
    assert not dq.any()
    assert not dk.any()
    assert dv.any()


def test_no_keys_heads_and_longdouble() -> None:
    q, k, v = sets(4, 6, 5)
    out, lse = hamming_attention(q, k[:0], v[:0], return_lse=True)
    assert not out.any()
    assert (lse == -np.inf).all()
    heads = np.stack([v, 2 * v])
    out = hamming_attention(q, k, heads, keys=2)
    np.testing.assert_allclose(out[1], 2 * out[0], rtol=1e-15)
    gradients = hamming_attention_vjp(q, k, heads, np.ones_like(out), keys=2)
    assert [g.shape for g in gradients] == [q.shape, k.shape, heads.shape]
    gradients = hamming_attention_vjp(q[None][:0], k[None], v, np.ones((0, 4, 2)))
    assert [g.shape for g in gradients] == [(0, 4, 5), (1, 6, 5), (6, 2)]
    wide = [x.astype(np.longdouble) for x in (q, k, v)]
    assert hamming_attention(*wide).dtype == np.longdouble
