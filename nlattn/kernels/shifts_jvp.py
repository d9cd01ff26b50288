"""Forward mode of means over a search window, one shift of the picture at a time.

As `shifts`: distances and their changes are box filters, of squared differences and of products of
differences. A pixel's numbers stand in `NORMS` planes (H, W).
"""

from __future__ import annotations

import numpy as np

from nlattn._types import Floats
from nlattn.kernels.exp import exp
from nlattn.kernels.shifts import TILE, _paste, _squares, _sum_neighbours, _sum_rows
from nlattn.runtime import jit

NORMS = 4
"""Sum of weights, the largest one, the change of its score, the sum of weights times changes; what
`average` reads is one over the sum, the pixel's own weight, its change, and the mean of changes."""


@jit.device
def _products(
    u: Floats, du: Floats, y: int, x: int, dy: int, dx: int, count: int, row: Floats
) -> None:
    """Changes of the squared differences of `count` pixels from (y, x) on."""
    for l in range(count):
        row[l] = 0
    for c in range(u.shape[0]):
        here, there = u[c, y, x : x + count], u[c, y + dy, x + dx : x + dx + count]
        moved, away = du[c, y, x : x + count], du[c, y + dy, x + dx : x + dx + count]
        for l in range(count):
            row[l] += 2 * (here[l] - there[l]) * (moved[l] - away[l])


@jit.device
def _weigh(
    rings: Floats, count: int, options: Floats, column: Floats, w: Floats, ds: Floats
) -> None:
    """Weights of `count` pixels and changes of their scores, from the rows of their patches."""
    width = rings.shape[1]
    _sum_rows(rings[0], count + width - 1, column)
    _sum_neighbours(column, width, count, w)
    _sum_rows(rings[1], count + width - 1, column)
    _sum_neighbours(column, width, count, ds)
    floor, steep = rings.dtype.type(options[0]), rings.dtype.type(options[1])
    for l in range(count):
        excess = w[l] - floor
        w[l] = exp(-steep * (excess if excess > 0 else floor * 0))
        ds[l] = -steep * ds[l] if excess > 0 and w[l] > 0 else 0


@jit.kernel
def normalise(
    tile: int, u: Floats, du: Floats, patch: int, distance: int, options: Floats, norms: Floats
) -> None:
    """Planes of a tile of pixels; `u`, `du` and `options` as in `shifts.normalise`."""
    H, W = norms.shape[1:]
    wide, first, last = W + patch - 1, tile * TILE, min(tile * TILE + TILE, H)
    rings, column = np.empty((2, patch, wide), u.dtype), np.empty(wide, u.dtype)
    weights, changes = np.empty(W, u.dtype), np.empty(W, u.dtype)
    for t in range(norms.shape[0]):
        for y in range(first, last):
            for x in range(W):
                norms[t, y, x] = 0
    for dy in range(-distance, distance + 1):
        upper, lower = max(first, -dy), min(last, H - dy)
        for dx in range(-distance, distance + 1):
            left, right = max(0, -dx), min(W, W - dx)
            count = right - left
            if (dy == 0 and dx == 0) or count <= 0 or lower <= upper:
                continue
            for row in range(upper, lower + patch - 1):
                _squares(u, row, left, dy, dx, count + patch - 1, rings[0, row % patch])
                _products(u, du, row, left, dy, dx, count + patch - 1, rings[1, row % patch])
                y = row - patch + 1
                if y < upper:
                    continue
                _weigh(rings, count, options, column, weights, changes)
                sums, tops = norms[0, y, left:right], norms[1, y, left:right]
                bests, means = norms[2, y, left:right], norms[3, y, left:right]
                for l in range(count):
                    w = weights[l]
                    sums[l] += w
                    bests[l] = changes[l] if w > tops[l] else bests[l]
                    tops[l] = w if w > tops[l] else tops[l]
                    means[l] += w * changes[l]


@jit.kernel
def average(
    tile: int, u: Floats, du: Floats, patch: int, distance: int, options: Floats, norms: Floats,
    out: Floats,
) -> None:  # fmt: skip
    """Changes of `shifts.average`, from the planes of `normalise`, settled; `out` (H, W, C)."""
    H, W = norms.shape[1:]
    C, wide, r = u.shape[0], W + patch - 1, patch // 2
    vote = r if options[2] != 0 else 0
    span = 2 * vote + 1
    first, last = tile * TILE, min(tile * TILE + TILE, H)
    rings, column = np.empty((2, patch, wide), u.dtype), np.empty(wide, u.dtype)
    votes, boxed = np.empty((2, span, W + 2 * vote), u.dtype), np.empty(W, u.dtype)
    acc = np.zeros((last - first, C, W), u.dtype)
    for dy in range(-distance, distance + 1):
        upper, lower = max(first - vote, 0, -dy), min(last + vote, H, H - dy)
        for dx in range(-distance, distance + 1):
            left, right = max(0, -dx), min(W, W - dx)
            count = right - left
            if count <= 0 or lower <= upper:
                continue
            itself = dy == 0 and dx == 0
            for t in range(span):
                for l in range(W + 2 * vote):
                    votes[0, t, l], votes[1, t, l] = 0, 0
            for y in range(upper, upper + patch - 1):
                if not itself:
                    _squares(u, y, left, dy, dx, count + patch - 1, rings[0, y % patch])
                    _products(u, du, y, left, dy, dx, count + patch - 1, rings[1, y % patch])
            for newest in range(upper, lower + 2 * vote):
                weights = votes[0, newest % span, vote + left : vote + right]
                changes = votes[1, newest % span, vote + left : vote + right]
                if newest >= lower:
                    for l in range(count):
                        weights[l], changes[l] = 0, 0
                else:
                    scale, mean = norms[0, newest, left:right], norms[3, newest, left:right]
                    if itself:
                        for l in range(count):
                            weights[l], changes[l] = norms[1, newest, l], norms[2, newest, l]
                    else:
                        y, size = newest + patch - 1, count + patch - 1
                        _squares(u, y, left, dy, dx, size, rings[0, y % patch])
                        _products(u, du, y, left, dy, dx, size, rings[1, y % patch])
                        _weigh(rings, count, options, column, weights, changes)
                    for l in range(count):
                        weights[l] *= scale[l]
                        changes[l] = weights[l] * (changes[l] - mean[l])
                y = newest - vote
                if y < first or y >= last:
                    continue
                own = acc[y - first]
                if vote == 0:
                    _paste(du, y, dy, dx, r, left, weights, own)
                    _paste(u, y, dy, dx, r, left, changes, own)
                    continue
                low, high = max(0, left - vote), min(W, right + vote)
                for t in range(2):
                    _sum_rows(votes[t], W + 2 * vote, column)
                    _sum_neighbours(column[low:], span, high - low, boxed)
                    _paste(du if t == 0 else u, y, dy, dx, r, low, boxed[: high - low], own)
    for y in range(first, last):
        rows = min(H - 1, y + vote) - max(0, y - vote) + 1
        for x in range(W):
            columns = min(W - 1, x + vote) - max(0, x - vote) + 1
            for c in range(C):
                out[y, x, c] = acc[y - first, c, x] / (rows * columns)
