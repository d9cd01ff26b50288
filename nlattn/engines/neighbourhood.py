"""Neighbours on grids: where they lie, and attention to them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Ints, Support
from nlattn.kernels import neighbourhood as kernels
from nlattn.kernels.neighbourhood import Near, NearArrays, NearMoving
from nlattn.kernels.panel import groups
from nlattn.runtime.jit import blocks

_ROWS = 1 << 22  # indices made at once


class Axis(NamedTuple):
    """Neighbours along one axis."""

    length: int
    window: int
    stride: int = 1
    dilation: int = 1
    causal: bool = False

    def ends(self) -> tuple[Ints, Ints]:
        """First key of every query, and past its last one, counted among those of one remainder."""
        i = np.arange(self.length)
        place, last = i // self.dilation, (self.length - 1 - i % self.dilation) // self.dilation
        group = place // self.stride * self.stride
        if self.causal:
            leader = np.minimum(group + self.stride - 1, last)
            return np.maximum(leader - self.window + 1, 0), place + 1
        leader = np.minimum(group + self.stride // 2, last)
        first = np.minimum(np.maximum(leader - self.window // 2, 0), last + 1 - self.window)
        return first, first + self.window

    def queries(self) -> tuple[Ints, Ints]:
        """The same of the queries that see each key: both ends rise from one to the next."""
        first, end = self.ends()
        low, high = np.empty_like(first), np.empty_like(end)
        for rest in range(self.dilation):
            place = np.arange(len(first[rest :: self.dilation]))
            low[rest :: self.dilation] = np.searchsorted(end[rest :: self.dilation], place, "right")
            high[rest :: self.dilation] = np.searchsorted(
                first[rest :: self.dilation], place, "right"
            )
        return low, high


def near(axes: tuple[Axis, ...], *, by_key: bool = False) -> Near:
    """Keys that queries see, or `by_key` the queries that see keys, on a grid of three axes."""
    three = [Axis(1, 1)] * (3 - len(axes)) + list(axes)
    longest = max(axis.length for axis in three)
    first, count = np.zeros((2, 3, longest), np.int64)
    for a, axis in enumerate(three):
        start, end = axis.queries() if by_key else axis.ends()
        rest = np.arange(axis.length) % axis.dilation
        first[a, : axis.length] = start * axis.dilation + rest
        count[a, : axis.length] = end - start
    grid, step = (np.array([getattr(x, name) for x in three]) for name in ("length", "dilation"))
    most = math.prod(int(row.max()) for row in count)
    grid, step, first, count = (_check.frozen(x, np.int64) for x in (grid, step, first, count))
    return Near(grid, step, first, count, most)


def support(axes: tuple[Axis, ...]) -> Support:
    """Neighbours of every query as compressed rows."""
    table = near(axes)
    grid = tuple(int(size) for size in table.grid)
    counts = np.ones(1, np.int64)
    for a, size in enumerate(grid):
        counts = np.multiply.outer(counts, table.many[a, :size]).reshape(-1)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    indices = np.empty(indptr[-1], np.int32)
    keys = [_table(table, a, size) for a, size in enumerate(grid)]
    step = max(1, _ROWS // max(1, table.most))
    for start in range(0, len(counts), step):
        rows = np.unravel_index(np.arange(start, min(start + step, len(counts))), grid)
        x, y, z = (keys[a][rows[a]] for a in range(3))
        flat = (x[:, :, None, None] * grid[1] + y[:, None, :, None]) * grid[2] + z[:, None, None]
        there = (x >= 0)[:, :, None, None] & (y >= 0)[:, None, :, None] & (z >= 0)[:, None, None]
        indices[indptr[start] : indptr[start + len(x)]] = flat[there]
    n = len(counts)
    return Support(_check.frozen(indptr), _check.frozen(indices), (n, n))


def _table(table: Near, a: int, size: int) -> Ints:
    """(size, most) neighbours along one axis; -1 where there are fewer."""
    t = np.arange(int(table.many[a, :size].max()))
    keys = table.first[a, :size, None] + t * table.step[a]
    return np.where(t < table.many[a, :size, None], keys, -1)


def attend(p: NearArrays, axes: tuple[Axis, ...]) -> tuple[Floats, Floats]:
    """Outputs (batch, n, e) and normalisers (2, batch, n)."""
    batch, n, e = len(p.slices), p.q.shape[1], p.v.shape[2]
    out: Floats = np.empty((batch, n, e), p.q.dtype)
    norm: Floats = np.empty((2, batch, n), p.q.dtype)
    table = near(axes)
    for some in groups(blocks(batch * n, kernels.BLOCK), _cost(p, table)):
        kernels.attend(some, p, table, out, norm)
    return out, _check.frozen(norm)


def jvp(p: NearArrays, axes: tuple[Axis, ...], x: NearMoving) -> tuple[Floats, Floats]:
    """Changes of outputs (batch, n, e), and of log normalisers (batch, n) in float64."""
    batch, n, e = len(p.slices), p.q.shape[1], p.v.shape[2]
    out: Floats = np.empty((batch, n, e), p.q.dtype)
    lse: Floats = np.empty((batch, n))
    table = near(axes)
    for some in groups(blocks(batch * n, kernels.BLOCK), 3 * _cost(p, table)):
        kernels.move(some, p, x, table, out, lse)
    return out, lse


def vjp(
    p: NearArrays, axes: tuple[Axis, ...], dout: Floats, dlse: Floats, norm: Floats
) -> tuple[Floats, Floats, Floats]:
    """Gradients of queries, keys and values of each slice."""
    batch, (n, d), e = len(p.slices), p.q.shape[1:], p.v.shape[2]
    dq, dk, dv = (np.empty((batch, n, size), p.q.dtype) for size in (d, d, e))
    delta: Floats = np.empty((batch, n), p.q.dtype)
    by_query, by_key = near(axes), near(axes, by_key=True)
    for some in groups(blocks(batch * n, kernels.BLOCK), 2 * _cost(p, by_query)):
        kernels.queries_vjp(some, p, dout, dlse, by_query, norm, delta, dq)
    delta = _check.frozen(delta)
    for some in groups(blocks(batch * n, kernels.BLOCK), 2 * _cost(p, by_key)):
        kernels.keys_vjp(some, p, dout, by_key, norm, delta, dk, dv)
    return dq, dk, dv


def _cost(p: NearArrays, table: Near) -> int:
    return kernels.BLOCK * table.most * int(p.k.shape[2] + p.v.shape[2] + 32)
