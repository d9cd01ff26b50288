"""Dense softmax attention over tiles of queries: outputs, and what a map is asked for."""

from __future__ import annotations

import numpy as np

from nlattn._types import Floats, Ints
from nlattn.kernels.exp import exp
from nlattn.kernels.gemm import aligned, multiply, width
from nlattn.kernels.panel import (
    KEYS,
    TILE,
    Scores,
    add,
    drop,
    key_range,
    load_norm,
    pack,
    score,
    sees,
    soften,
)
from nlattn.runtime import jit


@jit.device(once=True)
def attend_tile(p: Scores, v: Floats, head: int, i0: int, out: Floats, norm: Floats) -> None:
    """`attend` for the queries from `i0` of one head."""
    n, m, d, e = p.q.shape[1], p.k.shape[1], p.q.shape[2], v.shape[2]
    rows = np.arange(i0, min(i0 + TILE, n))
    w = width(v)
    panels = (rows.size + w - 1) // w
    queries = aligned(panels * d * w, v)
    s, part, shrink = aligned(KEYS * w, v), aligned(e * w, v), aligned(2 * w, v)
    acc, tops, totals = aligned(panels * e * w, v), aligned(panels * w, v), aligned(panels * w, v)
    for x in range(acc.size):
        acc[x] = 0
    for x in range(tops.size):
        tops[x], totals[x] = -np.inf, 0
    sink = p.logits[head, 0]
    if sink > -np.inf:
        for x in range(rows.size):
            if p.band[p.slices[head, 6], rows[x], 1] >= 0:
                tops[x], totals[x] = sink, 1
    begin, end = m, 0
    for a in range(panels):
        pack(p.q, p.slices[head, 0], rows, a * w, queries[a * d * w :])
        low, high = key_range(p, head, rows, a * w)
        begin, end = min(begin, low), max(end, high)
    for j0 in range(begin // KEYS * KEYS, end, KEYS):
        count = min(KEYS, end - j0)
        value = (p.slices[head, 2] * m + j0) * e
        for a in range(panels):
            if not sees(p, head, rows, a * w, j0, count):
                continue
            score(p, head, rows, a * w, queries[a * d * w :], j0, count, s, 0, w, s[:0])
            soften(s, count, w, tops[a * w : a * w + w], totals[a * w : a * w + w], shrink)
            if p.has_dropout:
                drop(p, head, rows, a * w, j0, count, s, 0, w)
            multiply(v, value, 1, e, s, 0, w, part, 0, w, e, count)
            add(part, e, shrink[:w], acc[a * e * w : (a + 1) * e * w])
    for x in range(rows.size):
        total, at = totals[x], (x // w * e) * w + x % w
        norm[0, head, i0 + x], norm[1, head, i0 + x] = tops[x], total
        for c in range(e):
            out[head, i0 + x, c] = 0 if total == 0 else acc[at + c * w] / total


@jit.kernel
def attend(task: int, p: Scores, v: Floats, out: Floats, norm: Floats) -> None:
    """``out = softmax(scores) v`` of one tile of queries of all heads.

    `norm` (2, heads, n) receives each row's largest score and its sum of exponentials relative to
    that: their logarithm in one number would lose the digits of the whole part.
    """
    tiles = (p.q.shape[1] + TILE - 1) // TILE
    attend_tile(p, v, task // tiles, task % tiles * TILE, out, norm)


@jit.kernel
def rows(a: int, p: Scores, index: Ints, normalise: bool, out: Floats) -> None:
    """``out[r]`` = scores of query ``index[r]`` of the only head, or its weights."""
    m, d = p.k.shape[1], p.q.shape[2]
    w = width(p.k)
    panel, s = aligned(d * w, p.k), aligned(KEYS * w, p.k)
    pack(p.q, p.slices[0, 0], index, a * w, panel)
    last = min(w, index.size - a * w)
    for j0 in range(0, m, KEYS):
        count = min(KEYS, m - j0)
        score(p, 0, index, a * w, panel, j0, count, s, 0, w, s[:0])
        for l in range(last):
            for j in range(count):
                out[a * w + l, j0 + j] = s[j * w + l]
    if normalise:
        for l in range(last):
            normalise_row(out[a * w + l])


@jit.device
def normalise_row(x: Floats) -> None:
    """Softmax of one row in place; 0 if nothing is allowed."""
    top = x[0]
    for j in range(x.size):
        top = max(top, x[j])
    total = x.dtype.type(0)
    if top > -np.inf or top != top:
        for j0 in range(0, x.size, KEYS):
            part = x.dtype.type(0)
            for j in range(j0, min(j0 + KEYS, x.size)):
                x[j] = exp(x[j] - top)
                part += x[j]
            total += part
    for j in range(x.size):
        x[j] = x[j] / total if total != 0 else 0


@jit.kernel
def topk(panel: int, p: Scores, value: Floats, index: Ints) -> None:
    """Largest weights of each query of the only head, for one panel of them; index -1."""
    n, d, size = p.q.shape[1], p.q.shape[2], value.shape[1]
    w = width(p.k)
    first = panel * w
    queries = np.arange(first, min(first + w, n))
    features, s = aligned(d * w, p.k), aligned(KEYS * w, p.k)
    top, total, shrink = aligned(w, p.k), aligned(w, p.k), aligned(2 * w, p.k)
    top[:], total[:] = -np.inf, 0
    for i in queries:
        value[i], index[i] = -np.inf, -1
    pack(p.q, p.slices[0, 0], queries, 0, features)
    low, high = key_range(p, 0, queries, 0)
    for j0 in range(low, high, KEYS):
        count = min(KEYS, high - j0)
        score(p, 0, queries, 0, features, j0, count, s, 0, w, s[:0])
        for j in range(count):
            for l in range(queries.size):
                if s[j * w + l] > value[first + l, size - 1]:
                    insert(value[first + l], index[first + l], s[j * w + l], j0 + j)
        soften(s, count, w, top, total, shrink)
    for l in range(queries.size):
        for x in range(size):
            if index[first + l, x] < 0:
                value[first + l, x] = 0
            else:
                value[first + l, x] = exp(value[first + l, x] - top[l]) / total[l]


@jit.device
def insert(value: Floats, index: Ints, new: float, key: int) -> None:
    """Put a score into a descending list, behind its equals; the last one drops out."""
    x = value.size - 1
    while x > 0 and new > value[x - 1]:
        value[x], index[x] = value[x - 1], index[x - 1]
        x -= 1
    value[x], index[x] = new, key


@jit.kernel
def adjoint(block: int, p: Scores, norm: Floats, g: Floats, out: Floats) -> None:
    """``out = weights.T g`` of the only head, for one block of keys."""
    n, m, d, e = p.q.shape[1], p.k.shape[1], p.q.shape[2], g.shape[1]
    w = width(p.k)
    j0 = block * KEYS
    count = min(KEYS, m - j0)
    panel, s = aligned(d * w, p.k), aligned(KEYS * w, p.k)
    side, part = aligned(w * w, p.k), aligned(KEYS * w, p.k)
    top, inverse = aligned(w, p.k), aligned(w, p.k)
    out[j0 : j0 + count] = 0
    for first in range(0, n, w):
        queries = np.arange(first, min(first + w, n))
        low, high = key_range(p, 0, queries, 0)
        if high <= j0 or low >= j0 + count:
            continue
        pack(p.q, p.slices[0, 0], queries, 0, panel)
        score(p, 0, queries, 0, panel, j0, count, s, 0, w, s[:0])
        load_norm(norm[:, 0], queries, 0, top, inverse)
        for j in range(count):
            for l in range(w):
                s[j * w + l] = exp(s[j * w + l] - top[l]) * inverse[l]
        for c0 in range(0, e, w):
            side[:] = 0
            for l in range(queries.size):
                for c in range(c0, min(c0 + w, e)):
                    side[l * w + c - c0] = g[first + l, c]
            multiply(s, 0, w, 1, side, 0, w, part, 0, w, count, queries.size)
            for j in range(count):
                for c in range(c0, min(c0 + w, e)):
                    out[j0 + j, c] += part[j * w + c - c0]
