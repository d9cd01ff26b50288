"""Merged results, the indexer and pages, as one writes them."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.faults import decoder


def _weights(bad: str, lses: Any, lse_base: str) -> Any:
    """Of the sets, not normalised, and the logarithm that was subtracted, in natural units."""
    z = lses * (np.log(2) if lse_base == "2" and bad != "base ignored" else 1)
    top = z.max(-2)
    top = np.where(np.isneginf(top) & (bad != "empty not kept apart"), 0, top)
    if bad == "no maximum":
        top = 0 * top
    w = np.exp(z - top[..., None, :])
    if bad == "weights of lse":
        w = np.where(np.isneginf(z), 0, z)
    if bad == "last set forgotten":
        w[..., -1, :] = 0
    return (~np.isneginf(z) * 1.0 if bad == "even" else w), top


def merge_attention(bad: str, outs: Any, lses: Any, *, lse_base: str = "e") -> Any:
    """A mean weighted by exponentials of normalisers."""
    w, top = _weights(bad, lses, lse_base)
    total = w.sum(-2)
    sure = total if bad == "empty not kept apart" else np.where(total == 0, 1, total)
    sure = np.ones_like(sure) if bad == "not divided" else sure
    share = (w / sure[..., None, :])[..., None]
    terms = share * outs if bad == "values of empty sets" else np.where(share == 0, 0, share * outs)
    lse = np.log(sure) + top if bad != "lse of the largest" else top
    lse = np.where(total == 0, -np.inf, lse)
    lse = lse / (np.log(2) if lse_base == "2" and bad != "base ignored" else 1)
    return terms.sum(-3), lse


def merge_attention_vjp(
    bad: str, outs: Any, lses: Any, dout: Any, *, dlse: Any = None, lse_base: str = "e"
) -> Any:
    """Each share is a softmax of the normalisers."""
    w, _ = _weights("", lses, lse_base)
    total = w.sum(-2, keepdims=True)
    share = w / np.where(total == 0, 1, total)
    kept = np.where(share[..., None] == 0, 0, outs)
    inner = (kept * dout[..., None, :, :]).sum(-1)
    if bad != "no mean":
        inner = inner - (share * inner).sum(-2, keepdims=True)
    inner = inner * (np.log(2) if lse_base == "2" and bad != "base forgotten" else 1)
    if dlse is not None and bad != "no dlse":
        inner = inner + dlse[..., None, :]
    douts = share[..., None] * dout[..., None, :, :]
    if bad == "douts unweighted":
        douts = np.broadcast_to(dout[..., None, :, :], outs.shape).copy()
    return douts, inner if bad == "dlses unweighted" else share * inner


def index_scores(bad: str, q: Any, k: Any, w: Any) -> Any:
    """Head by head."""
    out = np.zeros((*np.broadcast_shapes(q.shape[:-3], k.shape[:-2]), q.shape[-3], k.shape[-2]))
    for h in range(q.shape[-2] if bad != "one head" else 1):
        s = q[..., h, :] @ np.swapaxes(k, -1, -2)
        weight = w[..., (h + 1) % q.shape[-2] if bad == "next weight" else h, None]
        if bad == "no weight":
            weight = 1
        if bad in ("no relu", "relu of the sum"):
            out = out + weight * s
        elif bad == "relu of the weighted":
            out = out + np.maximum(weight * s, 0)
        else:
            out = out + weight * np.maximum(s, 0)
    if bad == "scaled":
        out = out / np.sqrt(q.shape[-1])
    return np.maximum(out, 0) if bad == "relu of the sum" else out


def index_scores_vjp(bad: str, q: Any, k: Any, w: Any, dscores: Any) -> Any:
    """Where a product is above 0."""
    s = np.einsum("...nhd,...md->...nhm", q, k)
    on = np.ones_like(s) if bad == "no gate" else s > 0
    ds = on * dscores[..., None, :] * (1 if bad == "no weight" else w[..., None])
    dq = np.einsum("...nhm,...md->...nhd", ds, k)
    dk = np.einsum("...nhm,...nhd->...md", ds[..., :1, :] if bad == "one head" else ds,
                   q[..., :1, :] if bad == "one head" else q)  # fmt: skip
    dw = ((s if bad == "negative products in dw" else on * s) * dscores[..., None, :]).sum(-1)
    more = dk.ndim - k.ndim
    return dq, dk.sum(tuple(range(more))) if more else dk, dw


def topk_keys(
    bad: str, scores: Any, *, t: int, causal: bool = False, causal_offset: int = 0
) -> Any:
    """By a stable sort."""
    n, m = scores.shape[-2:]
    s = scores.astype(float)
    offset = {"offset ignored": 0, "one too few": causal_offset - 1}.get(bad, causal_offset)
    offset = causal_offset + m - n if bad == "corner" else offset
    seen = ~np.isneginf(s) | (bad == "hidden seen")
    if causal and bad != "not causal":
        seen &= np.arange(m) <= np.arange(n)[:, None] + offset
    s = np.where(seen, np.maximum(s, -1e30), -np.inf)
    key = -abs(s) if bad == "magnitude" else s if bad == "lowest" else -s
    key = np.where(seen, key, np.inf)
    order = np.argsort(key, -1, kind="stable")
    if bad == "equal keys turned":
        order = m - 1 - np.argsort(key[..., ::-1], -1, kind="stable")
    count = np.minimum(seen.sum(-1), t)[..., None]
    found = np.full((*scores.shape[:-1], t), -1)
    found[..., : min(t, m)] = order[..., :t]
    found = np.where(np.arange(t) < count, found, 0 if bad == "padded with 0" else -1)
    if bad == "one short":
        found[..., -1] = -1
    return np.sort(found, -1)[..., ::-1] if bad == "sorted" else found


def index_loss(bad: str, scores: Any, weights: Any) -> Any:
    """KL of two distributions."""
    log_p, some = _log_softmax(bad, scores), weights > 0
    log_w = np.log(np.where(some, weights, 1))
    if bad == "reversed with eps":
        p = np.exp(log_p)
        return (p * (np.log(p + 1e-8) - np.log(weights + 1e-8))).sum(-1)
    if bad == "cross entropy":
        log_w = 0 * log_w
    if bad == "reversed":
        p = np.exp(log_p)
        some &= p > 0
        return np.where(some, p * (np.where(some, log_p, 0) - log_w), 0).sum(-1)
    loss = np.where(some, weights * (log_w - np.where(some, log_p, 0)), 0)
    loss = loss.mean(-1) if bad == "mean" else loss.sum(-1)
    return loss / np.log(2) if bad == "bits" else loss


def index_loss_vjp(bad: str, scores: Any, weights: Any, dloss: Any) -> Any:
    """Softmax less weights."""
    p = np.exp(_log_softmax(bad, scores))
    total = 1 if bad == "sum taken as 1" else weights.sum(-1, keepdims=True)
    g = (p * total - weights) * (1 if bad == "no dloss" else dloss[..., None])
    return {"weights alone": -weights * dloss[..., None], "turned": -g}.get(bad, g)


def _log_softmax(bad: str, scores: Any) -> Any:
    top = scores.max(-1, keepdims=True)
    top = np.where(np.isneginf(top), 0, top)
    with np.errstate(all="ignore"):
        e = np.exp(scores if bad == "no maximum" else scores - top)
        total = np.log(e.sum(-1, keepdims=True)) + (0 if bad == "no maximum" else top)
        return np.where(np.isneginf(scores), -np.inf, scores - total)


def share_held(bad: str, lse_set: Any, lse: Any) -> Any:
    """A ratio of sums, from their logarithms."""
    some = ~np.isneginf(lse_set)
    apart = np.where(some, lse_set, 0) - np.where(some, lse, 0)
    if bad == "two sums":
        return np.where(some, np.exp(lse_set) / np.exp(lse), 0)
    found = {"base 2": np.exp2(apart), "turned": np.exp(-apart), "logarithm": apart}
    share = found.get(bad, np.exp(apart))
    return np.where(some | (bad == "empty is 1"), share, 0)


def gather_pages(bad: str, pages: Any, *, table: Any) -> Any:
    """By an index of NumPy."""
    t = np.array(table)
    if bad == "first table" and t.ndim > 1:
        t[...] = t[(0,) * (t.ndim - 1)]
    if bad == "reversed":
        t = t[..., ::-1]
    found = pages[np.maximum(t, 0) if bad == "page 0" else t]
    if bad not in ("page 0", "last page"):
        found = np.where((t < 0).reshape(*t.shape, *[1] * (pages.ndim - 1)), 0, found)
    if bad == "rows in turn":
        found = np.swapaxes(found, t.ndim - 1, t.ndim)
    return found.reshape(*t.shape[:-1], -1, *pages.shape[2:])


def gather_pages_vjp(bad: str, pages: Any, dout: Any, *, table: Any) -> Any:
    """Shared pages get a sum."""
    each = dout.reshape(*table.shape, *pages.shape[1:])
    dpages = np.zeros(pages.shape)
    there = np.full(table.shape, True) if bad == "empty counted" else table >= 0
    if bad == "overwritten":
        dpages[table[there]] = each[there]
    else:
        np.add.at(dpages, table[there], each[there])
    if bad == "averaged":
        count = np.bincount(table[there], minlength=len(pages))
        dpages /= np.maximum(count, 1).reshape(-1, *[1] * (pages.ndim - 1))
    return dpages


def _laid(bad: str, q: Any, pages: Any, table: Any) -> Any:
    t = table[:1] + 0 * table if bad == "first table" else table
    t = (t + (t >= 0)) % len(pages) - (t < 0) if bad == "next page" else t
    return np.moveaxis(gather_pages("", pages, table=t), -2, -3).astype(q.dtype)


def paged_attention(
    bad: str, q: Any, k_pages: Any, v_pages: Any, *, table: Any, key_lengths: Any = None,
    **options: Any,
) -> Any:  # fmt: skip
    """Gathered, then as plain attention of a decoder."""
    k, v = (_laid(bad, q, x, table) for x in (k_pages, v_pages))
    return decoder.attention("", q, k, v, key_lengths=_lengths(bad, key_lengths, k_pages),
                             **_placed(bad, options))  # fmt: skip


def _lengths(bad: str, lengths: Any, pages: Any) -> Any:
    size = pages.shape[1]
    if lengths is None or bad == "keys ignored":
        return None
    less = np.maximum(lengths - size * (lengths % size == 0), 0)
    lengths = {"whole pages": -(-lengths // size) * size, "full pages": lengths // size * size,
               "last page": less,
               "first length": 0 * lengths + lengths[0]}.get(bad, lengths)  # fmt: skip
    return lengths[:, None]


def _placed(bad: str, options: Any) -> Any:
    if bad == "no window":
        options = {**options, "window": None}
    if options.get("window") is not None:
        options = {**options, "window_about": "offset"}
        if bad == "still window" and not options.get("causal"):
            options["causal_offset"] = 0
    if bad == "top left" and options.get("causal"):
        return {**options, "causal_offset": 0}
    return options


def paged_attention_vjp(
    bad: str, q: Any, k_pages: Any, v_pages: Any, dout: Any, *, table: Any,
    key_lengths: Any = None, **options: Any,
) -> Any:  # fmt: skip
    """Gradients of the gathered rows, added up page by page."""
    table = table[:1] + 0 * table if bad == "first table" else table
    k, v = (_laid(bad, q, x, table) for x in (k_pages, v_pages))
    lengths = _lengths(bad, key_lengths, k_pages)
    if bad == "no dlse":
        options.pop("dlse", None)
    dq, dk, dv, *rest = decoder.attention_vjp(
        "", q, k, v, dout, key_lengths=lengths, **_placed(bad, options)
    )
    back = "" if bad not in ("overwritten", "averaged") else bad
    dk, dv = (
        gather_pages_vjp(back, pages, np.moveaxis(g, -3, -2).reshape(len(g), -1, *pages.shape[2:]),
                         table=table).astype(q.dtype)
        for pages, g in ((k_pages, dk), (v_pages, dv))
    )  # fmt: skip
    return dq, dk, dv, *rest


FAULTS: dict[str, dict[str, str]] = {
    "paged_attention": {
        "first table": "with the table of the first sequence",
        "next page": "with the next page",
        "keys ignored": "without the key lengths",
        "whole pages": "with the rest of the last page",
        "full pages": "without the last page where it is not full",
        "first length": "with the first sequence's number of keys for all",
        "last page": "without the last page where it is full",
        "top left": "causal from the top left corner",
        "no window": "without the window",
        "still window": "with the window about the query itself",
    },
    "paged_attention_vjp": {
        "no window": "without the window",
        "first table": "with the table of the first sequence",
        "keys ignored": "without the key lengths",
        "overwritten": "dk_pages",
        "averaged": "with the mean over the places of a page, not the sum",
        "no dlse": "without the gradient of lse",
    },
    "merge_attention": {
        "even": "with all sets weighted alike",
        "weights of lse": "weighted by lse",
        "not divided": "out is ours, each row times a factor of its own",
        "base ignored": "base",
        "last set forgotten": "without the last set",
        "lse of the largest": "with the largest lse",
        "values of empty sets": "with NaN of what an empty set holds",
        "empty not kept apart": "with NaN where all sets are empty",
        "no maximum": "out is NaN everywhere",
    },
    "merge_attention_vjp": {
        "no mean": "without the mean over sets in dlses",
        "base forgotten": "dlses",
        "no dlse": "without the gradient of lse",
        "douts unweighted": "with douts not weighted",
        "dlses unweighted": "without the shares in dlses",
    },
    "index_scores": {
        "no relu": "without the relu",
        "relu of the sum": "with the relu of the sum of heads",
        "relu of the weighted": "with the relu of weighted products",
        "next weight": "with the weight of the next head",
        "no weight": "with heads not weighted",
        "one head": "with the first head alone",
        "scaled": "divided by the root of d",
    },
    "index_scores_vjp": {
        "no gate": "without the relu",
        "no weight": "with `on` in place of `w[..., None] * on`",
        "one head": "with the first head alone, in dk alone",
        "negative products in dw": "with `1` in place of `where(s.real > 0, 1, 0)`",
    },
    "topk_keys": {
        "lowest": "with the lowest scores",
        "magnitude": "with the largest magnitudes",
        "sorted": "sorted by key",
        "hidden seen": "with hidden keys",
        "padded with 0": "with 0 in place of -1",
        "one short": "without the last key of the table",
        "not causal": "causal",
        "one too few": "causal by one key too few",
        "corner": "corner",
        "offset ignored": "offset",
    },
    "index_loss": {
        "cross entropy": "cross entropy",
        "reversed": "the other way round",
        "reversed with eps": "the other way round: KL(softmax || weights), with 1e-08 added in",
        "mean": "with the mean over keys",
        "bits": "in bits",
        "no maximum": "infinite everywhere",
    },
    "index_loss_vjp": {
        "sum taken as 1": "with `p` in place of `p * weights.sum(-1, keepdims=True)`",
        "no dloss": "for a cotangent of ones",
        "weights alone": "without the softmax of scores",
        "turned": "with the sign turned",
    },
    "share_held": {
        "base 2": "base 2",
        "turned": "the other way round",
        "logarithm": "with the difference of logarithms",
        "empty is 1": "with 1 where the set is empty",
        "two sums": "NaN everywhere",
    },
    "gather_pages": {
        "first table": "with the table of the first sequence",
        "reversed": "with pages in reverse order",
        "page 0": "with the first page for an empty one",
        "last page": "with the last page for an empty one",
        "rows in turn": "with rows of pages taken in turn",
    },
    "gather_pages_vjp": {
        "overwritten": "with the last place of a page",
        "averaged": "with the mean over the places of a page, not the sum",
        "empty counted": "with the last page for an empty one",
    },
}
