"""A tree of hyperplanes over the keys of a grid: in log n comparisons, the leaf of a query.

Every node halves its keys, by rank along the line between two that lie far apart. Node i of a level
holds the keys ``order[i m >> level : (i + 1) m >> level]``, so leaves are equally full and need no
table; planes and thresholds lie under number ``2^level + i``. For inner products each key has one
coordinate more, that makes all equally long: then the longest product is the nearest key.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nlattn._types import Floats, Ints
from nlattn.kernels import rng, scores
from nlattn.kernels.matching import BLOCK, Plan
from nlattn.runtime import jit

_DRAWS = 12  # keys among which the far ends of a node are looked for


@jit.device(inline=True)
def begins(plan: Plan, width: int, position: int) -> int:
    """Where the patch at a position of a grid of some width begins, in its padded features."""
    return (position + position // width * (plan.patch - 1)) * plan.d


@jit.device(inline=True)
def _product(plan: Plan, width: int, plane: Floats, first: int, x: Floats, position: int) -> Any:
    """A plane's part from ``plane[first]`` times the patch of a position."""
    run, at = plan.patch * plan.d, begins(plan, width, position)
    total = plane.dtype.type(0)
    for _ in range(plan.patch):
        total += scores.terms(scores.DOT, plane, first, x, at, run)
        first += run
        at += (width + plan.patch - 1) * plan.d
    return total


@jit.device(inline=True)
def _distance(plan: Plan, k: Floats, extra: Floats, a: int, b: int) -> Any:
    """Squared distance of two keys."""
    run, at, other = plan.patch * plan.d, begins(plan, plan.Wk, a), begins(plan, plan.Wk, b)
    total = (extra[a] - extra[b]) * (extra[a] - extra[b])
    for _ in range(plan.patch):
        total += scores.terms(scores.NEG_L2, k, at, k, other, run)
        at += (plan.Wk + plan.patch - 1) * plan.d
        other += (plan.Wk + plan.patch - 1) * plan.d
    return total


@jit.device
def _far_from(
    plan: Plan,
    k: Floats,
    extra: Floats,
    order: Ints,
    first: int,
    count: int,
    key: int,
    state: np.uint64,
) -> int:
    """The farthest from a key of some drawn among ``order[first : first + count]``."""
    far, most = key, extra.dtype.type(0)
    for t in range(_DRAWS):
        other = order[first + rng.bounded(rng.absorb(state, t), count)]
        distance = _distance(plan, k, extra, key, other)
        if distance > most:
            far, most = other, distance
    return int(far)


@jit.device
def halve(value: Floats, order: Ints, first: int, middle: int, last: int, state: np.uint64) -> None:
    """Bring the lesser of ``[first, last)`` before `middle`, by value, ties by key: quickselect."""
    low, high, step = first, last - 1, 0
    while low < high:
        p = low + rng.bounded(rng.absorb(state, step), high - low + 1)
        pivot, key, i, j = value[p], order[p], low, high
        while i <= j:
            while value[i] < pivot or (value[i] == pivot and order[i] < key):
                i += 1
            while value[j] > pivot or (value[j] == pivot and order[j] > key):
                j -= 1
            if i <= j:
                value[i], value[j] = value[j], value[i]
                order[i], order[j] = order[j], order[i]
                i += 1
                j -= 1
        if middle <= j:
            high = j
        elif middle >= i:
            low = i
        else:
            break
        step += 1


@jit.kernel
def split(
    node: int,
    k: Floats,
    extra: Floats,
    plan: Plan,
    number: int,
    level: int,
    order: Ints,
    value: Floats,
    planes: Floats,
    thresholds: Floats,
) -> None:
    """Halve all nodes of a level of tree `number`; `value` is room for one number a key."""
    m, size = len(order), plan.patch * plan.patch * plan.d
    first, last = node * m >> level, (node + 1) * m >> level
    middle, name = (2 * node + 1) * m >> (level + 1), (1 << level) + node
    state = rng.absorb(rng.start(np.uint64(np.int64(plan.seed))), number)
    state = rng.absorb(state, name)
    one = order[first + rng.bounded(rng.absorb(state, 0), last - first)]
    one = _far_from(plan, k, extra, order, first, last - first, one, rng.absorb(state, 1))
    two = _far_from(plan, k, extra, order, first, last - first, one, rng.absorb(state, 2))
    at, other = begins(plan, plan.Wk, one), begins(plan, plan.Wk, two)
    plane = name * (size + 1)
    for row in range(plan.patch):
        for c in range(plan.patch * plan.d):
            step = row * (plan.Wk + plan.patch - 1) * plan.d + c
            planes[plane + row * plan.patch * plan.d + c] = k[at + step] - k[other + step]
    planes[plane + size] = extra[one] - extra[two]
    for t in range(first, last):
        key = order[t]
        along = _product(plan, plan.Wk, planes, plane, k, key)
        along += planes[plane + size] * extra[key]
        value[t] = along if along == along else -np.inf  # a NaN has no rank
    halve(value, order, first, middle, last, rng.absorb(state, 3))
    thresholds[name] = value[middle]


@jit.kernel
def settle(leaf: int, levels: int, order: Ints, home: Ints) -> None:
    """Sort the keys of every leaf, and note the leaf of every key."""
    m = len(order)
    first, last = leaf * m >> levels, (leaf + 1) * m >> levels
    order[first:last] = np.sort(order[first:last])
    for t in range(first, last):
        home[order[t]] = leaf


@jit.kernel
def descend(
    block: int,
    q: Floats,
    reach: Floats,
    plan: Plan,
    levels: int,
    planes: Floats,
    thresholds: Floats,
    leaf: Ints,
) -> None:
    """Leaf of every query times its `reach`."""
    size = plan.patch * plan.patch * plan.d
    for query in range(block * BLOCK, min(block * BLOCK + BLOCK, len(leaf))):
        node = 0
        for level in range(levels):
            name = (1 << level) + node
            along = reach[query] * _product(plan, plan.Wq, planes, name * (size + 1), q, query)
            node = 2 * node + int(along >= thresholds[name])
        leaf[query] = node
