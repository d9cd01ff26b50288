"""What FlashMLA and attention-gym say of selected keys, query by query, and the same calls of ours.

Each function says in loops what a published interface and its reference mean [flashmla2026,
attngym2026]: empty entries, multiplicity, sinks, normalisers, pages, packed documents.
The table of docs/algorithms/sparse.md lists them in this order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nlattn

RNG = np.random.default_rng(0)


def softmax_over(q: Any, keys: Any, values: Any, scale: float, sink: float) -> tuple[Any, float]:
    """One query over keys that may repeat, and a sink: its output, and ``lse`` of keys alone."""
    s = scale * keys @ q
    lse = np.logaddexp.reduce(s) if len(s) else -np.inf
    whole = np.logaddexp(lse, sink)
    weights = np.exp(s - whole) if len(s) else s
    return weights @ values, float(lse)


def flash_mla_sparse_fwd(
    q: Any, kv: Any, indices: Any, sm_scale: float, d_v: int, attn_sink: Any = None,
    topk_length: Any = None, indexer_topk: int = 0,
) -> tuple[Any, ...]:  # fmt: skip
    """FlashMLA's prefill: q (s_q, h_q, d), kv (s_kv, 1, d), indices (s_q, 1, topk)."""
    n, h = q.shape[:2]
    out, top = np.zeros((n, h, d_v)), np.full((n, h), -np.inf)
    lse, first = np.full((n, h), np.inf), np.full((n, h), np.inf)
    for i, g in np.ndindex(n, h):
        row = indices[i, 0] if topk_length is None else indices[i, 0, : topk_length[i]]
        named = row[(row >= 0) & (row < len(kv))]
        keys = kv[named, 0]
        sink = -np.inf if attn_sink is None else attn_sink[g]
        out[i, g], own = softmax_over(q[i, g], keys, keys[:, :d_v], sm_scale, sink)
        if len(named):
            lse[i, g], top[i, g] = own, (sm_scale * keys @ q[i, g]).max()
        head = row[:indexer_topk]
        head = head[(head >= 0) & (head < len(kv))]
        if len(head):
            first[i, g] = softmax_over(q[i, g], kv[head, 0], kv[head, 0], sm_scale, -np.inf)[1]
    return out, top, lse, first


def flash_mla_with_kvcache(
    q: Any, k_cache: Any, head_dim_v: int, indices: Any, extra_k_cache: Any, extra_indices: Any,
    topk_length: Any, attn_sink: Any, softmax_scale: float,
) -> tuple[Any, Any]:  # fmt: skip
    """FlashMLA's decoding over listed slots of two caches; entries are page times size + row."""
    b, s, h, d = q.shape
    out, lse = np.zeros((b, s, h, head_dim_v)), np.full((b, h, s), np.inf)
    for a, i, g in np.ndindex(b, s, h):
        keys = []
        for cache, table, length in (
            (k_cache, indices, topk_length[a]),
            (extra_k_cache, extra_indices, None),
        ):
            row = table[a, i, :length]
            keys.append(cache.reshape(-1, d)[row[row != -1]])
        both = np.concatenate(keys)
        values = both[:, :head_dim_v]
        out[a, i, g], own = softmax_over(q[a, i, g], both, values, softmax_scale, attn_sink[g])
        lse[a, g, i] = own if len(both) else np.inf
    return out, lse


def gather_attn(
    query: Any, local_kv: Any, sparse_kv: Any, kv_indices: Any, attention_sink: Any,
    sliding_window_size: int, scale: float, cu_seqlens: Any = None, cu_seqlens_k: Any = None,
) -> tuple[Any, Any]:  # fmt: skip
    """attention-gym's: a window about each query, and listed entries of a pool, in one softmax."""
    b, h, n, d = query.shape
    out, lse = np.zeros((b, h, n, d)), np.zeros((b, h, n))
    for a, g, i in np.ndindex(b, h, n):
        start, begin, end = 0, 0, sparse_kv.shape[2]
        if cu_seqlens is not None:
            document = np.searchsorted(cu_seqlens[1:], i, side="right")
            start, begin, end = cu_seqlens[document], *cu_seqlens_k[document : document + 2]
        near = local_kv[a, g % local_kv.shape[1], max(start, i + 1 - sliding_window_size) : i + 1]
        row = kv_indices[a, i]
        named = row[(row >= 0) & (row < end - begin)] + begin
        kv = np.concatenate([near, sparse_kv[a, g % sparse_kv.shape[1]][named]])
        out[a, g, i], own = softmax_over(query[a, g, i], kv, kv, scale, attention_sink[g])
        lse[a, g, i] = np.logaddexp(own, attention_sink[g])
    return out, lse


def index(q: Any, k: Any, weights: Any, topk: int, causal: bool) -> Any:
    """attention-gym's indexer: scores divided by the root of heads times channels."""
    b, n, h, d = q.shape
    found = np.full((b, n, topk), -1)
    for a, i in np.ndindex(b, n):
        s = sum(weights[a, i, g] * np.maximum(k[a] @ q[a, i, g], 0) for g in range(h))
        s = s / np.sqrt(h * d)
        seen = np.flatnonzero(np.arange(len(k[a])) <= i) if causal else np.arange(len(k[a]))
        best = seen[np.argsort(-s[seen], kind="stable")][:topk]
        found[a, i, : len(best)] = best
    return found


def table(n: int, m: int, width: int) -> Any:
    """Entries that are empty, too large, and named twice; one row holds none."""
    index = RNG.integers(-2, m + 3, (n, width))
    index[0] = [-1, m, m + 7] * (width // 3)
    index[1] = index[1, 0] if 0 <= index[1, 0] < m else 2
    return index.astype(np.int32)


@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("cut", [False, True])
def test_flash_mla_prefill(sink: bool, cut: bool) -> None:
    n, h, m, d, e, width = 6, 3, 9, 8, 5, 12
    q, kv = RNG.standard_normal((n, h, d)), RNG.standard_normal((m, 1, d))
    indices, scale = table(n, m, width)[:, None], 0.4
    given: dict[str, Any] = {"indexer_topk": 4}
    given |= {"attn_sink": RNG.standard_normal(h)} if sink else {}
    given |= {"topk_length": np.array([12, 3, 0, 7, 12, 1])} if cut else {}
    out, top, lse, first = flash_mla_sparse_fwd(q, kv, indices, scale, e, **given)

    heads, keys, index = q.swapaxes(0, 1), kv[:, 0], indices[:, 0].copy()
    if cut:
        index[np.arange(width) >= given["topk_length"][:, None]] = -1
    support, counts = nlattn.support_from_index(index, m, beyond="empty", return_counts=True)
    options: dict[str, Any] = {"scale": scale, "bias": np.log(counts)}
    sinks = {"sinks": given["attn_sink"]} if sink else {}
    mine = nlattn.sparse_attention(heads, keys, keys[:, :e], support, **options, **sinks)
    np.testing.assert_allclose(mine.swapaxes(0, 1), out, rtol=1e-12, atol=1e-14)

    _, own = nlattn.sparse_attention(heads, keys, keys, support, **options, return_lse=True)
    np.testing.assert_allclose(np.where(np.isneginf(own), np.inf, own).T, lse, rtol=1e-12)
    some, counts = nlattn.support_from_index(index[:, :4], m, beyond="empty", return_counts=True)
    _, part = nlattn.sparse_attention(
        heads, keys, keys, some, scale=scale, bias=np.log(counts), return_lse=True
    )
    np.testing.assert_allclose(np.where(np.isneginf(part), np.inf, part).T, first, rtol=1e-12)
    scores = [nlattn.sparse_attention_map(x, keys, support, scale=scale) for x in heads]
    best = np.stack([A.scores(np.arange(n)).max(1) for A in scores], 1)
    np.testing.assert_allclose(best, top, rtol=1e-12)


def test_flash_mla_decoding() -> None:
    b, s, h, d, e, size = 2, 3, 4, 8, 5, 4
    q, cache = RNG.standard_normal((b, s, h, d)), RNG.standard_normal((5, size, 1, d))
    extra = RNG.standard_normal((2, size, 1, d))
    indices, more = RNG.integers(-1, 20, (b, s, 7)), RNG.integers(-1, 8, (b, s, 3))
    indices[0, 0], more[0, 0] = -1, -1
    lengths, sink = np.array([7, 4]), RNG.standard_normal(h)
    out, lse = flash_mla_with_kvcache(q, cache, e, indices, extra, more, lengths, sink, 0.5)

    keys = np.concatenate([cache.reshape(-1, d), extra.reshape(-1, d)])
    index = np.where(np.arange(7) < lengths[:, None, None], indices, -1)
    both = np.concatenate([index, np.where(more < 0, -1, more + 20)], -1)
    support, counts = nlattn.support_from_index(both[:, None], 28, return_counts=True)
    heads = np.moveaxis(q, 2, 1)
    shape = (b, h, s, 28)
    wide = [np.concatenate([row] * h) for row in np.split(counts, np.cumsum(_rows(support))[:-1])]
    every = nlattn.support(*_repeated(support, h), shape)
    options: dict[str, Any] = {"scale": 0.5, "bias": np.log(np.concatenate(wide))}
    mine, own = nlattn.sparse_attention(
        heads, keys, keys[:, :e], every, sinks=sink, **options, return_lse=True
    )
    np.testing.assert_allclose(np.moveaxis(mine, 1, 2), out, rtol=1e-12, atol=1e-14)
    assert own.shape == lse.shape
    _, alone = nlattn.sparse_attention(heads, keys, keys, every, **options, return_lse=True)
    np.testing.assert_allclose(np.where(np.isneginf(alone), np.inf, alone), lse, rtol=1e-12)


def _rows(support: Any) -> Any:
    """Edges of each sequence."""
    return np.diff(support.indptr).reshape(support.shape[0], -1).sum(1)


def _repeated(support: Any, h: int) -> tuple[Any, Any]:
    """The table of each sequence for every head."""
    counts = np.diff(support.indptr).reshape(support.shape[0], -1)
    parts = np.split(support.indices, np.cumsum(counts.sum(1))[:-1])
    indices = np.concatenate([part for part in parts for _ in range(h)])
    each = np.repeat(counts, h, 0).ravel()
    return np.concatenate([[0], np.cumsum(each)]), indices


def test_flash_mla_dense_decoding() -> None:
    """Pages by a table, lengths, heads of queries that share one of keys, the last ones aligned."""
    b, s, h, d, e, size = 2, 2, 3, 8, 5, 4
    q, cache = RNG.standard_normal((b, s, h, d)), RNG.standard_normal((6, size, 1, d))
    pages, lengths = np.array([[5, 0, 2], [1, 4, -1]]), np.array([10, 6])
    want = np.zeros((b, s, h, e))
    for a, i, g in np.ndindex(b, s, h):
        keys = cache[pages[a]].reshape(-1, d)[: lengths[a] - s + i + 1]
        want[a, i, g], _ = softmax_over(q[a, i, g], keys, keys[:, :e], d**-0.5, -np.inf)
    shared = np.repeat(cache, h, 2)
    mine = nlattn.paged_attention(
        np.moveaxis(q, 2, 1), shared, shared[..., :e], pages, key_lengths=lengths, causal=True,
        causal_offset="bottom-right",
    )  # fmt: skip
    np.testing.assert_allclose(np.moveaxis(mine, 1, 2), want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_attention_gym_gather(share: bool, packed: bool) -> None:
    b, h, n, pool, d, width, size = 1 if packed else 2, 2, 10, 7, 6, 9, 3
    kv_heads = 1 if share else h
    query = RNG.standard_normal((b, h, n, d))
    local, sparse = (RNG.standard_normal((b, kv_heads, x, d)) for x in (n, pool))
    indices = np.stack([table(n, pool, width) for _ in range(b)])
    sink, scale = RNG.standard_normal(h), 0.3
    offsets = (np.array([0, 4, 4, n]), np.array([0, 2, 5, pool])) if packed else (None, None)
    out, lse = gather_attn(query, local, sparse, indices, sink, size, scale, *offsets)

    kv = np.concatenate([sparse, local], 2)
    i, begin, start, end = np.arange(n), np.zeros(n, int), np.zeros(n, int), np.full(n, pool)
    if packed:
        own = np.searchsorted(offsets[0][1:], i, side="right")
        start, begin, end = offsets[0][own], offsets[1][own], offsets[1][own + 1]
    valid = (indices >= 0) & (indices < (end - begin)[:, None])
    near = i[:, None] - np.arange(size)
    near = np.broadcast_to(np.where(near >= start[:, None], near + pool, -1), (b, n, size))
    index = np.concatenate([np.where(valid, indices + begin[:, None], -1), near], -1)
    index = np.broadcast_to(index[:, None], (b, h, n, width + size))
    support, counts = nlattn.support_from_index(index, pool + n, return_counts=True)
    mine, own_lse = nlattn.sparse_attention(
        query, kv, kv, support, scale=scale, bias=np.log(counts), sinks=sink, return_lse=True
    )
    np.testing.assert_allclose(mine, out, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(own_lse, lse, rtol=1e-12)


def test_attention_gym_rows_of_nothing() -> None:
    """Output 0; ``lse`` is the sink's logit, or -inf without one; gradients are 0."""
    q, kv = RNG.standard_normal((2, 3, 4)), RNG.standard_normal((5, 4))
    support = nlattn.support_from_index(np.full((3, 2), -1), 5)
    sinks = np.array([0.5, -1.0])
    out, lse = nlattn.sparse_attention(q, kv, kv, support, sinks=sinks, return_lse=True)
    assert not out.any()
    np.testing.assert_array_equal(lse, np.repeat(sinks[:, None], 3, 1))
    _, bare = nlattn.sparse_attention(q, kv, kv, support, return_lse=True)
    assert np.isneginf(bare).all()
    for gradient in nlattn.sparse_attention_vjp(q, kv, kv, support, out + 1, sinks=sinks):
        assert not gradient.any()


@pytest.mark.parametrize("causal", [False, True])
def test_attention_gym_indexer(causal: bool) -> None:
    """A positive factor on all scores chooses no other keys."""
    q, k = RNG.standard_normal((2, 7, 3, 5)), RNG.standard_normal((2, 7, 5))
    w = RNG.random((2, 7, 3))
    scores = nlattn.index_scores(q, k, w)
    got = nlattn.topk_keys(scores, 4, causal=causal)
    np.testing.assert_array_equal(got, index(q, k, w, 4, causal))
    mine = nlattn.index_scores(q, k, w / np.sqrt(3 * 5))
    np.testing.assert_allclose(mine, scores / np.sqrt(15), rtol=1e-12)
