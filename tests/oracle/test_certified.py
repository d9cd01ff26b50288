"""The oracle of certified attention: dense attention, and what its guarantee means."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from nlattn.oracle import certified as oracle
from nlattn.oracle import dense
from tests.helpers import assert_gradients


def test_numbers_worked_by_hand() -> None:
    q, k, v = np.array([[1.0]]), np.log([[1.0], [2], [5]]), np.array([[8.0], [0], [16]])
    out, lse = oracle.certified_attention(q, k, v, scale=1.0, return_lse=True)
    np.testing.assert_allclose(out, [[11.0]])  # (1 8 + 5 16) / 8
    np.testing.assert_allclose(lse, [np.log(8)])
    k = np.array([[1.0], [1 + np.sqrt(np.log(3))]])
    out = oracle.certified_attention(q, k, v[:2], weight="gaussian")
    np.testing.assert_allclose(out, [[6.0]])  # weights 3/4 and 1/4
    assert oracle.certified_attention(q, k, v[:2], mask=np.zeros((1, 2), bool)) == 0


def test_softmax_is_dense_attention() -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 7, 3))
    for options in ({}, {"causal": True}, {"scale": 0.3, "mask": np.tri(7, k=2, dtype=bool)}):
        got = oracle.certified_attention(q, k, v, return_lse=True, **options)
        want = dense.attention(q, k, v, return_lse=True, **options)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("weight", ["softmax", "gaussian"])
def test_gradients_by_the_complex_step(weight: str) -> None:
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((n, d)) for n, d in ((4, 3), (5, 3), (5, 2)))
    dout = rng.standard_normal((4, 2))
    options = {"weight": weight, "causal": True, "bandwidth": 1.5}
    got = oracle.certified_attention_vjp(q, k, v, dout, **options)
    f = partial(oracle.certified_attention, **options)
    assert_gradients(got, lambda *x: (dout * f(*x)).sum(), (q, k, v))


def test_misplaced_weights_cost_at_most_their_share_of_the_range() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        w, v = rng.random(6) ** 4, rng.standard_normal((6, 2))
        used = np.where(rng.random(6) < 0.3, 0, w * rng.uniform(0.5, 1.5, 6))
        if not used.any():
            continue
        share = oracle.misplaced(used, w)
        error = abs(used @ v / used.sum() - w @ v / w.sum())
        assert (error <= share * np.ptp(v, axis=0) + 1e-15).all()
