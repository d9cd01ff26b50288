"""Trees of boxes over points, and queries in the order of a tree of their own."""

from __future__ import annotations

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Ints
from nlattn.kernels import boxes as kernels
from nlattn.kernels.boxes import Tree

LEAF = 16
"""Most keys of a leaf."""
_SOME = 4096  # points that show in what coordinates they differ
_REST = 0.0125
"""Share of the variance that short points may sum up in one number."""
_LONG = 0.6  # of the coordinates: more are no short point, and not worth their memory


def levels(m: int, leaf: int) -> int:
    """Halvings of `m` points after which no leaf has more than `leaf`."""
    return (max(1, -(-m // leaf)) - 1).bit_length()


def ordered(x: Floats, depth: int) -> Ints:
    """Rows of `x` (m, dims) in the order of the leaves of a tree."""
    order, value = np.arange(len(x), dtype=np.int32), np.empty(len(x), x.dtype)
    for level in range(depth):
        kernels.divide(1 << level, x, level, order, value)
    return order


def shorten(x: Floats, leading: int) -> Floats:
    """Leading coordinates of points, and the length of the others as one more."""
    if leading >= x.shape[1]:
        return x
    rest = x[:, leading:].astype(np.float64)
    length = np.sqrt(np.einsum("nc,nc->n", rest, rest))[:, None]
    return np.concatenate([x[:, :leading], length.astype(x.dtype)], 1)


def leading(x: Floats) -> int:
    """Coordinates in which points differ most, nearly all of their variance in them."""
    with np.errstate(all="ignore"):
        share = np.cumsum(x[:: max(1, len(x) // _SOME)].var(0, dtype=np.float64))
    some = int(np.searchsorted(share, (1 - _REST) * share[-1])) + 1 if len(share) else 0
    some = -(-some // 4) * 4
    return some if some + 1 <= _LONG * x.shape[1] else x.shape[1]


def plant(x: Floats, k: Floats, keys: Ints) -> Tree:
    """Tree over points `x` (m, dims) of the rows `keys`, ascending, of features `k`."""
    m, dims = x.shape
    depth = levels(m, LEAF)
    order = ordered(x, depth)
    points = np.empty((m, dims), x.dtype)
    kernels.place(1 << depth, x, depth, order, points)
    order = keys[order]
    shorts = shorten(points, leading(x))
    nodes, short = 2 << depth, shorts.shape[1]
    box = np.zeros((nodes, 2, short), shorts.dtype)
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
        short,
        _check.frozen(shorts.reshape(-1)),
        _check.frozen(box.reshape(-1)),
        _check.frozen(least),
        _check.frozen(most),
        _check.frozen(uniform),
    )
    for level in range(depth, -1, -1):
        kernels.enclose(1 << level, k, tree, level, box, least, most, uniform)
    return tree
