"""Forward mode of dense softmax attention, in one pass over the keys.

With weights ``w = exp(s - top)`` and changes ``ds`` of the scores, three sums follow the running
maximum: of ``w v``, of ``w (ds - c) v + w dv``, and of ``w (ds - c)``. Their quotients give the
change of an output, ``(second - first third / total) / total``, and of ``lse``. Any number c of a
query gives the same: the mean of ds over the first keys that it sees is taken off, so that what
all its scores have in common does not cancel at the end.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn._types import Floats, Ints
from nlattn.kernels.gemm import aligned, multiply, scaled, width
from nlattn.kernels.panel import (
    KEYS,
    TILE,
    Scores,
    add,
    drop,
    key_range,
    pack,
    score,
    sees,
    soften,
)
from nlattn.runtime import jit

_CHAIN = 16  # numbers added in one chain


class Changes(NamedTuple):
    """How the arrays of `Scores`, and values, move; each is folded as its array is."""

    q: Floats
    k: Floats
    v: Floats
    bias: Floats
    """As the bias; read if `has_bias`."""
    logits: Floats
    """(heads, 2) of the sink, and of the slope."""
    has_bias: bool


@jit.device
def move(
    p: Scores, x: Changes, head: int, rows: Ints, first: int, panels: Floats, j0: int, count: int,
    slope: Floats, room: Floats, ds: Floats,
) -> None:  # fmt: skip
    """Changes of the scores of a panel and a block of keys, ``ds[j, l]``.

    `panels` holds the packed queries, then their changes; `slope` the derivative of the soft cap.
    """
    n, d, w = p.k.shape[1], p.q.shape[2], width(p.q)
    at = (p.slices[head, 1] * n + j0) * d
    scaled(p.k, at, d, 1, panels[d * w :], 0, w, ds, 0, w, count, d, p.scale)
    scaled(x.k, at, d, 1, panels, 0, w, room, 0, w, count, d, p.scale)
    for t in range(count * w):
        ds[t] += room[t]
    if p.cap > 0:
        for t in range(count * w):
            ds[t] *= slope[t]
    last = min(w, rows.size - first)
    dslope = x.logits[head, 1]
    if dslope != 0:
        for l in range(last):
            own = p.band[p.slices[head, 6], rows[first + l], 2] - j0
            for j in range(count):
                ds[j * w + l] -= dslope * ds.dtype.type(abs(own - j))
    if x.has_bias:
        part, column = p.slices[head, 3], 1 if p.bias.shape[2] > 1 else 0
        for l in range(last):
            i = rows[first + l] if p.bias.shape[1] > 1 else 0
            for j in range(count):
                ds[j * w + l] += x.bias[part, i, (j0 + j) * column]


@jit.device
def weigh(
    s: Floats, ds: Floats, count: int, total: Floats, mean: Floats, centre: Floats, known: Floats,
    room: Floats,
) -> None:  # fmt: skip
    """``ds = s (ds - centre)`` in place, and their sums to `mean`, for weights s.

    A query that has seen no key before gets its centre here; `known` is 1 of those that have one.
    A change of a score that weighs nothing may be infinite.
    """
    w = centre.size
    fresh, sums = False, room[:w]
    for l in range(w):
        fresh = fresh or (known[l] == 0 and total[l] > 0)
    if fresh:
        for l in range(w):
            sums[l] = 0
        for j in range(count):
            weights, changes = s[j * w : j * w + w], ds[j * w : j * w + w]
            for l in range(w):
                sums[l] += weights[l] * changes[l] if weights[l] > 0 else 0
        for l in range(w):
            if known[l] == 0 and total[l] > 0:
                centre[l], known[l] = sums[l] / total[l], 1
    for start in range(0, count, _CHAIN):
        for l in range(w):
            sums[l] = 0
        for j in range(start, min(start + _CHAIN, count)):
            weights, changes = s[j * w : j * w + w], ds[j * w : j * w + w]
            for l in range(w):
                change = weights[l] * (changes[l] - centre[l])
                changes[l] = change if weights[l] > 0 else 0
                sums[l] += changes[l]
        for l in range(w):
            mean[l] += sums[l]


@jit.device(once=True)
def attend_tile(
    p: Scores, v: Floats, x: Changes, head: int, i0: int, out: Floats, lse: Floats
) -> None:
    """`attend` for the queries from `i0` of one head."""
    n, m, d, e, w = p.q.shape[1], p.k.shape[1], p.q.shape[2], v.shape[2], width(v)
    rows = np.arange(i0, min(i0 + TILE, n))
    panels = (rows.size + w - 1) // w
    queries = aligned(panels * 2 * d * w, v)
    s, ds, room = aligned(KEYS * w, v), aligned(KEYS * w, v), aligned(KEYS * w, v)
    slope, part, ones = aligned(KEYS * w if p.cap > 0 else 0, v), aligned(e * w, v), aligned(w, v)
    acc, change, shrink = aligned(panels * e * w, v), aligned(panels * e * w, v), aligned(2 * w, v)
    top, total, mean = aligned(panels * w, v), aligned(panels * w, v), aligned(panels * w, v)
    centre, known = aligned(panels * w, v), aligned(panels * w, v)
    for t in range(acc.size):
        acc[t], change[t] = 0, 0
    for t in range(panels * w):
        top[t], total[t], mean[t], centre[t], known[t] = -np.inf, 0, 0, 0, 0
    for l in range(w):
        ones[l] = 1
    sink = p.logits[head, 0]
    if sink > -np.inf:
        for t in range(rows.size):
            if p.band[p.slices[head, 6], rows[t], 1] >= 0:
                top[t], total[t] = sink, 1
                mean[t], known[t], centre[t] = 0, 1, x.logits[head, 0]
    begin, end = m, 0
    for a in range(panels):
        own = queries[a * 2 * d * w :]
        pack(p.q, p.slices[head, 0], rows, a * w, own)
        pack(x.q, p.slices[head, 0], rows, a * w, own[d * w :])
        low, high = key_range(p, head, rows, a * w)
        begin, end = min(begin, low), max(end, high)
    for j0 in range(begin // KEYS * KEYS, end, KEYS):
        count = min(KEYS, end - j0)
        value = (p.slices[head, 2] * m + j0) * e
        for a in range(panels):
            if not sees(p, head, rows, a * w, j0, count):
                continue
            own, at = queries[a * 2 * d * w :], a * w
            score(p, head, rows, at, own, j0, count, s, 0, w, slope)
            move(p, x, head, rows, at, own, j0, count, slope, room, ds)
            soften(s, count, w, top[at : at + w], total[at : at + w], shrink)
            for l in range(w):
                mean[at + l] *= shrink[l]
            weigh(s, ds, count, total[at : at + w], mean[at : at + w], centre[at : at + w],
                  known[at : at + w], room)  # fmt: skip
            if p.has_dropout:
                drop(p, head, rows, at, j0, count, s, 0, w)
                drop(p, head, rows, at, j0, count, ds, 0, w)
            multiply(v, value, 1, e, s, 0, w, part, 0, w, e, count)
            add(part, e, shrink[:w], acc[at * e : (at + w) * e])
            multiply(v, value, 1, e, ds, 0, w, part, 0, w, e, count)
            add(part, e, shrink[:w], change[at * e : (at + w) * e])
            multiply(x.v, value, 1, e, s, 0, w, part, 0, w, e, count)
            add(part, e, ones, change[at * e : (at + w) * e])
    for t in range(rows.size):
        at, own_mean = (t // w * e) * w + t % w, mean[t] / total[t] if total[t] != 0 else mean[t]
        lse[head, i0 + t] = 0 if total[t] == 0 else own_mean + centre[t]
        for c in range(e):
            moved = change[at + c * w] - acc[at + c * w] * own_mean
            out[head, i0 + t, c] = 0 if total[t] == 0 else moved / total[t]


@jit.kernel
def attend(task: int, p: Scores, v: Floats, x: Changes, out: Floats, lse: Floats) -> None:
    """Changes of outputs (heads, n, e) and of ``lse`` (heads, n), of one tile of queries."""
    tiles = (p.q.shape[1] + TILE - 1) // TILE
    attend_tile(p, v, x, task // tiles, task % tiles * TILE, out, lse)
