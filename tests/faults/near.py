"""Neighbourhood attention as one writes it in an afternoon, one query after the other."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np


def _line(
    bad: str, length: int, window: int, stride: int, dilation: int, causal: bool
) -> list[list[int]]:
    """Keys of every query along one axis."""
    stride = 1 if bad == "no stride" else stride
    dilation = 1 if bad == "no dilation" else dilation
    causal = causal and bad != "not causal"
    found = []
    for i in range(length):
        own = range(i % dilation, length, dilation)
        place, count = i // dilation, len(own)
        group = place - place % stride
        if causal and bad != "late causal":
            leader = group if bad == "first leads" else min(group + stride - 1, count - 1)
            found.append([own[t] for t in range(max(leader - window + 1, 0), place + 1)])
            continue
        half = (window - 1) // 2 if bad == "even" else window // 2
        leader = group if bad == "first leads" else min(group + stride // 2, count - 1)
        first = leader - half
        if bad != "cut":
            first = min(max(first, 0), count - window)
        keys = [own[t] for t in range(max(first, 0), min(first + window, count))]
        found.append([j for j in keys if j <= i] if causal else keys)
    return found


def _prepared(bad: str, q: Any, given: Any) -> tuple[int, list[list[int]]]:
    """Axes of the grid, and the keys of every query in raster order."""
    window = given["window"] if isinstance(given["window"], (list, tuple)) else [given["window"]]
    axes = len(window)
    grid = q.shape[-axes - 1 : -1]
    each = [
        list(x) if isinstance(x, (list, tuple)) else [x] * axes
        for x in (window, given["stride"], given["dilation"], given["causal"])
    ]
    if bad == "reversed":
        each = [x[::-1] for x in each]
    lines = [_line(bad, grid[a], *(x[a] for x in each)) for a in range(axes)]
    keys = []
    for at in np.ndindex(*grid):
        product = itertools.product(*(line[i] for line, i in zip(lines, at, strict=True)))
        keys.append([int(np.ravel_multi_index(j, grid)) for j in product])
    return axes, keys


def _flat(x: Any, axes: int) -> Any:
    return x.reshape(*x.shape[: x.ndim - axes - 1], -1, x.shape[-1]).astype(np.float64)


def neighbourhood_attention(
    bad: str, q: Any, k: Any, v: Any, *, window: Any, stride: Any = 1, dilation: Any = 1,
    causal: Any = False, scale: Any = None,
) -> Any:  # fmt: skip
    """One query after the other."""
    if not q.shape[:-1] == k.shape[:-1] == v.shape[:-1]:
        raise NotImplementedError
    options = {"window": window, "stride": stride, "dilation": dilation, "causal": causal}
    axes, keys = _prepared(bad, q, options)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    factor = {"no scale": 1.0, "squared": factor**2}.get(bad, factor)
    Q, K, V = (_flat(x, axes) for x in (q, k, v))
    out = np.zeros((*Q.shape[:-1], V.shape[-1]))
    for i, some in enumerate(keys):
        s = factor * (K[..., some, :] @ Q[..., i, :, None])[..., 0]
        w = np.exp(s - s.max(-1, keepdims=True))
        w = w / w.sum(-1, keepdims=True)
        out[..., i, :] = (w[..., None] * V[..., some, :]).sum(-2)
    return out.reshape(*q.shape[:-1], v.shape[-1]).astype(q.dtype)


def _outermost(i: int, grid: Any) -> bool:
    at = np.unravel_index(i, grid)
    return any(x in (0, n - 1) for x, n in zip(at, grid, strict=True) if n > 2)


def neighbourhood_attention_vjp(
    bad: str, q: Any, k: Any, v: Any, dout: Any, *, window: Any, stride: Any = 1,
    dilation: Any = 1, causal: Any = False, scale: Any = None,
) -> Any:  # fmt: skip
    """Gradients of keys are scattered from the queries that see them."""
    if not q.shape[:-1] == k.shape[:-1] == v.shape[:-1] == dout.shape[:-1]:
        raise NotImplementedError
    options = {"window": window, "stride": stride, "dilation": dilation, "causal": causal}
    axes, keys = _prepared(bad, q, options)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    Q, K, V, G = (_flat(x, axes) for x in (q, k, v, dout))
    dq, dk, dv = (np.zeros_like(x) for x in (Q, K, V))
    for i, some in enumerate(keys):
        s = factor * (K[..., some, :] @ Q[..., i, :, None])[..., 0]
        w = np.exp(s - s.max(-1, keepdims=True))
        w = w / w.sum(-1, keepdims=True)
        dw = (V[..., some, :] @ G[..., i, :, None])[..., 0]
        ds = w * (dw - (0 if bad == "no mean" else (w * dw).sum(-1, keepdims=True)))
        ds = ds * (1 if bad == "no scale" else factor)
        dq[..., i, :] = (ds[..., None] * K[..., some, :]).sum(-2)
        if bad == "border" and _outermost(i, q.shape[-1 - axes : -1]):
            continue
        dk[..., some, :] += ds[..., None] * Q[..., i, None, :]
        dv[..., some, :] += w[..., None] * G[..., i, None, :]
    shapes = q.shape, k.shape, v.shape
    return tuple(x.reshape(s).astype(q.dtype) for x, s in zip((dq, dk, dv), shapes, strict=True))


FAULTS: dict[str, dict[str, str]] = {
    "neighbourhood_attention": {
        "cut": "with windows cut off at borders, not moved inside",
        "no stride": "without the stride",
        "no dilation": "without the dilation",
        "not causal": "without causality",
        "late causal": "with causal windows about the query, of which what comes later is hidden",
        "first leads": "with the first query of a stride as its leader",
        "even": "with even windows one key later",
        "reversed": "with options of the axes reversed",
        "no scale": "with a scale of 1",
        "squared": "with the scale squared",
    },
    "neighbourhood_attention_vjp": {
        "cut": "with windows cut off at borders, not moved inside",
        "no dilation": "without the dilation",
        "not causal": "without causality",
        "border": "with dk and dv without queries on the border of the grid",
        "no mean": "dq and dk are wrong, not dv",
        "no scale": "a factor 1/sqrt(d) is missing",
    },
}
