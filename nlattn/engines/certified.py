"""Exponential sums over all keys to a stated tolerance, rounding included.

With weights w and those used w', ``sum |w' - w| <= missed sum w`` for every query: what was left
out, and what rounding may have moved. Gibbs weights ``exp(-x)``, ``x >= 0``, of m keys have a mean
of x of at most ``log m`` above its least, so the effect of rounding is known beforehand: what
float32 cannot keep is summed in float64, and what float64 cannot keep is left to dense attention.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from nlattn import _check
from nlattn._types import Bools, Floats, Ints
from nlattn.engines import exhaustive, nearest
from nlattn.engines.certified_values import middle_of, powers_of
from nlattn.engines.distances import Geometry
from nlattn.engines.exhaustive import Slice
from nlattn.engines.nearest import Ready
from nlattn.engines.random_search import Progress
from nlattn.kernels import certified as kernels
from nlattn.kernels.boxes import Tree
from nlattn.kernels.certified_arrays import COARSE, LOOSE, MOVED, ROOT, SHARP, THERE
from nlattn.kernels.certified_panel import UNSOUND
from nlattn.kernels.certified_terms import Originals, Terms
from nlattn.kernels.gemm import width
from nlattn.kernels.matching import SAME, Plan
from nlattn.kernels.nearest import PER_SCORE, SLACK, TINY, TOP, WIDTH, Asked
from nlattn.kernels.panel import groups

_OFTEN = 4096  # keys that a panel sums often
_FEW, _MANY = 6000, 24000
"""Harmonic means of queries and keys: with fewer, dense attention is faster than planting trees;
with more, that takes little beside dense attention, and they are planted to be tried."""
_THIN, _ROUGH = 4, 0.001
"""Else one in so many queries and keys shows what trees can save, to such a tolerance at least."""
_PROBE = 64
"""So many panels are tried first; if they cost more than dense attention, all go there."""
_PAYS = 0.8  # of the cost of dense attention
_RESERVE = 0.7  # of the tolerance, for rounding
_THETA = 1e-3  # a bound is loosened by this share for what rounding did to points
_VALUES = 1.5 * 2.0**-24  # of the range of values, what rounding to float32 moves them
_FINE = 5e-7  # a tolerance below which that is too much
_SINGLE = 256  # queries with which no other precision is tried


class Descent(NamedTuple):
    """Queries that go down one tree, panel by panel."""

    tree: Tree
    asked: Asked
    numbers: Floats
    """(n, 6) by query, see `kernels.certified_arrays`."""
    top: Floats
    """(n,) score of a key at distance 0."""
    slack: float
    mixed: bool
    """Whether keys of weight are summed in float64, and light ones in the precision of boxes;"""
    given: Originals
    """these are what they are then summed of,"""
    exact: bool
    """and whether values are float64 then, too."""


class Ground(NamedTuple):
    """What all sums of one slice share: trees, and queries that are left to dense attention."""

    slice: Slice
    tolerance: float
    keys: Ints
    parts: tuple[Descent, ...]
    dense: Ints
    dense_rounding: Floats
    """(n,) what rounding may move of dense attention's weights."""
    dense_wide: Bools
    """(n,) whether that is float64."""
    grouped: bool
    """Whether keys that are alike are summed at once."""
    seen: Ints
    """(n,) keys and boxes that were compared before there were values."""


class Sums(NamedTuple):
    """Weighted means of a slice."""

    out: Floats
    """(n, e) float64."""
    lse: Floats
    missed: Floats
    """(n,) share of the weights that may be misplaced."""
    seen: Ints
    """(n,) keys and boxes that were compared with each query."""
    best: Floats
    """(n,) logarithm of each query's largest weight, where queries attend to other keys alone."""


def survey(x: Slice, tolerance: float, *, grouped: bool = True) -> Ground:
    """Plant a tree, choose a precision for each panel, try some."""
    x = exhaustive.held(x)
    n, m = len(x.q), len(x.k)
    keys = _check.frozen(np.flatnonzero(x.key_mask) if x.key_mask.size else np.arange(m), np.int32)
    plain = exhaustive.rounding(x, x.q.dtype, tolerance or np.inf)
    wide = np.full(n, x.q.dtype == np.float64)
    if tolerance > 0 and not wide.all() and plain.max(initial=0) > tolerance:
        wide = plain > tolerance
        plain[wide] = exhaustive.rounding(x, np.float64)[wide]
    left: Ints = np.arange(n)
    seen = np.zeros(n, np.int64)
    ground = Ground(x, tolerance, keys, (), left, plain, wide, grouped, seen)
    if not n or not len(keys) or tolerance == 0:
        return ground
    size = 2 * n * len(keys) / (n + len(keys))
    if not x.apart and (size < _FEW or (size < _MANY and _hopeless(ground))):
        return ground
    ready: Ready | None = None
    for mixed in (False, True) if x.q.dtype == np.float32 else (False,):
        if len(left) < n and len(left) < _SINGLE:
            break
        if _least_rounding(x.q.dtype, mixed, len(keys)) > _RESERVE * tolerance:
            continue
        ready = ready or _planted(ground)
        part, left = _sound(ground, _part(ground, ready, mixed, left))
        if not len(part.asked.panels):
            continue
        if not x.apart and not _pays(ground, part):
            break
        ground = ground._replace(parts=(*ground.parts, part), dense=left)
    return ground


def _hopeless(ground: Ground) -> bool:
    """Whether some queries among one in four keys can leave out next to nothing.

    Trees over these take a quarter of the time. Masks play no part, nor does most of rounding.
    """
    x, rows = ground.slice, np.arange(0, len(ground.slice.q), _THIN)
    keys = ground.keys[::_THIN]
    q, k = _check.frozen(x.q[rows]), _check.frozen(x.k[keys])
    few = x._replace(q=q, k=k, key_mask=x.key_mask[:0], pairs=x.pairs[:0, :0], causal=False)
    thin = ground._replace(
        slice=few,
        tolerance=max(ground.tolerance, _ROUGH),
        keys=_check.frozen(np.arange(len(keys)), np.int32),
        seen=np.zeros(len(rows), np.int64),
    )
    found = not _pays(thin, _part(thin, _planted(thin), False, np.arange(len(rows))))
    ground.seen[rows] += thin.seen
    return found


def _least_rounding(kind: DTypeLike, mixed: bool, m: int) -> float:
    """What rounding may move of any query's weights: less than `kernels` say of a panel."""
    u = _unit(kind, mixed)
    return 1.2 * (150 * u + 6 * u * (float(np.log(m)) + 1))


def _unit(kind: DTypeLike, mixed: bool) -> float:
    """Unit of rounding of weights."""
    return float(np.finfo(np.float64 if mixed else kind).eps) / 2


def _sound(ground: Ground, part: Descent) -> tuple[Descent, Ints]:
    """The panels of a part whose rounding leaves enough, and the queries of the others."""
    nothing = np.zeros((len(ground.slice.k), 1), part.tree.shorts.dtype)
    ground.seen[part.asked.order] += kernels.NEAR
    flags = gather(ground, part, nothing, most=0).counts[:, 2]
    panels = _check.frozen(np.flatnonzero(flags != UNSOUND))
    left = queries_of(part, np.flatnonzero(flags == UNSOUND))
    return part._replace(asked=part.asked._replace(panels=panels)), left


def _planted(ground: Ground) -> Ready:
    """Keys in a tree, queries in the order of one, in their own precision."""
    x = ground.slice
    plan = Plan(1, len(x.q), 1, len(x.k), x.q.shape[1], 1, x.kind, x.factor, SAME, 0, 0, 0)
    return nearest.prepare(x.q, x.k, ground.keys, plan)


def _part(ground: Ground, ready: Ready, mixed: bool, queries: Ints) -> Descent:
    """Some queries that go down the trees."""
    x, order, kind = ground.slice, ready.asked.order, ready.tree.shorts.dtype
    if len(queries) < len(order):
        wanted = np.zeros(len(order), bool)
        wanted[queries] = True
        order = _check.frozen(order[wanted[order]])
    panels = np.arange(-(-len(order) // width(ready.tree.shorts)))
    asked = ready.asked._replace(order=order, panels=_check.frozen(panels))
    numbers, top, slack = _numbers(ready.geometry, kind, mixed)
    exact = mixed and ground.tolerance < _FINE
    numbers[:, MOVED] += 1.2 * _VALUES if mixed and not exact else 0
    numbers[:, THERE] = exhaustive.attends(x)
    numbers[:, MOVED] += exhaustive.blurred(x)
    given = _given(ground, ready, mixed)
    return Descent(ready.tree, asked, _check.frozen(numbers), top, slack, mixed, given, exact)


def _given(ground: Ground, ready: Ready, mixed: bool) -> Originals:
    """Features as they were given, if they are `mixed` with points."""
    x, shape, none = ground.slice, ready.geometry, ready.geometry.keys[:0]
    without, factor, height, *_ = shape.form
    with np.errstate(over="ignore"):  # of queries that are left to others
        factor = _check.frozen(factor / shape.unit)
    if not mixed:
        return Originals(none, factor[:0], none.reshape(-1), factor[:0], 1.0, 0)
    if height.size:
        height = height[np.searchsorted(ground.keys, ready.tree.order)]
    without = x.q.shape[1] if without < 0 else without
    height = _check.frozen(height)
    return Originals(x.q, factor, x.k.reshape(-1), height, 1 / shape.unit, without)


def _numbers(shape: Geometry, kind: DTypeLike, mixed: bool) -> tuple[Floats, Floats, float]:
    """Numbers for the kernel, scores at distance 0, slack of bounds whose dtype is `kind`."""
    given, info = shape.numbers, np.finfo(kind)
    u, numbers = float(info.eps) / 2, np.zeros((len(given), 6))
    with np.errstate(all="ignore"):
        sharp = 1 / given[:, PER_SCORE]
        wild = ~np.isfinite(sharp) | ~(shape.far < float(info.max) ** 0.25)
        sharp[wild] = 0
        top = np.where(sharp > 0, given[:, TOP] * sharp, 0)
        point, more = shape.width if mixed else given[:, WIDTH], given[:, SLACK] + given[:, TINY]
        short = point + 2.1 * u * shape.far
        rest = 4 * shape.keys.shape[1] * float(info.tiny)
        numbers[:, SHARP] = sharp
        numbers[:, LOOSE] = sharp * (short**2 / _THETA + more + rest)
        moved = sharp * (point**2 + more + rest) + 150 * _unit(kind, mixed)
        moved += 2e-7 if kind == np.float32 and not mixed else 1e-15
        numbers[:, MOVED], numbers[:, ROOT] = 1.2 * moved, 2.4 * np.sqrt(sharp) * point
        numbers[:, COARSE] = 2.4 * np.sqrt(sharp) * (point + mixed * 1.01 * u * shape.far)
    numbers[wild | ~np.isfinite(numbers).all(1), MOVED] = np.inf
    slack = shape.rounding + _THETA
    return numbers, top, slack


def node_values(part: Descent, v: Floats) -> tuple[Floats, Floats, Floats]:
    """Values (m, e) leaf by leaf, float64 sums over every node, and float64 values by key."""
    tree, kind, e = part.tree, part.tree.shorts.dtype, v.shape[1]
    values, totals = np.empty((tree.size, e), kind), np.empty((2 << tree.levels, e))
    v = _check.frozen(v, np.float64)
    for level in range(tree.levels, -1, -1):
        kernels.total_values(1 << level, tree, v, level, values, totals)
    exact = _check.frozen((v if part.exact else v[:0]).reshape(-1))
    return _check.frozen(values.reshape(-1)), _check.frozen(totals.reshape(-1)), exact


def terms(
    part: Descent,
    summed: tuple[Floats, Floats, Floats],
    tolerance: float,
    most: float,
    x: Slice,
    grouped: bool,
) -> Terms:
    """What is summed over a tree, `summed` as by `node_values`; only the masks of `x` count."""
    kind = part.tree.shorts.dtype
    return Terms(
        *summed,
        part.given,
        len(summed[0]) // max(part.tree.size, 1),
        part.numbers,
        tolerance,
        _RESERVE * tolerance,
        _unit(kind, part.mixed),
        float(np.finfo(kind).eps) / 2,
        float(np.log(part.tree.size)) + 1,
        part.slack,
        int(most),
        x.pairs,
        int(x.causal),
        grouped,
        x.floor,
        x.apart,
        part.mixed,
    )


class Gathered(NamedTuple):
    """What the panels of a part have summed, see `kernels.certified.gather`."""

    sums: Floats
    norm: Floats
    counts: Ints


def gather(
    ground: Ground,
    part: Descent,
    v: Floats,
    *,
    most: float,
    progress: Progress = None,
    lists: tuple[Ints, Ints] | None = None,
) -> Gathered:
    """Sums (n, e) and normalisers of a part's queries, counts of its panels.

    `lists` says where the leaves of each panel shall be put, and where they begin there.
    """
    n, e = len(ground.slice.q), v.shape[1]
    out, norm = np.zeros((n, e)), np.zeros((n, 5))
    counts = np.zeros((-(-len(part.asked.order) // width(part.tree.shorts)), 5), np.int64)
    summed = node_values(part, v)
    told = terms(part, summed, ground.tolerance, most, ground.slice, ground.grouped)
    panels = len(part.asked.panels)
    leaves: Ints = np.zeros(0, np.int32)
    if lists:
        leaves, counts[:, 4] = lists[0], lists[1][:-1]
    cost = width(part.tree.shorts) * min(part.tree.size, _OFTEN) * (part.tree.dims + e)
    for some in groups(panels, cost):
        kernels.gather(some, part.tree, part.asked, told, out, norm, counts, leaves)
        if progress is not None:
            progress(some.stop, panels)
    return Gathered(out, norm, counts)


def queries_of(part: Descent, panels: Ints) -> Ints:
    """Queries of some panels, ascending."""
    w, order = width(part.tree.shorts), part.asked.order
    lanes = (panels[:, None] * w + np.arange(w)).reshape(-1)
    found: Ints = np.sort(order[lanes[lanes < len(order)]]).astype(np.int64)
    return found


def _pays(ground: Ground, part: Descent) -> bool:
    """Whether some of the panels cost less than dense attention."""
    panels = part.asked.panels
    count = min(_PROBE, max(len(panels) // 32, 8))
    some = _check.frozen(panels[:: max(1, len(panels) // count)])
    part = part._replace(asked=part.asked._replace(panels=some))
    nothing = np.zeros((len(ground.slice.k), 1), part.tree.shorts.dtype)
    counts = gather(ground, part, nothing, most=_PAYS * len(ground.keys)).counts
    _count(ground.seen, part, counts)
    return bool((counts[some, 2] == 1).mean() < 0.5)


def _count(seen: Ints, part: Descent, counts: Ints) -> None:
    """Add the keys and boxes that panels have looked at; short keys are keys."""
    each = np.maximum(counts[:, 0], counts[:, 3]) + counts[:, 1]
    order = part.asked.order
    seen[order] += each[np.arange(len(order)) // width(part.tree.shorts)]


def attend(ground: Ground, v: Floats, progress: Progress = None) -> Sums:
    """Means of the values (m, e), normalisers, and what may be missed.

    `progress` is called with panels done and all, part by part.
    """
    power = powers_of(v)
    if power.any():
        found = attend(ground, np.ldexp(v, -power), progress)
        return found._replace(out=np.ldexp(found.out, power))
    x, middle = ground.slice, middle_of(v)
    n, m = len(x.q), len(x.k)
    centred = v.astype(np.float64) - middle if middle.any() else v
    if not ground.parts and not x.apart:
        out, lse = exhaustive.attend(x, centred, ground.dense, ground.dense_wide)
        there = ~np.isneginf(lse)
        out = out + there[:, None] * middle if middle.any() else out
        missed = np.where(there, ground.dense_rounding, 0)
        return Sums(out, lse, missed, ground.seen + m, lse)
    out, lse, missed = np.zeros((n, v.shape[1])), np.full(n, -np.inf), np.zeros(n)
    best = np.full(n, -np.inf)
    seen, left = ground.seen.copy(), [ground.dense]
    for part in ground.parts:
        most = 1e18 if x.apart else m  # of all keys but one there is no dense attention
        sums, norm, counts = gather(ground, part, centred, most=most, progress=progress)
        panels = part.asked.panels
        _count(seen, part, counts)
        left.append(queries_of(part, panels[counts[panels, 2] != 0]))
        rows = queries_of(part, panels)
        rows = rows[norm[rows, 0] > 0]
        total = norm[rows, 0]
        out[rows] = sums[rows] / total[:, None] + middle
        unit = part.top[rows] - norm[rows, 2] + (x.floor + x.above)
        lse[rows] = unit + np.log(total)
        with np.errstate(divide="ignore"):
            best[rows] = unit + np.log(norm[rows, 4])
        missed[rows] = norm[rows, 1] / total + norm[rows, 3]
    some = np.sort(np.concatenate(left))
    if len(some):
        seen[some] += m
        if x.apart:
            out[some], lse[some], best[some] = exhaustive.others(x, centred, some)
        else:
            out[some], lse[some] = exhaustive.attend(x, centred, some, ground.dense_wide[some])
        there = ~np.isneginf(lse[some])
        out[some] += there[:, None] * middle
        missed[some] = np.where(there, ground.dense_rounding[some], 0)
    return Sums(out, lse, missed, seen, best)
