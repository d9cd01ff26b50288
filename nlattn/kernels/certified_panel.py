"""A panel of queries that sums exponential weights, and how it spends what it may miss.

A weight is ``exp(HIGH - SHARP D^2)`` of a squared distance D^2. HIGH is a query's own, from a key
that is near it, and rises when a much nearer one comes along. Where weights have a floor, as those
of non-local means, exponents up to it count as the floor, and HIGH is no less.
"""

from __future__ import annotations

import numpy as np

from nlattn._types import Floats, Ints
from nlattn.kernels.bounds import NOTHING, bear, copy, less, relative
from nlattn.kernels.boxes import Tree
from nlattn.kernels.certified_arrays import (
    BATCH,
    LOOSE,
    MOVED,
    ROOT,
    SHARP,
    Batch,
    Deep,
    Panel,
)
from nlattn.kernels.certified_terms import Terms, forbid, masked
from nlattn.kernels.gemm import distances, multiply, width
from nlattn.kernels.lanes import exponentials, exponents, highest
from nlattn.runtime import jit

UNSOUND = 2
"""What is written of a panel that is given up since rounding moves too much."""
FIRST = 32
"""Keys of the first batch: what may be missed depends on what was found."""
PARTS = 3
"""Parts of the coordinates whose squares are summed apart: shorter sums round less."""
_LEAST = 0.7  # the reference key's weight, less rounding
_VAGUE = 0.3  # what rounding may move the reference's exponent
_HIGHER = 30.0  # an exponent that makes its key the new reference
_FAR = 41.0  # exponents above the reference's beyond which a weight is nothing
_LIGHT = 0.01  # of a light key's weight, what rounding may move
_KEYS, _NODES = 4096, 64  # a key, or a node, may cost so much of what may still be missed
_OVER = 1.001  # what is spent, rounding included
_SPARE = 0.999


@jit.device(inline=True)
def refer(terms: Terms, queries: Ints, dims: int, panel: Panel, best: Floats) -> bool:
    """Begin with the exponents of keys that are near; whether rounding leaves enough to be kept."""
    worst = 0.0
    for wide in range(int(terms.mixed), 2):
        vague = terms.u_box * (1.1 if wide else 2 * (-(-dims // PARTS) + PARTS + 9))
        worst, panel.wide[0] = 0.0, wide == 1
        for l in range(panel.sharp.size):
            here = terms.numbers[queries[l] if l < queries.size else queries[0]]
            there = panel.budget[l] >= 0
            away = max(-np.float64(best[l]), terms.floor) if there else 0.0
            panel.high[l], panel.loose[l] = -away, -away - here[LOOSE]
            panel.moved[l] = rounding(terms, here, away + terms.spread, panel, l, dims)
            panel.light[l] = lightly(here, away + _FAR, panel, l, dims, terms.u_box)
            panel.allowed[l], panel.limits[l], panel.heavy[l] = np.inf, -1, -1
            if there:
                worst = panel.moved[l] if not panel.moved[l] <= worst else worst
                worst = worst if away * vague <= _VAGUE else np.inf
                panel.budget[l] = max(0.99 * (terms.tolerance - panel.moved[l]), 0.0)
        if worst <= terms.reserve:
            break
    if terms.mixed:
        panel.wide[0] = False
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
def lightly(here: Floats, x: float, panel: Panel, lane: int, dims: int, u: float) -> float:
    """Share of a key's weight that rounding moves, at most, where its exponent is up to `x`.

    Beyond, weights fall faster than what rounding moves of them grows.
    """
    exponents = x * (-(-dims // PARTS) + PARTS + 9) * u
    exponents += 4 * u * np.sqrt(here[SHARP] * x) * panel.radius[lane]
    share = 1.2 * exponents + 200 * u + 2e-7
    return share if share < _LIGHT else np.inf


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
            # what rounding moves of a light key may cost what leaving out another may
            nearer = np.log(np.float64(panel.light[l])) / sharp if sharp > 0 else np.inf
            panel.heavy[l] = max(room + nearer, 0.0) / _SPARE


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
def measure_deeply(tree: Tree, panel: Panel, batch: Batch, deep: Deep, count: int) -> None:
    """As `measure`, in float64."""
    dims, w, part = tree.dims, panel.sharp.size, width(tree.points)
    for t in range(count):
        copy(tree.points, deep.places[t] * dims, batch.exact, t * dims, dims)
    for l in range(w):
        deep.wanted[l], deep.high[l] = -np.inf, panel.high[l]
    for l0 in range(0, w, part):
        lanes, s = slice(l0, l0 + part), deep.s[BATCH * l0 :]
        distances(batch.exact, 0, panel.exact, l0 * dims, s, 0, count, dims)
        exponents(s, count, deep.steep[lanes], deep.high[lanes], deep.wanted[lanes])


@jit.device(inline=True)
def hide(
    tree: Tree, terms: Terms, queries: Ints, panel: Panel, batch: Batch, deep: Deep, count: int,
    single: bool, deeply: bool,
) -> None:  # fmt: skip
    """Exponents of keys that may not be seen, or whose weights have a ceiling; what is wanted."""
    w, part = panel.sharp.size, width(tree.points)
    if single and masked(terms):
        if deeply:
            for l0 in range(0, w, part):
                s, lanes = deep.s[BATCH * l0 :], slice(l0, l0 + part)
                forbid(terms, tree, queries[lanes], deep.places, count, s)
                deep.wanted[lanes] = -np.inf
                highest(s, count, deep.wanted[lanes])
        else:
            forbid(terms, tree, queries, batch.places, count, batch.s)
            for l in range(w):
                panel.wanted[l] = -np.inf
            highest(batch.s, count, panel.wanted)
    if deeply:
        for l in range(w):
            panel.wanted[l] = deep.wanted[l]
            if terms.floor > 0:
                most = -deep.high[l] - terms.floor
                panel.wanted[l] = min(deep.wanted[l], most)
                at = l // part * BATCH * part + l % part
                for t in range(count):
                    deep.s[at + t * part] = min(deep.s[at + t * part], most)
    elif terms.floor > 0:
        level(terms, panel, batch.s, count)


@jit.device(inline=True)
def absorb(
    tree: Tree, terms: Terms, queries: Ints, panel: Panel, batch: Batch, deep: Deep,
    amounts: tuple[int, int], far: Floats, held: int, deeply: bool,
) -> None:  # fmt: skip
    """Sum so many keys of a batch, or one that stands for several, `amounts`.

    `far` holds the bounds of `held` nodes, which are in the same units.
    """
    e, w, part = terms.channels, width(tree.shorts), width(tree.points)
    count, times = amounts
    for attempt in range(2):
        if deeply:
            measure_deeply(tree, panel, batch, deep, count)
        else:
            measure(tree, panel, batch, count)
        hide(tree, terms, queries, panel, batch, deep, count, times == 1, deeply)
        higher = False
        for l in range(w):
            higher = higher or panel.wanted[l] > _HIGHER
        if not higher or attempt == 1:
            break
        raise_reference(panel, batch.whole, far, held)
    for l in range(w if terms.apart else 0):
        panel.most[l] = max(panel.most[l], np.exp(np.float64(panel.wanted[l])))
    if deeply:
        for l0 in range(0, w, part):
            lanes, s = slice(l0, l0 + part), deep.s[BATCH * l0 :]
            total = deep.total[lanes]
            total[:] = 0
            exponentials(s, count, deep.zero[lanes], total)
            multiply(deep.values, 0, 1, e, s, 0, part, deep.part, 0, part, e, count)
            for c in range(e):
                for l in range(part):
                    batch.whole[c * w + l0 + l] += deep.part[c * part + l]
            for l in range(part):
                panel.sums[l0 + l] += total[l] * times
    else:
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
