"""Triangular factors and Gram matrices of tall arrays, and row norms of their products.

Keys are read once per pass, in blocks that are scaled, reordered and made float64 on the way. The
rows are cut into parts, a number that comes from the shape alone; each part is folded into a state
of its own (d x d), and whoever calls merges the states in order.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from nlattn._types import Floats, Ints
from nlattn.kernels.gemm import aligned, multiply, width
from nlattn.runtime import jit

BLOCK = 128
"""Rows of a block: with 64 channels the second-level cache holds it, the first some columns."""
NOTHING = 2.0**-900
"""Squared length below which a column is 0, far below the rounding of others that are near 1: each
reflection of fewer rows than channels leaves a rounding of what it left before, down to where
squares and their reciprocals leave float64."""


@jit.shared
def part_rows(n: int, parts: int) -> int:
    """Rows of one part, whole blocks; the last parts may be shorter or empty."""
    return (n + parts * BLOCK - 1) // (parts * BLOCK) * BLOCK


@jit.kernel
def peaks(task: int, k: Floats, top: Floats) -> None:
    """Largest magnitude of each channel in every part, top (batch, parts, d); NaN if not finite."""
    n, d, parts = k.shape[1], k.shape[2], top.shape[1]
    size = part_rows(n, parts)
    b, part = task // parts, task % parts
    largest, unfit = np.zeros(d, k.dtype), np.zeros(d, k.dtype)
    for i in range(min(n, part * size), min(n, part * size + size)):
        row = k[b, i]
        for c in range(d):
            x = abs(row[c])
            largest[c] = x if x > largest[c] else largest[c]
            unfit[c] += x - x
    for c in range(d):
        top[b, part, c] = largest[c] + unfit[c]


@jit.device(fast=True, inline=True)
def _dot_compiled(x: Floats, y: Floats) -> float:  # pragma: no cover - compiled
    total = 0.0
    for i in range(x.size):
        total += x[i] * y[i]
    return total


@jit.device(inline=True)
def _subtract_compiled(y: Floats, w: float, x: Floats) -> None:  # pragma: no cover - compiled
    for i in range(y.size):
        y[i] -= w * x[i]


def _subtract_interpreted(y: Floats, w: float, x: Floats) -> None:
    y -= w * x


_dot = np.dot if numba.config.DISABLE_JIT else _dot_compiled
_subtract = _subtract_interpreted if numba.config.DISABLE_JIT else _subtract_compiled


@jit.device
def absorb(columns: Floats, rows: int, R: Floats) -> None:
    """``R <- triangle of qr([R; X])``, X's columns one after the other in `columns`, overwritten.

    One Householder reflection per column; of R it touches only the row of that column.
    """
    d = R.shape[0]
    for c in range(d):
        x = columns[c * rows : (c + 1) * rows]
        tail = _dot(x, x)
        if tail < NOTHING:
            continue
        alpha = R[c, c]
        beta = -math.copysign(math.sqrt(alpha * alpha + tail), alpha)
        head = alpha - beta
        gain = -1 / (beta * head)
        R[c, c] = beta
        for j in range(c + 1, d):
            y = columns[j * rows : (j + 1) * rows]
            w = (head * R[c, j] + _dot(x, y)) * gain
            R[c, j] -= w * head
            _subtract(y, w, x)


@jit.kernel
def fold_triangle(task: int, k: Floats, scale: Floats, first: int, last: int, R: Floats) -> None:
    """Absorb blocks `first` to `last` of every part into its triangle, R (batch, parts, d, d).

    `scale` (batch, d) multiplies the channels.
    """
    n, d, parts = k.shape[1], k.shape[2], R.shape[1]
    size = part_rows(n, parts)
    b, part = task // parts, task % parts
    columns = aligned(d * BLOCK, R)
    for block in range(first, last):
        start = part * size + block * BLOCK
        count = min(BLOCK, n - start)
        if count > 0:
            for i in range(count):
                for c in range(d):
                    columns[c * count + i] = k[b, start + i, c] * scale[b, c]
            absorb(columns, count, R[b, part])


@jit.kernel
def fold_gram(task: int, k: Floats, scale: Floats, first: int, last: int, G: Floats) -> None:
    """Add blocks `first` to `last` of every part to its lower triangle of ``K^T K``.

    G is (batch, parts, d, d), `scale` (batch, d) multiplies the channels.
    """
    n, d, parts = k.shape[1], k.shape[2], G.shape[1]
    size, w = part_rows(n, parts), width(G)
    wide = (d + w - 1) // w * w
    b, part = task // parts, task % parts
    rows, room = aligned(BLOCK * wide, G), aligned(wide * w, G)
    for x in range(rows.size):
        rows[x] = 0
    for block in range(first, last):
        start = part * size + block * BLOCK
        count = min(BLOCK, n - start)
        if count > 0:
            for i in range(count):
                for c in range(d):
                    rows[i * wide + c] = k[b, start + i, c] * scale[b, c]
            for c0 in range(0, d, w):
                multiply(rows, c0, 1, wide, rows, c0, wide, room, 0, w, d - c0, count)
                for c in range(c0, d):
                    for l in range(min(w, d - c0)):
                        G[b, part, c, c0 + l] += room[(c - c0) * w + l]


@jit.kernel
def row_norms(
    task: int,
    k: Floats,
    scale: Floats,
    order: Ints,
    M: Floats,
    upper: bool,
    out: Floats,
) -> None:
    """``out[b, j] = |(k[b, j] scale[b])[order[b]] M[b]|^2`` of one block.

    M is (batch, d, columns), columns a multiple of the panel's width; `upper` says that it is
    upper triangular.
    """
    n, d, columns, w = k.shape[1], k.shape[2], M.shape[2], width(M)
    blocks = (n + BLOCK - 1) // BLOCK
    b, j0 = task // blocks, task % blocks * BLOCK
    count = min(BLOCK, n - j0)
    rows, room = aligned(BLOCK * d, M), aligned(BLOCK * w, M)
    total = aligned(BLOCK * w, M)
    for x in range(total.size):
        total[x] = 0
    for i in range(count):
        for c in range(d):
            at = order[b, c]
            rows[i * d + c] = k[b, j0 + i, at] * scale[b, at]
    for c0 in range(0, columns, w):
        depth = min(d, c0 + w) if upper else d
        multiply(rows, 0, d, 1, M, b * d * columns + c0, columns, room, 0, w, count, depth)
        for x in range(count * w):
            total[x] += room[x] * room[x]
    for i in range(count):
        whole = 0.0
        for l in range(w):
            whole += total[i * w + l]
        out[b, j0 + i] = whole
