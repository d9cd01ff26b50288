"""A panel of queries that sums exponential weights, and how it spends what it may miss.

A weight is ``exp(HIGH - SHARP D^2)`` of a squared distance D^2. HIGH is a query's own, from a key
that is near it, and rises when a much nearer one comes along. Where weights have a floor, as those
of non-local means, exponents up to it count as the floor, and HIGH is no less.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn._types import Bools, Floats, Ints
from nlattn.kernels.bounds import NOTHING, bear, copy, less, relative
from nlattn.kernels.boxes import Tree
from nlattn.kernels.certified_terms import Terms, forbid, masked
from nlattn.kernels.gemm import aligned, distances, multiply, width
from nlattn.kernels.lanes import exponentials, exponents, highest
from nlattn.kernels.nearest import Asked
from nlattn.runtime import jit

SHARP, MOVED, ROOT, LOOSE, THERE = range(5)
"""Columns of a query's numbers. Points alone move ``MOVED + ROOT sqrt(x)`` of its weights, x a
bound of the mean exponent; the bound of a key's weight is loosened by ``exp(LOOSE)``; THERE is 0
for a query that may attend to no key."""
UNSOUND = 2
"""What is written of a panel that is given up since rounding moves too much."""
BATCH = 128
"""Keys that are summed in the dtype of values before float64."""
FIRST = 32
"""Keys of the first batch: what may be missed depends on what was found."""
PARTS = 3
"""Parts of the coordinates whose squares are summed apart: shorter sums round less."""
_LEAST = 0.99  # the reference key's weight, less rounding
_HIGHER = 30.0  # an exponent that makes its key the new reference
_KEYS, _NODES = 4096, 64  # a key, or a node, may cost so much of what may still be missed
_OVER = 1.001  # what is spent, rounding included
_SPARE = 0.999


class Panel(NamedTuple):
    """What a panel of queries has at hand; of each lane one number, where nothing else is said."""

    exact: Floats
    """(dims, width) float64, in panels of float64's width one behind the other."""
    points: Floats
    """(dims, width) less `centre`, rounded."""
    centre: Floats
    shorts: Floats
    """(short, width)"""
    radius: Floats
    """Length of a lane's point."""
    wide: Bools
    """(1,) whether distances are computed in float64."""
    sharp: Floats
    """-SHARP"""
    steep: Floats
    """-SHARP, in float64."""
    high: Floats
    """-HIGH"""
    loosely: Floats
    """As `sharp`, of bounds."""
    loose: Floats
    """As `high`, of bounds."""
    budget: Floats
    """Share of the weights that may be left out; -1 of a lane that asks for nothing."""
    moved: Floats
    """Share that rounding may move."""
    sums: Floats
    """Weights so far."""
    most: Floats
    """Largest weight so far."""
    missed: Floats
    """Weight that may have been left out so far, in float64,"""
    spent: Floats
    """and since the last batch."""
    allowed: Floats
    """Weight that may still be left out; inf for lanes that ask for nothing."""
    limits: Floats
    """Squared distances of short points above which a key is left out."""
    small: Floats
    """What that may cost a key."""
    wanted: Floats
    """Room for one number of each lane."""


class Batch(NamedTuple):
    """Keys of a panel that are summed together."""

    places: Ints
    """Where they lie in the tree."""
    exact: Floats
    """(BATCH, dims) float64."""
    squares: Floats
    """(BATCH, float64's width) float64 distances of a part of the panel."""
    points: Floats
    """(BATCH, dims) less the panel's centre, rounded; part by part of the coordinates."""
    values: Floats
    s: Floats
    """(BATCH, width) distances, exponents, weights."""
    more: Floats
    """(BATCH, width) distances in a part of the coordinates."""
    total: Floats
    part: Floats
    """(channels, width) sums of this batch."""
    whole: Floats
    """(channels, width) float64 sums of all."""


@jit.device(once=True)
def panel_of(tree: Tree, asked: Asked, terms: Terms, queries: Ints) -> Panel:
    """The panel of some queries; lanes beyond them are those of the first, and ask for nothing."""
    dims, short, like, w = tree.dims, tree.short, tree.shorts, width(tree.shorts)
    exact, part = aligned(dims * w, tree.points), width(tree.points)
    points, shorts = aligned(dims * w, like), aligned(short * w, like)
    sharp, high, loosely, loose = (
        aligned(w, like),
        aligned(w, like),
        aligned(w, like),
        aligned(w, like),
    )
    spent, allowed, limits, small = (
        aligned(w, like),
        aligned(w, like),
        aligned(w, like),
        aligned(w, like),
    )
    budget, centre, radius, steep = np.empty(w), np.zeros(dims), np.zeros(w), np.empty(w)
    for i in queries:
        for c in range(dims):
            centre[c] += asked.points[i, c] / queries.size
    for l in range(w):
        spent[l], small[l] = 0, 0
        i, at = queries[l] if l < queries.size else queries[0], l // part * dims * part + l % part
        for c in range(dims):
            exact[at + c * part] = asked.points[i, c]
            points[c * w + l] = asked.points[i, c] - centre[c]
            radius[l] += np.float64(points[c * w + l]) ** 2
        for c in range(short):
            shorts[c * w + l] = asked.shorts[i, c]
        radius[l] = np.sqrt(radius[l])
        sharp[l] = steep[l] = -terms.numbers[i, SHARP]
        loosely[l] = -terms.numbers[i, SHARP] * (1 - terms.slack)
        budget[l] = 0 if l < queries.size and terms.numbers[i, THERE] != 0 else -1
    return Panel(
        exact, points, centre, shorts, radius, np.zeros(1, np.bool_), sharp, steep, high, loosely,
        loose, budget, np.zeros(w), np.zeros(w), np.zeros(w), np.zeros(w), spent, allowed, limits,
        small, aligned(w, like),
    )  # fmt: skip


@jit.device(once=True)
def batch_of(tree: Tree, e: int) -> Batch:
    """Room for a batch of keys with values of `e` channels."""
    like, w = tree.shorts, width(tree.shorts)
    return Batch(
        np.empty(BATCH, np.int64),
        aligned(BATCH * tree.dims, tree.points),
        aligned(BATCH * width(tree.points), tree.points),
        aligned(BATCH * tree.dims, like),
        aligned(BATCH * e, like),
        aligned(BATCH * w, like),
        aligned(BATCH * w, like),
        aligned(w, like),
        aligned(e * w, like),
        np.zeros(e * w),
    )


@jit.device(inline=True)
def refer(terms: Terms, queries: Ints, dims: int, panel: Panel, best: Floats) -> bool:
    """Begin with the exponents of keys that are near; whether rounding leaves enough to be kept."""
    worst = 0.0
    for wide in range(2):
        worst, panel.wide[0] = 0.0, wide == 1
        for l in range(panel.sharp.size):
            here = terms.numbers[queries[l] if l < queries.size else queries[0]]
            there = panel.budget[l] >= 0
            away = max(-np.float64(best[l]), terms.floor) if there else 0.0
            panel.high[l], panel.loose[l] = -away, -away - here[LOOSE]
            panel.moved[l] = rounding(terms, here, away + terms.spread, panel, l, dims)
            panel.allowed[l], panel.limits[l] = np.inf, -1
            if there:
                worst = panel.moved[l] if not panel.moved[l] <= worst else worst
                panel.budget[l] = max(0.99 * (terms.tolerance - panel.moved[l]), 0.0)
        if worst <= terms.reserve:
            break
    permit(panel)
    return worst <= terms.reserve


@jit.device(inline=True)
def rounding(
    terms: Terms, here: Floats, spread: float, panel: Panel, lane: int, dims: int
) -> float:
    """Share of a query's weights that rounding may move; exponents are `spread` in the mean."""
    u, root = terms.u, np.sqrt(spread)
    if panel.wide[0]:  # exponents are rounded less the reference's, which no key exceeds by more
        exponents = (terms.spread + _HIGHER) * 6 * u + spread * (dims + 10) * 2.0**-53
    else:  # a key's point less the centre is no longer than its distance and the radius
        exponents = spread * (-(-dims // PARTS) + PARTS + 9) * u
        exponents += 4 * u * np.sqrt(here[SHARP]) * panel.radius[lane] * root
    return here[MOVED] + here[ROOT] * root + 1.2 * exponents


@jit.device(inline=True)
def permit(panel: Panel) -> None:
    """What may still be missed, after what has been summed."""
    for l in range(panel.sharp.size):
        panel.missed[l] += panel.spent[l]
        panel.spent[l] = 0
        if panel.budget[l] >= 0:
            allowed = max(panel.budget[l] * max(panel.sums[l], _LEAST) - panel.missed[l], 0.0)
            small, sharp, room = allowed / _KEYS, -panel.loosely[l], np.inf
            panel.allowed[l], panel.small[l] = allowed, small
            if panel.small[l] > 0 and sharp > 0:
                room = (-panel.loose[l] - np.log(panel.small[l])) / sharp
            panel.limits[l] = max(room / _SPARE, 0.0)


@jit.device(inline=True)
def level(terms: Terms, panel: Panel, s: Floats, count: int) -> None:
    """Exponents of weights that are the largest there are, all the same."""
    w = panel.sharp.size
    for l in range(w):
        panel.small[l] = -np.float64(panel.high[l]) - terms.floor
        panel.wanted[l] = min(panel.wanted[l], panel.small[l])
    for t in range(count):
        for l in range(w):
            s[t * w + l] = min(s[t * w + l], panel.small[l])


@jit.device(inline=True)
def raise_reference(panel: Panel, whole: Floats, far: Floats, held: int) -> None:
    """Raise the unit of lanes by the exponents `wanted`, where these are large."""
    w = panel.sharp.size
    for l in range(w):
        if panel.wanted[l] > _HIGHER:
            was = np.float64(panel.high[l])
            panel.high[l] = was + panel.wanted[l]
            step = panel.high[l] - was
            panel.loose[l] += step
            factor = np.exp(-step)
            panel.sums[l] *= factor
            panel.most[l] *= factor
            panel.spent[l] *= factor
            panel.missed[l] *= factor
            for x in range(l, whole.size, w):
                whole[x] *= factor
            for x in range(l, held * w, w):
                if far[x] < NOTHING:
                    far[x] *= factor


@jit.device(inline=True)
def measure(tree: Tree, panel: Panel, batch: Batch, count: int) -> None:
    """Exponents of the keys of a batch, less those of the reference; largest ones in `wanted`."""
    dims, w, part = tree.dims, panel.sharp.size, width(tree.points)
    for l in range(w):
        panel.wanted[l] = -np.inf
    if panel.wide[0]:
        for t in range(count):
            to, at = t * dims, batch.places[t] * dims
            copy(tree.points, at, batch.exact, to, dims)
        for l0 in range(0, w, part):
            distances(batch.exact, 0, panel.exact, l0 * dims, batch.squares, 0, count, dims)
            relative(batch.squares, count, panel.steep, panel.high, l0, batch.s, w)
        highest(batch.s, count, panel.wanted)
        return
    step = -(-dims // PARTS)
    for first in range(0, dims, step):
        some, block = min(step, dims - first), BATCH * first
        centre = panel.centre[first : first + some]
        for t in range(count):
            at = batch.places[t] * dims + first
            less(tree.points, at, centre, batch.points, block + t * some, some)
        squares = batch.s if first == 0 else batch.more
        distances(batch.points, block, panel.points, first * w, squares, 0, count, some)
        if first > 0:
            for x in range(count * w):
                batch.s[x] += squares[x]
    exponents(batch.s, count, panel.sharp, panel.high, panel.wanted)


@jit.device(inline=True)
def absorb(
    tree: Tree, terms: Terms, queries: Ints, panel: Panel, batch: Batch, count: int, times: int,
    far: Floats, held: int,
) -> None:  # fmt: skip
    """Sum `count` keys of the batch, or one that stands for `times`.

    `far` holds the bounds of `held` nodes, which are in the same units.
    """
    e, w = terms.channels, width(tree.shorts)
    for attempt in range(2):
        measure(tree, panel, batch, count)
        if times == 1 and masked(terms):
            forbid(terms, tree, queries, batch.places, count, batch.s)
            for l in range(w):
                panel.wanted[l] = -np.inf
            highest(batch.s, count, panel.wanted)
        if terms.floor > 0:
            level(terms, panel, batch.s, count)
        higher = False
        for l in range(w):
            higher = higher or panel.wanted[l] > _HIGHER
        if not higher or attempt == 1:
            break
        raise_reference(panel, batch.whole, far, held)
    for l in range(w if terms.apart else 0):
        panel.most[l] = max(panel.most[l], np.exp(np.float64(panel.wanted[l])))
    for l in range(w):
        panel.wanted[l], batch.total[l] = 0, 0
    exponentials(batch.s, count, panel.wanted, batch.total)
    multiply(batch.values, 0, 1, e, batch.s, 0, w, batch.part, 0, w, e, count)
    for x in range(e * w):
        batch.whole[x] += batch.part[x]
    for l in range(w):
        panel.sums[l] += np.float64(batch.total[l]) * times
    permit(panel)


@jit.device(inline=True)
def drop(far: Floats, at: int, count: int, left: int, panel: Panel) -> bool:
    """Leave a node out if every lane can bear it.

    A key may cost what is allowed over the keys that are `left`, or a node one `_NODES`-th of it.
    """
    kind = far.dtype.type
    part = kind(min(left, count * _NODES) * _OVER)
    return bear(far, at, part, kind(count * _OVER), panel.allowed, panel.spent)


@jit.device(inline=True)
def allowance(count: int, panel: Panel) -> None:
    """See to it that `count` keys may be skipped."""
    kind = panel.small.dtype.type
    if not bear(panel.small, 0, kind(count * _OVER), kind(0), panel.allowed, panel.spent):
        permit(panel)


@jit.device(inline=True)
def skip(count: int, panel: Panel) -> None:
    """Leave out so many keys that are beyond the limits."""
    kind = panel.small.dtype.type
    bear(panel.small, 0, kind(0), kind(count * _OVER), panel.allowed, panel.spent)
