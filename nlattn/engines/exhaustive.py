"""Exponential weights of all keys of one slice: what certified attention must come near.

A Gaussian weight is that of a dot product with one more channel, less a number of each query.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from nlattn import _check
from nlattn._types import Bools, Floats, Ints
from nlattn.engines import dense, nearest
from nlattn.engines.not_finite import cleaned, finite
from nlattn.kernels import scores
from nlattn.kernels.matching import SAME, Plan
from nlattn.kernels.panel import KEYS, Scores

_MASK_BYTES = 1 << 26
_ROW = 1 << 14
"""Keys that one row sums in the dtype of the scores; such sums are added in float64."""
_MIDDLE = 4096
"""Keys that the middle of all is taken from, at most."""
_LOST = 2.0**-40  # of a score, by underflow


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
    above: float = 0.0
    """Is added to all scores."""
    blur: float = 0.0
    """How far scores may be from those that were asked for."""


def held(x: Slice) -> Slice:
    """The slice as it is, or in float64 and other units if its format does not hold its products.

    Of distances and of squared lengths, too, and no less than digits of scores.
    """
    if not (x.q.size and x.k.size):
        return x
    info, distance = np.finfo(x.q.dtype), x.kind == scores.NEG_L2
    tops, terms = (_check.largest(x.q), _check.largest(x.k)), 4 * (x.q.shape[1] + 4)
    factor, tiny = abs(x.factor), float(info.tiny)
    sizes = [a * b for a in tops for b in tops]
    low, high = tiny / float(info.eps), float(info.max) / terms
    lost = terms * factor * (tiny if factor >= tiny else max(sizes))
    fits = lost < _LOST and all(size == 0 or low < size < high for size in sizes)
    if fits or not all(map(math.isfinite, tops)):
        return x
    powers = [int(np.frexp(top)[1]) for top in tops]
    powers = [max(powers)] * 2 if distance else powers
    with np.errstate(over="ignore", under="ignore"):
        q, k = (np.ldexp(y.astype(np.float64), -p) for y, p in zip((x.q, x.k), powers, strict=True))
        factor = float(np.ldexp(x.factor, sum(powers)))
    return x._replace(q=_check.frozen(q), k=_check.frozen(k), factor=factor)


def rounding(x: Slice, dtype: DTypeLike, enough: float = np.inf) -> Floats:
    """(n,) share of the weights that rounding may move: scores, exponentials, sums by blocks.

    A score is one chain of multiply-adds, each of which rounds what was summed so far: no more than
    the leading channels can give. That is looked at where all of a score would exceed `enough`.
    """
    u, d = float(np.finfo(dtype).eps) / 2, x.q.shape[1]
    distance = x.kind == scores.NEG_L2
    middle = centre(x.k) if distance else 0
    sums = 3 * (KEYS + 8 + 4 * (min(len(x.k), _ROW) / KEYS)) * u
    sums += 2e-7 if dtype == np.float32 else 1e-15
    with np.errstate(all="ignore"):  # then nothing is promised
        q, k = (
            np.sqrt(np.einsum("nc,nc->n", y, y, dtype=float)) for y in (x.q - middle, x.k - middle)
        )
        far, times = k.max(initial=0), abs(x.factor) * (1 + distance)
        size = times * (q * far + distance * far**2 / 2)
        sums = sums + (d + 8) * 2.0**-53 * distance * abs(x.factor) * q * q  # of lse
        found = 1.2 * ((d + 8) * u * size + sums)
        if found.max(initial=0) > enough:
            step = -(-d // 8)
            long_q, long_k = _leading(x.q - middle, step), _leading(x.k - middle, step)
            chain = times * step * (long_q @ long_k.max(0, initial=0))
            found = np.minimum(found, 1.2 * (u * (chain + 8 * size) + sums))
        found = found + blurred(x)
    return np.where(np.isnan(found), np.inf, found)


def blurred(x: Slice) -> float:
    """Share of the weights, of those that were left out too, that the blur may move."""
    return 2 * math.expm1(min(2 * x.blur, 700.0))


def _leading(x: Floats, step: int) -> Floats:
    """Lengths of the first `step`, `2 step`, ... coordinates of each row."""
    parts = (x[:, c : c + step] for c in range(0, x.shape[1], step))
    squares = [np.einsum("nc,nc->n", y, y, dtype=np.float64) for y in parts]
    return np.sqrt(np.cumsum(np.stack(squares, 1), 1))


def centre(k: Floats) -> Floats:
    """Where distances are measured from: the middle key of some, which no far one moves."""
    some = k[:: -(-len(k) // _MIDDLE)] if len(k) else np.zeros((1, k.shape[1]), k.dtype)
    found: Floats = np.median(some if finite(some) else cleaned(some), axis=0)
    return found


def seen(x: Slice, rows: Ints, keys: Ints) -> Bools:
    """Whether some queries may attend to some keys."""
    yes = np.ones((len(rows), len(keys)), bool)
    if x.key_mask.size:
        yes &= x.key_mask[keys]
    if x.pairs.size:
        yes &= x.pairs[np.ix_(rows, keys)]
    if x.causal:
        yes &= keys <= rows[:, None]
    return yes


def attends(x: Slice) -> Bools:
    """(n,) whether a query may attend to any key."""
    n, m = len(x.q), len(x.k)
    keys = x.key_mask if x.key_mask.size else np.ones(m, bool)
    there: Bools = np.full(n, keys.sum() > int(x.apart))
    if x.causal or x.pairs.size:
        step = max(1, _MASK_BYTES // max(m, 1))
        for first in range(0, n, step):
            rows = np.arange(first, min(first + step, n))
            there[rows] = seen(x, rows, np.arange(m)).any(1)
    return there


def attend(x: Slice, v: Floats, rows: Ints, wide: Bools) -> tuple[Floats, Floats]:
    """Outputs and lse of some queries from all keys; in float64 where `wide` (rows,) says so."""
    for kind, own in ((x.q.dtype, ~wide), (np.float64, wide)):
        if own.all():
            return _attend(x, v, rows, kind)
    out, lse = np.zeros((len(rows), v.shape[1])), np.full(len(rows), -np.inf)
    for kind, own in ((x.q.dtype, ~wide), (np.float64, wide)):
        if own.any():
            out[own], lse[own] = _attend(x, v, rows[own], kind)
    return out, lse


def _attend(x: Slice, v: Floats, rows: Ints, kind: DTypeLike) -> tuple[Floats, Floats]:
    *given, shift = products(x, kind)
    values, m, step = _check.frozen(v, kind), len(x.k), _step(x, rows, _ROW)
    out, lse = np.empty((len(rows), v.shape[1])), np.empty(len(rows))
    for first in range(0, len(rows), step):
        here = slice(first, first + step)
        sums: list[tuple[Floats, Floats]] = []
        for j in range(0, max(m, 1), _ROW):
            keys = slice(j, j + _ROW)
            p = _scores(x, given, rows[here], keys)
            sums.append(dense.attend(p, _check.frozen(values[keys])[None]))
        found = _together(sums)
        if step == len(rows):
            return found[0], found[1] + shift[rows]
        out[here], lse[here] = found
    return out, lse + shift[rows]


def _step(x: Slice, rows: Ints, keys: int) -> int:
    """Queries whose masks are made at a time."""
    some = _MASK_BYTES // max(1, min(len(x.k), keys))
    return max(16, some) if x.pairs.size else max(1, len(rows))


def _scores(x: Slice, given: Sequence[Any], rows: Ints, keys: slice = slice(None)) -> Scores:
    """Scores of some queries and keys, `given` as by `products`."""
    q, k, factor = given
    p = dense.dot_scores(_check.frozen(q[rows])[None], _check.frozen(k[keys])[None], factor)
    if x.causal:
        end = np.clip(rows + 1 - (keys.start or 0), 0, p.k.shape[1])
        band = np.stack(np.broadcast_arrays(0, end, rows), -1)[None]
        p = p._replace(band=_check.frozen(band, np.int64))
    if x.pairs.size or x.key_mask.size:
        mask = np.ones((len(rows) if x.pairs.size else 1, p.k.shape[1]), bool)
        if x.key_mask.size:
            mask &= x.key_mask[keys]
        if x.pairs.size:
            mask &= x.pairs[rows, keys]
        p = p._replace(mask=_check.frozen(mask)[None], has_mask=True)
    return p


def add_vjp(
    x: Slice, v: Floats, dout: Floats, rows: Ints, gradients: tuple[Floats, Floats, Floats]
) -> None:
    """Add the gradients of some queries, from all keys: of `products` and values, in float64."""
    *given, _ = products(x, np.float64)
    values, (dq, dk, dv) = _check.frozen(v, np.float64)[None], gradients
    step = _step(x, rows, len(x.k))
    for first in range(0, len(rows), step):
        some = rows[first : first + step]
        p, g = _scores(x, given, some), _check.frozen(dout[some], np.float64)[None]
        out, norm = dense.attend(p, values)
        for whole, own in zip(
            (dq, dk, dv),
            dense.vjp(p, values, g, norm, np.einsum("bne,bne->bn", out, g)),
            strict=True,
        ):
            whole[some if whole is dq else slice(None)] += own[0]


def _together(sums: list[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """Outputs (n, e) and lse of all keys from those of some at a time."""
    if len(sums) == 1:
        return sums[0][0][0], dense.log_normaliser(sums[0][1])[0]
    each = np.stack([dense.log_normaliser(norm)[0] for _, norm in sums])
    out = np.zeros(sums[0][0][0].shape)
    with np.errstate(invalid="ignore"):  # of numbers that are not finite
        lse = np.logaddexp.reduce(each, axis=0)
        for (part, _), own in zip(sums, each, strict=True):
            some = ~np.isneginf(own)
            out[some] += part[0][some] * np.exp(own[some] - lse[some])[:, None]
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
    return _scores(x, products(x, x.q.dtype)[:3], np.arange(len(x.q)))


def rows(x: Slice, index: Ints, *, normalise: bool) -> Floats:
    """Weights of some queries from all keys, or scores."""
    out = dense.rows(_whole(x), index, normalise=normalise)
    if not normalise:
        out += products(x, x.q.dtype)[3][index][:, None].astype(out.dtype)
    return out


def adjoint(x: Slice, lse: Floats, g: Floats, rows: Ints) -> Floats:
    """``A.T g`` for g (n, e), from all keys and some of the queries."""
    *given, shift = products(x, x.q.dtype)
    lse, out = lse[rows], np.zeros((len(x.k), g.shape[1]), x.q.dtype)
    known = np.isfinite(lse)
    level = np.where(known, lse, 0) - shift[rows]
    top = np.round(level)  # in two parts, for one float32 loses the digits of the whole part
    norm = np.stack([top, np.where(known, np.exp(level - top), 0)])[:, None].astype(x.q.dtype)
    step = _step(x, rows, len(x.k))
    for first in range(0, len(rows), step):
        here = slice(first, first + step)
        p = _scores(x, given, rows[here])
        out += dense.adjoint(p, _check.frozen(norm[:, :, here]), _check.frozen(g[rows[here]]))
    return out


def pairs(x: Slice, keys: Ints) -> Floats:
    """Score of each query with a key of its own, in float64; -inf where that is below 0."""
    q, k = x.q.astype(np.float64), x.k[np.maximum(keys, 0)].astype(np.float64)
    if x.kind == scores.DOT:
        found = x.factor * np.einsum("nc,nc->n", q, k)
    else:
        q -= k
        found = -x.factor * np.einsum("nc,nc->n", q, q)
    return np.where(keys >= 0, found + x.above, -np.inf)


def topk(x: Slice, k: int) -> tuple[Floats, Ints]:
    """Scores and keys of the best `k` of every query, proved."""
    n, m = len(x.q), len(x.k)
    plan = Plan(1, n, 1, m, x.q.shape[1], 1, x.kind, x.factor, SAME, int(x.causal), 0, 0)
    index, score = np.full((n, k), -1, np.int32), np.full((n, k), -np.inf, x.q.dtype)
    flat = x.q.reshape(-1), x.k.reshape(-1), x.key_mask, x.pairs
    nearest.search(*flat, None, plan, index, score)
    return score.astype(np.float64) + x.above, index.astype(np.int64)


def products(x: Slice, dtype: DTypeLike) -> tuple[Floats, Floats, float, Floats]:
    """Queries, keys and a factor whose products are the scores, less a number of each query."""
    q, k = x.q.astype(dtype), x.k.astype(dtype)
    if x.kind == scores.DOT:
        return _check.frozen(q), _check.frozen(k), x.factor, np.full(len(q), x.above)
    middle = centre(k)
    far = x.q.astype(np.float64) - middle
    q, k = q - middle, k - middle
    height = -(k * k).sum(1, keepdims=True) / 2
    ones = np.ones((len(q), 1), dtype)
    q_more, k_more = np.concatenate([q, ones], 1), np.concatenate([k, height], 1)
    shift = x.above - x.factor * (far * far).sum(1)
    return _check.frozen(q_more), _check.frozen(k_more), 2 * x.factor, shift
