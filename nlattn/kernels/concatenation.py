"""Sums over keys of ``relu(a_i + b_j) x_j`` without their pairs: prefix sums over sorted keys.

With keys in falling order of b, those that query i reaches, ``b_j > -a_i``, are the first t_i, and
``sum_j relu(a_i + b_j) x_j = a_i S0[t_i] + S1[t_i]``, S0 and S1 the sums of x_j and b_j x_j over
the first keys. The two parts cancel where |a| and |b| are large beside a + b, so every sum is kept
as two float64, its value and what rounding took from it [dekker1971]: as good as adding up pairs.
A block of keys is summed by one thread, the caller merges blocks in order, and a block of queries
starts from the sums before its first query's block of keys.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn._types import Floats, Ints
from nlattn.runtime import jit

KEYS = 1024
QUERIES = 256
_SPLIT = 134217729.0  # 2^27 + 1


class SortedKeys(NamedTuple):
    """Keys in falling order of b, and what is summed over them.

    Slices of results share arrays: `slices` says which.
    """

    b: Floats
    """(Bb, m) float64."""
    order: Ints
    """(Bb, m) the keys."""
    x: Floats
    """(Bx, m, e) what is summed."""
    slices: Ints
    """(B, 4) of b, of x, of a and of y, for every slice of the result."""


@jit.device(inline=True)
def _product(a: float, b: float) -> tuple[float, float]:
    """``a b`` and its rounding error."""
    p = a * b
    c, d = _SPLIT * a, _SPLIT * b
    a1, b1 = c - (c - a), d - (d - b)
    a2, b2 = a - a1, b - b1
    return p, ((a1 * b1 - p) + a1 * b2 + a2 * b1) + a2 * b2


@jit.device(inline=True)
def _sum(a: float, b: float) -> tuple[float, float]:
    """``a + b`` and its rounding error."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


@jit.device(inline=True)
def _add(keys: SortedKeys, head: int, place: int, sums: Floats) -> None:
    """Add the key at a place of the order to (4, e): S0, its error, S1, its error."""
    s, z = keys.slices[head, 0], keys.slices[head, 1]
    j = keys.order[s, place]
    b = keys.b[s, j]
    for c in range(keys.x.shape[2]):
        x = np.float64(keys.x[z, j, c])
        sums[0, c], error = _sum(sums[0, c], x)
        sums[1, c] += error
        p, rounded = _product(b, x)
        sums[2, c], error = _sum(sums[2, c], p)
        sums[3, c] += error + rounded


@jit.kernel
def project(task: int, x: Floats, w: Floats, out: Floats) -> None:
    """``out = x w`` for x (B, n, d) and w (d,), summed in twice float64; out (B, n) float64."""
    n = x.shape[1]
    blocks = (n + QUERIES - 1) // QUERIES
    head, begin = task // blocks, task % blocks * QUERIES
    for i in range(begin, min(n, begin + QUERIES)):
        total, left = 0.0, 0.0
        for c in range(x.shape[2]):
            p, rounded = _product(np.float64(x[head, i, c]), np.float64(w[c]))
            total, error = _sum(total, p)
            left += error + rounded
        out[head, i] = total + left


@jit.kernel
def sum_keys(task: int, keys: SortedKeys, sums: Floats) -> None:
    """Sums of every whole block of keys, (B, m // KEYS, 4, e) float64."""
    blocks = sums.shape[1]
    head, block = task // blocks, task % blocks
    total = np.zeros((4, keys.x.shape[2]))
    for place in range(block * KEYS, block * KEYS + KEYS):
        _add(keys, head, place, total)
    for part in range(4):
        for c in range(keys.x.shape[2]):
            sums[head, block, part, c] = total[part, c]


@jit.kernel
def read(
    task: int,
    keys: SortedKeys,
    before: Floats,
    a: Floats,
    y: Floats,
    queries: Ints,
    counts: Ints,
    divisor: float,
    out: Floats,
    slope: Floats,
) -> None:
    """``out_i = sum_j relu(a_i + b_j) x_j / divisor`` (B, n, e); `slope` (B, n) float64 along y.

    `before` (B, m // KEYS + 1, 4, e) are the sums before each block of keys; `a` (Ba, n) float64;
    `y` (By, n, e), or without channels if no slope is asked for: ``slope_i = y_i.d out_i / d a_i``;
    `queries` (B, n) in rising order of `counts` (B, n), how many keys each reaches.
    """
    n, e = a.shape[1], keys.x.shape[2]
    blocks = (n + QUERIES - 1) // QUERIES
    head, begin = task // blocks, task % blocks * QUERIES
    total, place = np.zeros((4, e)), -1
    for r in range(begin, min(n, begin + QUERIES)):
        i = queries[head, r]
        block = counts[head, i] // KEYS
        if place < block * KEYS:
            place = block * KEYS
            for part in range(4):
                for c in range(e):
                    total[part, c] = before[head, block, part, c]
        for further in range(place, counts[head, i]):
            _add(keys, head, further, total)
        place = counts[head, i]
        ai = a[keys.slices[head, 2], i]
        for c in range(e):
            p, rounded = _product(ai, total[0, c])
            s, error = _sum(p, total[2, c])
            value = s + (error + rounded + ai * total[1, c] + total[3, c])
            if value != value:  # parts that overflow have no rounding error
                value = s
            out[head, i, c] = value / divisor
        along = 0.0
        for c in range(y.shape[2]):
            along += np.float64(y[keys.slices[head, 3], i, c]) * total[0, c]
        slope[head, i] = along / divisor
