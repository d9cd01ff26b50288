"""Sums of exponential weights to a stated tolerance: what cannot matter is left out by the box.

A panel of queries goes down the tree, nearer child first. A node is left out if its keys together
can hold no more than their part of what every query of the panel may still miss; of a leaf that is
not, keys are left out one by one by their short points.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn._types import Floats, Ints
from nlattn.kernels.bounds import nearer_last, weights
from nlattn.kernels.boxes import Tree, begin, outside
from nlattn.kernels.certified_arrays import BATCH, Batch, Deep, Panel, batch_of, deep_of, panel_of
from nlattn.kernels.certified_panel import (
    FIRST,
    UNSOUND,
    absorb,
    allowance,
    drop,
    explore,
    moving,
    refer,
    skip,
)
from nlattn.kernels.certified_terms import Terms, masked
from nlattn.kernels.gemm import aligned, distances, width
from nlattn.kernels.lanes import within
from nlattn.kernels.nearest import Asked
from nlattn.kernels.scores import fetch
from nlattn.runtime import jit

KEY, SHORT, BOX = 1.2, 0.4, 1.0
"""What a key, a short one and a box cost a panel, in keys of dense attention."""
NEAR = 48
"""Keys among which the reference is looked for, if there are no masks."""


_VAIN = 3  # lanes that found nothing nearer, after which the others are not tried


class Way(NamedTuple):
    """Nodes that are still to be seen, the next one last."""

    stack: Ints
    depth: Ints
    """Their levels."""
    far: Floats
    """(nodes + 1, width) squared distances or bounds of weights."""
    brief: Floats
    """(BATCH, width) squared distances of short keys."""


@jit.device(inline=True)
def approach(
    tree: Tree, terms: Terms, queries: Ints, panel: Panel, batch: Batch, deep: Deep, way: Way,
) -> int:  # fmt: skip
    """Largest exponents of the first keys on the way, into ``batch.total``; their number.

    With masks, on until every query that may attend to a key has found one.
    """
    w, short, total, far = panel.sharp.size, tree.short, batch.total, way.far
    stack, depth = way.stack, way.depth
    hidden = masked(terms)
    for l in range(w):
        total[l], panel.high[l] = -np.inf, 0
    stack[0], depth[0], top, looked = 1, 0, 1, 0
    while top > 0:
        top -= 1
        node, level = stack[top], depth[top]
        start, end = begin(tree, node, level), begin(tree, node + 1, level)
        if level < tree.levels:
            outside(tree.boxes, 4 * node * short, panel.shorts, short, far, top * w)
            first_last = nearer_last(far, top * w, panel.sharp)
            stack[top], stack[top + 1] = 2 * node + first_last, 2 * node + 1 - first_last
            depth[top], depth[top + 1] = level + 1, level + 1
            top += 2
            continue
        count = min(end - start, BATCH)
        for t in range(count):
            batch.places[t] = start + t
        explore(tree, terms, queries, panel, batch, deep, count)
        missing = False
        for l in range(w):
            missing = missing or (panel.budget[l] >= 0 and not total[l] > -np.inf)
        looked += count
        if looked >= NEAR and not (hidden and missing):
            break
    return looked


@jit.device(inline=True)
def come_near(
    tree: Tree, terms: Terms, queries: Ints, panel: Panel, batch: Batch, deep: Deep, far: Floats
) -> int:  # fmt: skip
    """As `approach`, in a box that is near a lane of whose weights rounding may move much."""
    w, short, total = panel.sharp.size, tree.short, batch.total
    looked, vain = 0, 0
    for l in range(queries.size):
        if vain == _VAIN:
            break
        away, here = max(-np.float64(total[l]), terms.floor), terms.numbers[queries[l]]
        fine = away <= terms.spread or moving(terms, here, away, tree.dims) <= terms.reserve / 4
        if fine or panel.budget[l] < 0:
            continue
        node = 1
        while node < 1 << tree.levels:
            outside(tree.boxes, 4 * node * short, panel.shorts, short, far, 0)
            node = 2 * node + int(far[w + l] < far[l])
        start = begin(tree, node, tree.levels)
        count = min(begin(tree, node + 1, tree.levels) - start, BATCH)
        for t in range(count):
            batch.places[t] = start + t
        explore(tree, terms, queries, panel, batch, deep, count)
        looked += count
        vain += int(-np.float64(total[l]) > away / 2)
    return looked


@jit.device(inline=True)
def choose(
    tree: Tree, terms: Terms, panel: Panel, batch: Batch, start: int, count: int, held: int,
    brief: Floats,
) -> int:  # fmt: skip
    """Add the keys of a leaf to a batch that holds some, but for those that may be left out.

    The leaf is its first key and their number. Returns how many the batch holds then.
    """
    short, w, first = tree.short, panel.sharp.size, held
    filtered = short < tree.dims
    if filtered:
        allowance(count, terms, panel)
        distances(tree.shorts, start * short, panel.shorts, 0, brief, 0, count, short)
    for t in range(count):
        batch.places[held] = start + t  # written over by the next one, if it is left out
        held += int(not filtered or within(brief, t * w, panel.limits) != 0)
    for t in range(first, held):
        fetch(tree.points, batch.places[t] * tree.dims)
        fetch(terms.values, batch.places[t] * terms.channels)
    if held - first < count:
        skip(count - (held - first), panel)
    return held


@jit.device(inline=True)
def descend(
    tree: Tree, terms: Terms, queries: Ints, panel: Panel, batch: Batch, deep: Deep, way: Way,
    counts: Ints, lists: Ints,
) -> None:  # fmt: skip
    """Sum what matters to a panel; `counts` (5,) as for `gather`."""
    short, w, leaves = tree.short, panel.sharp.size, 1 << tree.levels
    stack, depth, far = way.stack, way.depth, way.far
    lowest, latest = queries[0], queries[0]
    for i in queries:
        lowest, latest = min(lowest, i), max(latest, i)
    for l in range(w):
        far[l] = 1
    looked, boxes, shortly, given_up, listed = counts[0], 0, 0, 0, counts[4]
    stack[0], depth[0], top = 1, 0, 1
    held, enough, left = 0, FIRST, tree.size
    while top >= 0 and given_up == 0:
        given_up = int(looked * KEY + shortly * SHORT + boxes * BOX > terms.most)
        top -= 1
        last = top < 0
        node, start, count, alike = 0, 0, 0, False
        if not last:
            node, level = stack[top], depth[top]
            start, end = begin(tree, node, level), begin(tree, node + 1, level)
            count = end - start
            if terms.causal and tree.least[node] > latest:
                left -= count
                continue
            if drop(far, top * w, count, left, panel):
                left -= count
                continue
            alike = terms.grouped and tree.uniform[node] and terms.pairs.size == 0
            alike = alike and (not terms.causal or tree.most[node] <= lowest)
            among = tree.least[node] <= latest and tree.most[node] >= lowest
            alike = alike and not (terms.apart and among)
            if not alike and level < tree.levels:
                outside(tree.boxes, 4 * node * short, panel.shorts, short, far, top * w)
                boxes += 2
                first_last = nearer_last(far, top * w, panel.sharp)
                weights(far, top * w, 2, panel.loosely, panel.loose)
                # the nearer child is taken first: it lies on top of the other
                stack[top], stack[top + 1] = 2 * node + first_last, 2 * node + 1 - first_last
                depth[top], depth[top + 1] = level + 1, level + 1
                top += 2
                continue
            left -= count
            if not alike:
                if lists.size > 0:
                    lists[listed] = node - leaves
                listed += 1
        # what is held already goes first, if there is no more room, or before what is alike
        for step in range(1 if last else 2):
            times, full = 1, last or alike or (step == 0 and held + count > BATCH)
            if step == 1 and alike:
                times, looked, batch.places[0], held = count, looked + 1, start, 1
            elif step == 1:
                before = held
                held = choose(tree, terms, panel, batch, start, count, held, way.brief)
                shortly += count
                looked += held - before
            if held > 0 and (full or held >= enough):
                for deeply in range(1 + int(terms.mixed)):
                    if held > 0:
                        held = absorb(
                            tree, terms, queries, panel, batch, deep, (held, times, node), far,
                            max(top, 0), deeply == 1,
                        )  # fmt: skip
                enough = min(2 * enough, BATCH - FIRST)
    counts[0], counts[1], counts[2], counts[3] = looked, boxes, given_up, shortly
    if lists.size == 0:
        counts[4] = listed


@jit.kernel
def gather(
    task: int, tree: Tree, asked: Asked, terms: Terms, out: Floats, norm: Floats,
    counts: Ints, lists: Ints,
) -> None:  # fmt: skip
    """Sums of some panels: `out` (n, channels) of values; `norm` (n, 5).

    Of `norm`: weights, what may have been left out of them, the unit in which they are, as an
    exponent, the share that rounding may have moved, and the largest weight, where no query attends
    to its own key. `counts` (panels, 5) of a panel: keys,
    boxes, whether it was given up, short keys, leaves. If `lists` is not empty, it receives the
    leaves of each panel; entry 4 of `counts` then says where they begin.
    """
    n, e, w, nodes = asked.order.size, terms.channels, width(tree.shorts), tree.levels + 3
    group = asked.panels[task]
    first, lanes = group * w, min(w, n - group * w)
    queries = asked.order[first : first + lanes]
    panel, batch = panel_of(tree, asked, terms, queries), batch_of(tree, e)
    deep = deep_of(tree, terms, panel)
    way = Way(
        np.empty(nodes, np.int64),
        np.empty(nodes, np.int64),
        aligned((nodes + 1) * w, tree.shorts),
        aligned(BATCH * w, tree.shorts),
    )
    here = counts[group]
    here[0] += approach(tree, terms, queries, panel, batch, deep, way)
    here[0] += come_near(tree, terms, queries, panel, batch, deep, way.far)
    sound = refer(terms, queries, tree.dims, panel, batch.total)
    if sound:
        descend(tree, terms, queries, panel, batch, deep, way, here, lists)
    else:
        here[2] = UNSOUND
    for l in range(lanes):
        i = queries[l]
        norm[i, 0], norm[i, 1] = panel.sums[l], panel.missed[l] + panel.spent[l]
        norm[i, 2], norm[i, 3] = -np.float64(panel.high[l]), panel.moved[l]
        norm[i, 4] = panel.most[l]
        for c in range(e):
            out[i, c] = batch.whole[c * w + l]


@jit.kernel
def total_values(
    node: int, tree: Tree, v: Floats, level: int, values: Floats, totals: Floats
) -> None:
    """Values of a leaf in the order of the tree, or the sums of a node of a level; `v` by key."""
    e, here = v.shape[1], (1 << level) + node
    if level == tree.levels:
        for c in range(e):
            totals[here, c] = 0
        for t in range(begin(tree, here, level), begin(tree, here + 1, level)):
            for c in range(e):
                values[t, c] = v[tree.order[t], c]
                totals[here, c] += v[tree.order[t], c]
    else:
        for c in range(e):
            totals[here, c] = totals[2 * here, c] + totals[2 * here + 1, c]
