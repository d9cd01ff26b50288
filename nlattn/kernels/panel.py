"""Scores of one panel of queries against one block of keys, and their softmax.

Scores are held transposed: ``s[j, l]`` is key `j` against query `l` of the panel. So every step of
the softmax is the same operation on all lanes, keys and values are read as they lie, and only
queries are repacked, once per tile. Loops over lanes run on views of one row where that is what
lets the compiler vectorise them: it cannot tell strided rows of one buffer apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from nlattn._types import Bools, Floats, Ints
from nlattn.kernels.exp import exp, tanh
from nlattn.kernels.gemm import scaled, width
from nlattn.kernels.lanes import exponentials, highest
from nlattn.runtime import jit

TILE = 256
"""Queries of a tile."""
KEYS = 256
"""Keys of a block: its scores against one panel of queries fit the first-level cache."""
_CALL = 4_000_000_000


class Scores(NamedTuple):
    """What scores are made from; arrays are folded to one leading axis."""

    q: Floats
    k: Floats
    bias: Floats
    """(B, n or 1, m or 1); read if `has_bias`."""
    mask: Bools
    """(B, n or 1, m or 1) True where a query may attend; of blocks of both. Read if `has_mask`."""
    kept: Bools
    """(B, n or 1, m or 1) weights that are not dropped; read if `has_dropout`."""
    band: Ints
    """(B, n, 3) of each query: its first key, the end of its keys, and its own place among them.

    The end is -1 for a query that does not exist.
    """
    logits: Floats
    """(heads, 2) the sink (-inf for none), and the slope of the linear bias."""
    slices: Ints
    """(heads, 7) slices of q, k, v, bias, mask, kept and band that belong to each head."""
    scale: np.floating
    cap: np.floating
    """Soft cap; 0 for none."""
    factor: np.floating
    """Of the weights that are kept."""
    rows: int
    """Queries of a block of the mask."""
    columns: int
    """Its keys."""
    has_bias: bool
    has_mask: bool
    has_dropout: bool


@jit.device
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


@jit.device
def key_range(p: Scores, head: int, rows: Ints, first: int) -> tuple[int, int]:
    """Keys that the band allows to some query of a panel."""
    low, high = p.k.shape[1], 0
    part = p.slices[head, 6]
    for l in range(first, min(first + width(p.q), rows.size)):
        start, end = p.band[part, rows[l], 0], p.band[part, rows[l], 1]
        if start < end:
            low, high = min(low, start), max(high, end)
    return low, high


@jit.device
def sees(p: Scores, head: int, rows: Ints, first: int, j0: int, count: int) -> bool:
    """Whether band and mask leave a panel of queries some key of a block."""
    low, high = key_range(p, head, rows, first)
    if high <= j0 or low >= j0 + count:
        return False
    if not p.has_mask:
        return True
    part = p.slices[head, 4]
    last = min(first + width(p.q), rows.size)
    for l in range(first, last):
        i = rows[l] // p.rows if p.mask.shape[1] > 1 else 0
        if p.mask.shape[2] == 1:
            if p.mask[part, i, 0]:
                return True
        else:
            for j in range(j0 // p.columns, (j0 + count - 1) // p.columns + 1):
                if p.mask[part, i, j]:
                    return True
    return False


@jit.device
def score(
    p: Scores,
    head: int,
    rows: Ints,
    first: int,
    panel: Floats,
    j0: int,
    count: int,
    s: Floats,
    s0: int,
    step: int,
    slope: Floats,
) -> None:
    """Scores of one block of keys against a packed panel of queries; -inf where forbidden.

    Key j's row begins at ``s[s0 + j step]``. With a soft cap, `slope` (unless empty) receives the
    derivative of the capped score, in the same places.
    """
    d, w = p.q.shape[2], width(p.q)
    part = p.slices[head, 1]
    scaled(p.k, (part * p.k.shape[1] + j0) * d, d, 1, panel, 0, w, s, s0, step, count, d, p.scale)
    if p.cap > 0:
        for j in range(count):
            row = s[s0 + j * step : s0 + j * step + w]
            for l in range(w):
                row[l] = tanh(row[l] / p.cap)
            if slope.size:
                steep = slope[s0 + j * step : s0 + j * step + w]
                for l in range(w):
                    steep[l] = 1 - row[l] * row[l]
            for l in range(w):
                row[l] *= p.cap
    last = min(w, rows.size - first)
    band = p.band[p.slices[head, 6]]
    slope_ = p.logits[head, 1]
    if slope_ != 0:
        for l in range(last):
            own = band[rows[first + l], 2] - j0
            for j in range(count):
                s[s0 + j * step + l] -= slope_ * s.dtype.type(abs(own - j))
    if p.has_bias:
        part = p.slices[head, 3]
        for l in range(last):
            i = rows[first + l] if p.bias.shape[1] > 1 else 0
            column = 1 if p.bias.shape[2] > 1 else 0
            for j in range(count):
                x = p.bias[part, i, (j0 + j) * column]
                s[s0 + j * step + l] = x if x == -np.inf else s[s0 + j * step + l] + x
    if p.has_mask:
        part = p.slices[head, 4]
        for l in range(last):
            i = rows[first + l] // p.rows if p.mask.shape[1] > 1 else 0
            column = 1 if p.mask.shape[2] > 1 else 0
            if p.columns == 1:
                for j in range(count):
                    if not p.mask[part, i, (j0 + j) * column]:
                        s[s0 + j * step + l] = -np.inf
            else:
                for block in range(j0 // p.columns, (j0 + count - 1) // p.columns + 1):
                    if not p.mask[part, i, block * column]:
                        start = max(block * p.columns - j0, 0)
                        for j in range(start, min((block + 1) * p.columns - j0, count)):
                            s[s0 + j * step + l] = -np.inf
    for l in range(last):
        i = rows[first + l]
        for j in range(min(count, band[i, 0] - j0)):
            s[s0 + j * step + l] = -np.inf
        for j in range(max(0, band[i, 1] - j0), count):
            s[s0 + j * step + l] = -np.inf


@jit.device
def drop(
    p: Scores, head: int, rows: Ints, first: int, j0: int, count: int, s: Floats, s0: int, step: int
) -> None:
    """Multiply what belongs to weights that are kept by the factor, all else by 0."""
    part, column = p.slices[head, 5], 1 if p.kept.shape[2] > 1 else 0
    for l in range(min(width(p.q), rows.size - first)):
        i = rows[first + l] if p.kept.shape[1] > 1 else 0
        for j in range(count):
            if p.kept[part, i, (j0 + j) * column]:
                s[s0 + j * step + l] *= p.factor
            else:
                s[s0 + j * step + l] = 0


@jit.device
def soften(s: Floats, count: int, w: int, top: Floats, total: Floats, room: Floats) -> None:
    """Turn a panel's scores into weights relative to the running maximum `top` of each query.

    `total` is the running sum of weights. `room` holds two rows; the first receives what earlier
    weights must be multiplied by.
    """
    shrink, shift = room[:w], room[w:]
    for l in range(w):
        shrink[l] = top[l]
    highest(s, count, top)
    for l in range(w):
        shift[l] = top[l] if top[l] > -np.inf else 0
        shrink[l] = exp(shrink[l] - shift[l])
        total[l] *= shrink[l]
    exponentials(s, count, shift, total)


@jit.device
def add(part: Floats, e: int, shrink: Floats, acc: Floats) -> None:
    """``acc = acc shrink + part``, channel by channel of a panel."""
    w = shrink.size
    for c in range(e):
        whole, new = acc[c * w : c * w + w], part[c * w : c * w + w]
        for l in range(w):
            whole[l] = whole[l] * shrink[l] + new[l]


@jit.device
def load_norm(norm: Floats, rows: Ints, first: int, top: Floats, inverse: Floats) -> None:
    """Normalisers (2, n) of a panel: weights are ``exp(s - top) inverse``, 0 in an empty row."""
    for l in range(width(norm)):
        known = first + l < rows.size and norm[1, rows[first + l]] != 0
        top[l] = norm[0, rows[first + l]] if known else 0
        inverse[l] = 1 / norm[1, rows[first + l]] if known else 0


def groups(tasks: int, cost: int) -> Iterator[range]:
    """Cut `tasks` of `cost` multiply-adds into calls of some 20-100 ms, between which Ctrl-C acts.

    How they are cut changes no result.
    """
    step = max(16, -(-_CALL // max(cost, 1) // 16) * 16)
    for start in range(0, tasks, step):
        yield range(start, min(start + step, tasks))
