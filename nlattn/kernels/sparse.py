"""Weighted sums over the keys of a support, forward, backward and transposed.

A support is compressed rows: row r holds ``indices[indptr[r]:indptr[r + 1]]``, the rows of all its
slices one after the other. Heads may share slices: ``slices`` says which slice of each array a
head uses, and its last column where the head's coefficients start, less the support's own start,
so that edge t of the support has coefficient ``t + slices[b, -1]``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Ints
from nlattn.kernels.scores import DOT as PRODUCT
from nlattn.kernels.scores import NEG_L2, score
from nlattn.runtime import jit

SOFTMAX, GAUSSIAN, ABSPOW, DOT = range(4)
BLOCK = 256


NONE: Floats = _check.frozen(np.empty(0))


class EdgeOptions(NamedTuple):
    """How scores become weights."""

    weight: int
    factor: float
    """Of the score."""
    power: float
    fill: float
    """What a row without keys gives."""
    bias: Floats = NONE
    """Added to the score of each edge, in the order of the support; empty for none."""
    cap: float = 0.0
    """Scores s become ``cap tanh(s / cap)`` before the bias; 0 for none."""
    kept: Floats = NONE
    """What each edge's weight is multiplied by after the normaliser; empty for 1."""


@jit.device
def _fill(x: Any, value: float, count: int) -> None:
    for t in range(count):
        x[t] = value


@jit.device
def _copy(source: Floats, target: Floats, count: int) -> None:
    for t in range(count):
        target[t] = source[t]


@jit.device
def _weights(
    q: Floats, k: Floats, keys: Ints, o: EdgeOptions, first: int, scores: Floats, P: Floats
) -> float:
    """Scores of one query and their normalised weights; returns the normaliser's logarithm."""
    weight, scale, power = o.weight, q.dtype.type(o.factor), o.power
    kind = NEG_L2 if weight == GAUSSIAN else PRODUCT
    top, Z = -np.inf, 0.0
    for t in range(len(keys)):
        scores[t] = score(kind, scale, q, k[keys[t]])
        if o.cap > 0:
            scores[t] = o.cap * np.tanh(scores[t] / o.cap)
        if o.bias.size:
            scores[t] += o.bias[first + t]
        new = scores[t]
        top = new if new > top or new != new else top  # NaN stays
    if weight == DOT:
        top, Z = 0.0, float(len(keys))
        for t in range(len(keys)):
            P[t] = scores[t]
    elif weight == ABSPOW:  # of the largest score, lest the power overflow
        peak = 0.0
        for t in range(len(keys)):
            size = abs(np.float64(scores[t]))
            peak = peak if size <= peak else size  # NaN stays
        for t in range(len(keys)):
            P[t] = (abs(np.float64(scores[t])) / peak) ** power if peak != 0 else 0.0
            Z += P[t]
        top = power * np.log(peak) if peak != 0 else 0.0
    else:
        for t in range(len(keys) if top != -np.inf else 0):
            P[t] = np.exp(np.float64(scores[t]) - top)
            Z += P[t]
    if Z == 0:
        _fill(P, 0.0, len(keys))
        return -np.inf
    for t in range(len(keys)):
        P[t] /= Z
    return top + float(np.log(Z))


@jit.device
def _longest(indptr: Ints, slices: Ints, n: int, start: int, end: int) -> int:
    """Most keys of a row among the rows ``start:end`` of all heads."""
    longest = 0
    for r in range(start, end):
        row = slices[r // n, 3] * n + r % n
        longest = max(longest, indptr[row + 1] - indptr[row])
    return longest


@jit.device
def _add(acc: Floats, factor: float, x: Floats) -> None:
    for c in range(len(acc)):
        acc[c] += factor * x[c]


@jit.device(fast=True)
def _dot(a: Floats, b: Floats) -> float:
    total = 0.0
    for c in range(len(a)):
        total += np.float64(a[c]) * np.float64(b[c])
    return total


@jit.kernel
def attend(
    block: int,
    q: Floats,
    k: Floats,
    v: Floats,
    indptr: Ints,
    indices: Ints,
    slices: Ints,
    options: EdgeOptions,
    out: Floats,
    lse: Floats,
) -> None:
    """Weighted mean of the values of each query's keys.

    `q` (Bq, n, d), `k` (Bk, m, d), `v` (Bv, m, e); `slices` (B, 5) of q, k, v, the support, and the
    coefficients. Results `out` (B, n, e) and `lse` (B, n).
    """
    n = q.shape[1]
    rows = len(slices) * n
    start, end = block * BLOCK, min(block * BLOCK + BLOCK, rows)
    longest = _longest(indptr, slices, n, start, end)
    scores, P = np.empty(longest, q.dtype), np.empty(longest, np.float64)
    acc = np.empty(v.shape[2], np.float64)
    for r in range(start, end):
        b, i = r // n, r % n
        row = slices[b, 3] * n + i
        keys = indices[indptr[row] : indptr[row + 1]]
        lse[b, i] = _weights(
            q[slices[b, 0], i], k[slices[b, 1]], keys, options, indptr[row], scores, P
        )
        _fill(acc, options.fill if lse[b, i] == -np.inf else 0.0, len(acc))
        for t in range(len(keys)):
            share = P[t]
            if options.kept.size:
                if options.kept[indptr[row] + t] == 0:
                    continue
                share *= options.kept[indptr[row] + t]
            _add(acc, share, v[slices[b, 2], keys[t]])
        _copy(acc, out[b, i], len(acc))


@jit.kernel
def weigh(
    block: int,
    q: Floats,
    k: Floats,
    indptr: Ints,
    indices: Ints,
    slices: Ints,
    options: EdgeOptions,
    scores: Floats,
    P: Floats,
    lse: Floats,
) -> None:
    """Store the score and normalised weight of every edge, (B nnz), and ``lse`` (B, n)."""
    n = q.shape[1]
    rows = len(slices) * n
    start, end = block * BLOCK, min(block * BLOCK + BLOCK, rows)
    weights = np.empty(_longest(indptr, slices, n, start, end), np.float64)
    for r in range(start, end):
        b, i = r // n, r % n
        row = slices[b, 3] * n + i
        first, last = indptr[row], indptr[row + 1]
        at, to = first + slices[b, 4], last + slices[b, 4]
        lse[b, i] = _weights(
            q[slices[b, 0], i],
            k[slices[b, 1]],
            indices[first:last],
            options,
            first,
            scores[at:to],
            weights,
        )
        _copy(weights, P[at:to], last - first)


@jit.kernel
def differentiate(
    block: int,
    v: Floats,
    dout: Floats,
    dlse: Floats,
    indptr: Ints,
    indices: Ints,
    slices: Ints,
    options: EdgeOptions,
    scores: Floats,
    P: Floats,
    dscores: Floats,
) -> None:
    """Cotangent of every score, ``ds = P (dout . v - dout . out + dlse) f'(s) / f(s)``, capped."""
    n = dout.shape[1]
    rows = len(slices) * n
    weight, power = options.weight, options.power
    start, end = block * BLOCK, min(block * BLOCK + BLOCK, rows)
    dP = np.empty(_longest(indptr, slices, n, start, end), np.float64)
    for r in range(start, end):
        b, i = r // n, r % n
        row, shift = slices[b, 3] * n + i, slices[b, 4]
        first, count = indptr[row], indptr[row + 1] - indptr[row]
        mean = 0.0
        for t in range(count):
            dP[t] = _dot(dout[b, i], v[slices[b, 2], indices[first + t]])
            if options.kept.size:
                kept = options.kept[first + t]
                dP[t] = kept * dP[t] if kept != 0 else 0.0
            mean += P[first + t + shift] * dP[t]
        for t in range(count):
            edge = first + t + shift
            if weight == DOT:
                dscores[edge] = dP[t] / count
                continue
            inner = P[edge] * (dP[t] - mean + dlse[b, i])
            if weight == ABSPOW:  # a weight of 0 has no slope
                inner = power * inner / scores[edge] if scores[edge] != 0 else 0.0
            dscores[edge] = inner


class Moving(NamedTuple):
    """Queries and keys, and how they change; (B, 6) slices: of these, the support, coefficients."""

    q: Floats
    k: Floats
    dq: Floats
    dk: Floats
    slices: Ints


@jit.kernel
def move(
    block: int,
    x: Moving,
    indptr: Ints,
    indices: Ints,
    options: EdgeOptions,
    scores: Floats,
    P: Floats,
    dlse: Floats,
    dP: Floats,
) -> None:
    """Change of every weight, ``dP = P (ds - sum P ds)``, and of ``lse``, ``sum P ds``.

    `options.bias` is the change of each edge's bias; `dlse` (B, n) holds what is added to the
    sums. Without weights P, `dP` is the change of every score.
    """
    n = x.dq.shape[1]
    rows = len(x.slices) * n
    weight, factor = options.weight, options.factor
    for r in range(block * BLOCK, min(block * BLOCK + BLOCK, rows)):
        b, i = r // n, r % n
        q, dq = x.q[x.slices[b, 0], i], x.dq[x.slices[b, 2], i]
        keys, moved = x.k[x.slices[b, 1]], x.dk[x.slices[b, 3]]
        row, shift = x.slices[b, 4] * n + i, x.slices[b, 5]
        first, last = indptr[row], indptr[row + 1]
        mean = dlse[b, i]
        for t in range(first, last):
            k, dk, edge = keys[indices[t]], moved[indices[t]], t + shift
            if weight == GAUSSIAN:
                ds = -2 * factor * _dot_apart(q, k, dq, dk)
            else:
                ds = factor * (_dot(dq, k) + _dot(q, dk))
                if options.cap > 0:
                    bent = np.tanh(factor * _dot(q, k) / options.cap)
                    ds *= 1 - bent * bent
            if options.bias.size:
                ds += options.bias[t]
            if weight == ABSPOW:  # of the logarithm; a weight of 0 has no slope
                ds = options.power * ds / scores[edge] if scores[edge] != 0 else 0.0
            dP[edge] = ds
            if P.size:
                mean += P[edge] * ds
        for t in range(first + shift, last + shift if P.size else first + shift):
            dP[t] = dP[t] / (last - first) if weight == DOT else P[t] * (dP[t] - mean)
        dlse[b, i] = 0 if weight == DOT else mean


@jit.device
def _dot_apart(a: Floats, b: Floats, c: Floats, d: Floats) -> float:
    total = 0.0
    for t in range(len(a)):
        total += (np.float64(a[t]) - np.float64(b[t])) * (np.float64(c[t]) - np.float64(d[t]))
    return total


@jit.kernel
def transpose(
    s: int,
    indptr: Ints,
    indices: Ints,
    cursor: Ints,
    pointers: Ints,
    edges: Ints,
    queries: Ints,
) -> None:
    """Rows become keys: the edges of every key and their queries, queries ascending.

    `cursor` (S, m) is workspace; results `pointers` (S m + 1), `edges` (nnz) and `queries` (nnz).
    """
    S, m = cursor.shape
    n = (len(indptr) - 1) // S
    if s == S - 1:
        pointers[S * m] = len(indices)
    _fill(cursor[s], 0, m)
    for t in range(indptr[s * n], indptr[s * n + n]):
        cursor[s, indices[t]] += 1
    total = indptr[s * n]
    for j in range(m):
        pointers[s * m + j] = total
        total += cursor[s, j]
        cursor[s, j] = pointers[s * m + j]
    for i in range(n):
        for t in range(indptr[s * n + i], indptr[s * n + i + 1]):
            place = cursor[s, indices[t]]
            edges[place], queries[place] = t, i
            cursor[s, indices[t]] = place + 1


@jit.kernel
def gather(
    block: int,
    coefficients: Floats,
    edges: Ints,
    indptr: Ints,
    indices: Ints,
    x: Floats,
    y: Floats,
    slices: Ints,
    options: Floats,
    out: Floats,
) -> None:
    """Sum over the edges of every row: ``out_i = f sum_j c_ij (x_j - y_i)``, or without y.

    `coefficients` (B nnz) in the order of `edges`, or in their own if `edges` is empty;
    `x` (Bx, columns, e), `y` (By, rows, e); `slices` (B, 4) of x, y, the support, and the
    coefficients; `options` f and whether to subtract y. Result `out` (B, rows, e).
    """
    n = out.shape[1]
    rows = len(slices) * n
    factor, centred = options[0], options[1] != 0
    acc = np.empty(out.shape[2], np.float64)
    for r in range(block * BLOCK, min(block * BLOCK + BLOCK, rows)):
        b, i = r // n, r % n
        row = slices[b, 2] * n + i
        _fill(acc, 0.0, len(acc))
        for t in range(indptr[row], indptr[row + 1]):
            edge = edges[t] if edges.size else t
            c = factor * coefficients[edge + slices[b, 3]]
            xj = x[slices[b, 0], indices[t]]
            if centred:
                yi = y[slices[b, 1], i]
                for a in range(len(acc)):
                    acc[a] += c * (np.float64(xj[a]) - np.float64(yi[a]))
            else:
                _add(acc, c, xj)
        _copy(acc, out[b, i], len(acc))
