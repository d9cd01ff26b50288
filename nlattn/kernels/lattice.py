"""Sums over a sparse lattice: who is whose neighbour, splat, blur, slice.

Arrays over lattice points have one row more than there are points, of zeros: absent points.
"""

from __future__ import annotations

from nlattn._types import Floats, Ints
from nlattn.runtime import jit

BLOCK = 512


@jit.device
def _order(points: Ints, t: int, p: int, step: Ints) -> int:
    """Sign of ``points[t] - (points[p] + step)`` in lexicographic order."""
    for c in range(points.shape[1]):
        difference = points[t, c] - points[p, c] - step[c]
        if difference != 0:
            return 1 if difference > 0 else -1
    return 0


@jit.kernel
def neighbours(task: int, points: Ints, steps: Ints, found: Ints) -> None:
    """The point ``p + step`` of every point p and step, or their number M if there is none.

    `points` (M, c) in lexicographic order, which steps keep: a search, then a walk along both.
    `steps` (s, c). Result `found` (s, M).
    """
    M = points.shape[0]
    blocks = (M + BLOCK - 1) // BLOCK
    axis, start = task // blocks, task % blocks * BLOCK
    step = steps[axis]
    low, high = 0, M
    while low < high:
        middle = (low + high) // 2
        if _order(points, middle, start, step) < 0:
            low = middle + 1
        else:
            high = middle
    for p in range(start, min(start + BLOCK, M)):
        while low < M and _order(points, low, p, step) < 0:
            low += 1
        here = low < M and _order(points, low, p, step) == 0
        found[axis, p] = low if here else M


@jit.kernel
def splat(task: int, indptr: Ints, entries: Ints, b: Floats, x: Floats, z: Floats) -> None:
    """``z[p] = sum_t b[t] x[t // corners]`` over the entries t of every lattice point, in order.

    `indptr` (M + 1,), `entries` numbers of points and corners, `b` (m, corners), `x` (m, e).
    Result `z` (M + 1, e), its last row 0.
    """
    M, corners = len(indptr) - 1, b.shape[1]
    for p in range(task * BLOCK, min(task * BLOCK + BLOCK, M + 1)):
        for a in range(z.shape[1]):
            z[p, a] = 0.0
        if p == M:
            break
        for t in range(indptr[p], indptr[p + 1]):
            i, corner = entries[t] // corners, entries[t] % corners
            for a in range(z.shape[1]):
                z[p, a] += b[i, corner] * x[i, a]


@jit.kernel
def blur(task: int, above: Ints, below: Ints, z: Floats, out: Floats) -> None:
    """``out[p] = z[p] + (z[above[p]] + z[below[p]]) / 2`` (M + 1, e), the last row 0."""
    M = len(above)
    for p in range(task * BLOCK, min(task * BLOCK + BLOCK, M + 1)):
        if p == M:
            for a in range(z.shape[1]):
                out[p, a] = 0.0
            break
        up, down = above[p], below[p]
        for a in range(z.shape[1]):
            out[p, a] = z[p, a] + (z[up, a] + z[down, a]) / 2


@jit.kernel
def read(task: int, at: Ints, b: Floats, z: Floats, out: Floats) -> None:
    """``out[i] = sum_k b[i, k] z[at[i, k]]``: `at`, `b` (n, corners), `out` (n, e)."""
    n = len(at)
    for i in range(task * BLOCK, min(task * BLOCK + BLOCK, n)):
        for a in range(z.shape[1]):
            out[i, a] = 0.0
        for k in range(at.shape[1]):
            for a in range(z.shape[1]):
                out[i, a] += b[i, k] * z[at[i, k], a]


@jit.kernel
def slopes(task: int, at: Ints, x: Floats, z: Floats, db: Floats) -> None:
    """``db[i, k] = x[i] . z[at[i, k]]``: `at`, `db` (n, corners), `x` (n, e)."""
    n = len(at)
    for i in range(task * BLOCK, min(task * BLOCK + BLOCK, n)):
        for k in range(at.shape[1]):
            total = 0.0
            for a in range(z.shape[1]):
                total += x[i, a] * z[at[i, k], a]
            db[i, k] = total
