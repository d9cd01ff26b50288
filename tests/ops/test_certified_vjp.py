"""Gradients of certified attention that went down the tree, within what the page says of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlattn import (
    certified_attention_jvp,
    certified_attention_map,
    certified_attention_vjp,
)
from nlattn.engines import certified as engine
from nlattn.engines import certified_vjp as backward
from nlattn.oracle import certified as oracle
from tests.helpers import for_any_threads
from tests.ops.test_certified import always_down_the_tree, smooth
from tests.tiled.test_certified import fewer

pytestmark = pytest.mark.jit
FACTOR = 1500.0


@pytest.fixture(autouse=True)
def _trees(monkeypatch: pytest.MonkeyPatch) -> None:
    always_down_the_tree(monkeypatch)
    monkeypatch.setattr(engine, "_FEW", 0)
    monkeypatch.setattr(engine, "_MANY", 0)


def arrays(weight: str, masked: str) -> tuple[list[np.ndarray], dict[str, Any]]:
    rng = np.random.default_rng(0)
    f = smooth(18, 3, np.float64)
    v, dout = rng.standard_normal((len(f), 2)), rng.standard_normal((len(f) - 31, 2))
    options: dict[str, Any] = {"weight": weight, "scale": 2 * FACTOR, "bandwidth": FACTOR**-0.5}
    if masked == "causal":
        options["causal"] = True
    elif masked:
        options["mask"] = rng.random((len(dout) if masked == "pairs" else 1, len(f))) < 0.6
    q, k = f[31:], f
    if weight == "softmax":
        q = np.concatenate([q, np.ones_like(q[:, :1])], 1)
        k = np.concatenate([k, -(k**2).sum(1, keepdims=True) / 2], 1)
    return [q, k, v, dout], options


@pytest.mark.parametrize("weight", ["softmax", "gaussian"])
@pytest.mark.parametrize("masked", ["", "keys", "pairs", "causal"])
@pytest.mark.parametrize("tolerance", [0.1, 1e-4])
def test_gradients_are_within_their_bounds(weight: str, masked: str, tolerance: float) -> None:
    (q, k, v, dout), options = arrays(weight, masked)
    got = certified_attention_vjp(q, k, v, dout, tolerance=tolerance, **options)
    want = oracle.certified_attention_vjp(q, k, v, dout, **options)
    reach = np.ptp(dout @ v.T, axis=1)[:, None]  # of dout_i . v_j over the keys
    wide = np.abs(q) if weight == "softmax" else np.abs(q[:, None] - k).max(1)
    of_q = 1.5 * 2 * FACTOR * tolerance * reach * np.ptp(k, axis=0)
    assert (np.abs(got[0] - want[0]) <= of_q + 1e-12).all()
    errors = [np.abs(a - b).sum(0) for a, b in zip(got[1:], want[1:], strict=True)]
    assert (errors[0] <= 3 * 2 * FACTOR * tolerance * (reach * wide).sum(0) + 1e-11).all()
    assert (errors[1] <= 2 * tolerance * np.abs(dout).sum(0) + 1e-12).all()
    A = certified_attention_map(q, k, tolerance=tolerance, **options)
    np.testing.assert_allclose(A.T @ dout, got[2], rtol=1e-12, atol=1e-14)
    (found,) = backward.visits(A._ground)
    assert not len(found.left)
    leaves = 1 << found.part.tree.levels
    assert 0 < len(found.leaves) < 0.8 * leaves * len(found.part.asked.panels)
    assert errors[1].max() > 1e-13  # something is left out


def test_what_is_left_to_dense_attention_is_of_all_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    (q, k, v, dout), options = arrays("softmax", "causal")
    monkeypatch.setattr(engine, "_sound", fewer(engine._sound))
    got = certified_attention_vjp(q, k, v, dout, tolerance=1e-9, **options)
    want = oracle.certified_attention_vjp(q, k, v, dout, **options)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-7 * np.abs(b).max())
    A = certified_attention_map(q, k, tolerance=1e-9, **options)
    assert len(A._ground.dense) > 50
    np.testing.assert_allclose(A.T @ dout, want[2], rtol=0, atol=1e-8)


def test_single_precision_and_leading_axes_that_broadcast() -> None:
    (q, k, v, dout), options = arrays("softmax", "")
    two = np.stack([v, -v]).astype(np.float32)
    q, k, dout = (x.astype(np.float32) for x in (q, k, dout))
    got = certified_attention_vjp(q, k, two, np.stack([dout, dout]), tolerance=1e-3, **options)
    wide = (x.astype(np.float64) for x in (q, k, v, dout))
    want = oracle.certified_attention_vjp(*wide, **options)
    assert [x.dtype for x in got] == [np.float32] * 3
    assert [x.shape for x in got] == [q.shape, k.shape, two.shape]
    for a, of in ((got[0], want[0]), (got[1], want[1])):
        assert np.abs(a).max() <= 1e-2 * np.abs(of).max()  # of v and -v
    np.testing.assert_allclose(got[2][0], want[2], rtol=0, atol=2e-3 * np.abs(want[2]).max())
    np.testing.assert_array_equal(got[2][0], got[2][1])


def test_same_bits_for_any_number_of_threads() -> None:
    (q, k, v, dout), options = arrays("gaussian", "")
    for_any_threads(lambda: certified_attention_vjp(q, k, v, dout, **options))


@pytest.mark.parametrize("tolerance", [0, 1e-9])
@pytest.mark.parametrize("far_key", [False, True])
def test_distances_do_not_depend_on_the_origin(tolerance: float, far_key: bool) -> None:
    """Differences are exact here, so that nothing may be lost of what 2^30 is added to."""
    rng = np.random.default_rng(3)
    q, k = rng.integers(-9, 9, (40, 2)) / 16, rng.integers(-9, 9, (90, 2)) / 16
    if far_key:
        k[7] = 2.0**36
    v, dout, dq = rng.standard_normal((90, 3)), rng.standard_normal((40, 3)), q[::-1].copy()
    options: dict[str, Any] = {"weight": "gaussian", "bandwidth": 0.5, "tolerance": tolerance}
    want = oracle.certified_attention_vjp(q, k, v, dout, weight="gaussian", bandwidth=0.5)
    far = q + 2.0**30, k + 2.0**30
    for a, b in zip(certified_attention_vjp(*far, v, dout, **options), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-7)
    change = certified_attention_jvp(*far, v, dq, 0 * k, 0 * v, **options)
    np.testing.assert_allclose((change * dout).sum(), (want[0] * dq).sum(), rtol=0, atol=1e-7)
    A = certified_attention_map(*far, **options)
    np.testing.assert_allclose(A.rows([3, 5]), oracle_rows(q[[3, 5]], k), rtol=0, atol=1e-8)


def oracle_rows(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    weights = np.exp(-((q[:, None] - k) ** 2).sum(-1) / 0.25)
    return np.asarray(weights / weights.sum(1, keepdims=True))
