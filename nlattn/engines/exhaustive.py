"""Exponential weights of all keys of one slice: what certified attention must come near.

A Gaussian weight is that of a dot product with one more channel, less a number of each query.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from nlattn import _check
from nlattn._types import Bools, Floats, Ints
from nlattn.engines import dense, nearest
from nlattn.engines.unseen import cleaned, finite
from nlattn.kernels import scores
from nlattn.kernels.matching import SAME, Plan
from nlattn.kernels.panel import KEYS, Scores

_MASK_BYTES = 1 << 26


class Slice(NamedTuple):
    """One slice of a call."""

    q: Floats
    """(n, d)"""
    k: Floats
    """(m, d)"""
    kind: int
    """DOT, weights ``exp(factor q.k)``, or NEG_L2, ``exp(-factor |q - k|^2)``."""
    factor: float
    key_mask: Bools
    """(m,), or empty."""
    pairs: Bools
    """(n, m), or empty."""
    causal: bool
    floor: float = 0.0
    """Weights are ``exp(-max(x - floor, 0))`` of ``x = factor |q - k|^2``; 0 for products."""
    apart: bool = False
    """Whether no query attends to the key of its own number."""


def rounding(x: Slice, dtype: DTypeLike) -> Floats:
    """(n,) share of the weights that rounding may move: scores, exponentials, sums by blocks."""
    u = float(np.finfo(dtype).eps) / 2
    q, k = (np.sqrt(np.einsum("nc,nc->n", a, a, dtype=np.float64)) for a in (x.q, x.k))
    size = abs(x.factor) * q * k.max(initial=0)
    if x.kind == scores.NEG_L2:
        size = 2 * size + abs(x.factor) * (q**2 + k.max(initial=0) ** 2)
    steps = (x.q.shape[1] + 8) * u * size + 3 * (KEYS + 4 + 4 * (len(x.k) / KEYS)) * u
    return 1.2 * (steps + (2e-7 if dtype == np.float32 else 1e-15))


def attends(x: Slice) -> Bools:
    """(n,) whether a query may attend to any key."""
    n, m = len(x.q), len(x.k)
    keys = x.key_mask if x.key_mask.size else np.ones(m, bool)
    there = np.full(n, keys.sum() > int(x.apart))
    step = max(1, _MASK_BYTES // max(m, 1))
    for first in range(0, n if x.pairs.size or x.causal else 0, step):
        rows = np.arange(first, min(first + step, n))
        mask = keys[None]
        if x.pairs.size:
            mask = mask & x.pairs[rows]
        if x.causal:
            mask = mask & (np.arange(m) <= rows[:, None])
        there[rows] = mask.any(1)
    return there


def attend(x: Slice, v: Floats, rows: Ints, wide: bool) -> tuple[Floats, Floats]:
    """Outputs and lse of some queries from all keys."""
    kind = np.float64 if wide else x.q.dtype
    q, k, factor, shift = products(x, kind)
    out, lse = np.empty((len(rows), v.shape[1])), np.empty(len(rows))
    values = _check.frozen(v, kind)[None]
    masked = x.causal or x.pairs.size > 0
    step = max(16, _MASK_BYTES // len(x.k)) if masked else len(rows)
    for first in range(0, len(rows), step):
        some = rows[first : first + step]
        p = dense.dot_scores(_check.frozen(q[some])[None], k[None], factor)
        if masked or x.key_mask.size:
            p = _masked(p, x, some if masked else some[:0])
        got, norm = dense.attend(p, values)
        out[first : first + step] = got[0]
        lse[first : first + step] = dense.log_normaliser(norm)[0] + shift[some]
    return out, lse


def others(x: Slice, v: Floats, some: Ints) -> tuple[Floats, Floats, Floats]:
    """Of some queries that attend to other keys than their own: outputs, lse, largest exponents."""
    from scipy.spatial.distance import cdist

    out, lse, best = np.zeros((len(some), v.shape[1])), np.empty(len(some)), np.empty(len(some))
    step = max(1, _MASK_BYTES // 8 // len(x.k))
    for first in range(0, len(some), step):
        here = slice(first, first + step)
        s = cdist(x.q[some[here]].astype(float), x.k.astype(float), "sqeuclidean")
        s = np.minimum(x.floor - x.factor * s, 0)
        s[np.arange(len(s)), some[here]] = -np.inf
        best[here] = s.max(1)
        top = np.where(np.isneginf(best[here]), 0, best[here])[:, None]
        weights = np.exp(s - top)
        total = weights.sum(1, keepdims=True)
        out[here] = weights @ v / np.where(total > 0, total, 1)
        with np.errstate(divide="ignore"):
            lse[here] = (top + np.log(total))[:, 0]
    return out, lse, best


def _whole(x: Slice) -> Scores:
    """All scores of a slice, for `engines.dense`."""
    q, k, factor, _ = products(x, x.q.dtype)
    p = dense.dot_scores(q[None], k[None], factor, x.causal)
    if x.pairs.size or x.key_mask.size:
        masked = x._replace(causal=False)
        p = _masked(p, masked, np.arange(len(x.q) if x.pairs.size else 0))
    return p


def rows(x: Slice, index: Ints, *, normalise: bool) -> Floats:
    """Weights of some queries from all keys, or scores."""
    out = dense.rows(_whole(x), index, normalise=normalise)
    if not normalise:
        out += products(x, x.q.dtype)[3][index][:, None].astype(out.dtype)
    return out


def adjoint(x: Slice, lse: Floats, g: Floats) -> Floats:
    """``A.T g`` for g (n, e), from all keys."""
    shift = products(x, x.q.dtype)[3]
    known = np.isfinite(lse)
    level = np.where(known, lse, 0) - shift
    top = np.round(level)  # in two parts, for one float32 loses the digits of the whole part
    norm = np.stack([top, np.where(known, np.exp(level - top), 0)])[:, None]
    return dense.adjoint(_whole(x), _check.frozen(norm, x.q.dtype), g)


def pairs(x: Slice, keys: Ints) -> Floats:
    """Score of each query with a key of its own, in float64; -inf where that is below 0."""
    q, k = x.q.astype(np.float64), x.k[np.maximum(keys, 0)].astype(np.float64)
    if x.kind == scores.DOT:
        found = x.factor * np.einsum("nc,nc->n", q, k)
    else:
        q -= k
        found = -x.factor * np.einsum("nc,nc->n", q, q)
    return np.where(keys >= 0, found, -np.inf)


def topk(x: Slice, k: int) -> tuple[Floats, Ints]:
    """Scores and keys of the best `k` of every query, proved."""
    n, m = len(x.q), len(x.k)
    plan = Plan(1, n, 1, m, x.q.shape[1], 1, x.kind, x.factor, SAME, int(x.causal), 0, 0)
    index, score = np.full((n, k), -1, np.int32), np.full((n, k), -np.inf, x.q.dtype)
    flat = x.q.reshape(-1), x.k.reshape(-1), x.key_mask, x.pairs
    nearest.search(*flat, None, plan, index, score)
    return score.astype(np.float64), index.astype(np.int64)


def products(x: Slice, dtype: DTypeLike) -> tuple[Floats, Floats, float, Floats]:
    """Queries, keys and a factor whose products are the scores, less a number of each query."""
    q, k = x.q.astype(dtype), x.k.astype(dtype)
    if x.kind == scores.DOT:
        return _check.frozen(q), _check.frozen(k), x.factor, np.zeros(len(q))
    centre = (k if finite(k) else cleaned(k)).mean(0) if len(k) else 0
    q, k = q - centre, k - centre
    height = -(k * k).sum(1, keepdims=True) / 2
    ones = np.ones((len(q), 1), dtype)
    q_more, k_more = np.concatenate([q, ones], 1), np.concatenate([k, height], 1)
    shift = -x.factor * (q.astype(np.float64) ** 2).sum(1)
    return _check.frozen(q_more), _check.frozen(k_more), 2 * x.factor, shift


def _masked(p: Scores, x: Slice, rows: Ints) -> Scores:
    """With the masks of some queries, or with that of keys alone."""
    mask = np.ones((max(len(rows), 1), len(x.k)), bool)
    if x.key_mask.size:
        mask &= x.key_mask
    if x.pairs.size and len(rows):
        mask &= x.pairs[rows]
    if x.causal and len(rows):
        mask &= np.arange(len(x.k)) <= rows[:, None]
    return p._replace(mask=_check.frozen(mask)[None], has_mask=True)
