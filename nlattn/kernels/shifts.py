"""Means over a search window, one shift of the picture at a time.

For one shift, the distances of all patches to their shifted patches are a box filter of squared
differences: a few additions per pixel, whatever the patch. What patches vote for is likewise a box
filter of their weights. Rows of a tile are owned by one iteration; nothing the size of the window
is kept.
"""

from __future__ import annotations

import numpy as np

from nlattn._types import Floats
from nlattn.kernels.exp import exp
from nlattn.runtime import jit

TILE = 32
"""Rows of a tile."""


@jit.device
def _squares(u: Floats, y: int, x: int, dy: int, dx: int, count: int, row: Floats) -> None:
    """Squared differences of `count` pixels from (y, x) on to those at a shift, channels summed."""
    for l in range(count):
        row[l] = 0
    for c in range(u.shape[0]):
        here, there = u[c, y, x : x + count], u[c, y + dy, x + dx : x + dx + count]
        for l in range(count):
            difference = here[l] - there[l]
            row[l] += difference * difference


@jit.device
def _sum_rows(ring: Floats, count: int, out: Floats) -> None:
    """Sum of all rows of a ring."""
    for l in range(count):
        out[l] = 0
    for t in range(len(ring)):
        row = ring[t]
        for l in range(count):
            out[l] += row[l]


@jit.device
def _sum_neighbours(row: Floats, width: int, count: int, out: Floats) -> None:
    """``out[l] = row[l] + ... + row[l + width - 1]``."""
    for l in range(count):
        out[l] = row[l]
    for t in range(1, width):
        shifted = row[t : t + count]
        for l in range(count):
            out[l] += shifted[l]


@jit.device
def _weigh(ring: Floats, count: int, options: Floats, column: Floats, out: Floats) -> None:
    """Weights of `count` pixels, from the squared differences of the rows of their patches."""
    width = len(ring)
    _sum_rows(ring, count + width - 1, column)
    _sum_neighbours(column, width, count, out)
    floor, steep = ring.dtype.type(options[0]), ring.dtype.type(options[1])
    for l in range(count):
        excess = out[l] - floor
        out[l] = exp(-steep * (excess if excess > 0 else floor * 0))


@jit.kernel
def normalise(
    tile: int,
    u: Floats,
    patch: int,
    distance: int,
    options: Floats,
    total: Floats,
    top: Floats,
) -> None:
    """Sum and maximum of each pixel's weights over the window, the pixel itself left out.

    `u` (C, H + patch - 1, W + patch - 1) padded; `options` twice the variance and one over the
    squared bandwidth, both for sums over patches. Tiles ``start:stop`` of `total` and `top` (H, W).
    """
    H, W = total.shape
    wide = W + patch - 1
    first, last = tile * TILE, min(tile * TILE + TILE, H)
    ring, column = np.empty((patch, wide), u.dtype), np.empty(wide, u.dtype)
    weights = np.empty(W, u.dtype)
    for y in range(first, last):
        for x in range(W):
            total[y, x] = 0
            top[y, x] = 0
    for dy in range(-distance, distance + 1):
        upper, lower = max(first, -dy), min(last, H - dy)
        for dx in range(-distance, distance + 1):
            left, right = max(0, -dx), min(W, W - dx)
            count = right - left
            if (dy == 0 and dx == 0) or count <= 0 or lower <= upper:
                continue
            for row in range(upper, lower + patch - 1):
                _squares(u, row, left, dy, dx, count + patch - 1, ring[row % patch])
                y = row - patch + 1
                if y < upper:
                    continue
                _weigh(ring, count, options, column, weights)
                sums, tops = total[y, left:right], top[y, left:right]
                for l in range(count):
                    w = weights[l]
                    sums[l] += w
                    tops[l] = w if w > tops[l] else tops[l]


@jit.device
def _paste(
    u: Floats, y: int, dy: int, dx: int, margin: int, left: int, weights: Floats, acc: Floats
) -> None:
    """Add the pixels at a shift, weighted, to a row of the result from column `left` on."""
    count = len(weights)
    for c in range(len(acc)):
        at = left + margin + dx
        there, out = u[c, y + margin + dy, at : at + count], acc[c, left : left + count]
        for l in range(count):
            out[l] += weights[l] * there[l]


@jit.kernel
def average(
    tile: int,
    u: Floats,
    patch: int,
    distance: int,
    options: Floats,
    inverse: Floats,
    own: Floats,
    out: Floats,
) -> None:
    """Weighted means over the window, of pixels or of whole patches, as ``options[2]`` says.

    `inverse` (H, W) of each pixel's sum of weights and its `own` weight; result `out` (H, W, C).
    """
    H, W = inverse.shape
    C, wide, r = u.shape[0], W + patch - 1, patch // 2
    vote = r if options[2] != 0 else 0
    span = 2 * vote + 1
    first, last = tile * TILE, min(tile * TILE + TILE, H)
    ring, column = np.empty((patch, wide), u.dtype), np.empty(wide, u.dtype)
    votes, boxed = np.empty((span, W + 2 * vote), u.dtype), np.empty(W, u.dtype)
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
                    votes[t, l] = 0
            for y in range(upper, upper + patch - 1):
                if not itself:
                    _squares(u, y, left, dy, dx, count + patch - 1, ring[y % patch])
            for newest in range(upper, lower + 2 * vote):
                weights = votes[newest % span, vote + left : vote + right]
                if newest >= lower:
                    for l in range(count):
                        weights[l] = 0
                else:
                    scale = inverse[newest, left:right]
                    if itself:
                        for l in range(count):
                            weights[l] = own[newest, l] * scale[l]
                    else:
                        y = newest + patch - 1
                        _squares(u, y, left, dy, dx, count + patch - 1, ring[y % patch])
                        _weigh(ring, count, options, column, weights)
                        for l in range(count):
                            weights[l] *= scale[l]
                y = newest - vote
                if y < first or y >= last:
                    continue
                if vote == 0:
                    _paste(u, y, dy, dx, r, left, weights, acc[y - first])
                    continue
                _sum_rows(votes, W + 2 * vote, column)
                low, high = max(0, left - vote), min(W, right + vote)
                _sum_neighbours(column[low:], span, high - low, boxed)
                _paste(u, y, dy, dx, r, low, boxed[: high - low], acc[y - first])
    for y in range(first, last):
        rows = min(H - 1, y + vote) - max(0, y - vote) + 1
        for x in range(W):
            columns = min(W - 1, x + vote) - max(0, x - vote) + 1
            for c in range(C):
                out[y, x, c] = acc[y - first, c, x] / (rows * columns)
