"""Attention as a decoder calls it, with the mistakes that are known of published kernels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Options(NamedTuple):
    """What is taken beside queries, keys and values; "base" is that of lse."""

    scale: Any = None
    softcap: Any = None
    causal: bool = False
    causal_offset: Any = 0
    window: Any = None
    window_about: str = "query"
    key_lengths: Any = None
    query_lengths: Any = None
    sinks: Any = None
    alibi: Any = None
    mask: Any = None
    mask_block: Any = None
    dropout_mask: Any = None
    dropout_scale: float = 1.0
    qk_norm: Any = None
    cu_seqlens_q: Any = None
    cu_seqlens_k: Any = None


class Steps(NamedTuple):
    """What the forward pass leaves to the backward one."""

    q: Any
    k: Any
    factor: Any
    p: Any
    kept: Any
    sink: Any
    out: Any
    lse: Any
    slope: Any = 1.0
    v: Any = None


def _forward(bad: str, q: Any, k: Any, v: Any, o: Options) -> Steps:
    n, m = q.shape[-2], k.shape[-2]
    raw_q = q
    if o.key_lengths is not None and bad != "leaking padding":  # 0 times NaN is NaN
        gone = np.arange(m)[:, None] >= np.asarray(o.key_lengths)[..., None, None]
        if bad not in ("keys ignored", "lengths of the first"):
            k, v = np.where(gone, 0, k), np.where(gone, 0, v)
    if o.qk_norm is not None and bad != "no norm":
        q, k = (
            x if bad == f"{name} as they are" else _unit(bad, x, o.qk_norm)
            for name, x in (("queries", q), ("keys", k))
        )
    factor = q.dtype.type(raw_q.shape[-1] ** -0.5 if o.scale is None else o.scale)
    s, slope = factor * (q @ np.swapaxes(k, -1, -2)), 1.0
    if o.softcap is not None:
        bent = np.tanh(s / o.softcap)
        s, slope = o.softcap * bent, 1 - bent * bent
    i, j = np.arange(n)[:, None], np.arange(m)
    keys, queries = (
        np.asarray(size if x is None else x)[..., None, None]
        for x, size in ((o.key_lengths, m), (o.query_lengths, n))
    )
    if bad == "lengths of the first":
        keys = keys.reshape(-1)[0]
    corner = isinstance(o.causal_offset, str)
    moved = keys - queries if corner else np.asarray(o.causal_offset)[..., None, None]
    if corner:
        moved = {"top left": 0 * moved, "padded corner": m - n}.get(bad, moved)
    if bad == "offset of the first" and np.size(moved) > 1:
        moved = moved.reshape(-1)[0]
    own, centre = i + moved, i + moved if o.window_about == "offset" else i
    block = np.ones((1, 1), bool)
    if o.cu_seqlens_q is not None:
        cu_q, cu_k = o.cu_seqlens_q, o.cu_seqlens_k
        if bad == "empty skipped":
            cu_q = cu_q[np.concatenate([[True], np.diff(cu_q) > 0])]
        if bad == "one pack":
            cu_q, cu_k = (np.array([0, x[-1]]) for x in (cu_q, cu_k))
        of_q, of_k = (
            np.searchsorted(x, at.ravel(), "right") - 1 for x, at in ((cu_q, i), (cu_k, j))
        )
        block = (of_q[:, None] == of_k) & (of_k < len(cu_k) - 1)
        if bad == "empty skipped":
            cu_k = cu_k[: len(cu_q)]
        own_q = np.minimum(of_q, len(cu_q) - 2)
        queries = np.where(of_q < len(cu_q) - 1, n, 0)[:, None]
        step = (cu_k[own_q] - cu_q[own_q])[:, None]
        own, centre = i + step + (0 if corner else moved), i + step
        if corner:
            own = own + (np.diff(cu_k) - np.diff(cu_q))[own_q][:, None]
        if bad == "global rows":
            own = i + (cu_k[-1] - cu_q[-1] if corner else 0)
    if bad == "still window":
        centre = i
    if o.alibi is not None:
        slopes = o.alibi[..., None, None]
        far = i - j if bad == "slopes without offset" else own - j
        far = (far if bad == "signed" else abs(far)).astype(q.dtype)
        s = s + slopes * far if bad == "uphill" else s - slopes * far
    yes = (j < m if bad == "keys ignored" else j < keys) & (i >= 0) & block
    if bad == "padded lengths":
        yes = (j < -(-keys // 8) * 8) & (i >= 0) & block
    if o.causal:
        yes = yes & (j <= own)
    if o.window is not None:
        left, right = (n + m if side is None else side for side in o.window)
        yes = yes & (j >= centre - left) & (j <= centre + right)
    if o.mask is not None:
        yes = yes & (_pairs(bad, o.mask, o.mask_block, n, m) if o.mask_block else o.mask)
    there = i < (n if bad == "padding computed" else queries)
    s = np.where(yes & there, s, -np.inf)
    top = s.max(-1, keepdims=True, initial=-np.inf)
    logit = np.full((1, 1), -np.inf, q.dtype) if o.sinks is None else o.sinks[..., None, None]
    if bad == "scaled sinks":
        logit = logit * factor
    if bad == "capped sinks" and o.softcap is not None and o.sinks is not None:
        logit = o.softcap * np.tanh(logit / o.softcap)
    if bad == "no sinks":
        logit = logit - np.inf
    logit = np.where(there, logit, -np.inf)
    peak = np.maximum(top, logit)
    floor = np.where(np.isneginf(peak), 0, peak)
    p, sink = np.exp(s - floor), np.exp(logit - (0 if bad == "unshifted sink" else floor))
    if bad == "sink itself" and o.sinks is not None:
        sink = np.where(there, logit, 0)
    total = p.sum(-1, keepdims=True) + sink
    some = np.where(total == 0, 1, total)
    p, sink = p / some, sink / some
    kept = p
    if o.dropout_mask is not None and bad != "no dropout":
        kept = np.where(o.dropout_mask, p, 0) * (1 if bad == "unscaled" else o.dropout_scale)
        if bad == "renormalised":
            kept = np.where(o.dropout_mask, p, 0)
            kept = kept / np.maximum(kept.sum(-1, keepdims=True), 1e-30)
    with np.errstate(divide="ignore"):
        lse = (floor + np.log(total))[..., 0]
    out = (kept @ v).astype(raw_q.dtype)
    if bad == "unwritten padding" and o.query_lengths is not None:
        out = np.where(there, out, out[..., :1, :] + 3).astype(out.dtype)
    return Steps(q, k, factor, p, kept, sink, out, lse, slope, v)


def _unit(bad: str, x: Any, eps: float) -> Any:
    mean = (x * x).mean(-1, keepdims=True)
    if bad == "length":
        return x / np.sqrt((x * x).sum(-1, keepdims=True) + eps)
    return x / (np.sqrt(mean) + eps if bad == "late eps" else np.sqrt(mean + eps))


def _pairs(bad: str, mask: Any, block: Any, n: int, m: int) -> Any:
    rows, columns = (block, block) if np.ndim(block) == 0 else block
    if bad == "swapped blocks":
        rows, columns = columns, rows
    i, j = np.arange(n)[:, None] // rows, np.arange(m) // columns
    if bad == "open tail":
        whole = (np.arange(mask.shape[-2])[:, None] < n // rows) & (
            np.arange(mask.shape[-1]) < m // columns
        )
        mask = mask | ~whole
    if bad == "whole blocks":
        mask = mask & (np.arange(mask.shape[-1]) < m // columns)
    return mask[..., np.minimum(i, mask.shape[-2] - 1), np.minimum(j, mask.shape[-1] - 1)]


def attention(
    bad: str, q: Any, k: Any, v: Any, *, return_lse: bool = False, lse_base: str = "e",
    masked_rows: str = "zero", **options: Any,
) -> Any:  # fmt: skip
    """Attention of all heads at once; `bad` says what is wrong with it."""
    if masked_rows != "zero":
        raise NotImplementedError
    st = _forward(bad, q, k, v, Options(**options))
    out = st.out
    if not return_lse:
        return out
    lse = st.lse
    if bad == "lse without sinks" and options.get("sinks") is not None:
        with np.errstate(divide="ignore"):
            lse = lse + np.log(1 - st.sink)[..., 0]
    return out, lse / np.log(2) if lse_base == "2" and bad != "base e" else lse


def attention_vjp(
    bad: str, q: Any, k: Any, v: Any, dout: Any, *, dlse: Any = None, lse_base: str = "e",
    **options: Any,
) -> Any:  # fmt: skip
    """Gradients of attention by hand."""
    if q.shape[:-2] != k.shape[:-2] or k.shape[:-2] != v.shape[:-2]:
        raise NotImplementedError
    o = Options(**options)
    st = _forward(bad, q, k, v, o)
    dp, kept = dout @ np.swapaxes(st.v, -1, -2), st.kept
    if o.dropout_mask is not None and bad != "dropout forward alone":
        dp = np.where(o.dropout_mask, dp, 0) * o.dropout_scale
    if bad == "other dropout":
        kept = st.p
    mean = (st.p * dp).sum(-1, keepdims=True)
    if dlse is not None and bad != "no dlse":
        mean = mean - dlse[..., None] / (np.log(2) if lse_base == "2" and bad != "dlse" else 1)
    ds = st.p * (dp - mean) * st.slope
    dq, dk = st.factor * ds @ st.k, st.factor * np.swapaxes(ds, -1, -2) @ st.q
    if o.qk_norm is not None and bad != "norm forward alone":
        dq, dk = (_unit_vjp(x, g, o.qk_norm) for x, g in ((q, dq), (k, dk)))
    dv = np.swapaxes(kept, -1, -2) @ dout
    dq, dk, dv = (x.astype(q.dtype) for x in (dq, dk, dv))
    if o.sinks is None:
        return dq, dk, dv
    dsink = st.sink * ((st.p * dp).sum(-1, keepdims=True) if bad == "dsink without dlse" else mean)
    dsink = dsink.sum((-1, -2)) * (1 if bad == "dsink sign" else -1)
    if bad == "scaled sinks":
        dsink = dsink * st.factor
    return dq, dk, dv, dsink.sum(tuple(range(dsink.ndim - np.ndim(o.sinks)))).astype(q.dtype)


def _unit_vjp(x: Any, g: Any, eps: float) -> Any:
    root = np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    y = x / root
    return (g - y * (g * y).mean(-1, keepdims=True)) / root


FORWARD = {
    "keys ignored": "without the key lengths",
    "lengths of the first": "with the first sequence's number of keys for all",
    "leaking padding": "with masked numbers in its sums: 0 times NaN",
    "unwritten padding": "out is right but for rows of padding",
    "padding computed": "with the padding of queries computed",
    "top left": "causal from the top left corner",
    "padded corner": "causal from the corner of the padded arrays",
    "offset of the first": "with the first sequence's causal offset for all",
    "still window": "with the window about the query itself",
    "one pack": "with packed sequences seeing each other",
    "global rows": "causal by places in the whole pack",
    "empty skipped": "with sequences without queries left out of the list",
    "no sinks": "without the sinks",
    "scaled sinks": "with the sinks scaled like the scores",
    "capped sinks": "with the sinks capped like the scores",
    "sink itself": "with the sinks themselves in the normaliser, not their exponentials",
    "unshifted sink": "with the sinks' exponentials not shifted by the maximum",
    "lse without sinks": "with lse without the sinks",
    "uphill": "with the linear bias's sign turned",
    "signed": "with a linear bias of the signed distance",
    "slopes without offset": "with a linear bias without the causal offset",
    "base e": "with lse in base e",
    "whole blocks": "without the last block of keys, which is not whole",
    "swapped blocks": "with the axes of blocks swapped",
    "open tail": "with the cut-off last blocks allowed",
    "padded lengths": "with key lengths up to a multiple of 8, of keys of zeros, which count",
    "keys as they are": "with normalised queries alone",
    "queries as they are": "with normalised keys alone",
    "no dropout": "without dropout",
    "unscaled": "without the scale of dropout",
    "renormalised": "with dropout before the normaliser",
    "no norm": "without normalised queries and keys",
    "length": "with queries and keys of length 1",
    "late eps": "with eps added after the root",
}
GRADIENT = {
    "keys ignored": "without the key lengths",
    "scaled sinks": "with the sinks scaled like the scores",
    "uphill": "with the linear bias's sign turned",
    "no dlse": "without the gradient of lse",
    "dlse": "with the gradient of lse in base e",
    "dropout forward alone": "with dropout in the forward pass alone",
    "other dropout": "with dropped weights in dv",
    "norm forward alone": "without the gradient of the norms",
    "dsink without dlse": "with dsinks from out alone",
    "dsink sign": "with the sign of dsinks turned",
}
