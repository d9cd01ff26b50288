"""The nearest keys of every query, by sorting all scores.

Status: ours; what a search by bounds must find. Ties go to the lowest key, NaN counts as -inf.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Array = np.ndarray


class Nearest(NamedTuple):
    """(..., n, topk) scores, best first, and their keys; -inf and -1 where there are fewer."""

    score: Array
    index: Array  # type: ignore[assignment]  # stands where tuple.index would be


def scores(
    q: Array,
    k: Array,
    score: str = "dot",
    scale: float | None = None,
    bandwidth: float = 1.0,
) -> Array:
    """All scores, (..., n, m): larger is better."""
    if score == "neg_l2":
        difference = q[..., :, None, :] - k[..., None, :, :]
        return -(difference**2).sum(-1) / bandwidth**2
    if score == "cosine":
        q, k = _unit(q), _unit(k)
        factor = 1.0 if scale is None else scale
    else:
        factor = q.shape[-1] ** -0.5 if scale is None else scale
    s = factor * (q[..., :, None, :] * k[..., None, :, :]).sum(-1)
    return np.abs(s) if score == "absdot" else s


def _unit(x: Array) -> Array:
    length = np.sqrt((x * x).sum(-1, keepdims=True))
    return np.where(length > 0, x / np.where(length > 0, length, 1), 0)


def nearest_keys(
    q: Array,
    k: Array,
    *,
    topk: int = 1,
    score: str = "dot",
    scale: float | None = None,
    bandwidth: float = 1.0,
    mask: Array | None = None,
    causal: bool = False,
) -> Nearest:
    """``index[i] = argmax_j s(q_i, k_j)`` over the keys that `mask` and `causal` allow."""
    s = scores(q, k, score, scale, bandwidth)
    s = np.where(np.isnan(s.real), -np.inf, s)
    n, m = s.shape[-2:]
    allowed = np.ones(s.shape, bool) if mask is None else np.broadcast_to(mask, s.shape)
    if causal:
        allowed = allowed & (np.arange(m) <= np.arange(n)[:, None])
    if m == 0:
        return Nearest(np.full((*s.shape[:-1], topk), -np.inf), np.full((*s.shape[:-1], topk), -1))
    # forbidden keys last, then by score, then by key: lexsort's last key counts first
    keys = np.broadcast_to(np.arange(m), s.shape)
    order = np.lexsort((keys, -s.real, ~allowed), axis=-1)[..., :topk]
    order = np.concatenate([order, np.zeros((*s.shape[:-1], max(topk - m, 0)), int)], -1)
    there = np.take_along_axis(allowed, order, -1) & (np.arange(topk) < m)
    value = np.where(there, np.take_along_axis(s, order, -1), -np.inf)
    return Nearest(value, np.where(there, order, -1))
