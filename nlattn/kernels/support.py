"""Supports from matches: the keys of a query as merged runs of raster indices.

A box of keys is one run ``[start, end)`` per row of the grid. The runs of all boxes of a query,
sorted by start, give its keys ascending and without duplicates, whatever the order of the boxes.
"""

from __future__ import annotations

import numpy as np

from nlattn._types import Bools, Ints
from nlattn.runtime import jit

WINDOW, NEIGHBOURS, TOPK, LOCAL = 1, 2, 4, 8
BLOCK = 512


@jit.device
def _sort(x: Ints, count: int) -> None:
    """Shell sort of the first `count` integers: short, nearly sorted lists."""
    gap = 1
    while gap < count // 3:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(gap, count):
            item, j = x[i], i
            while j >= gap and x[j - gap] > item:
                x[j] = x[j - gap]
                j -= gap
            x[j] = item
        gap //= 3


@jit.device
def _step(delta: int, size_q: int, size_k: int) -> int:
    """A step on the query grid in steps of the key grid, rounded half away from zero."""
    size = (2 * abs(delta) * size_k + size_q) // (2 * size_q)
    return size if delta > 0 else -size


@jit.device(once=True)
def _centres(
    index: Ints, b: int, y: int, x: int, grid: Ints, kinds: int, around: Ints, centres: Ints
) -> int:
    """List the centres of a query's boxes: ``around = (reach, shift)``."""
    rows, Hq, Wq = index.shape[1], grid[2], index.shape[2]
    Hk, Wk = grid[0], grid[1]
    count = 0
    if kinds & WINDOW and index[b, y, x, 0] >= 0:
        centres[count] = index[b, y, x, 0]
        count += 1
    if kinds & LOCAL:
        own_y, own_x = ((2 * (grid[3] + y) + 1) * Hk) // (2 * Hq), ((2 * x + 1) * Wk) // (2 * Wq)
        centres[count] = own_y * Wk + own_x
        count += 1
    if kinds & NEIGHBOURS:
        reach = around[0]
        for ny in range(max(y - reach, 0), min(y + reach, rows - 1) + 1):
            for nx in range(max(x - reach, 0), min(x + reach, Wq - 1) + 1):
                match = index[b, ny, nx, 0]
                if match < 0:
                    continue
                centres[count] = match
                count += 1
                ky = match // Wk - _step(ny - y, Hq, Hk)
                kx = match % Wk - _step(nx - x, Wq, Wk)
                if around[1] and 0 <= ky < Hk and 0 <= kx < Wk:
                    centres[count] = ky * Wk + kx
                    count += 1
    return count


@jit.device(once=True)
def _runs(
    centres: Ints, count: int, matches: Ints, kinds: int, grid: Ints, radius: int, runs: Ints
) -> int:
    """Boxes around distinct centres, and the matches themselves, as sorted packed runs."""
    Hk, Wk = grid[0], grid[1]
    _sort(centres, count)
    found = 0
    for c in range(count):
        if c and centres[c] == centres[c - 1]:
            continue
        cy, cx = centres[c] // Wk, centres[c] % Wk
        first, last = max(cx - radius, 0), min(cx + radius, Wk - 1)
        for row in range(max(cy - radius, 0), min(cy + radius, Hk - 1) + 1):
            runs[found] = ((row * Wk + first) << 32) | (row * Wk + last + 1)
            found += 1
    for t in range(len(matches) if kinds & TOPK else 1):
        if matches[t] >= 0:
            runs[found] = (matches[t] << 32) | (matches[t] + 1)
            found += 1
    _sort(runs, found)
    return found


@jit.kernel
def list_keys(
    block: int,
    index: Ints,
    key_mask: Bools,
    mask: Bools,
    slices: Ints,
    grid: Ints,
    shape: Ints,
    around: Ints,
    indptr: Ints,
    sizes: Ints,
    keys: Ints,
) -> None:
    """Count the keys of every query, and list them unless `keys` is empty.

    `index` (Bi, Hq, Wq, t) matches; `key_mask` (Bk, m) and `mask` (Bm, n, m), or empty;
    `slices` (B, 3) which slice of these each head uses;
    `grid` (Hk, Wk, Hq, above): of all queries, whose rows `index` holds from `above` on;
    `shape` (kinds, radius, causal); `around` (reach, shift); `indptr` (B n + 1) where rows start,
    read only when listing. Results `sizes` (B n) and `keys` (nnz).
    """
    Hq, Wq = index.shape[1], index.shape[2]
    n, rows = Hq * Wq, len(slices) * Hq * Wq
    kinds, radius, causal = shape[0], shape[1], shape[2]
    side = 2 * around[0] + 1
    centres = np.empty(2 * side * side + 2, np.int64)
    runs = np.empty(len(centres) * (2 * radius + 1) + index.shape[3], np.int64)
    for r in range(block * BLOCK, min(block * BLOCK + BLOCK, rows)):
        b, p = r // n, r % n
        y, x = p // Wq, p % Wq
        i = slices[b, 0]
        count = _centres(index, i, y, x, grid, kinds, around, centres)
        count = _runs(centres, count, index[i, y, x], kinds, grid, radius, runs)
        size, fresh = 0, 0
        for c in range(count):
            start, end = max(runs[c] >> 32, fresh), runs[c] & 0xFFFFFFFF
            fresh = max(fresh, end)
            if causal:
                end = min(end, grid[3] * Wq + p + 1)
            for j in range(start, end):
                if key_mask.size and not key_mask[slices[b, 1], j]:
                    continue
                if mask.size and not mask[slices[b, 2], p, j]:
                    continue
                if keys.size:
                    keys[indptr[r] + size] = j
                size += 1
        sizes[r] = size
