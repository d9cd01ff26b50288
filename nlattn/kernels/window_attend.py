"""Sums over the windows of every output pixel, and the gradients of bias and gate."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np

from nlattn._types import Floats, Ints, Scalar
from nlattn.kernels.exp import exp
from nlattn.kernels.gemm import aligned
from nlattn.kernels.window import (
    LearningWindows,
    Pair,
    WindowArrays,
    Windows,
    far,
    negligible,
    over_windows,
    peak,
    tap_weights,
)
from nlattn.kernels.window_sum import TAPS, correlate
from nlattn.runtime import jit

WindowResults: TypeAlias = tuple[Floats, Floats, Floats, Floats, Floats]
"""Outputs, normalisers, deltas, gradients of bias and gate; empty ones are left alone."""


class WindowTile(NamedTuple):
    """Windows ``I0:I0 + n_i, J0:J0 + n_j``, and the pixels under them."""

    I0: int
    J0: int
    n_i: int
    n_j: int
    tall: int
    """Rows of taps that are inside for some window; the first of them reads row `y0`."""
    wide: int
    y0: int
    x0: int
    rows: int
    columns: int


@jit.device
def _inside(
    first: int, count: int, stride: int, padding: int, taps: int, size: int
) -> tuple[int, int]:
    """Taps ``low:high`` that lie inside for some of the windows ``first:first + count``."""
    low = max(0, padding - (first + count - 1) * stride)
    return low, max(low, min(taps, size + padding - first * stride))


@jit.device
def _tile(g: Windows, I0: int, J0: int, at: Ints) -> WindowTile:
    """The tile, and the numbers of its taps in the last part of `at`."""
    n_i, n_j = min(g.th, g.Ho - I0), min(g.tw, g.Wo - J0)
    u0, u1 = _inside(I0, n_i, g.sh, g.ph, g.kh, g.H)
    w0, w1 = _inside(J0, n_j, g.sw, g.pw, g.kw, g.W)
    for k in range((u1 - u0) * (w1 - w0)):
        at[3 * g.at + k] = (u0 + k // (w1 - w0)) * g.kw + w0 + k % (w1 - w0)
    y0, x0 = I0 * g.sh + u0 - g.ph, J0 * g.sw + w0 - g.pw
    rows, columns = (n_i - 1) * g.sh + u1 - u0, n_j + max(0, w1 - w0 - 1) // g.sw
    return WindowTile(I0, J0, n_i, n_j, u1 - u0, w1 - w0, y0, x0, rows, columns)


@jit.device
def _offsets(g: Windows, s: WindowTile, row: int, channels: int, at: Ints, k0: int) -> None:
    """Where the taps of a tile's first window lie in a buffer, columns split by phase."""
    count = s.tall * s.wide
    for k in range(count):
        u, w = k // s.wide, k % s.wide
        at[k0 + k] = u * row + (w % g.sw * g.plane + w // g.sw) * channels
    for k in range(count, -(-count // TAPS) * TAPS):
        at[k0 + k] = 0


@jit.device
def _powers(g: Windows, s: WindowTile, image: Floats, ref: Scalar, x: Floats) -> None:
    """``exp(score - ref)`` of the pixels under a tile, 0 outside the image."""
    for y in range(s.rows):
        for f in range(g.sw):
            start, x0 = g.powers + y * g.e_row + f * g.plane, s.x0 + f
            row = x[start : start + s.columns]
            low = min(s.columns, max(0, (g.sw - 1 - x0) // g.sw))
            high = max(low, min(s.columns, (g.W - x0 + g.sw - 1) // g.sw))
            if s.y0 + y < 0 or s.y0 + y >= g.H:
                low = high = 0
            for i in range(low):
                row[i] = 0
            if low < high:
                line = image[s.y0 + y]
                for i in range(low, high):
                    row[i] = exp(line[x0 + i * g.sw] - ref)
            for i in range(high, s.columns):
                row[i] = 0


@jit.device
def _weighted(g: Windows, s: WindowTile, v: Floats, c0: int, cn: int, x: Floats) -> None:
    """Channels ``c0:c0 + cn`` of the values times the powers of their pixels."""
    for y in range(s.rows):
        for f in range(g.sw):
            start = g.powers + y * g.e_row + f * g.plane
            for i in range(s.columns):
                power = x[start + i]
                to = g.values + y * g.v_row + (f * g.plane + i) * cn
                if power == 0:
                    for c in range(cn):
                        x[to + c] = 0
                    continue
                a, b = s.y0 + y, s.x0 + f + i * g.sw
                if cn % 8 == 0:
                    for c in range(0, cn, 8):
                        for l in range(8):
                            x[to + c + l] = power * v[a, b, c0 + c + l]
                else:
                    for c in range(cn):
                        x[to + c] = power * v[a, b, c0 + c]


@jit.device
def _invert(g: Windows, s: WindowTile, x: Floats) -> None:
    tiny = negligible(x)
    for i in range(s.n_i):
        at = i * g.d_row
        for j in range(at, at + s.n_j):
            total = x[g.sums + j]
            x[g.inverse + j] = 1 / total if total >= tiny else 0
            x[g.moved + j] = 0


@jit.device
def _add(
    g: Windows, s: WindowTile, factor: Scalar, c0: int, cn: int, x: Floats, out: Floats
) -> None:
    """Divide the sums and add them to the result."""
    for i in range(s.n_i):
        for j in range(s.n_j):
            share = x[g.inverse + i * g.d_row + j] * factor
            at, a, b = g.totals + i * g.n_row + j * cn, s.I0 + i, s.J0 + j
            if cn % 8 == 0:
                for c in range(0, cn, 8):
                    for l in range(8):
                        out[a, b, c0 + c + l] += x[at + c + l] * share
            else:
                for c in range(cn):
                    out[a, b, c0 + c] += x[at + c] * share


@jit.device
def _weigh(
    g: Windows, s: WindowTile, factor: Scalar, c0: int, cn: int, x: Floats, dout: Floats
) -> None:
    """``dout . out`` so far, and with `learn` the cotangents over the sums."""
    for i in range(s.n_i):
        to = g.ratio + i * g.n_row
        for j in range(s.n_j):
            share, total = x[g.inverse + i * g.d_row + j], x.dtype.type(0)
            at, a, b = g.totals + i * g.n_row + j * cn, s.I0 + i, s.J0 + j
            for c in range(cn):
                total += x[at + c] * dout[a, b, c0 + c]
            x[g.moved + i * g.d_row + j] += total * share * factor
            if g.learn:
                for c in range(cn):
                    x[to + j * cn + c] = dout[a, b, c0 + c] * share
        for l in range(to + s.n_j * cn, to + g.n_row):
            x[l] = 0


def _cross(g: Windows, s: WindowTile, cn: int, x: Floats, at: Ints) -> None:
    """Add what some channels share with each tap to its sum."""
    count = s.tall * s.wide
    rest = (count, g.ratio, g.n_row, s.n_i, s.n_j * cn, g.lanes, g.part)
    correlate(x, g.values, g.sh * g.v_row, at, g.at, *rest)
    for k in range(count):
        x[g.crossed + k] += x[g.part + k]


def _learn(
    g: Windows, s: WindowTile, eb: int, gate: Floats, x: Floats, at: Ints, grads: Pair
) -> None:
    """Add a tile's share to the gradients of bias and gate."""
    dbias, dgate = grads
    for i in range(s.n_i):
        for j in range(g.d_row):
            to, share = i * g.d_row + j, x[g.moved + i * g.d_row + j]
            x[g.ratio + to] = share * x[g.inverse + to] if j < s.n_j else 0
    count, step = s.tall * s.wide, g.sh * g.e_row
    rest = (count, g.ratio, g.d_row, s.n_i, s.n_j, g.lanes, g.part)
    correlate(x, g.powers, step, at, 0, *rest)
    for k in range(count):
        tap = at[3 * g.at + k]
        power, crossed = np.float64(x[eb + tap]), np.float64(x[g.crossed + k])
        dgate[tap] += power * crossed
        dbias[tap] += power * (gate[tap] * crossed - x[g.part + k])


def _cross_nothing(g: Windows, s: WindowTile, cn: int, x: Floats, at: Ints) -> None:
    pass


def _learn_nothing(
    g: Windows, s: WindowTile, eb: int, gate: Floats, x: Floats, at: Ints, grads: Pair
) -> None:
    pass


_crossed = jit.by_class({Windows: _cross_nothing, LearningWindows: _cross})
_learned = jit.by_class({Windows: _learn_nothing, LearningWindows: _learn})


@jit.device
def _alone(
    g: Windows,
    s: WindowTile,
    image: Floats,
    v: Floats,
    dout: Floats,
    tables: Pair,
    results: WindowResults,
    x: Floats,
) -> None:
    """Windows of a tile that lost digits, each relative to its own maximum."""
    bias, gate = tables
    out, norm, delta, dbias, dgate = results
    for window in range(s.n_i * s.n_j):
        i, j = window // s.n_j, window % s.n_j
        if x[g.inverse + i * g.d_row + j] != 0:
            continue
        I, J = s.I0 + i, s.J0 + j
        y0, x0 = I * g.sh - g.ph, J * g.sw - g.pw
        u0, u1, w0, w1 = max(0, -y0), min(g.kh, g.H - y0), max(0, -x0), min(g.kw, g.W - x0)
        top, total, moved = x.dtype.type(-np.inf), 0.0, 0.0
        for u in range(u0, u1):
            for w in range(w0, w1):
                z = image[y0 + u, x0 + w] + bias[u * g.kw + w]
                top = z if z > top else top
        for u in range(u0, u1):
            for w in range(w0, w1):
                total += exp(image[y0 + u, x0 + w] + bias[u * g.kw + w] - top)
        if norm.size:
            norm[0, I, J] = top if total != 0 else 0
            norm[1, I, J] = total
        for again in range(1 + g.learn):
            for u in range(u0, u1):
                for w in range(w0, w1):
                    k, slope = u * g.kw + w, 0.0
                    share = exp(image[y0 + u, x0 + w] + bias[k] - top) / total
                    if again:
                        dbias[k] -= share * moved
                        continue
                    for c in range(v.shape[2]):
                        value = v[y0 + u, x0 + w, c]
                        if out.size:
                            out[I, J, c] += share * gate[k] * value
                        if dout.size:
                            slope += np.float64(value) * dout[I, J, c]
                    moved += share * gate[k] * slope
                    if g.learn:
                        dgate[k] += share * slope
                        dbias[k] += share * gate[k] * slope
        if delta.size:
            delta[I, J] = moved


@jit.device(once=True)
def _query(
    g: Windows,
    s: WindowTile,
    eb: tuple[int, int, Any],
    image: Floats,
    v: Floats,
    dout: Floats,
    tables: Pair,
    results: WindowResults,
    x: Floats,
    at: Ints,
) -> None:
    """One query in the windows of one tile."""
    out, norm, delta, dbias, dgate = results
    eb_at, gated_at, top = eb
    ref = peak(image, s.y0, s.y0 + s.rows, s.x0, s.x0 + (s.n_j - 1) * g.sw + s.wide)
    _powers(g, s, image, ref, x)
    _offsets(g, s, g.e_row, 1, at, 0)
    count, shape = s.tall * s.wide, (s.tall, s.wide, s.rows, s.n_i)
    for k in range(count):
        tap = at[3 * g.at + k]
        x[g.w_sums + k] = 1 if g.box else x[eb_at + tap]
        x[g.w_totals + k] = 1 if g.box else x[gated_at + tap]
        x[g.crossed + k] = 0
    source, target = (g.powers, g.e_row, g.sh * g.e_row), (g.sums, g.d_row, s.n_j)
    over_windows(g, shape, x, at, 0, g.w_sums, source, target)
    _invert(g, s, x)
    if max(abs(ref), abs(top)) > far(x):
        for window in range(s.n_i * s.n_j):
            x[g.inverse + window // s.n_j * g.d_row + window % s.n_j] = 0
    factor = x[gated_at] if g.box else x.dtype.type(1)
    for c0 in range(0, v.shape[2], g.chunk):
        cn = min(g.chunk, v.shape[2] - c0)
        _weighted(g, s, v, c0, cn, x)
        _offsets(g, s, g.v_row, cn, at, g.at)
        source = (g.values, g.v_row, g.sh * g.v_row)
        over_windows(g, shape, x, at, g.at, g.w_totals, source, (g.totals, g.n_row, s.n_j * cn))
        if out.size:
            _add(g, s, factor, c0, cn, x, out)
        if dout.size:
            _weigh(g, s, factor, c0, cn, x, dout)
        _crossed(g, s, cn, x, at)
    _learned(g, s, eb_at, tables[1], x, at, (dbias, dgate))
    for i in range(s.n_i):
        for j in range(s.n_j):
            to, I, J = i * g.d_row + j, s.I0 + i, s.J0 + j
            if norm.size:
                norm[0, I, J] = ref + top
                norm[1, I, J] = x[g.sums + to]
            if delta.size:
                delta[I, J] = x[g.moved + to]
    _alone(g, s, image, v, dout, tables, results, x)


@jit.device(once=True)
def _row(
    g: Windows, b: int, row: int, arrays: WindowArrays, slices: Ints, results: WindowResults
) -> None:
    """One row of tiles of one slice."""
    scores, values, biases, gates, douts = arrays
    outs, norms, deltas, dbias, dgate = results
    x, at = aligned(g.size, values), np.zeros(4 * g.at, np.int64)
    for i in range(g.size):
        x[i] = 0
    v, dout, out = values[slices[b, 2]], douts[slices[b, 5]], outs[b]
    bias, gate = biases[slices[b, 3]], gates[slices[b, 4]]
    tap_weights(g, bias, gate, x)
    t_, taps = bias.shape
    for i in range(dbias.shape[3]):
        for t in range(t_):
            dbias[b, row, t, i] = dgate[b, row, t, i] = 0
    for J0 in range(0, g.Wo, g.tw):
        s = _tile(g, row * g.th, J0, at)
        if out.size:
            for i in range(s.I0, s.I0 + s.n_i):
                for j in range(J0, J0 + s.n_j):
                    for c in range(v.shape[2]):
                        out[i, j, c] = 0
        for t in range(t_):
            eb = (g.eb + t * taps, g.eb + (t_ + t) * taps, x[g.top + t])
            grads = (dbias[b, row, t], dgate[b, row, t])
            some = (out, norms[b, t], deltas[b, t], grads[0], grads[1])
            _query(g, s, eb, scores[b, t], v, dout, (bias[t], gate[t]), some, x, at)


@jit.kernel
def attend(
    task: int,
    g: Windows,
    arrays: WindowArrays,
    slices: Ints,
    out: Floats,
    norm: Floats,
    delta: Floats,
    dbias: Floats,
    dgate: Floats,
) -> None:
    """Attend; tasks ``start:stop`` are the rows of tiles of all slices.

    `slices` (B, 6) says which slices of q, k and `arrays` belong together. Each result is left
    alone if empty: `out` (B, Ho, Wo, e); `norm` (B, t, 2, Ho, Wo), maximum and sum of exponentials;
    `delta` (B, t, Ho, Wo), ``dout . out`` of each query; `dbias` and `dgate` (B, rows of tiles, t,
    kh kw), the gradients of each task.
    """
    down = (g.Ho + g.th - 1) // g.th
    _row(g, task // down, task % down, arrays, slices, (out, norm, delta, dbias, dgate))
