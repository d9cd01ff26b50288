"""Proved nearest keys: boxes beyond reach of every query of a panel are left out, the rest scored.

Distances of points choose what is scored; what enters a list is scored by the one score, so that
the lists are those of a search of all keys, bit by bit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn._types import Bools, Floats, Ints, Scalar
from nlattn.kernels import scores
from nlattn.kernels.boxes import Tree, begin, outside
from nlattn.kernels.gemm import SOME, aligned, distances_to, width
from nlattn.kernels.lanes import below, lowest_bit, within
from nlattn.kernels.matching import Plan, allowed, enter, evaluate, holds
from nlattn.runtime import jit

BLOCK = 256
TOP, PER_SCORE, SLOPE, ERROR, SLACK, WIDTH, TINY = range(7)
"""Columns of a query's numbers: its scores are ``(TOP - D^2) / PER_SCORE`` for distances D, of
points known to WIDTH, D^2 to SLACK and TINY; computed scores are off by ERROR and SLOPE times
themselves."""


class Asked(NamedTuple):
    """Queries, panel by panel."""

    order: Ints
    """(n,) query of each lane of the panels."""
    points: Floats
    """(n, dims) by query."""
    shorts: Floats
    """(n, short) by query."""
    numbers: Floats
    """(n, 7) float64 by query."""
    rounding: float
    """Relative error of a computed squared distance."""
    panels: Ints
    """Panels that are asked for."""
    enough: int
    """Keys after which a panel is content with what it has found."""
    share: float
    """Of all distances and boxes: a panel that has looked at more looks at all keys instead."""


@jit.device(inline=True)
def reach(numbers: Floats, rounding: float, worst: float) -> float:
    """Largest computed squared distance at which a key's score may be `worst` or more."""
    score = worst - abs(worst) * numbers[SLOPE] - numbers[ERROR]
    away = numbers[TOP] - score * numbers[PER_SCORE]
    if not away < np.inf:
        return np.inf
    far = np.sqrt(max(away, 0.0) + numbers[SLACK]) + 2.1 * numbers[WIDTH]
    return far * far * (1 + rounding) + numbers[TINY]


@jit.device(inline=True)
def limit(numbers: Floats, rounding: float, index: Ints, score: Floats, like: Floats) -> Scalar:
    """`reach` of a list, rounded up to the dtype of `like`; all, while the list is not full."""
    if index[-1] < 0:
        return like.dtype.type(np.inf)
    return like.dtype.type(reach(numbers, rounding, score[-1]))


@jit.device
def try_key(
    q: Floats,
    k: Floats,
    masks: Bools,
    pairs: Bools,
    plan: Plan,
    query: int,
    key: int,
    index: Ints,
    score: Floats,
) -> bool:
    """Score a key and enter it into a list; whether it was allowed."""
    if not allowed(plan, query, key, masks, pairs):
        return False
    if not holds(index, index.size, key):
        y = query // plan.Wq
        enter(index, score, key, evaluate(plan, q, y, query - y * plan.Wq, k, key))
    return True


@jit.shared
def pairs_of(tree: Tree) -> int:
    """The level whose nodes have two leaves; 0 if there is one."""
    return max(tree.levels - 1, 0)


@jit.kernel
def lay(i: int, tree: Tree, strips: Floats) -> None:
    """Short points of two leaves by coordinate, so that keys are what a vector holds."""
    level, short = pairs_of(tree), tree.short
    node = (1 << level) + i
    first, last = begin(tree, node, level), begin(tree, node + 1, level)
    for t in range(first, last):
        for c in range(short):
            strips[first * short + c * (last - first) + t - first] = tree.shorts[t * short + c]


@jit.device(inline=True)
def chosen(lanes: int, some: Ints) -> int:
    """Numbers of the bits in `lanes` to `some`, which whole tiles then fill; their count."""
    count = 0
    while lanes != 0:
        some[count] = lowest_bit(lanes)
        count, lanes = count + 1, lanes & (lanes - 1)
    for x in range(count, -(-count // SOME) * SOME):
        some[x] = some[0]
    return count


@jit.kernel
def begin_lists(
    block: int,
    q: Floats,
    k: Floats,
    masks: Bools,
    pairs: Bools,
    plan: Plan,
    start: Ints,
    index: Ints,
    score: Floats,
    first: Floats,
) -> None:
    """Enter the keys `start` (n, any) into the lists; `first` is the score of each first one."""
    for i in range(block * BLOCK, min((block + 1) * BLOCK, len(start))):
        first[i] = -np.inf
        for t in range(start.shape[1]):
            if start[i, t] >= 0:
                there = try_key(q, k, masks, pairs, plan, i, start[i, t], index[i], score[i])
                if t == 0 and there:
                    first[i] = score[i, 0]


@jit.kernel
def seek(
    task: int,
    q: Floats,
    k: Floats,
    pairs: Bools,
    plan: Plan,
    tree: Tree,
    asked: Asked,
    index: Ints,
    score: Floats,
    counts: Ints,
) -> None:
    """Complete the lists of some panels' queries; they may hold keys to begin with.

    Short points of the tree are as `lay` puts them; behind the last there is room for a panel.
    `counts` (n, 3): keys and boxes that were compared with each query, keys that were scored.
    """
    n, dims, w = asked.order.size, tree.dims, width(tree.points)
    none = np.empty(0, np.bool_)
    leaves, topk, lowest = 1 << tree.levels, index.shape[1], pairs_of(tree)
    points = asked.points.reshape(-1)
    group = asked.panels[task]
    first, lanes = group * w, min(w, n - group * w)
    short = tree.short
    limits, some = aligned(w, tree.points), np.empty(w, np.int64)
    shorts, rows = aligned(short * w, tree.points), aligned(short * w, tree.points)
    s, far = aligned(w * w, tree.points), aligned((tree.levels + 2) * w, tree.points)
    stack, depth = np.empty(tree.levels + 2, np.int64), np.empty(tree.levels + 2, np.int64)
    queries = asked.order[first : first + lanes]
    last_query = 0
    for l in range(w):
        i = queries[min(l, lanes - 1)]
        last_query = max(last_query, i)
        for c in range(short):
            shorts[c * w + l] = rows[l * short + c] = asked.shorts[i, c]
        here = asked.numbers[i]
        limits[l] = limit(here, asked.rounding, index[i], score[i], limits)
        if l >= lanes:
            limits[l] = -1
    looked, boxes, whole = 0, 0, False
    budget = asked.share * (tree.size + leaves)
    stack[0], depth[0], top = 1, 0, 1
    for l in range(w):
        far[l] = 0
    while top > 0 and looked < asked.enough:
        top -= 1
        node, level = stack[top], depth[top]
        if not whole and looked + boxes * 2 > budget:
            whole = True
        if within(far, top * w, limits) == 0 or (plan.causal and tree.least[node] > last_query):
            continue
        start, end = begin(tree, node, level), begin(tree, node + 1, level)
        if tree.uniform[node]:  # of equal keys the lowest ones win
            for l in range(lanes):
                if far[top * w + l] <= limits[l]:
                    i, entered = queries[l], 0
                    for t in range(start, end):
                        if entered == topk:
                            break
                        entered += try_key(
                            q, k, none, pairs, plan, i, tree.order[t], index[i], score[i]
                        )
                    counts[i, 2] += entered
                    limits[l] = limit(asked.numbers[i], asked.rounding, index[i], score[i], limits)
            looked += 1
        elif level == tree.levels or (
            level == lowest and not (tree.uniform[2 * node] or tree.uniform[2 * node + 1])
        ):
            looked += end - start
            above = node >> (level - lowest)
            step = begin(tree, above + 1, lowest) - begin(tree, above, lowest)
            origin = begin(tree, above, lowest) * (short - 1) + start
            count = chosen(within(far, top * w, limits), some)
            for first in range(start, end, w):
                distances_to(rows, some, tree.shorts, origin + first - start, step, s, count, short)
                for r in range(count):
                    l = some[r]
                    i = queries[l]
                    near = below(s, r * w, limits[l])
                    if end - first < w:
                        near &= (1 << (end - first)) - 1
                    tries = 0
                    while near != 0:
                        t = lowest_bit(near)
                        if tries < topk:  # the nearest first: the others may be beyond its reach
                            others = near & (near - 1)
                            while others != 0:
                                other, others = lowest_bit(others), others & (others - 1)
                                t = other if s[r * w + other] < s[r * w + t] else t
                        tries, place, near = tries + 1, first + t, near & ~(1 << t)
                        if (
                            short == dims
                            or scores.terms(
                                scores.NEG_L2, points, i * dims, tree.points, place * dims, dims
                            )
                            <= limits[l]
                        ):
                            key = tree.order[place]
                            counts[i, 2] += try_key(
                                q, k, none, pairs, plan, i, key, index[i], score[i]
                            )
                            limits[l] = limit(
                                asked.numbers[i], asked.rounding, index[i], score[i], limits
                            )
                            near &= below(s, r * w, limits[l])
        else:
            # the nearer child is taken first: it lies on top of the other
            one, two = 2 * node, 2 * node + 1
            if whole:
                for l in range(2 * w):
                    far[top * w + l] = 0
            else:
                outside(tree.boxes, one * 2 * short, shorts, short, far, top * w)
                boxes += 2
                nearer = 0
                for l in range(lanes):
                    nearer += far[top * w + l] < far[(top + 1) * w + l]
                if 2 * nearer > lanes:
                    one, two = two, one
                    for l in range(w):
                        a, b = top * w + l, (top + 1) * w + l
                        far[a], far[b] = far[b], far[a]
            stack[top], depth[top] = one, level + 1
            stack[top + 1], depth[top + 1] = two, level + 1
            top += 2
    for l in range(lanes):
        i = queries[l]
        counts[i, 0] += looked
        counts[i, 1] += boxes
