"""Gradients of dense softmax attention: scores are computed again from what the output left.

With weights ``P = exp(S - top) / total`` and ``dP = dout v.T``, the gradient of the scores after
the mask is ``dS = P (dP - delta)``, where ``delta[i] = dout[i] . out[i] - dlse[i]``.
"""

from __future__ import annotations

import numpy as np

from nlattn._types import Floats, Ints
from nlattn.kernels.gemm import aligned, multiply, width
from nlattn.kernels.lanes import slopes
from nlattn.kernels.panel import KEYS, Scores, drop, key_range, load_norm, pack, score
from nlattn.runtime import jit

_TILE_BYTES = 1024


@jit.shared
def tile_of(x: Floats) -> int:
    """Queries of a tile: its scores against one block of keys fit half the second-level cache."""
    return _TILE_BYTES // x.itemsize


@jit.device
def score_gradient(
    p: Scores,
    v: Floats,
    dout: Floats,
    norm: Floats,
    delta: Floats,
    head: int,
    rows: Ints,
    first: int,
    j0: int,
    count: int,
    room: Floats,
    s: Floats,
    ds: Floats,
    s0: int,
    step: int,
    slope: Floats,
) -> None:
    """Weights `s` and gradient `ds` of the biased scores of one panel and one block of keys.

    Key j's row begins at ``s0 + j step`` in both, and in `slope`.
    """
    m, e, w = p.k.shape[1], v.shape[2], width(v)
    pack(p.q, p.slices[head, 0], rows, first, room)
    score(p, head, rows, first, room, j0, count, s, s0, step, slope)
    pack(dout, head, rows, first, room)
    multiply(v, (p.slices[head, 2] * m + j0) * e, e, 1, room, 0, w, ds, s0, step, count, e)
    top, inverse, shift = room[:w], room[w : 2 * w], room[2 * w : 3 * w]
    load_norm(norm[:, head], rows, first, top, inverse)
    for l in range(w):
        shift[l] = delta[head, rows[first + l]] if first + l < rows.size else 0
    if p.has_dropout:
        drop(p, head, rows, first, j0, count, ds, s0, step)
    slopes(s, ds, s0, step, count, top, inverse, shift)
    if p.has_dropout:
        drop(p, head, rows, first, j0, count, s, s0, step)


@jit.device
def lay(x: Floats, part: int, first: int, count: int, panels: Floats) -> None:
    """Copy rows of x as panels of channels, ``panels[c / w, i, c % w]``, filled up with zeros."""
    w, d = width(x), x.shape[2]
    for c0 in range(0, d, w):
        for i in range(count):
            at = c0 * count + i * w
            row, source = panels[at : at + w], x[part, first + i, c0 : c0 + w]
            if source.size < w:
                for l in range(w):
                    row[l] = source[l] if l < source.size else 0
            else:
                for l in range(w):
                    row[l] = source[l]


@jit.device
def add_product(
    a: Floats,
    a_row: int,
    a_k: int,
    panels: Floats,
    depth: int,
    room: Floats,
    out: Floats,
    head: int,
    first: int,
    rows: int,
) -> None:
    """``out[first : first + rows] += a b`` for b in panels of channels."""
    w, d = width(a), out.shape[2]
    for c0 in range(0, d, w):
        multiply(a, 0, a_row, a_k, panels, c0 * depth, w, room, 0, w, rows, depth)
        for i in range(rows):
            row, new = out[head, first + i, c0 : c0 + w], room[i * w : i * w + w]
            if row.size < w:
                for l in range(row.size):
                    row[l] += new[l]
            else:
                for l in range(w):
                    row[l] += new[l]


@jit.device
def add_pair(
    p: Scores,
    v: Floats,
    dout: Floats,
    norm: Floats,
    delta: Floats,
    head: int,
    rows: Ints,
    j0: int,
    dq: Floats,
    dk: Floats,
    dv: Floats,
) -> None:
    """What one tile of queries and one block of keys add to the gradients."""
    d, e, w = p.q.shape[2], v.shape[2], width(v)
    count, size = min(KEYS, p.k.shape[1] - j0), rows.size
    near = False
    for first in range(0, size, w):
        low, high = key_range(p, head, rows, first)
        near = near or (low < j0 + count and high > j0)
    if not near:
        return
    step = (size + w - 1) // w * w + 64 // v.itemsize  # off the powers of two that share a set
    wide = (max(d, e) + w - 1) // w * w
    s, ds = aligned(count * step, v), aligned(count * step, v)
    slope = aligned(count * step if p.cap > 0 else 0, v)
    room = aligned(max(wide, size, count, 3) * w, v)
    panels = aligned(wide * max(size, count), v)
    for first in range(0, size, w):
        low, high = key_range(p, head, rows, first)
        if low < j0 + count and high > j0:
            score_gradient(
                p,
                v,
                dout,
                norm,
                delta,
                head,
                rows,
                first,
                j0,
                count,
                room,
                s,
                ds,
                first,
                step,
                slope,
            )
            for j in range(count):
                at = j * step + first
                change = ds[at : at + w]
                for l in range(w):
                    change[l] *= p.scale
                if p.cap > 0:
                    steep = slope[at : at + w]
                    for l in range(w):
                        change[l] *= steep[l]
        else:
            for j in range(count):
                at = j * step + first
                for l in range(w):
                    s[at + l], ds[at + l] = 0, 0
    lay(p.k, p.slices[head, 1], j0, count, panels)
    add_product(ds, 1, step, panels, count, room, dq, head, rows[0], size)
    lay(p.q, p.slices[head, 0], rows[0], size, panels)
    add_product(ds, step, 1, panels, size, room, dk, head, j0, count)
    lay(dout, head, rows[0], size, panels)
    add_product(s, step, 1, panels, size, room, dv, head, j0, count)


@jit.shared
def diagonals(p: Scores) -> int:
    """Number of steps of `backward`: the larger of the numbers of tiles and of blocks."""
    tile = tile_of(p.q)
    tiles, blocks = (p.q.shape[1] + tile - 1) // tile, (p.k.shape[1] + KEYS - 1) // KEYS
    return int(max(tiles, blocks))


@jit.kernel
def backward(
    task: int,
    p: Scores,
    v: Floats,
    dout: Floats,
    norm: Floats,
    delta: Floats,
    diagonal: int,
    dq: Floats,
    dk: Floats,
    dv: Floats,
) -> None:
    """Add a diagonal to the gradients of every head.

    On a diagonal each block of keys meets another tile of queries, so both gradients are owned by
    the pair and nothing is summed across threads; every row's sum runs over diagonals in order.
    """
    n, m, tile = p.q.shape[1], p.k.shape[1], tile_of(v)
    side = diagonals(p)
    head, block = task // side, task % side
    i0, j0 = (block + diagonal) % side * tile, block * KEYS
    if i0 < n and j0 < m:
        rows = np.arange(i0, min(i0 + tile, n))
        add_pair(p, v, dout, norm, delta, head, rows, j0, dq, dk, dv)


@jit.kernel
def bias_gradient(
    task: int,
    p: Scores,
    v: Floats,
    dout: Floats,
    norm: Floats,
    delta: Floats,
    dbias: Floats,
) -> None:
    """Gradient of the bias in its own shape.

    A task owns one panel of queries (all of them where the bias has one row) and one block of
    keys (all where it has one column) of one slice, and adds up the heads that share it.
    """
    n, m, e, w = p.q.shape[1], p.k.shape[1], v.shape[2], width(v)
    tall, long = p.bias.shape[1] > 1, p.bias.shape[2] > 1
    across = (m + KEYS - 1) // KEYS if long else 1
    down = (n + w - 1) // w if tall else 1
    part, first, j0 = task // across // down, task // across % down * w, task % across * KEYS
    room = aligned(max(p.q.shape[2], e, 3) * w, v)
    s, ds, slope = aligned(KEYS * w, v), aligned(KEYS * w, v), aligned(0, v)
    for head in range(dout.shape[0]):
        if p.slices[head, 3] != part:
            continue
        for i0 in range(first, min(first + w, n) if tall else n, w):
            rows = np.arange(i0, min(i0 + w, n))
            low, high = key_range(p, head, rows, 0)
            for j1 in range(j0, min(j0 + KEYS, m) if long else m, KEYS):
                count = min(KEYS, m - j1)
                if high <= j1 or low >= j1 + count:
                    continue
                score_gradient(
                    p, v, dout, norm, delta, head, rows, 0, j1, count, room, s, ds, 0, w, slope
                )
                add_bias(ds, count, rows, j1, tall, long, dbias[part])


@jit.device
def add_bias(
    ds: Floats, count: int, rows: Ints, j0: int, tall: bool, long: bool, dbias: Floats
) -> None:
    """Add one panel's gradient of the scores, summed over the axes that the bias lacks."""
    w = width(ds)
    if long:
        for j in range(count):
            total = ds.dtype.type(0)
            for l in range(rows.size):
                if tall:
                    dbias[rows[l], j0 + j] += ds[j * w + l]
                total += ds[j * w + l]
            if not tall:
                dbias[0, j0 + j] += total
    else:
        for l in range(rows.size):
            total = ds.dtype.type(0)
            for j in range(count):
                total += ds[j * w + l]
            dbias[rows[l] if tall else 0, 0] += total
