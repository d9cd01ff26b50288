"""A tree of boxes over points: what is beyond reach of a whole panel of queries is never looked at.

Every node halves its points by rank along the axis in which they are spread most. Node i of a
level holds the points ``i m >> level`` to ``(i + 1) m >> level`` and is number ``2^level + i``; the
points lie leaf by leaf. Source: k-d trees; bounds for groups of queries: Gray and Moore 2001.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numba.core import cgutils
from numba.extending import intrinsic

from nlattn._types import Bools, Floats, Ints
from nlattn.kernels import rng
from nlattn.kernels.gemm import width
from nlattn.kernels.lanes import Lanes
from nlattn.kernels.tree import halve
from nlattn.runtime import jit
from nlattn.runtime.llvm_types import Builder, Context, Signature, Value, Values

_SAMPLE = 64  # points of a node among which the axis is chosen


class Tree(NamedTuple):
    """Points in a tree; arrays that are read often are flat."""

    levels: int
    size: int
    """Points."""
    dims: int
    order: Ints
    """(size,) the key of each point, ascending in a leaf."""
    points: Floats
    """size rows of `dims` numbers, leaf by leaf."""
    short: int
    """Numbers of a short point: leading coordinates, and the length of what they leave out.
    Short points are no farther from each other than points; most of a distance is in them."""
    shorts: Floats
    """size rows of `short` numbers."""
    boxes: Floats
    """Of each node its lowest and highest coordinates of short points, ``2 short`` numbers."""
    least: Ints
    """Lowest key of each node."""
    most: Ints
    """Highest key of each node."""
    uniform: Bools
    """Whether all keys of a node have the same features, bit by bit."""


@jit.device(inline=True)
def begin(tree: Tree, node: int, level: int) -> int:
    """First point of a node; its last is before the first of the next number."""
    return ((node - (1 << level)) * tree.size) >> level


def _outside(boxes: Floats, at: int, panel: Floats, dims: int, out: Floats, out0: int) -> None:
    w = width(panel)
    low, high = np.swapaxes(boxes[at : at + 4 * dims].reshape(2, 2, dims, 1), 0, 1)
    x = panel[: dims * w].reshape(dims, w)
    total = ((x - np.fmin(np.fmax(x, low), high)) ** 2).sum(1).reshape(-1)
    out[out0 : out0 + 2 * w] = np.fmax(total, 0)  # of NaN, 0


@intrinsic
def _compiled_outside(  # type: ignore[no-untyped-def]
    _, boxes, at, panel, dims, out, out0
):  # pragma: no cover - the compiler runs it
    def emit(context: Context, builder: Builder, signature: Signature, arguments: Values) -> Value:
        on = Lanes(context, builder, signature)
        boxes_, at_, panel_, dims_, out_, out0_ = arguments
        array = context.make_array(signature.args[0])(context, builder, boxes_)
        places = [builder.gep(array.data, [at_])]  # lows and highs of one box, then of the other
        for _ in range(3):
            places.append(builder.gep(places[-1], [dims_]))
        totals = [on.registers([on.every(0)] * 2) for _ in range(2)]
        with cgutils.for_range(builder, dims_, intp=at_.type) as loop:
            edges = [on.spread(builder.load(builder.gep(p, [loop.index]))) for p in places]
            first = builder.mul(loop.index, at_.type(2 * on.count))
            xs = on.load(on.row(2, panel_, first))
            for box, registers in enumerate(totals):
                low, high = edges[2 * box : 2 * box + 2]
                for x, register in zip(xs, registers, strict=True):
                    inside = on.smaller(on.larger(x, low), high)
                    gap = builder.fsub(x, inside)
                    builder.store(on.muladd(gap, gap, builder.load(register)), register)
        for box, registers in enumerate(totals):
            place = builder.add(out0_, at_.type(2 * box * on.count))
            known = [on.larger(builder.load(x), on.every(0)) for x in registers]  # of NaN, 0
            on.store(known, on.row(4, out_, place))
        return context.get_dummy_value()

    i = numba.types.int64
    return numba.types.void(boxes, i, panel, i, out, i), emit


outside = _outside if numba.config.DISABLE_JIT else _compiled_outside
"""``outside(boxes, at, panel, dims, out, out0)``: squared distances of each lane to two boxes that
lie one behind the other, of `dims` coordinates each."""


@jit.kernel
def divide(node: int, x: Floats, level: int, order: Ints, value: Floats) -> None:
    """Halve all nodes of a level; `x` (m, dims) are the points by key, `value` is room."""
    m, dims = x.shape
    first, last = node * m >> level, (node + 1) * m >> level
    middle, count = (2 * node + 1) * m >> (level + 1), last - first
    some, best, axis = min(_SAMPLE, count), -1.0, 0
    mean, square = np.zeros(dims), np.zeros(dims)
    for t in range(some):
        row = x[order[first + t * count // some]]
        for c in range(dims):
            mean[c] += row[c]
            square[c] += np.float64(row[c]) * row[c]
    for c in range(dims):
        spread = square[c] - mean[c] * mean[c] / some
        if spread > best:
            best, axis = spread, c
    for t in range(first, last):
        value[t] = x[order[t], axis]
    state = rng.absorb(rng.start(np.uint64(level)), node)
    halve(value, order, first, middle, last, state)


@jit.kernel
def place(leaf: int, x: Floats, levels: int, order: Ints, points: Floats) -> None:
    """Sort the keys of every leaf and copy their points to where they belong."""
    m = len(x)
    first, last = leaf * m >> levels, (leaf + 1) * m >> levels
    order[first:last] = np.sort(order[first:last])
    for t in range(first, last):
        points[t] = x[order[t]]


@jit.device
def alike(k: Floats, a: int, b: int) -> bool:
    """Whether two keys have the same features."""
    for c in range(k.shape[1]):
        if k[a, c] != k[b, c]:
            return False
    return True


@jit.kernel
def enclose(
    i: int,
    k: Floats,
    tree: Tree,
    level: int,
    boxes: Floats,
    least: Ints,
    most: Ints,
    uniform: Bools,
) -> None:
    """Boxes of a level, from points in the last one and from children above; `k` are features."""
    dims, count = tree.short, 1 << level
    node = count + i
    first, last = begin(tree, node, level), begin(tree, node + 1, level)
    low, high = boxes[node, 0], boxes[node, 1]
    if level == tree.levels:
        low[:], high[:] = np.inf, -np.inf
        least[node], most[node] = tree.order[first], tree.order[last - 1]
        same = True
        for t in range(first, last):
            for c in range(dims):
                low[c] = min(low[c], tree.shorts[t * dims + c])
                high[c] = max(high[c], tree.shorts[t * dims + c])
            same = same and alike(k, tree.order[first], tree.order[t])
        uniform[node] = same
    else:
        one, two = 2 * node, 2 * node + 1
        for c in range(dims):
            low[c] = min(boxes[one, 0, c], boxes[two, 0, c])
            high[c] = max(boxes[one, 1, c], boxes[two, 1, c])
        least[node], most[node] = min(least[one], least[two]), max(most[one], most[two])
        middle = begin(tree, two, level + 1)
        same = uniform[one] and uniform[two]
        uniform[node] = same and alike(k, tree.order[first], tree.order[middle])
