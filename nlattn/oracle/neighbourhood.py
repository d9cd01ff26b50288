"""Neighbourhood attention on grids of one, two or three axes.

Papers: Hassani et al., "Neighborhood Attention Transformer", CVPR 2023, section 3; dilation in
"Dilated Neighborhood Attention Transformer", 2022; causal axes in "Faster Neighborhood Attention",
2024; strides in "Generalized Neighborhood Attention", 2025. Status: author code (NATTEN's masks).

Along each axis a query sees `window` keys about its own place; at borders the window moves inside.
With a dilation this holds among the places of the same remainder. With a stride so many queries
share the window of the one in their middle (the last one, if the axis is causal).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nlattn.oracle.dense import attention, attention_jvp, attention_vjp
from nlattn.oracle.layout import any_layout

Array = np.ndarray
Entries = int | tuple[int, ...]  # one for all axes, or one each


def neighbours(
    length: int, window: int, stride: int = 1, dilation: int = 1, causal: bool = False
) -> Array:
    """Which key each query sees along one axis, (length, length) bool."""
    seen = np.zeros((length, length), bool)
    for i in range(length):
        keys = np.arange(i % dilation, length, dilation)
        place, last = i // dilation, len(keys) - 1
        if window > len(keys):
            raise ValueError("a window is longer than its axis")
        if causal:
            leader = min(place // stride * stride + stride - 1, last)
            seen[i, keys[max(leader - window + 1, 0) : place + 1]] = True
        else:
            leader = min(place // stride * stride + stride // 2, last)
            start = min(max(leader - window // 2, 0), last + 1 - window)
            seen[i, keys[start : start + window]] = True
    return seen


def neighbourhood(
    grid: tuple[int, ...],
    window: Entries,
    stride: Entries = 1,
    dilation: Entries = 1,
    causal: Entries = False,
) -> Array:
    """Which key each query sees, (n, n) bool in raster order: neighbours along every axis."""
    options = [np.broadcast_to(x, len(grid)) for x in (window, stride, dilation, causal)]
    seen = np.ones((1, 1), bool)
    for axis, length in enumerate(grid):
        seen = np.kron(seen, neighbours(length, *(x[axis] for x in options)))
    return seen


def raster(x: Array, window: Entries) -> Array:
    """(..., grid, channels) as (..., n, channels)."""
    axes = 1 if isinstance(window, int) else len(window)
    return x.reshape((*x.shape[: x.ndim - axes - 1], -1, x.shape[-1]))


def seen_by(q: Array, window: Entries, options: Mapping[str, Entries]) -> Array:
    """`neighbourhood` of the grid that queries lie on."""
    axes = 1 if isinstance(window, int) else len(window)
    return neighbourhood(q.shape[-axes - 1 : -1], window, **options)


@any_layout
def neighbourhood_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    window: Entries,
    scale: float | None = None,
    return_lse: bool = False,
    **options: Entries,
) -> Array | tuple[Array, Array]:
    """``out_i = sum_j softmax_j(scale q_i.k_j) v_j`` over the neighbours j of i."""
    seen = seen_by(q, window, options)
    flat = (raster(x, window) for x in (q, k, v))
    out, lse = attention(*flat, mask=seen, scale=scale, return_lse=True)
    axes = 1 if isinstance(window, int) else len(window)
    grid = (*out.shape[:-2], *q.shape[-axes - 1 : -1])
    out = out.reshape((*grid, v.shape[-1]))
    return (out, lse.reshape(grid)) if return_lse else out


@any_layout
def neighbourhood_attention_vjp(
    q: Array,
    k: Array,
    v: Array,
    dout: Array,
    *,
    window: Entries,
    dlse: Array | None = None,
    scale: float | None = None,
    **options: Entries,
) -> tuple[Array, ...]:
    """Gradients (dq, dk, dv) of ``sum(dout out) + sum(dlse lse)``: those of masked attention."""
    seen = seen_by(q, window, options)
    flat = (raster(x, window) for x in (q, k, v, dout))
    if dlse is not None:
        dlse = raster(dlse[..., None], window)[..., 0]
    gradients = attention_vjp(*flat, dlse=dlse, mask=seen, scale=scale)
    return tuple(x.reshape(y.shape) for x, y in zip(gradients, (q, k, v), strict=True))


@any_layout
def neighbourhood_attention_jvp(
    q: Array,
    k: Array,
    v: Array,
    dq: Array,
    dk: Array,
    dv: Array,
    *,
    window: Entries,
    scale: float | None = None,
    return_lse: bool = False,
    **options: Entries,
) -> Array | tuple[Array, Array]:
    """Change of `out`, and of `lse`, along dq, dk, dv: those of masked attention."""
    seen = seen_by(q, window, options)
    flat = (raster(x, window) for x in (q, k, v, dq, dk, dv))
    out, lse = attention_jvp(*flat, mask=seen, scale=scale, return_lse=True)
    axes = 1 if isinstance(window, int) else len(window)
    grid = (*out.shape[:-2], *q.shape[-axes - 1 : -1])
    out = out.reshape((*grid, v.shape[-1]))
    return (out, lse.reshape(grid)) if return_lse else out
