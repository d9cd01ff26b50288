"""Attention to neighbours on a grid of three axes, forward and backward, without their indices.

Along every axis the neighbours of a place are equally spaced, of queries those keys and of keys
those queries: `Near` holds the first of them and how many there are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn._types import Floats, Ints
from nlattn.kernels.exp import exp
from nlattn.kernels.products import inner
from nlattn.runtime import jit

BLOCK = 128
"""Places of a task."""


class Near(NamedTuple):
    """Neighbours of every place, axis by axis."""

    grid: Ints
    """(3,) lengths of the axes."""
    step: Ints
    """(3,) distance from one neighbour to the next."""
    first: Ints
    """(3, longest) the first neighbour of a place."""
    many: Ints
    """(3, longest) how many there are."""
    most: int
    """The most neighbours of a place."""


class NearArrays(NamedTuple):
    """What neighbours are weighed by; arrays in raster order, one leading axis."""

    q: Floats
    k: Floats
    v: Floats
    slices: Ints
    """(batch, 5) which slices of q, k, v, dout and dlse belong together."""
    scale: np.floating


@jit.device
def find(near: Near, place: int, index: Ints) -> int:
    """Write the neighbours of a place, ascending; return how many there are."""
    rows, columns = near.grid[1], near.grid[2]
    x, y, z = place // (rows * columns), place // columns % rows, place % columns
    t = 0
    for a in range(near.many[0, x]):
        top = (near.first[0, x] + a * near.step[0]) * rows
        for b in range(near.many[1, y]):
            left = (top + near.first[1, y] + b * near.step[1]) * columns + near.first[2, z]
            for c in range(near.many[2, z]):
                index[t] = left + c * near.step[2]
                t += 1
    return t


@jit.device
def _accumulate(acc: Floats, factor: float, x: Floats) -> None:
    for c in range(acc.size):
        acc[c] += factor * x[c]


@jit.kernel
def attend(block: int, p: NearArrays, near: Near, out: Floats, norm: Floats) -> None:
    """Outputs (batch, n, e) and normalisers (2, batch, n) of a block of queries."""
    n = p.q.shape[1]
    index, s = np.empty(near.most, np.int64), np.empty(near.most, p.q.dtype)
    acc = np.empty(p.v.shape[2], p.q.dtype)
    for r in range(block * BLOCK, min((block + 1) * BLOCK, out.shape[0] * n)):
        b, i = r // n, r % n
        q, k, v = p.q[p.slices[b, 0], i], p.k[p.slices[b, 1]], p.v[p.slices[b, 2]]
        many = find(near, i, index)
        top = p.q.dtype.type(-np.inf)
        for t in range(many):
            s[t] = p.scale * inner(q, k[index[t]])
            top = max(top, s[t])
        total = p.q.dtype.type(0)
        for c in range(acc.size):
            acc[c] = 0
        for t in range(many):
            w = exp(s[t] - top)
            total += w
            _accumulate(acc, w, v[index[t]])
        for c in range(acc.size):
            out[b, i, c] = acc[c] / total
        norm[0, b, i], norm[1, b, i] = top, total


class NearMoving(NamedTuple):
    """Changes of queries, keys and values, as `NearArrays` lie."""

    q: Floats
    k: Floats
    v: Floats
    slices: Ints
    """(batch, 3) of dq, dk and dv."""


@jit.kernel
def move(block: int, p: NearArrays, x: NearMoving, near: Near, out: Floats, lse: Floats) -> None:
    """Changes of outputs (batch, n, e), and of log normalisers (batch, n), of a block of queries.

    ``sum_j P (ds - mean) v + P dv``, with the mean ``sum_j P ds``.
    """
    n = p.q.shape[1]
    index = np.empty(near.most, np.int64)
    w, ds = np.empty(near.most, p.q.dtype), np.empty(near.most, p.q.dtype)
    acc = np.empty(p.v.shape[2], p.q.dtype)
    for r in range(block * BLOCK, min((block + 1) * BLOCK, out.shape[0] * n)):
        b, i = r // n, r % n
        q, k, v = p.q[p.slices[b, 0], i], p.k[p.slices[b, 1]], p.v[p.slices[b, 2]]
        dq, dk, dv = x.q[x.slices[b, 0], i], x.k[x.slices[b, 1]], x.v[x.slices[b, 2]]
        many = find(near, i, index)
        top = p.q.dtype.type(-np.inf)
        for t in range(many):
            j = index[t]
            w[t] = p.scale * inner(q, k[j])
            ds[t] = p.scale * (inner(dq, k[j]) + inner(q, dk[j]))
            top = max(top, w[t])
        total, mean = p.q.dtype.type(0), p.q.dtype.type(0)
        for t in range(many):
            w[t] = exp(w[t] - top)
            total += w[t]
            mean += w[t] * ds[t]
        mean /= total
        for c in range(acc.size):
            acc[c] = 0
        for t in range(many):
            _accumulate(acc, w[t] * (ds[t] - mean), v[index[t]])
            _accumulate(acc, w[t], dv[index[t]])
        for c in range(acc.size):
            out[b, i, c] = acc[c] / total
        lse[b, i] = mean


@jit.kernel
def queries_vjp(
    block: int, p: NearArrays, dout: Floats, dlse: Floats, near: Near, norm: Floats,
    delta: Floats, dq: Floats,
) -> None:  # fmt: skip
    """Gradients (batch, n, d) of a block of queries, and ``delta = dout . out - dlse``."""
    n = p.q.shape[1]
    index = np.empty(near.most, np.int64)
    w, dp = np.empty(near.most, p.q.dtype), np.empty(near.most, p.q.dtype)
    for r in range(block * BLOCK, min((block + 1) * BLOCK, dq.shape[0] * n)):
        b, i = r // n, r % n
        q, k, v = p.q[p.slices[b, 0], i], p.k[p.slices[b, 1]], p.v[p.slices[b, 2]]
        g = dout[p.slices[b, 3], i]
        many, mean = find(near, i, index), -dlse[p.slices[b, 4], i]
        for t in range(many):
            w[t] = exp(p.scale * inner(q, k[index[t]]) - norm[0, b, i]) / norm[1, b, i]
            dp[t] = inner(g, v[index[t]])
            mean += w[t] * dp[t]
        delta[b, i] = mean
        for c in range(q.size):
            dq[b, i, c] = 0
        for t in range(many):
            _accumulate(dq[b, i], p.scale * w[t] * (dp[t] - mean), k[index[t]])


@jit.kernel
def keys_vjp(
    block: int, p: NearArrays, dout: Floats, seen: Near, norm: Floats, delta: Floats,
    dk: Floats, dv: Floats,
) -> None:  # fmt: skip
    """Gradients of a block of keys (batch, n, d) and values (batch, n, e); `seen` by queries."""
    n = p.k.shape[1]
    index = np.empty(seen.most, np.int64)
    for r in range(block * BLOCK, min((block + 1) * BLOCK, dk.shape[0] * n)):
        b, j = r // n, r % n
        q, k, v = p.q[p.slices[b, 0]], p.k[p.slices[b, 1], j], p.v[p.slices[b, 2], j]
        for c in range(k.size):
            dk[b, j, c] = 0
        for c in range(v.size):
            dv[b, j, c] = 0
        for t in range(find(seen, j, index)):
            i = index[t]
            w = exp(p.scale * inner(q[i], k) - norm[0, b, i]) / norm[1, b, i]
            g = dout[p.slices[b, 3], i]
            _accumulate(dv[b, j], w, g)
            _accumulate(dk[b, j], p.scale * w * (inner(g, v) - delta[b, i]), q[i])
