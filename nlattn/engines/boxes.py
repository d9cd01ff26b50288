"""Trees of boxes over points, and queries in the order of a tree of their own."""

from __future__ import annotations

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Ints
from nlattn.kernels import boxes as kernels
from nlattn.kernels.boxes import Tree

LEAF = 16
"""Most keys of a leaf."""


def levels(m: int, leaf: int) -> int:
    """Halvings of `m` points after which no leaf has more than `leaf`."""
    return (max(1, -(-m // leaf)) - 1).bit_length()


def ordered(x: Floats, depth: int) -> Ints:
    """Rows of `x` (m, dims) in the order of the leaves of a tree."""
    order, value = np.arange(len(x), dtype=np.int32), np.empty(len(x), x.dtype)
    for level in range(depth):
        kernels.divide(1 << level, x, level, order, value)
    return order


def plant(x: Floats, k: Floats, keys: Ints) -> Tree:
    """Tree over points `x` (m, dims) of the rows `keys`, ascending, of features `k`."""
    m, dims = x.shape
    depth = levels(m, LEAF)
    order = ordered(x, depth)
    points = np.empty((m, dims), x.dtype)
    kernels.place(1 << depth, x, depth, order, points)
    order = keys[order]
    nodes = 2 << depth
    box = np.empty((nodes, 2, dims), x.dtype)
    least, most, uniform = (
        np.empty(nodes, np.int32),
        np.empty(nodes, np.int32),
        np.empty(nodes, bool),
    )
    tree = Tree(
        depth,
        m,
        dims,
        _check.frozen(order),
        _check.frozen(points.reshape(-1)),
        _check.frozen(box.reshape(-1)),
        _check.frozen(least),
        _check.frozen(most),
        _check.frozen(uniform),
    )
    for level in range(depth, -1, -1):
        kernels.enclose(1 << level, k, tree, level, box, least, most, uniform)
    return tree
