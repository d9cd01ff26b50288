"""Exponential sums over all keys to a stated tolerance, rounding included.

With weights w and those used w', ``sum |w' - w| <= missed sum w`` for every query: what was left
out, and what rounding may have moved. Gibbs weights ``exp(-x)``, ``x >= 0``, of m keys have a mean
of x of at most ``log m`` above its least, so the effect of rounding is known beforehand.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Bools, Floats, Ints
from nlattn.engines import dense, nearest
from nlattn.engines.distances import Geometry
from nlattn.engines.unseen import cleaned, finite
from nlattn.kernels import certified as kernels
from nlattn.kernels import nearest as search
from nlattn.kernels import scores
from nlattn.kernels.boxes import Tree
from nlattn.kernels.gemm import width
from nlattn.kernels.matching import SAME, Plan
from nlattn.kernels.nearest import PER_SCORE, SLACK, TINY, TOP, WIDTH, Asked
from nlattn.kernels.panel import KEYS, Scores

_PROBE = 64
"""One panel of so many is tried first; if they cost more than dense attention, all go there."""
_ENOUGH = 8  # a panel looks at one key of so many, at most, for the best to begin with
_THETA = 1e-3  # a bound is loosened by this share for what rounding did to points
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


class Ground(NamedTuple):
    """What all sums of one slice share: the tree, best keys, precision, panels that pay."""

    slice: Slice
    keys: Ints
    tree: Tree
    asked: Asked
    numbers: Floats
    """(n, 4), see `kernels.certified`."""
    rounding: Floats
    """(n,) share of the weights that rounding may move."""
    reference: Floats
    """(n,) float64 score to which sums are relative."""
    slack: float
    panels: Ints
    """Panels that go down the tree; other queries are left to dense attention."""
    dense: Ints
    """Queries of those others."""
    dense_rounding: Floats
    dense_wide: bool
    """Whether dense attention is float64 for them."""
    counts: Ints
    """(n, 3) of the search for good keys."""


class Sums(NamedTuple):
    """Weighted means of a slice."""

    out: Floats
    """(n, e) float64."""
    lse: Floats
    missed: Floats
    """(n,) share of the weights that may be misplaced."""
    counts: Ints
    """(panels, 4) of the last pass, see `kernels.certified.gather`."""


def survey(x: Slice, tolerance: float, *, grouped: bool = True) -> Ground:
    """Find good keys, choose a precision that can keep the tolerance, try some panels."""
    n, m = len(x.q), len(x.k)
    if not n or not m or tolerance == 0 or (x.key_mask.size and not x.key_mask.any()):
        return _unsought(x)
    plan = Plan(1, n, 1, m, x.q.shape[1], 1, x.kind, x.factor, SAME, int(x.causal), 0, 0)
    keys = _check.frozen(np.flatnonzero(x.key_mask) if x.key_mask.size else np.arange(m), np.int32)
    ready = nearest.prepare(x.q, x.k, keys, plan)
    index, score = np.full((n, 1), -1, np.int32), np.full((n, 1), -np.inf, x.q.dtype)
    counts = np.zeros((n, 3), np.int64)
    asked = ready.asked._replace(enough=max(128, m // _ENOUGH))
    flat = x.q.reshape(-1), x.k.reshape(-1), x.pairs, plan, ready.tree, asked
    search.seek(len(asked.panels), *flat, index, score, counts)
    ground = _ground(x, keys, ready, index, score, counts, tolerance)
    if len(ground.dense):
        return ground
    panels = np.arange(-(-n // width(ground.asked.points)))
    probed = panels[:: max(1, min(_PROBE, len(panels) // 8))]
    ground = ground._replace(panels=probed)
    some = _check.frozen(np.zeros((m, 1), x.q.dtype))
    found = _gather(ground, some, grouped=grouped, most=1 << 62)[2]
    cost = (found[probed, 0] * kernels.KEY + found[probed, 1] * kernels.BOX).mean()
    if cost > 0.8 * len(keys):
        return _all_dense(ground)
    return ground._replace(panels=panels)


def _queries(asked: Asked, panels: Ints) -> Ints:
    """Queries of some panels."""
    w, n = width(asked.points), len(asked.order)
    lanes = (panels[:, None] * w + np.arange(w)).reshape(-1)
    found: Ints = asked.order[lanes[lanes < n]]
    return found


def _unsought(x: Slice) -> Ground:
    """Dense attention alone."""
    n, none = len(x.q), np.zeros(0, np.int64)
    tree = Tree(0, 0, 1, none, x.q[:0, 0], x.q[:0, 0], none, none, np.zeros(0, bool))
    asked = Asked(none, x.q[:0], np.zeros((0, 7)), 0.0, none, 0, 0.0)
    zero, wide = np.zeros(n), x.q.dtype == np.float64
    counts, rounding = np.zeros((n, 3), np.int64), _dense_rounding(x, x.q.dtype)
    return Ground(
        x, none, tree, asked, np.zeros((n, 4)), zero, zero, 0.0, none, np.arange(n), rounding,
        bool(wide), counts,
    )  # fmt: skip


def _all_dense(ground: Ground) -> Ground:
    every = np.arange(len(ground.slice.q))
    return ground._replace(panels=every[:0], dense=every)


def _ground(
    x: Slice,
    keys: Ints,
    ready: nearest.Ready,
    index: Ints,
    score: Floats,
    counts: Ints,
    tolerance: float,
) -> Ground:
    """Reference scores and what rounding may do, in float32 if that can keep the tolerance."""
    m, wide = max(len(keys), 1), x.q.dtype == np.float64
    best, there = score[:, 0].astype(np.float64), index[:, 0] >= 0
    best[~np.isfinite(best)] = 0
    numbers, rounding, slack = _numbers(ready.geometry, best, m, ready.geometry.keys.dtype)
    plain, dense_wide = _dense_rounding(x, x.q.dtype), wide
    if plain.max(initial=0) > tolerance / 2:
        plain, dense_wide = _dense_rounding(x, np.float64), True
    if not wide and rounding.max(initial=0) > tolerance / 2:
        plan = Plan(1, len(x.q), 1, len(x.k), x.q.shape[1], 1, x.kind, x.factor, SAME, 0, 0, 0)
        ready, wide = nearest.prepare(x.q, x.k, keys, plan, np.float64), True
        numbers, rounding, slack = _numbers(ready.geometry, best, m, np.float64)
    numbers[:, kernels.BUDGET] = np.where(there, 0.99 * (tolerance - rounding), -1.0)
    reference = _scores_at(ready.geometry, numbers)
    hopeless = there & (rounding > tolerance / 2)
    ground = Ground(
        x, keys, ready.tree, ready.asked, _check.frozen(numbers), rounding, reference, slack,
        np.arange(0), np.arange(0), plain, dense_wide, counts,
    )  # fmt: skip
    return _all_dense(ground) if hopeless.any() else ground


def _scores_at(shape: Geometry, numbers: Floats) -> Floats:
    """The score of a key whose weight is 1."""
    per = shape.numbers[:, PER_SCORE]
    with np.errstate(all="ignore"):
        top = np.where(np.isfinite(per), shape.numbers[:, TOP] / per, 0)
    result: Floats = top - numbers[:, kernels.HIGHEST]
    return result


def _numbers(shape: Geometry, best: Floats, m: int, dtype: Any) -> tuple[Floats, Floats, float]:
    """Numbers for the kernel but for budgets, shares that rounding may move, slack of bounds."""
    given, u = shape.numbers, float(np.finfo(dtype).eps) / 2
    numbers = np.zeros((len(given), 4))
    with np.errstate(all="ignore"):
        sharp = 1 / given[:, PER_SCORE]
        wild = ~np.isfinite(sharp)
        sharp[wild] = 0
        away = np.where(sharp > 0, np.maximum(given[:, TOP] - best / sharp, 0), 0)
    numbers[:, kernels.SHARP], numbers[:, kernels.HIGHEST] = sharp, sharp * away
    loose = given[:, WIDTH] ** 2 / _THETA + given[:, SLACK] + given[:, TINY]
    numbers[:, kernels.LOOSE] = sharp * (away + loose)
    spread = sharp * away + np.log(m) + 1  # mean of sharp D^2
    moved = (shape.keys.shape[1] + 6) * u * spread + 2 * np.sqrt(sharp) * given[:, WIDTH] * np.sqrt(
        spread
    )
    moved += sharp * (given[:, WIDTH] ** 2 + given[:, SLACK] + given[:, TINY]) + 4 * u * spread
    moved += 120 * u + (2e-7 if dtype == np.float32 else 1e-15)
    moved[wild | ~np.isfinite(moved)] = np.inf
    return numbers, 1.2 * moved, shape.rounding + _THETA


def _dense_rounding(x: Slice, dtype: Any) -> Floats:
    """As `rounding`, of `kernels.softmax`: scores, exponentials, and sums block by block."""
    u = float(np.finfo(dtype).eps) / 2
    q, k = (np.linalg.norm(a.astype(np.float64), axis=1) for a in (x.q, x.k))
    size = abs(x.factor) * q * k.max(initial=0)
    if x.kind == scores.NEG_L2:
        size = 2 * size + abs(x.factor) * (q**2 + k.max(initial=0) ** 2)
    steps = (x.q.shape[1] + 8) * u * size + 3 * (KEYS + 4 + 4 * (len(x.k) / KEYS)) * u
    return 1.2 * (steps + (2e-7 if dtype == np.float32 else 1e-15))  # type: ignore[no-any-return]


def _gather(
    ground: Ground, v: Floats, *, grouped: bool = True, most: int = -1, lists: Ints | None = None,
    counts: Ints | None = None,
) -> tuple[Floats, Floats, Ints]:  # fmt: skip
    """Weighted sums (n, e), normalisers and missed weights (n, 2), counts of panels (all, 4)."""
    n, e, tree = len(ground.slice.q), v.shape[1], ground.tree
    if not len(ground.panels):
        return np.zeros((n, e)), np.zeros((n, 2)), np.zeros((0, 4), np.int64)
    kind = tree.points.dtype
    values, totals = np.empty((tree.size, e), kind), np.empty((2 << tree.levels, e), kind)
    v = _check.frozen(v, kind)
    for level in range(tree.levels, -1, -1):
        kernels.total_values(1 << level, tree, v, level, values, totals)
    terms = kernels.Terms(
        _check.frozen(values.reshape(-1)),
        _check.frozen(totals.reshape(-1)),
        e,
        ground.numbers,
        ground.slack,
        most if most >= 0 else tree.size,
        ground.slice.pairs,
        int(ground.slice.causal),
        grouped,
    )
    out, norm = np.zeros((n, e)), np.zeros((n, 2))
    if counts is None:
        counts = np.zeros((-(-n // width(tree.points)), 4), np.int64)
    none = np.zeros(0, np.int32) if lists is None else lists
    asked = ground.asked._replace(panels=_check.frozen(ground.panels, np.int64))
    kernels.gather(len(asked.panels), tree, asked, terms, out, norm, counts, none)
    return out, norm, counts


def attend(ground: Ground, v: Floats) -> Sums:
    """Means of the values (m, e), normalisers, and what may be missed."""
    x, middle = ground.slice, _middle(v)
    centred = v.astype(np.float64) - middle
    sums, norm, counts = _gather(ground, centred)
    some = norm[:, 0] > 0
    with np.errstate(divide="ignore"):
        lse = np.where(some, ground.reference + np.log(np.where(some, norm[:, 0], 1)), -np.inf)
    out = np.where(some[:, None], sums / np.where(some, norm[:, 0], 1)[:, None] + middle, 0)
    missed = np.where(some, norm[:, 1] / np.where(some, norm[:, 0], 1) + ground.rounding, 0)
    left = np.concatenate([ground.dense, _given_up(ground, counts)])
    if len(left):
        out[left], lse[left] = _dense(x, centred, left, ground.dense_wide)
        out[left] += np.where(np.isneginf(lse[left]), 0, 1)[:, None] * middle
        missed[left] = np.where(np.isneginf(lse[left]), 0, ground.dense_rounding[left])
    return Sums(out, lse, missed, counts)


def seen(ground: Ground, found: Sums) -> Ints:
    """Keys and boxes that were compared with each query, all in all."""
    m, total = len(ground.slice.k), ground.counts[:, 0] + ground.counts[:, 1]
    for group, (keys, boxes, *_) in enumerate(found.counts):
        if keys:
            total[_queries(ground.asked, np.array([group]))] += keys + boxes
    total[np.concatenate([ground.dense, _given_up(ground, found.counts)])] += m
    return total


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


def topk(x: Slice, k: int) -> tuple[Floats, Ints]:
    """Scores and keys of the best `k` of every query, proved."""
    n, m = len(x.q), len(x.k)
    plan = Plan(1, n, 1, m, x.q.shape[1], 1, x.kind, x.factor, SAME, int(x.causal), 0, 0)
    index, score = np.full((n, k), -1, np.int32), np.full((n, k), -np.inf, x.q.dtype)
    flat = x.q.reshape(-1), x.k.reshape(-1), x.key_mask, x.pairs
    nearest.search(*flat, None, plan, index, score)
    return score.astype(np.float64), index.astype(np.int64)


def _middle(v: Floats) -> Floats:
    """Middle of every channel's range, if it is far from 0 beside its width.

    Then no value exceeds 1.5 widths, and sums round by as much; values around 0 keep their digits.
    """
    if not len(v):
        return np.zeros(v.shape[1])
    low, high = v.min(0).astype(np.float64), v.max(0).astype(np.float64)
    middle = low / 2 + high / 2
    return np.where(np.abs(middle) > high - low, middle, 0)


def _given_up(ground: Ground, counts: Ints) -> Ints:
    """Queries of panels that cost more than dense attention."""
    return _queries(ground.asked, np.flatnonzero(counts[:, 2]))


def _dense(x: Slice, v: Floats, rows: Ints, wide: bool) -> tuple[Floats, Floats]:
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


def products(x: Slice, dtype: Any) -> tuple[Floats, Floats, float, Floats]:
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
