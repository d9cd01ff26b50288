"""What may not be seen does not matter: hidden keys and values may hold NaN and infinities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nlattn
from tests.hidden import SCENES, Array, Scene

every = pytest.mark.parametrize("scene", SCENES, ids=str)
spoilt = pytest.mark.parametrize("names", ["k", "v", "kv"])
queries = pytest.mark.parametrize("rows", [False, True], ids=["keys", "queries"])


def assert_same(got: Any, want: Any, struck: Array) -> None:
    """Rows of two results that nothing struck are equal, bit by bit."""
    got, want = (np.asarray(x).reshape(len(struck), -1)[~struck] for x in (got, want))
    np.testing.assert_array_equal(got, want)
    assert np.isfinite(got).any() or not got.size


@queries
@spoilt
@every
def test_outputs_of_rows_that_do_not_see_it(scene: Scene, names: str, rows: bool) -> None:
    wild, struck = scene.spoilt(names, rows), scene.struck(rows)
    got = scene.call("", wild)
    assert_same(got, scene.call("", scene.plain(names, rows)), struck)
    want = scene.call("", wild, oracle=True)
    assert_same(want, scene.call("", scene.plain(names, rows), oracle=True), struck)
    if "out" not in scene.unlike:
        np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))


@queries
@spoilt
@every
def test_gradients_of_rows_that_do_not_see_it(scene: Scene, names: str, rows: bool) -> None:
    wild, plain, struck = scene.spoilt(names, rows), scene.plain(names, rows), scene.struck(rows)
    keys = scene.seen[struck].any(0)
    got, want = scene.call("vjp", wild), scene.call("vjp", plain)
    exact = scene.call("vjp", wild, oracle=True)
    hits = {"dq": struck, "dk": keys, "dv": keys}
    for (name, hit), x, y, z in zip(hits.items(), got, want, exact, strict=False):
        if name == "dq" and len(struck) * x.shape[-1] != x.size:
            continue  # queries that all share
        assert_same(x, y, hit)
        if name not in scene.unlike:
            np.testing.assert_array_equal(np.isfinite(x), np.isfinite(z))


@queries
@spoilt
@pytest.mark.parametrize("scene", [scene for scene in SCENES if scene.mapped], ids=str)
def test_maps_of_rows_that_do_not_see_it(scene: Scene, names: str, rows: bool) -> None:
    wild, plain, struck = scene.spoilt(names, rows), scene.plain(names, rows), scene.struck(rows)
    keys = scene.seen[struck].any(0)
    A, B = scene.call("map", wild), scene.call("map", plain)
    x, y = (arrays["v"].reshape(A.shape[1], -1) for arrays in (wild, plain))
    assert_same(A @ x, B @ y, struck)
    g, h = (arrays["dout"].reshape(A.shape[0], -1) for arrays in (wild, plain))
    assert_same(A.T @ g, B.T @ h, keys)
    each = np.arange(A.shape[0])
    assert_same(A.rows(each), B.rows(each), struck)
    for one, other in zip(A.topk(2), B.topk(2), strict=True):
        assert_same(one, other, struck)
    if A.normalised:
        assert_same(A.lse, B.lse, struck)


@pytest.mark.jit
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_future_values_of_several_blocks_and_heads(dtype: Any) -> None:
    q, k, v, dout = np.random.default_rng(0).standard_normal((4, 2, 600, 5)).astype(dtype)
    plain = nlattn.attention(q, k, v, causal=True)
    gradients = nlattn.attention_vjp(q, k, v, dout, causal=True)
    v[1, 599], k[0, 300] = np.nan, np.nan
    out = nlattn.attention(q, k, v, causal=True, nonfinite="propagate")
    for head, first in ((0, 300), (1, 599)):
        np.testing.assert_array_equal(out[head, :first], plain[head, :first])
        assert np.isnan(out[head, first:]).all()
    dq, _, _ = nlattn.attention_vjp(q, k, v, dout, causal=True, nonfinite="propagate")
    np.testing.assert_array_equal(dq[0, :300], gradients[0][0, :300])
    np.testing.assert_array_equal(dq[1, :599], gradients[0][1, :599])


def test_a_bias_that_is_not_finite_strikes_the_rows_that_see_it() -> None:
    q, k, v, dout = np.random.default_rng(0).standard_normal((4, 6, 3))
    bias = np.zeros((6, 6))
    bias[2, 4] = bias[3, 1] = np.nan
    options: dict[str, Any] = {"bias": bias, "mask": np.arange(6) != 4, "nonfinite": "propagate"}
    out = nlattn.attention(q, k, v, **options)
    np.testing.assert_array_equal(np.isnan(out).all(1), np.arange(6) == 3)
    dq, *_, dbias = nlattn.attention_vjp(q, k, v, dout, **options)
    np.testing.assert_array_equal(np.isnan(dq).all(1), np.arange(6) == 3)
    np.testing.assert_array_equal(np.isnan(dbias).any(1), np.arange(6) == 3)
    assert not np.isnan(dbias[:, 4]).any()
