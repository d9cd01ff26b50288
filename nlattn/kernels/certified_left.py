"""What keys that were left out may have been given: bounds of their weights, summed over queries.

A panel walks down to the leaves that it looked at. Each node that it passes by is charged with the
most that any of its keys can weigh, if that is little; sums of nodes go down to their keys later.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn._types import Floats, Ints
from nlattn.kernels.boxes import Tree, begin, outside
from nlattn.kernels.certified_arrays import LOOSE, SHARP
from nlattn.kernels.gemm import aligned, width
from nlattn.kernels.nearest import Asked
from nlattn.runtime import jit

CHUNKS = 16
"""Tasks; each has sums of its own, which are added in order."""


class Charges(NamedTuple):
    """What a key of some score costs."""

    numbers: Floats
    """As of `Terms`."""
    base: Floats
    """(n,) logarithm of a query's weight of a key at distance 0, at most; -inf for none."""
    slack: float
    little: float
    """Share of a row that the keys of a node may hold; else its halves are charged."""
    starts: Ints
    """Where the leaves of each panel begin in `leaves`; none of a panel that is not charged."""
    leaves: Ints
    sizes: Floats
    """(n, e) what is summed over queries, times weights."""
    causal: int


@jit.device
def _mark(tree: Tree, told: Charges, panel: int, seen: Ints, mark: int) -> None:
    """Mark the leaves of a panel and what is above them."""
    for x in range(told.starts[panel], told.starts[panel + 1]):
        node = (1 << tree.levels) + told.leaves[x]
        while node > 0 and seen[node] != mark:
            seen[node] = mark
            node >>= 1


@jit.kernel
def charge(chunk: int, tree: Tree, asked: Asked, told: Charges, room: Floats) -> None:
    """Add what may be missed of the keys of each node, `room` (CHUNKS, nodes, e)."""
    w, short, e = width(tree.shorts), tree.short, told.sizes.shape[1]
    panels, held = told.starts.size - 1, tree.levels + 3
    seen = np.zeros(2 << tree.levels, np.int64)
    shorts, far = aligned(short * w, tree.shorts), aligned((held + 1) * w, tree.shorts)
    stack, depth, weights = np.empty(held, np.int64), np.empty(held, np.int64), np.empty(w)
    for panel in range(chunk * panels // CHUNKS, (chunk + 1) * panels // CHUNKS):
        if told.starts[panel] == told.starts[panel + 1]:
            continue
        queries = asked.order[panel * w : min((panel + 1) * w, asked.order.size)]
        latest = 0
        for l in range(w):
            i = queries[min(l, queries.size - 1)]
            latest = max(latest, i)
            for c in range(short):
                shorts[c * w + l] = asked.shorts[i, c]
        _mark(tree, told, panel, seen, 1)
        stack[0], depth[0], top = 1, 0, 1
        while top > 0:
            top -= 1
            node, level = stack[top], depth[top]
            if told.causal and tree.least[node] > latest:
                continue
            most = 1.0
            if seen[node] == 0:
                most = 0.0
                for l in range(queries.size):
                    here = told.numbers[queries[l]]
                    steep = here[SHARP] * (1 - told.slack)
                    x = told.base[queries[l]] + here[LOOSE] - steep * np.float64(far[top * w + l])
                    weights[l] = np.exp(min(x, 0.0))
                    most = max(most, weights[l])
            count = begin(tree, node + 1, level) - begin(tree, node, level)
            if level < tree.levels and most * count > told.little:
                outside(tree.boxes, 4 * node * short, shorts, short, far, top * w)
                stack[top], stack[top + 1] = 2 * node, 2 * node + 1
                depth[top] = depth[top + 1] = level + 1
                top += 2
            elif seen[node] == 0:
                for l in range(queries.size):
                    for c in range(e):
                        room[chunk, node, c] += weights[l] * told.sizes[queries[l], c]
        _mark(tree, told, panel, seen, 0)
