"""Sums of exponential weights to a stated tolerance: what cannot matter is left out by the box.

A panel of queries goes down the tree, nearer child first. A node is left out if its keys together
can hold no more than their part of what every query of the panel may still miss.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn._types import Bools, Floats, Ints
from nlattn.kernels.boxes import Tree, begin, outside
from nlattn.kernels.gemm import aligned, distances, multiply, width
from nlattn.kernels.lanes import exponentials, within
from nlattn.kernels.nearest import Asked
from nlattn.runtime import jit

SHARP, HIGHEST, LOOSE, BUDGET = range(4)
"""Columns of a query's numbers: a key at distance D has the weight ``exp(HIGHEST - SHARP D^2)``;
one at a computed distance D of at most ``exp(LOOSE - SHARP (1 - slack) D^2)``; and of all weight
BUDGET is the share that may be missed, below 0 for a query that has no key."""
KEY, BOX = 2, 5
"""What a key and a box cost a panel, in keys of dense attention."""
_LEAST = 0.99  # the best key's weight, less rounding
_MOST = 1e20  # of a weight, before exponents end
_BATCH = 16  # leaves that are summed in the dtype of values before float64


class Terms(NamedTuple):
    """What is summed, and how far."""

    values: Floats
    """Values of every key, leaf by leaf: size rows of `channels` numbers."""
    totals: Floats
    """Sums of the values of every node."""
    channels: int
    numbers: Floats
    """(n, 4) float64 by query."""
    slack: float
    most: int
    """Cost of a panel, in keys of dense attention, above which it is given up."""
    pairs: Bools
    """(n, m), or empty."""
    causal: int
    grouped: bool
    """Whether keys that are alike are summed at once."""


@jit.device
def forbid(terms: Terms, tree: Tree, queries: Ints, start: int, count: int, s: Floats) -> None:
    """-inf for keys that a query may not attend to."""
    w = width(s)
    for l in range(queries.size):
        i = queries[l]
        for t in range(count):
            key = tree.order[start + t]
            if (terms.causal and key > i) or (terms.pairs.size > 0 and not terms.pairs[i, key]):
                s[t * w + l] = -np.inf


@jit.device
def weigh(
    s: Floats, count: int, sharp: Floats, highest: Floats, total: Floats, masked: bool
) -> None:
    """Make squared distances weights, and add them to `total`; -inf stands for no weight.

    Exponents of more than 64 are those of boxes whose bound says nothing, and become 64.
    """
    w = sharp.size
    for t in range(count):
        row = s[t * w : t * w + w]
        for l in range(w):
            if not masked or row[l] > -np.inf:
                row[l] = min(row[l] * sharp[l], highest[l] + 64)
    exponentials(s, count, highest, total)


@jit.kernel
def gather(
    task: int, tree: Tree, asked: Asked, terms: Terms, out: Floats, norm: Floats,
    counts: Ints, lists: Ints,
) -> None:  # fmt: skip
    """Sums of some panels: `out` (n, channels) of values, `norm` (n, 2) of weights and missed.

    `counts` (panels, 4) of a panel: keys, boxes, whether it was given up, leaves. If `lists` is not
    empty, it receives the leaves of each panel; entry 3 says where they begin.
    """
    n, dims, e, w = asked.order.size, tree.dims, terms.channels, width(tree.points)
    leaves, deep = 1 << tree.levels, tree.levels + 2
    most = -(-tree.size // leaves)
    group = asked.panels[task]
    first, lanes = group * w, min(w, n - group * w)
    queries = asked.order[first : first + lanes]
    panel, s = aligned(dims * w, tree.points), aligned(most * w, tree.points)
    far, room = aligned(deep * w, tree.points), aligned(w, tree.points)
    sharp, highest, loosely, loose = (
        aligned(w, tree.points),
        aligned(w, tree.points),
        aligned(w, tree.points),
        aligned(w, tree.points),
    )
    part, some = aligned(e * w, tree.points), aligned(e * w, tree.points)
    total, limits = aligned(w, tree.points), aligned(w, tree.points)
    whole = np.zeros(e * w)
    sums, spent, budget, allowed = np.zeros(w), np.zeros(w), np.zeros(w), np.zeros(w)
    stack, depth = np.empty(deep, np.int64), np.empty(deep, np.int64)
    lowest, latest = queries[0], queries[0]
    for l in range(w):
        i = queries[min(l, lanes - 1)]
        lowest, latest = min(lowest, i), max(latest, i)
        here = terms.numbers[i]
        for c in range(dims):
            panel[c * w + l] = asked.points[i, c]
        sharp[l], highest[l] = -here[SHARP], -here[HIGHEST]
        loosely[l], loose[l] = -here[SHARP] * (1 - terms.slack), -here[LOOSE]
        budget[l] = here[BUDGET] if l < lanes else -1
        # a query without keys, and a lane without a query, never ask for more
        allowed[l] = budget[l] * _LEAST if budget[l] >= 0 else np.inf
    for x in range(e * w):
        some[x] = 0
    stack[0], depth[0], top, batch = 1, 0, 1, 0
    looked, boxes, given_up, listed = 0, 0, 0, counts[group, 3]
    for l in range(w):
        far[l] = 1
    left = tree.size
    while top > 0 and given_up == 0:
        given_up = int(looked * KEY + boxes * BOX > terms.most)
        top -= 1
        node, level = stack[top], depth[top]
        start, end = begin(tree, node, level), begin(tree, node + 1, level)
        count = end - start
        if terms.causal and tree.least[node] > latest:
            left -= count
            continue
        if drop(far, top * w, count, left, allowed, spent, limits):
            left -= count
            continue
        alike = terms.grouped and tree.uniform[node] and terms.pairs.size == 0
        alike = alike and (not terms.causal or tree.most[node] <= lowest)
        if alike or level == tree.levels:
            rows = 1 if alike else count
            distances(tree.points, start * dims, panel, 0, s, 0, rows, dims)
            for l in range(w):
                total[l] = 0
            masked = terms.causal != 0 or terms.pairs.size > 0
            if masked and not alike:
                forbid(terms, tree, queries, start, count, s)
            weigh(s, rows, sharp, highest, total, masked)
            if alike:
                multiply(terms.totals, node * e, 1, e, s, 0, w, part, 0, w, e, 1)
            else:
                multiply(terms.values, start * e, 1, e, s, 0, w, part, 0, w, e, count)
            for x in range(e * w):
                some[x] += part[x]
            batch += 1
            times = count if alike else 1
            for l in range(w):
                if total[l] > _MOST:
                    given_up = 1
                sums[l] += np.float64(total[l]) * times
                if budget[l] >= 0:
                    allowed[l] = budget[l] * max(sums[l], _LEAST) - spent[l]
            if batch == _BATCH:
                flush(some, whole)
                batch = 0
            looked += rows
            left -= count
            if lists.size > 0 and not alike:
                lists[listed] = node - leaves
                listed += 1
            elif not alike:
                listed += 1
        else:
            one, two = 2 * node, 2 * node + 1
            outside(tree.boxes, one * 2 * dims, panel, dims, far, top * w)
            outside(tree.boxes, two * 2 * dims, panel, dims, far, (top + 1) * w)
            boxes += 2
            nearer = 0
            for l in range(lanes):
                nearer += far[top * w + l] < far[(top + 1) * w + l]
            if 2 * nearer > lanes:
                one, two = two, one
                for l in range(w):
                    a, b = top * w + l, (top + 1) * w + l
                    far[a], far[b] = far[b], far[a]
            for l in range(w):
                room[l] = 0
            weigh(far[top * w :], 2, loosely, loose, room, False)
            stack[top], depth[top] = one, level + 1
            stack[top + 1], depth[top + 1] = two, level + 1
            top += 2
    flush(some, whole)
    for l in range(lanes):
        i = queries[l]
        norm[i, 0], norm[i, 1] = sums[l], spent[l]
        for c in range(e):
            out[i, c] = whole[c * w + l]
    counts[group, 0], counts[group, 1], counts[group, 2] = looked, boxes, given_up
    if lists.size == 0:
        counts[group, 3] = listed


@jit.device
def flush(some: Floats, whole: Floats) -> None:
    """Add to float64 what was summed in the dtype of values."""
    for x in range(some.size):
        whole[x] += some[x]
        some[x] = 0


@jit.device
def drop(
    far: Floats, at: int, count: int, left: int, allowed: Floats, spent: Floats, limits: Floats
) -> bool:
    """Leave a node out if every lane can bear it: a key may cost what is allowed over `left`."""
    w = limits.size
    for l in range(w):
        limits[l] = allowed[l] * 0.9999 / left
    if within(far, at, limits) != (1 << w) - 1:
        return False
    for l in range(w):
        if allowed[l] < np.inf:
            cost = np.float64(far[at + l]) * count
            spent[l] += cost
            allowed[l] -= cost
    return True


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
