"""Softmax attention as one writes it in an afternoon, with places to get it wrong."""

from __future__ import annotations

from typing import Any

import numpy as np


def attention(
    bad: str, q: Any, k: Any, v: Any, *, scale: Any = None, softcap: Any = None, bias: Any = None,
    mask: Any = None, causal: bool = False, causal_offset: int = 0, window: Any = None,
    gqa: bool = False, masked_rows: str = "zero", return_lse: bool = False,
) -> Any:  # fmt: skip
    """Attention of all heads at once; `bad` says what is wrong with it."""
    n, d, m = q.shape[-2], q.shape[-1], k.shape[-2]
    if gqa:
        group = q.shape[-3] // k.shape[-3]
        k, v = (
            np.concatenate([x] * group, -3) if bad == "heads" else np.repeat(x, group, -3)
            for x in (k, v)
        )
    if bad == "interleaved" and q.ndim > 2:
        heads = q.shape[-3]
        q, k, v = (
            np.moveaxis(x.reshape(*x.shape[:-3], -1, heads, x.shape[-1]), -2, -3) for x in (q, k, v)
        )
    if bad == "unit values":
        v = v / np.linalg.norm(v, axis=-1, keepdims=True)
    if bad == "half":
        q, k, v = (x.astype(np.float16) for x in (q, k, v))
    factor = 1 / np.sqrt(d) if scale is None or (bad == "or" and not scale) else scale
    factor = {"no scale": 1.0, "scale squared": factor**2}.get(bad, factor)
    s = factor * np.einsum("...id,...jd->...ij", q, k).astype(q.dtype)
    if bad == "exp2":
        s = s * np.log(2)
    if softcap and bad not in ("cap ignored", "cap after mask"):
        if bad == "cap after bias" and bias is not None:
            s, bias = s + bias, None
        s = softcap * np.tanh(s / softcap)
    if bias is not None and bad != "bias ignored":
        first = bias[..., :1, :] if bad == "bias of row 0" and bias.ndim > 1 else bias
        s = s - bias if bad == "bias subtracted" else s + first
    i, j = np.arange(n)[:, None], np.arange(m)
    yes = np.ones((n, m), bool)
    if causal:
        corner = m - n if bad == "corner" else 0
        yes &= j < i + causal_offset if bad == "strict" else j <= i + corner + causal_offset
    if window is not None:
        left, right = (m + n if side is None else side for side in window)
        if bad == "window":
            left, right = left - 1, right - 1
        if bad == "both left" and window[0] is not None:
            right = left
        yes &= (j - i >= -left) & (j - i <= right)
    if mask is not None:
        yes = yes & (~mask if bad == "inverted" else mask)
    if bad == "last key" and m > 1:
        yes = yes & (j < m - 1)
    s = np.where(yes, s, 0 if bad == "zeros" else -np.inf)
    if bad == "cap after mask" and softcap:
        s = softcap * np.tanh(s / softcap)
    some = ~np.isneginf(s).all(-1, keepdims=True)
    axis = -2 if bad == "queries" else -1
    with np.errstate(all="ignore"):
        top = s.max(axis, keepdims=True, initial=-np.inf)
        top = 0 * top if bad == "no maximum" else top
        z = s - np.where(np.isfinite(top), top, 0)
        p = np.exp(np.maximum(z, -7) if bad == "short table" else z) * (s > -np.inf)
        total = p.sum(axis, keepdims=True)
        if bad == "sum not rescaled":
            ends = np.minimum(np.arange(m) // 128 * 128 + 128, m) - 1
            highest = np.maximum.accumulate(s, -1)[..., ends]
            total = (np.exp(s - highest) * (s > -np.inf)).sum(-1, keepdims=True, where=s > -np.inf)
        w = p if bad == "no normaliser" else p / total
        if bad != "NaN rows":
            w = np.where(some, w, 0)
        if bad == "uniform rows":
            w = np.where(some, w, 1 / m)
        if bad == "argmax":
            w = np.where(np.arange(m) == s.argmax(-1)[..., None], 1.0, 0.0) * yes
    out = w @ v
    if bad == "residual" and out.shape == v.shape:
        out = out + v
    if bad == "interleaved" and q.ndim > 2:
        out = np.moveaxis(out, -3, -2).reshape(out.shape)
    if masked_rows == "nan":
        out = np.where(some, out, np.nan)
    if bad == "stale":
        out = out + out
    if bad == "tail":
        out = out.copy()
        out[..., n // 8 * 8 :, :] = 0
    if bad == "transposed":
        out = np.swapaxes(out, -1, -2)
    if bad == "stored short":
        out = out.astype(np.float16).astype(q.dtype)
    if not return_lse:
        return out.astype(q.dtype) if bad == "half" else out
    with np.errstate(divide="ignore"):
        lse = (top + np.log(total))[..., 0] if axis == -1 else np.log(total).sum(-2)
    return out, lse / np.log(2) if bad == "lse" else lse


def attention_vjp(
    bad: str, q: Any, k: Any, v: Any, dout: Any, *, scale: Any = None, softcap: Any = None,
    bias: Any = None, mask: Any = None, causal: bool = False, causal_offset: int = 0,
    window: Any = None, gqa: bool = False,
) -> Any:  # fmt: skip
    """Gradients of attention by hand."""
    n, d, m = q.shape[-2], q.shape[-1], k.shape[-2]
    if k.ndim != q.ndim or (bias is not None and bias.shape != (*q.shape[:-1], m)):
        raise NotImplementedError
    group = q.shape[-3] // k.shape[-3] if gqa else 1
    K, V = (np.repeat(x, group, -3) if gqa else x for x in (k, v))
    factor = 1 / np.sqrt(d) if scale is None or (bad == "or" and not scale) else scale
    raw = factor * np.einsum("...id,...jd->...ij", q, K)
    s = raw if softcap is None else softcap * np.tanh(raw / softcap)
    if bias is not None:
        s = s + bias
    i, j = np.arange(n)[:, None], np.arange(m)
    yes = np.ones((n, m), bool)
    if causal:
        yes &= (j < i + causal_offset) if bad == "strict" else (j <= i + causal_offset)
    if window is not None:
        left, right = (m + n if side is None else side for side in window)
        yes &= (j - i >= -left) & (j - i <= right)
    if mask is not None:
        yes = yes & mask
    s = np.where(yes, s, -np.inf)
    top = s.max(-1, keepdims=True, initial=-np.inf)
    p = np.exp(s - np.where(np.isfinite(top), top, 0))
    total = p.sum(-1, keepdims=True)
    p = p / np.where(total == 0, 1, total)
    if bad == "queries":
        p = np.exp(s - s.max(-2, keepdims=True))
        p = p / p.sum(-2, keepdims=True)
    if bad == "ones":
        dout = np.ones_like(dout)
    dv = np.swapaxes(p, -1, -2) @ dout
    dp = dout @ np.swapaxes(V, -1, -2)
    inner = (p * dp).sum(-2 if bad == "queries" else -1, keepdims=True)
    ds = p * dp if bad == "no row sums" else p * (dp - inner)
    draw = ds
    if softcap is not None and bad != "no slope":
        draw = ds * (1 - np.tanh(raw / softcap) ** 2)
    if bad == "dbias after the slope":
        ds = draw
    dq, dk = factor * draw @ K, factor * np.swapaxes(draw, -1, -2) @ q
    if bad == "unnormalised":
        dq = dq * total
    if bad == "unscaled dk":
        dk = dk / factor
    if group > 1:
        dk, dv = (
            x.reshape(*x.shape[:-3], -1, group, *x.shape[-2:])[..., 0, :, :]
            if bad == "one head"
            else x.reshape(*x.shape[:-3], -1, group, *x.shape[-2:]).sum(-3)
            for x in (dk, dv)
        )
    if bad == "sign":
        dq, dk, dv, ds = -dq, -dk, -dv, -ds
    if bad == "swapped":
        dk, dv = dv, dk
    return (dq, dk, dv) if bias is None else (dq, dk, dv, ds)


FORWARD = {
    "no scale": "with a scale of 1",
    "scale squared": "with the scale squared",
    "exp2": "with powers of 2 in place of e",
    "queries": "with the softmax over queries",
    "no normaliser": "without the normaliser",
    "no maximum": "without subtracting the maximum",
    "argmax": "with the best key only",
    "cap ignored": "without the softcap",
    "cap after mask": "with the softcap after the mask",
    "cap after bias": "with the softcap after the bias",
    "bias ignored": "without the bias",
    "bias subtracted": "with the bias subtracted",
    "bias of row 0": "with the first query's bias for all",
    "short table": "with exponents no less than -7 below the largest",
    "inverted": "with the mask inverted",
    "zeros": "with masked scores of 0, not -inf",
    "strict": "causal by one key too few",
    "corner": "causal from the other corner, aligned to the last key",
    "window": "with a window one key narrower on both sides",
    "both left": "with both sides of the window as wide as the left",
    "sum not rescaled": "with `total` in place of `total * shrink` in a softmax over keys",
    "NaN rows": "with NaN where a query may attend to nothing",
    "uniform rows": "with the mean of all values where a query may attend to nothing",
    "heads": "with query head i on key head i mod the number of key heads",
    "interleaved": "with heads and positions interleaved in memory",
    "last key": "without the last key",
    "unit values": "with values of length 1",
    "residual": "with the values added",
    "half": "as far from ours as one computed in float16",
    "stored short": "rounded to float16 (or TF32) at the end",
    "stale": "ours times 2: added to a buffer that already held it",
    "tail": "as if the rest of a block were left out",
    "transposed": "its axes in another order",
    "lse": "with lse in base 2",
    "or": "with the default in place of scale = 0, as if 0 were nothing",
}
GRADIENT = {
    "strict": "causal by one key too few",
    "queries": "with the softmax over queries",
    "ones": "for a cotangent of ones",
    "no row sums": "without the row sums in the softmax's gradient",
    "no slope": "without the slope of the softcap",
    "dbias after the slope": "with dbias after the softcap's slope",
    "unnormalised": "with dq of weights that are not divided by their sum",
    "unscaled dk": "dk is ours times sqrt(d)",
    "one head": "with the part of the first head alone of those that share an array",
    "sign": "with the sign turned",
    "swapped": "dk has the shape of dv",
    "or": "with the default in place of scale = 0, as if 0 were nothing",
}
