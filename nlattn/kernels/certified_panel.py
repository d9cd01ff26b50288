"""A panel of queries that sums exponential weights, and how it spends what it may miss.

A weight is ``exp(HIGH - SHARP D^2)`` of a squared distance D^2. HIGH is a query's own, from a key
that is near it, and rises when a much nearer one comes along. Where weights have a floor, as those
of non-local means, exponents up to it count as the floor, and HIGH is no less.
"""

from __future__ import annotations

import numpy as np

from nlattn._types import Floats, Ints
from nlattn.kernels.bounds import NOTHING, bear, widened
from nlattn.kernels.boxes import Tree
from nlattn.kernels.certified_arrays import (
    BATCH,
    COARSE,
    LOOSE,
    MOVED,
    ROOT,
    Batch,
    Deep,
    Panel,
)
from nlattn.kernels.certified_terms import Originals, Terms, forbid, masked
from nlattn.kernels.gemm import distances, distances_of, totals_of, width
from nlattn.kernels.lanes import exponentials, exponents, highest, within
from nlattn.kernels.scores import fetch
from nlattn.runtime import jit

UNSOUND = 2
"""What is written of a panel that is given up since rounding moves too much."""
FIRST = 32
"""Keys of the first batch: what may be missed depends on what was found."""
PARTS = 3
"""Parts of the coordinates whose squares are summed apart."""
_LEAST = 0.7  # the reference key's weight, less rounding
_VAGUE = 0.3  # what rounding may move the reference's exponent
_ABOVE = 16.0  # how far above it its unit may lie, since that is of less precision
_HIGHER = 30.0  # an exponent that makes its key the new reference
_FAR = 41.0  # exponents above the reference's beyond which a weight is nothing
_LIGHT = 0.01  # of a light key's weight, what rounding may move
_LARGER = 1.02  # so much larger it is at most before that
_KEYS, _NODES = 4096, 64  # a key, or a node, may cost so much of what may still be missed
_ROUNDED = 2 * BATCH  # and rounding of a light key, so that a batch never costs more than half
_OVER = 1.001  # what is spent, rounding included
_SPARE = 0.999


@jit.device(inline=True)
def refer(terms: Terms, queries: Ints, dims: int, panel: Panel, best: Floats) -> bool:
    """Begin with the exponents of keys that are near; whether rounding leaves enough to be kept."""
    worst, u = 0.0, terms.u_box
    for l in range(panel.sharp.size):
        here = terms.numbers[queries[l] if l < queries.size else queries[0]]
        there = panel.budget[l] >= 0
        away = max(-np.float64(best[l]), terms.floor) if there else 0.0
        above = 4 * u * away
        away += above
        panel.high[l], panel.loose[l] = -away, -away - here[LOOSE] - above
        panel.moved[l] = moving(terms, here, away, dims)
        panel.light[l] = lightly(away + _FAR, here[COARSE], dims, u)
        panel.allowed[l], panel.limits[l] = np.inf, -1
        if there:
            worst = panel.moved[l] if not panel.moved[l] <= worst else worst
            vague = 2 * rounding(away, here[ROOT], chain(terms, dims), terms.u) + here[ROOT] ** 2
            worst = worst if vague <= _VAGUE and above <= _ABOVE else np.inf
            panel.budget[l] = max(0.99 * (terms.tolerance - panel.moved[l]), 0.0)
    permit(terms, panel)
    return worst <= terms.reserve


@jit.device(inline=True)
def moving(terms: Terms, here: Floats, away: float, dims: int) -> float:
    """Share of a query's weights that rounding may move, if its reference is so far away."""
    return here[MOVED] + rounding(away + terms.spread, here[ROOT], chain(terms, dims), terms.u)


@jit.device(inline=True)
def chain(terms: Terms, dims: int) -> int:
    """Coordinates, thrice where keys of weight are not measured in parts."""
    return dims * PARTS if terms.mixed else dims


@jit.device(inline=True)
def rounding(x: float, root: float, dims: int, u: float) -> float:
    """What rounding of distances, and points by their `root`, move exponents of x in the mean."""
    # of a difference 2, sums, SHARP 1, its product 1, less the reference's exponent 2
    return root * np.sqrt(x) + 1.2 * x * (-(-dims // PARTS) + PARTS + 6) * u


@jit.device(inline=True)
def lightly(x: float, coarse: float, dims: int, u: float) -> float:
    """Share of a key's weight that rounding moves, at most, where its exponent is up to `x`.

    Beyond, weights fall faster than what rounding moves of them grows.
    """
    share = 1.2 * (rounding(x, coarse, dims, u) + coarse**2) + 200 * u + 2e-7
    return share if share < _LIGHT else np.inf


@jit.device(inline=True)
def permit(terms: Terms, panel: Panel) -> None:
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
def raise_reference(panel: Panel, whole: Floats, far: Floats, held: int, u: float) -> None:
    """Raise the unit of lanes by the exponents `wanted`, where these are large."""
    w = panel.sharp.size
    for l in range(w):
        if panel.wanted[l] > _HIGHER:
            was, loose = np.float64(panel.high[l]), np.float64(panel.loose[l])
            panel.high[l] = was + panel.wanted[l] + 4 * u * was
            step = panel.high[l] - was
            panel.loose[l] = loose + step - 2 * u * abs(loose)
            factor = np.exp(-step)
            panel.sums[l] *= factor
            panel.most[l] *= factor
            panel.spent[l] *= factor
            panel.missed[l] *= factor
            if panel.budget[l] >= 0:
                panel.allowed[l] *= factor
            for x in range(l, whole.size, w):
                whole[x] *= factor
            for x in range(l, held * w, w):
                if far[x] < NOTHING:
                    far[x] *= factor


@jit.device(inline=True)
def measure(tree: Tree, panel: Panel, batch: Batch, count: int) -> None:
    """Exponents of the keys of a batch, less those of the reference; largest ones in `wanted`."""
    for l in range(panel.sharp.size):
        panel.wanted[l] = -np.inf
    distances_of(tree.points, batch.places, panel.points, batch.s, count, tree.dims, PARTS)
    exponents(batch.s, count, panel.sharp, panel.high, panel.wanted)


@jit.device(inline=True)
def measure_deeply(tree: Tree, given: Originals, panel: Panel, deep: Deep, count: int) -> None:
    """As `measure`, in float64, from features as they were given."""
    dims, w, part = tree.dims, panel.sharp.size, width(deep.s)
    d, first = given.queries.shape[1], given.without
    for t in range(count):
        key = deep.keys[t]
        widened(given.keys, key * d, given.share, deep.exact, t * dims, first)
        if first < d - 1:
            at, to = key * d + first + 1, t * dims + first
            widened(given.keys, at, given.share, deep.exact, to, d - 1 - first)
        if given.heights.size > 0:
            deep.exact[(t + 1) * dims - 1] = given.heights[deep.places[t]]
    for l in range(w):
        deep.wanted[l], deep.high[l] = -np.inf, panel.high[l]
    for l0 in range(0, w, part):
        lanes, s = slice(l0, l0 + part), deep.s[BATCH * l0 :]
        distances(deep.exact, 0, panel.exact, l0 * dims, s, 0, count, dims)
        exponents(s, count, deep.steep[lanes], deep.high[lanes], deep.wanted[lanes])


@jit.device(inline=True)
def hide(
    tree: Tree, terms: Terms, queries: Ints, panel: Panel, batch: Batch, deep: Deep, count: int,
    single: bool, deeply: bool,
) -> None:  # fmt: skip
    """Exponents of keys that may not be seen, or whose weights have a ceiling; what is wanted."""
    w, part = panel.sharp.size, width(deep.s)
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
def explore(
    tree: Tree, terms: Terms, queries: Ints, panel: Panel, batch: Batch, deep: Deep, count: int
) -> None:  # fmt: skip
    """Raise the largest exponents so far, ``batch.total``, by those of the keys of a batch."""
    if terms.mixed:
        for t in range(count):
            deep.places[t], deep.keys[t] = batch.places[t], tree.order[batch.places[t]]
        measure_deeply(tree, terms.given, panel, deep, count)
    else:
        measure(tree, panel, batch, count)
    hide(tree, terms, queries, panel, batch, deep, count, True, terms.mixed)
    for l in range(panel.sharp.size):
        batch.total[l] = max(batch.total[l], panel.wanted[l])


@jit.device(inline=True)
def sift(
    tree: Tree, terms: Terms, panel: Panel, batch: Batch, deep: Deep, count: int, times: int
) -> int:
    """Put keys of which rounding would move too much into `deep`; how many of `count` stay.

    Each stands for several, `times`.
    """
    w, stay, moved = panel.sharp.size, 0, 0
    for l in range(w):
        may = np.float64(panel.allowed[l]) / (_ROUNDED * times * np.float64(panel.light[l]))
        panel.heavy[l] = min(np.log(may), _HIGHER) if may > 0 else -np.inf
    for t in range(count):
        if within(batch.s, t * w, panel.heavy) == (1 << w) - 1:
            row, to = batch.s[t * w : (t + 1) * w], batch.s[stay * w : (stay + 1) * w]
            for l in range(w if stay < t else 0):
                to[l] = row[l]
            batch.places[stay] = batch.places[t]
            stay += 1
        else:
            deep.places[moved], key = batch.places[t], tree.order[batch.places[t]]
            deep.keys[moved] = key
            d = terms.given.queries.shape[1]
            fetch(terms.given.keys, key * d)
            fetch(terms.given.keys, (key + 1) * d - 17)
            moved += 1
    return stay


@jit.device(inline=True)
def absorb(
    tree: Tree, terms: Terms, queries: Ints, panel: Panel, batch: Batch, deep: Deep,
    amounts: tuple[int, int, int], far: Floats, held: int, deeply: bool,
) -> int:  # fmt: skip
    """Sum so many keys of a batch, or one that stands for several of a node, `amounts`.

    `far` holds the bounds of `held` nodes, which are in the same units. Returns how many keys are
    left to be summed in float64.
    """
    e, w, part = terms.channels, width(tree.shorts), width(deep.s)
    count, times, node = amounts
    asked = count
    for attempt in range(2):
        if deeply:
            measure_deeply(tree, terms.given, panel, deep, count)
        else:
            measure(tree, panel, batch, count)
        hide(tree, terms, queries, panel, batch, deep, count, times == 1, deeply)
        higher = False
        for l in range(w):
            higher = higher or panel.wanted[l] > _HIGHER
        if not higher or attempt == 1 or (terms.mixed and not deeply):
            break
        raise_reference(panel, batch.whole, far, held, terms.u_box)
    if terms.mixed and not deeply:
        count = sift(tree, terms, panel, batch, deep, count, times)
        if terms.apart:
            panel.wanted[:] = -np.inf
            highest(batch.s, count, panel.wanted)
    for l in range(w if terms.apart else 0):
        panel.most[l] = max(panel.most[l], np.exp(np.float64(panel.wanted[l])))
    if deeply:
        for l0 in range(0, w, part):
            lanes, s = slice(l0, l0 + part), deep.s[BATCH * l0 :]
            total = deep.total[lanes]
            total[:] = 0
            exponentials(s, count, deep.zero[lanes], total)
            if times == 1 and terms.exact.size > 0:
                totals_of(terms.exact, deep.keys, e, s, deep.part, count)
            elif times == 1:
                totals_of(terms.values, deep.places, e, s, deep.part, count)
            for c in range(e):
                whole, one = batch.whole[c * w + l0 : c * w + l0 + part], deep.part[c * part :]
                for l in range(part):
                    whole[l] += total[l] * terms.totals[node * e + c] if times > 1 else one[l]
            for l in range(part):
                panel.sums[l0 + l] += total[l] * times
    elif count > 0:
        for l in range(w):
            panel.wanted[l], batch.total[l] = 0, 0
        exponentials(batch.s, count, panel.wanted, batch.total)
        if times == 1:
            totals_of(terms.values, batch.places, e, batch.s, batch.part, count)
            for x in range(e * w):
                batch.whole[x] += batch.part[x]
        else:
            for c in range(e):
                for l in range(w):
                    batch.whole[c * w + l] += batch.total[l] * terms.totals[node * e + c]
        for l in range(w):
            weight = np.float64(batch.total[l]) * times
            panel.sums[l] += weight
            if terms.mixed and weight > 0:
                panel.missed[l] += _LARGER * panel.light[l] * weight
    permit(terms, panel)
    return asked - count


@jit.device(inline=True)
def drop(far: Floats, at: int, count: int, left: int, panel: Panel) -> bool:
    """Leave a node out if every lane can bear it.

    A key may cost what is allowed over the keys that are `left`, or a node one `_NODES`-th of it.
    """
    kind = far.dtype.type
    part = kind(min(left, count * _NODES) * _OVER)
    return bear(far, at, part, kind(count * _OVER), panel.allowed, panel.spent)


@jit.device(inline=True)
def allowance(count: int, terms: Terms, panel: Panel) -> None:
    """See to it that `count` keys may be skipped."""
    kind = panel.small.dtype.type
    if not bear(panel.small, 0, kind(count * _OVER), kind(0), panel.allowed, panel.spent):
        permit(terms, panel)


@jit.device(inline=True)
def skip(count: int, panel: Panel) -> None:
    """Leave out so many keys that are beyond the limits."""
    kind = panel.small.dtype.type
    bear(panel.small, 0, kind(0), kind(count * _OVER), panel.allowed, panel.spent)
