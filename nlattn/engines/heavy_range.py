"""Heavy entries of queries and keys too far apart in size for products of floats.

Scores are mantissas with exponents of their own, in integers, for all pairs: ``O(n m d)``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from nlattn._types import Floats, Ints
from nlattn.engines.whitened import U

_SPREAD = 480
"""Powers of two between the entries of an array whose products no float loses."""
_PAIRS = 1 << 18
_ROWS = 2048  # looked at together
_NOTHING = -(1 << 40)


class Entries(NamedTuple):
    """Heavy entries, row by row, and the sums of all rows."""

    counts: Ints
    """(n,)"""
    indices: Ints
    """(nnz,) their keys; weights and scores likewise."""
    weights: Floats
    scores: Floats
    lse: Floats
    """(n,)"""


def far_apart(q: Floats, k: Floats) -> bool:
    """Whether squares of keys or products with queries may leave float64."""
    low, high = _sizes(k)
    largest = np.frexp(high.max(initial=0))[1]
    if abs(largest) > _SPREAD or _spread(low.min(initial=np.inf), high.max(initial=0)) > _SPREAD:
        return True
    low, high = _sizes(q)  # rows are no wider than all of it
    wide = _spread(low.min(initial=np.inf), high.max(initial=0)) > _SPREAD
    return wide and _spread(low, high) > _SPREAD


def _sizes(x: Floats) -> tuple[Floats, Floats]:
    """The smallest and the largest finite entry other than 0 of each row; of none, inf and 0."""
    low, high = np.full(len(x), np.inf), np.zeros(len(x))
    for start in range(0, len(x), _ROWS):
        some = slice(start, start + _ROWS)
        size = abs(x[some])
        high[some] = size.max(1, initial=0)
        if not np.isfinite(high[some]).all():
            size[~np.isfinite(size)] = 0
            high[some] = size.max(1, initial=0)
        size[size == 0] = np.inf
        low[some] = size.min(1, initial=np.inf)
    return low, high


def _spread(low: Floats, high: Floats) -> int:
    """Powers of two between sizes, at most; 0 where there are none."""
    low = np.where(high > 0, low, 0)
    return int(np.max(np.frexp(high)[1] - np.frexp(low)[1], initial=0))


def entries(q: Floats, k: Floats, eps: float, p: float, causal: bool) -> Entries:
    """Entries of at least eps but for rounding."""
    error = 4 * (k.shape[1] + 16) * U * max(p, 1)
    parts = []
    step = max(1, _PAIRS // max(k.size, 1))
    for start in range(0, len(q), step):
        rows = np.arange(start, min(start + step, len(q)))
        parts.append(_some(q[rows].astype(np.float64), k.astype(np.float64), p, causal, rows))
    none = np.zeros((0, len(k)))
    weights, scores = (np.concatenate([none, *(x[i] for x in parts)]) for i in (0, 1))
    kept = weights >= eps * (1 - error)
    indices = np.nonzero(kept)[1]
    lse = np.concatenate([np.zeros(0), *(x[2] for x in parts)])
    return Entries(kept.sum(1), indices, weights[kept], scores[kept], lse)


def _some(
    q: Floats, k: Floats, p: float, causal: bool, rows: Ints
) -> tuple[Floats, Floats, Floats]:
    """Weights and scores (r, m) of some queries, and log sums (r,)."""
    (a, a_power), (b, b_power) = np.frexp(q), np.frexp(k)
    product = a[:, None] * b
    power = np.where(product == 0, _NOTHING, a_power[:, None].astype(np.int64) + b_power)
    top = power.max(2)
    score = np.ldexp(product, np.maximum(power - top[:, :, None], -2000)).sum(2)
    size, more = np.frexp(abs(score))
    power = np.where(size == 0, _NOTHING, top + more)
    if causal:
        size[np.arange(len(k)) > rows[:, None]] = 0
        power[size == 0] = _NOTHING
    best = power.max(1, keepdims=True, initial=_NOTHING)
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        weights = size**p * np.exp2(p * np.maximum(power - best, -(1 << 20)).astype(float))
        weights[size == 0] = 0
        total = weights.sum(1, keepdims=True)
        lse = np.log(total[:, 0]) + p * math.log(2) * best[:, 0]
        lse[total[:, 0] == 0] = -np.inf
        weights = np.where(total > 0, weights / np.where(total > 0, total, 1), total * 0)
        return weights, np.ldexp(score, np.clip(top, -4000, 4000)), lse
