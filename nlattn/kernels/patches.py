"""Cross-scale attention, a row of queries at a time.

Scores and pasted weights are the same sum over patches, ``box(X)[i, l] = sum_o X[i + o, l + o]``.
The last `p` rows of a quantity (width, keys) are kept in a ring, row y at place ``y % p``; so
memory grows with the width times the keys.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn._types import Floats
from nlattn.kernels.exp import exp
from nlattn.runtime import jit

BLOCK = 16
"""Rows of a matrix product."""
COLUMNS = 256
_LANES = 16


class Grid(NamedTuple):
    """Queries, keys and the cells that are put out."""

    H: int
    W: int
    h: int
    w: int
    patch: int
    offset: int
    """Of the first cell from the first query, in either axis."""


@jit.kernel(blas=True)
def multiply(block: int, a: Floats, b: Floats, out: Floats) -> None:
    """``out = a b`` for a (n, d), b (d, m), out (n, m)."""
    rows = slice(block * BLOCK, min(block * BLOCK + BLOCK, len(a)))
    np.dot(a[rows], b, out[rows])


@jit.kernel(blas=True)
def add_outer(block: int, a: Floats, b: Floats, out: Floats) -> None:
    """``out += a^T b`` for a (n, m), b (n, d), out (m, d)."""
    first, last = block * BLOCK, min(block * BLOCK + BLOCK, len(out))
    turned = np.empty((last - first, len(a)), a.dtype)
    for i in range(len(a)):
        for l in range(first, last):
            turned[l - first, i] = a[i, l]
    product = np.dot(turned, b)
    for l in range(first, last):
        for c in range(b.shape[1]):
            out[l, c] += product[l - first, c]


@jit.device
def _box(ring: Floats, grid: Grid, y: int, rows: int, x: int, out: Floats) -> None:
    """Sum over the patch around (y, x) of a ring's quantity, which has rows 0 to `rows`."""
    r, w, width = grid.patch // 2, grid.w, ring.shape[1]
    for l in range(len(out)):
        out[l] = 0
    for dy in range(-r, r + 1):
        if not 0 <= y + dy < rows:
            continue
        for dx in range(-r, r + 1):
            if not 0 <= x + dx < width:
                continue
            source = ring[(y + dy) % grid.patch, x + dx]
            left, right = max(0, -dx), min(w, w - dx)
            if right <= left:
                continue
            for ly in range(max(0, -dy), min(grid.h, grid.h - dy)):
                at = (ly + dy) * w + dx
                target = out[ly * w + left : ly * w + right]
                term = source[at + left : at + right]
                for l in range(right - left):
                    target[l] += term[l]


@jit.device
def _largest(x: Floats) -> float:
    best = x[0]
    whole = len(x) - len(x) % _LANES
    if whole:
        lanes = x[:_LANES].copy()
        for start in range(0, whole, _LANES):
            part = x[start : start + _LANES]
            for l in range(_LANES):
                lanes[l] = part[l] if part[l] > lanes[l] else lanes[l]
        for l in range(_LANES):
            best = max(best, lanes[l])
    for l in range(whole, len(x)):
        best = max(best, x[l])
    return best


@jit.device
def _total(x: Floats) -> float:
    total = 0.0
    lanes = np.zeros(_LANES, np.float64)
    whole = len(x) - len(x) % _LANES
    for start in range(0, whole, _LANES):
        part = x[start : start + _LANES]
        for l in range(_LANES):
            lanes[l] += part[l]
    for l in range(_LANES):
        total += lanes[l]
    for l in range(whole, len(x)):
        total += x[l]
    return total


@jit.device(fast=True)
def _dot(a: Floats, b: Floats) -> float:
    total = 0.0
    for l in range(len(a)):
        total += np.float64(a[l]) * np.float64(b[l])
    return total


@jit.kernel
def weigh(
    x: int,
    gram: Floats,
    grid: Grid,
    y: int,
    options: Floats,
    norms: Floats,
    scores: Floats,
    A: Floats,
) -> None:
    """Scores of a row of queries, from the ring of products, and their softmax over the keys.

    `options` temperature, and whether the largest takes all; `norms` (L) of the keys' patches.
    Results `scores` and `A` (W, L).
    """
    heat, hard = gram.dtype.type(options[0]), options[1] != 0
    s, a = scores[x], A[x]
    _box(gram, grid, y, grid.H, x, s)
    for l in range(len(s)):
        s[l] /= norms[l]
    top = _largest(s)
    if hard:
        first = 0
        while first < len(s) - 1 and s[first] != top:
            first += 1
        for l in range(len(s)):
            a[l] = 0
        a[first] = 1
        return
    for l in range(len(s)):
        a[l] = exp(heat * (s[l] - top))
    total = gram.dtype.type(_total(a))
    for l in range(len(s)):
        a[l] /= total


@jit.kernel
def paste(cell: int, A: Floats, grid: Grid, y: int, divisors: Floats, B: Floats, z: Floats) -> None:
    """Weights of a row of cells: what patches around them paste, over the normaliser.

    `divisors` of the cells of the row; empty for their mass. Results `B` (cells, L), and `z`.
    """
    b = B[cell]
    _box(A, grid, y, grid.H, cell + grid.offset, b)
    z[cell] = divisors[cell] if divisors.size else _total(b)
    z[cell] = z[cell] if z[cell] != 0 else 1.0  # far outside, where nothing is pasted
    for l in range(len(b)):
        b[l] /= z[cell]


@jit.kernel
def paste_vjp(cell: int, B: Floats, z: Floats, mass: int, dB: Floats) -> None:
    """Cotangents of pasted weights, in place of those of B, the weights over the normaliser."""
    b, db = B[cell], dB[cell]
    mean = db.dtype.type(_dot(b, db) if mass else 0)
    for l in range(len(b)):
        db[l] = (db[l] - mean) / z[cell]


@jit.kernel
def weigh_vjp(
    x: int,
    dB: Floats,
    grid: Grid,
    y: int,
    cells: int,
    heat: float,
    norms: Floats,
    A: Floats,
    dS: Floats,
) -> None:
    """Cotangents of a row of scores, over the keys' norms, from the ring of cells' cotangents.

    `dB` (p, columns, L) has row y of the queries at row ``y - offset``, of `cells` rows.
    """
    factor = A.dtype.type(heat)
    a, ds = A[x], dS[x]
    _box(dB, grid, y - grid.offset, cells, x - grid.offset, ds)
    mean = ds.dtype.type(_dot(a, ds))
    for l in range(len(a)):
        ds[l] = factor * a[l] * (ds[l] - mean) / norms[l]


@jit.kernel
def box(x: int, ring: Floats, grid: Grid, y: int, out: Floats) -> None:
    """Sum over patches for a row of queries, (W, L)."""
    _box(ring, grid, y, grid.H, x, out[x])


@jit.kernel
def add_products(block: int, a: Floats, b: Floats, out: Floats) -> None:
    """``out[l] += sum_x a[x, l] b[x, l]``."""
    first, last = block * COLUMNS, min(block * COLUMNS + COLUMNS, len(out))
    for x in range(len(a)):
        left, right, total = a[x, first:last], b[x, first:last], out[first:last]
        for l in range(last - first):
            total[l] += np.float64(left[l]) * np.float64(right[l])
