"""What may not be seen does not matter: hidden keys and values may hold NaN and infinities."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

import nlattn
from nlattn.conformance.table import TABLE
from tests.hidden import HIDING, SCENES, Array, Scene

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


APART = {"patchmatch", "nearest_keys", "heavy_attention", "universal_set"}
"""Operators with tests of their own below."""


def test_every_operator_that_hides_keys_is_here() -> None:
    for spec in TABLE:
        hiding = {*inspect.signature(spec.function()).parameters} & {*HIDING}
        known = {scene.op for scene in SCENES} | APART | {"qna_upsample", "nl_means"}
        assert not hiding or spec.name in known, spec.name


def matching(kind: str, masked: str) -> tuple[Any, Any, dict[str, Any]]:
    """Queries and keys, one of them not finite, and what to ask."""
    q, k = np.random.default_rng(5).standard_normal((2, 40, 3))
    seen = {"mask": np.arange(40) != 20} if masked else {}
    k[20] = np.nan if kind == "nan" else np.inf
    q[7, 1] = np.nan
    return q, k, seen


@pytest.mark.parametrize("masked", ["", "mask"])
@pytest.mark.parametrize("kind", ["nan", "inf"])
@pytest.mark.parametrize("score", ["dot", "neg_l2", "cosine"])
def test_nearest_keys_are_those_of_all_keys(score: str, kind: str, masked: str) -> None:
    q, k, seen = matching(kind, masked)
    got = nlattn.nearest_keys(q, k, topk=2, score=score, nonfinite="propagate", **seen)
    options: dict[str, Any] = {"topk": 2, "score": score, "nonfinite": "propagate"}
    if masked:
        options["key_mask"] = seen["mask"][None]
    want = nlattn.patchmatch(q[None], k[None], method="exact", **options)
    np.testing.assert_array_equal(got.index, want.index[0])
    np.testing.assert_array_equal(got.score, want.score[0])
    certified = nlattn.patchmatch(q[None], k[None], method="certified", **options)
    np.testing.assert_array_equal(certified.index, want.index)
    if masked or kind == "nan":
        assert 20 not in np.delete(got.index, 7, 0)


@pytest.mark.parametrize("candidates", ["random", "tree"])
def test_a_search_passes_hidden_keys_by(candidates: str) -> None:
    rng = np.random.default_rng(6)
    q, k = rng.standard_normal((2, 12, 12, 3))
    mask = rng.random((12, 12)) < 0.8
    options: dict[str, Any] = {"candidates": candidates, "key_mask": mask, "iterations": 2}
    want = nlattn.patchmatch(q, k, **options)
    k[~mask] = np.nan
    got = nlattn.patchmatch(q, k, nonfinite="propagate", **options)
    assert mask.reshape(-1)[got.index].all()
    if candidates == "random":  # trees are planted over what may be matched alone, in their order
        np.testing.assert_array_equal(got.index, want.index)
        np.testing.assert_array_equal(got.score, want.score)


@pytest.mark.parametrize("p", [2.0, 3.0])
def test_heavy_entries_of_queries_before_a_key_that_is_not_finite(p: float) -> None:
    q, k = np.random.default_rng(7).standard_normal((2, 30, 3))
    want = nlattn.heavy_attention(q, k, 0.1, p=p, causal=True)
    k[20, 1], q[4] = np.nan, np.inf
    got = nlattn.heavy_attention(q, k, 0.1, p=p, causal=True, nonfinite="propagate")
    rows = np.delete(np.arange(20), 4)
    np.testing.assert_array_equal(got.rows(rows) > 0, want.rows(rows) > 0)
    np.testing.assert_allclose(got.rows(rows), want.rows(rows), rtol=1e-12)
    assert not got.rows(np.arange(20, 30)).any()
    np.testing.assert_array_equal(np.isnan(got.lse), np.isin(np.arange(30), [4, *range(20, 30)]))


def test_universal_sets_of_prefixes_before_a_key_that_is_not_finite() -> None:
    k = np.random.default_rng(8).standard_normal((30, 3))
    want = nlattn.universal_set(k[:20], 0.3, causal=True)
    k[20, 2] = np.nan
    got = nlattn.universal_set(k, 0.3, causal=True, nonfinite="propagate")
    pointers, keys = got.support.indptr, got.support.indices
    np.testing.assert_array_equal(pointers[:21], want.support.indptr)
    np.testing.assert_array_equal(keys[: pointers[20]], want.support.indices)
    np.testing.assert_array_equal(got.upper[:20], want.upper)
    for row in range(20, 30):
        np.testing.assert_array_equal(keys[pointers[row] : pointers[row + 1]], np.arange(row + 1))
    assert got.borderline[20:].all()


def test_a_pixel_that_is_not_finite_reaches_as_far_as_its_patch_and_window() -> None:
    image = np.random.default_rng(9).random((20, 20, 1))
    options: dict[str, Any] = {"patch_size": 3, "patch_distance": 2, "h": 0.5, "sigma": 0}
    want = nlattn.nl_means(image, **options)
    image[3, 4] = np.nan
    got = nlattn.nl_means(image, nonfinite="propagate", **options)
    far = (
        np.maximum(abs(np.arange(20)[:, None] - 3), abs(np.arange(20) - 4)) > 5
    )  # windows stay inside
    np.testing.assert_array_equal(got[far], want[far])


def test_hidden_windows_of_finer_outputs() -> None:
    rng = np.random.default_rng(10)
    q, k, v = rng.standard_normal((4, 2, 3)), *rng.standard_normal((2, 6, 6, 3))
    k[0, 0] = v[0, 1] = 0
    want = nlattn.qna_upsample(q, k, v, scale=2, window=3)
    k[0, 0], v[0, 1] = np.nan, np.inf
    got = nlattn.qna_upsample(q, k, v, scale=2, window=3, nonfinite="propagate")
    np.testing.assert_array_equal(got[4:], want[4:])
    np.testing.assert_array_equal(got[:, 6:], want[:, 6:])
    assert np.isnan(got[:4, :4]).all()


def test_keys_that_an_indexer_does_not_choose() -> None:
    """Scores of other keys, tables, attention to them, and gradients keep their bits."""
    rng = np.random.default_rng(7)
    q, k, w = rng.standard_normal((9, 2, 4)), rng.standard_normal((30, 4)), rng.random((9, 2))
    wild, others = k.copy(), np.arange(30) != 20
    wild[20] = [np.nan, np.inf, 0, -np.inf]
    plain, spoilt = (nlattn.index_scores(q, x, w, nonfinite="propagate") for x in (k, wild))
    np.testing.assert_array_equal(spoilt[:, others], plain[:, others])
    plain[:, 20] = -np.inf
    table = nlattn.topk_keys(spoilt, 5, causal=True, causal_offset=20, nonfinite="propagate")
    np.testing.assert_array_equal(table, nlattn.topk_keys(plain, 5, causal=True, causal_offset=20))
    assert not (table == 20).any()
    support, queries = nlattn.support_from_index(table, 30), rng.standard_normal((9, 4))
    given: dict[str, Any] = {"support": support, "nonfinite": "propagate"}
    outs = [nlattn.sparse_attention(queries, x, x, **given) for x in (k, wild)]
    np.testing.assert_array_equal(*outs)
    each = [nlattn.sparse_attention_vjp(queries, x, x, dout=queries, **given) for x in (k, wild)]
    for x, y in zip(*each, strict=True):
        np.testing.assert_array_equal(x, y)
    g = rng.standard_normal((9, 30)) * others
    each = [nlattn.index_scores_vjp(q, x, w, g, nonfinite="propagate") for x in (k, wild)]
    for x, y in zip(*each, strict=True):
        np.testing.assert_array_equal(x, y)


def test_pages_and_rows_that_no_sequence_has() -> None:
    rng = np.random.default_rng(8)
    pages, table, lengths = rng.standard_normal((5, 4, 3)), np.array([[3, 0]]), np.array([6])
    wild, q = pages.copy(), rng.standard_normal((1, 7, 3))
    wild[[1, 2, 4]] = np.nan
    wild[0, 2:] = np.inf  # beyond the length
    given: dict[str, Any] = {"key_lengths": lengths, "nonfinite": "propagate"}
    found = []
    for x in (pages, wild):
        k = nlattn.gather_pages(x, table)
        _, dk, dv = nlattn.attention_vjp(q, k, k, q, **given)
        back = nlattn.gather_pages_vjp(x, table, dk + dv)
        paged = nlattn.paged_attention(q, x, x, table, **given)
        found.append((nlattn.attention(q, k, k, **given), paged, back))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
