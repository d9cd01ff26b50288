"""Dense softmax attention over tiles: forward, the map's products and rows, gradients.

Scores are held transposed, one panel of queries at a time: ``s[j, l]`` is key `j` against query `l`
of the panel. So every step of the softmax is the same operation on all lanes, keys and values are
read as they lie, and only queries are repacked, once per tile.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn import _jit
from nlattn._types import Bools, Floats, Ints
from nlattn.kernels.exp import exp, tanh
from nlattn.kernels.gemm import aligned, multiply, width

TILE = 256
"""Queries of a tile."""
KEYS = 256
"""Keys of a block: its scores against one panel of queries fit the first-level cache."""


class Scores(NamedTuple):
    """What scores are made from; arrays are folded to one leading axis."""

    q: Floats
    k: Floats
    bias: Floats
    """(B, n or 1, m or 1); read if `has_bias`."""
    mask: Bools
    """(B, n or 1, m or 1), True where a query may attend; read if `has_mask`."""
    index: Ints
    """(heads, 5) slices of q, k, v, bias and mask that belong to each head."""
    scale: np.floating
    cap: np.floating
    """Soft cap; 0 for none."""
    low: int
    """Query i may attend to key j if ``low <= j - i <= high``."""
    high: int
    has_bias: bool
    has_mask: bool


@_jit.device
def spread(position: int, count: int) -> int:
    """Permute 0..count-1 so that neighbours, which one thread gets, differ in cost."""
    step = max(1, int(0.618 * count))
    while True:
        a, b = step, count
        while b:
            a, b = b, a % b
        if a == 1:
            return position * step % count
        step += 1


@_jit.device
def pack(x: Floats, part: int, rows: Ints, first: int, panel: Floats) -> None:
    """Put rows ``first, first + 1, ...`` of `rows` side by side: ``panel[c, l] = x[row_l, c]``."""
    w = width(x)
    for l in range(w):
        if first + l < rows.size:
            i = rows[first + l]
            for c in range(x.shape[2]):
                panel[c * w + l] = x[part, i, c]
        else:
            for c in range(x.shape[2]):
                panel[c * w + l] = 0


@_jit.device
def key_range(p: Scores, rows: Ints, first: int) -> tuple[int, int]:
    """Keys that the band allows to some query of a panel."""
    m = p.k.shape[1]
    last = min(first + width(p.q), rows.size)
    low, high = rows[first], rows[first]
    for l in range(first, last):
        low, high = min(low, rows[l]), max(high, rows[l])
    return min(m, max(0, low + p.low)), max(0, min(m, high + p.high + 1))


@_jit.device
def wholly_masked(p: Scores, head: int, rows: Ints, first: int, j0: int, count: int) -> bool:
    """Whether `mask` forbids a panel of queries all keys of a block."""
    part = p.index[head, 4]
    last = min(first + width(p.q), rows.size)
    for l in range(first, last):
        i = rows[l] if p.mask.shape[1] > 1 else 0
        if p.mask.shape[2] == 1:
            if p.mask[part, i, 0]:
                return False
        else:
            for j in range(j0, j0 + count):
                if p.mask[part, i, j]:
                    return False
    return True


@_jit.device
def score(
    p: Scores,
    head: int,
    rows: Ints,
    first: int,
    panel: Floats,
    j0: int,
    count: int,
    s: Floats,
    slope: Floats,
) -> None:
    """Scores of one block of keys against a packed panel of queries; -inf where forbidden.

    With a soft cap, `slope` (unless empty) receives the derivative of the capped score.
    """
    d, w = p.q.shape[2], width(p.q)
    part = p.index[head, 1]
    multiply(p.k, (part * p.k.shape[1] + j0) * d, d, 1, panel, 0, w, s, 0, w, count, d)
    for x in range(count * w):
        s[x] *= p.scale
    if p.cap > 0:
        for x in range(count * w):
            t = tanh(s[x] / p.cap)
            s[x] = p.cap * t
            if slope.size:
                slope[x] = 1 - t * t
    last = min(w, rows.size - first)
    if p.has_bias:
        part = p.index[head, 3]
        for l in range(last):
            i = rows[first + l] if p.bias.shape[1] > 1 else 0
            step = 1 if p.bias.shape[2] > 1 else 0
            for j in range(count):
                s[j * w + l] += p.bias[part, i, (j0 + j) * step]
    if p.has_mask:
        part = p.index[head, 4]
        for l in range(last):
            i = rows[first + l] if p.mask.shape[1] > 1 else 0
            step = 1 if p.mask.shape[2] > 1 else 0
            for j in range(count):
                if not p.mask[part, i, (j0 + j) * step]:
                    s[j * w + l] = -np.inf
    for l in range(last):
        i = rows[first + l]
        for j in range(min(count, i + p.low - j0)):
            s[j * w + l] = -np.inf
        for j in range(max(0, i + p.high + 1 - j0), count):
            s[j * w + l] = -np.inf


@_jit.device
def soften(s: Floats, count: int, w: int, top: Floats, total: Floats, shrink: Floats) -> None:
    """Turn a panel's scores into weights relative to the running maximum `top` of each query.

    `total` is the running sum of weights; `shrink` what earlier weights must be multiplied by.
    """
    for l in range(w):
        shrink[l] = top[l]
    for j in range(count):
        for l in range(w):
            x = s[j * w + l]
            top[l] = x if x > top[l] else top[l]
    for l in range(w):
        shift = top[l] if top[l] > -np.inf else top.dtype.type(0)
        shrink[l] = exp(shrink[l] - shift)
        total[l] *= shrink[l]
    for j in range(count):
        for l in range(w):
            shift = top[l] if top[l] > -np.inf else top.dtype.type(0)
            e = exp(s[j * w + l] - shift)
            s[j * w + l] = e
            total[l] += e


@_jit.kernel
def attend(p: Scores, v: Floats, start: int, stop: int, out: Floats, lse: Floats) -> None:
    """``out = softmax(scores) v`` and each row's log normaliser, for tiles `start` to `stop`."""
    n, m, d, e = p.q.shape[1], p.k.shape[1], p.q.shape[2], v.shape[2]
    tiles = (n + TILE - 1) // TILE
    for task in _jit.prange(stop - start):
        here = start + spread(task, stop - start)
        head, i0 = here // tiles, here % tiles * TILE
        rows = np.arange(i0, min(i0 + TILE, n))
        w = width(v)
        panels = (rows.size + w - 1) // w
        queries = aligned(panels * d * w, v).reshape((panels, d * w))
        s, part, shrink = aligned(KEYS * w, v), aligned(e * w, v), aligned(w, v)
        acc = aligned(panels * e * w, v).reshape((panels, e * w))
        top = aligned(panels * w, v).reshape((panels, w))
        total = aligned(panels * w, v).reshape((panels, w))
        acc[:], top[:], total[:] = 0, -np.inf, 0
        begin, end = m, 0
        for a in range(panels):
            pack(p.q, p.index[head, 0], rows, a * w, queries[a])
            low, high = key_range(p, rows, a * w)
            begin, end = min(begin, low), max(end, high)
        for j0 in range(begin // KEYS * KEYS, end, KEYS):
            count = min(KEYS, end - j0)
            value = (p.index[head, 2] * m + j0) * e
            for a in range(panels):
                low, high = key_range(p, rows, a * w)
                if high <= j0 or low >= j0 + count:
                    continue
                if p.has_mask and wholly_masked(p, head, rows, a * w, j0, count):
                    continue
                score(p, head, rows, a * w, queries[a], j0, count, s, s[:0])
                soften(s, count, w, top[a], total[a], shrink)
                multiply(v, value, 1, e, s, 0, w, part, 0, w, e, count)
                for c in range(e):
                    for l in range(w):
                        acc[a, c * w + l] = acc[a, c * w + l] * shrink[l] + part[c * w + l]
        for x in range(rows.size):
            a, l = x // w, x % w
            empty = total[a, l] == 0
            lse[head, i0 + x] = -np.inf if empty else top[a, l] + np.log(total[a, l])
            for c in range(e):
                out[head, i0 + x, c] = 0 if empty else acc[a, c * w + l] / total[a, l]
