"""Feature maps of linear attention on blocks of rows that stay in cache, and what is made of them.

Tasks of `threads.each` run this: a task is one call, which lets other threads run meanwhile.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn._types import Bools, Floats, Ints, Scalar
from nlattn.kernels.exp import exp
from nlattn.kernels.gemm import aligned, multiply, width
from nlattn.runtime import jit

NONE, NEUTRAL, MAX = range(3)
BLOCK = 256
"""Rows of a block."""
_LANES = 16
_ABREAST = 8


class FeatureRows(NamedTuple):
    """A feature map; what it does not use is 0. Its numbers have the dtype of the rows."""

    stabilizer: int
    joint: bool
    """Whether all rows and channels share one maximum."""
    moving: bool
    """Whether to find where a maximum is attained."""
    panel: Floats
    """(d, `columns` of r) the projection, transposed."""
    half: np.floating
    """``c^2 / 2``"""
    amplitude: np.floating
    """What length rows are brought to; 0 leaves them."""
    floor: np.floating
    """Shorter rows count as this long."""
    log_eps: np.floating
    eps: np.floating


class IdentityRows(FeatureRows):
    """The rows themselves."""


class SoftmaxRows(FeatureRows):
    """Softmax over the channels of each row."""


class ExpRows(FeatureRows):
    """Exponentials, with a maximum for each channel or one for all."""


class RandomRows(FeatureRows):
    """Positive random features."""


class ReluRows(FeatureRows):
    """Random projections, cut off below 0."""


class Space(NamedTuple):
    """Room for a block."""

    phi: Floats
    """(rows, `columns` of r) features."""
    rows: Floats
    """(rows, d) brought to one length."""
    half: Floats
    """(rows,) what is subtracted from a row's exponents beside the maxima."""
    top: Floats
    """(rows,) a row's own maximum, which its features are relative to; 0 if there is none."""
    length: Floats
    """(rows,) of the rows as they came."""
    where: Ints
    """(rows,) first feature that attains the row's maximum."""
    here: Ints
    """(1,) first row that attains the maximum of all."""


@jit.shared
def columns(r: int, like: Floats) -> int:
    """Length of a row of r numbers: whole panels, and a line that keeps rows off one cache set."""
    w = width(like)
    return (r + w - 1) // w * w + 64 // like.itemsize


def padded(x: Floats) -> Floats:
    """A copy whose rows are whole panels, filled up with 0."""
    out = np.zeros((*x.shape[:-1], columns(x.shape[-1], x)), x.dtype)
    out[..., : x.shape[-1]] = x
    return out


@jit.shared
def space(rows: int, d: int, r: int, like: Floats) -> Space:
    """Uninitialised room for blocks of at most `rows`, of the dtype of `like`."""
    stride = columns(r, like)
    return Space(
        aligned(rows * stride, like).reshape((rows, stride)),
        np.empty((rows, d), like.dtype),
        np.empty(rows, like.dtype),
        np.empty(rows, like.dtype),
        np.empty(rows, like.dtype),
        np.empty(rows, np.int64),
        np.zeros(1, np.int64),
    )


@jit.device
def _largest(x: Floats, first: int, count: int, d: int, out: Floats) -> None:
    """``out[i]`` = the largest of ``x[first + i, :d]``; NaN counts as the lowest.

    The compiler keeps the order of comparisons, so that only lanes held apart become vectors.
    """
    lanes = aligned(_LANES, out)
    for i in range(count):
        row = x[first + i]
        for l in range(_LANES):
            lanes[l] = -np.inf
        for c in range(0, d - d % _LANES, _LANES):
            for l in range(_LANES):
                lanes[l] = row[c + l] if row[c + l] > lanes[l] else lanes[l]
        for half in (8, 4, 2, 1):
            for l in range(half):
                lanes[l] = lanes[l + half] if lanes[l + half] > lanes[l] else lanes[l]
        top = lanes[0]
        for c in range(d - d % _LANES, d):
            top = row[c] if row[c] > top else top
        out[i] = top


@jit.device
def _column_largest(x: Floats, first: int, count: int, kept: Bools, top: Floats) -> None:
    """Raise ``top[c]`` to the largest of ``x[first:first + count, c]`` that are kept."""
    d = x.shape[1]
    whole = count - count % _ABREAST if not kept.size else 0
    for i in range(first, first + whole, _ABREAST):
        for c in range(d):
            t = top[c]
            for a in range(_ABREAST):
                t = x[i + a, c] if x[i + a, c] > t else t
            top[c] = t
    for i in range(first + whole, first + count):
        if not kept.size or kept[i]:
            for c in range(d):
                top[c] = x[i, c] if x[i, c] > top[c] else top[c]


@jit.device
def add_columns(x: Floats, count: int, out: Floats) -> None:
    """``out[c] += sum_i x[i, c]``, `out` in float64."""
    whole = count - count % _ABREAST
    for i in range(0, whole, _ABREAST):
        for c in range(out.size):
            s = x[i, c]
            for a in range(1, _ABREAST):
                s += x[i + a, c]
            out[c] += s
    for i in range(whole, count):
        for c in range(out.size):
            out[c] += x[i, c]


@jit.device(fast=True)
def row_sums(phi: Floats, count: int, factor: Floats, out: Floats) -> None:
    """``out[i] = phi[i].factor``."""
    for i in range(count):
        s = phi[i, 0] * factor[0]
        for c in range(1, factor.size):
            s += phi[i, c] * factor[c]
        out[i] = s


@jit.device(fast=True)
def _amplify(m: FeatureRows, x: Floats, first: int, count: int, s: Space) -> None:
    """``u = amplitude x / max(|x|, floor)`` for each row, or the row; and ``c^2 |u|^2 / 2``."""
    for i in range(count):
        row, u = x[first + i], s.rows[i]
        total = row[0] * row[0]
        for c in range(1, row.size):
            total += row[c] * row[c]
        s.length[i] = np.sqrt(total)
        if m.amplitude > 0:
            factor = m.amplitude / max(s.length[i], m.floor)
            total = 0 * factor
            for c in range(row.size):
                u[c] = row[c] * factor
                total += u[c] * u[c]
        else:
            for c in range(row.size):
                u[c] = row[c]
        s.half[i] = m.half * total


@jit.device(once=True)
def _project(m: FeatureRows, x: Floats, first: int, count: int, r: int, s: Space) -> None:
    """Rows, brought to one length, times the projection."""
    _amplify(m, x, first, count, s)
    d, stride = x.shape[1], s.phi.shape[1]
    for j in range(0, r, width(x)):
        multiply(s.rows, 0, d, 1, m.panel, j, stride, s.phi, j, stride, count, d)


@jit.device
def _find(count: int, r: int, s: Space) -> None:
    """The first feature of each row that attains its maximum."""
    for i in range(count):
        s.where[i] = 0
        for c in range(r):
            if s.phi[i, c] == s.top[i]:
                s.where[i] = c
                break


@jit.device(once=True)
def _stabilize(m: FeatureRows, count: int, r: int, top: Floats, s: Space) -> None:
    """Find maxima, and add them to what is subtracted."""
    _largest(s.phi, 0, count, r, s.top)
    if m.moving:
        _find(count, r, s)
    if m.stabilizer == NEUTRAL:
        for i in range(count):
            s.top[i] = max(s.top[i] - s.half[i], m.log_eps)
    if m.joint:
        for i in range(count):
            if s.top[i] > top[0]:
                top[0], s.here[0] = s.top[i], i
        for c in range(1, top.size):
            top[c] = top[0]
        for i in range(count):
            s.half[i] += top[0]
            s.top[i] = 0
    else:
        for i in range(count):
            s.half[i] += s.top[i]


def _random(
    m: FeatureRows, x: Floats, first: int, count: int, kept: Bools, top: Floats, s: Space
) -> None:
    _project(m, x, first, count, top.size, s)
    if m.stabilizer != NONE:
        _stabilize(m, count, top.size, top, s)
    for i in range(count):
        row, shift = s.phi[i], s.half[i]
        if m.stabilizer == NONE:
            for c in range(top.size):
                row[c] = np.exp(row[c] - shift)  # of any size
        else:
            for c in range(top.size):
                row[c] = exp(row[c] - shift)


def _relu(
    m: FeatureRows, x: Floats, first: int, count: int, kept: Bools, top: Floats, s: Space
) -> None:
    _project(m, x, first, count, top.size, s)
    zero = x.dtype.type(0)
    for i in range(count):
        row = s.phi[i]
        for c in range(top.size):
            row[c] = zero if row[c] <= 0 else row[c]  # written so that NaN stays


def _row_softmax(
    m: FeatureRows, x: Floats, first: int, count: int, kept: Bools, top: Floats, s: Space
) -> None:
    d = x.shape[1]
    _largest(x, first, count, d, s.half)
    for i in range(count):
        row, shift, to = x[first + i], s.half[i], s.phi[i]
        for c in range(d):
            to[c] = exp(row[c] - shift)
    row_sums(s.phi, count, np.ones(d, x.dtype), s.half)
    for i in range(count):
        to, factor = s.phi[i], 1 / s.half[i]
        for c in range(d):
            to[c] *= factor


def _column_exp(
    m: FeatureRows, x: Floats, first: int, count: int, kept: Bools, top: Floats, s: Space
) -> None:
    _column_largest(x, first, count, kept, top)
    if m.joint:
        for c in range(1, top.size):
            top[0] = max(top[0], top[c])
        for c in range(1, top.size):
            top[c] = top[0]
    shift = np.empty_like(top)
    for c in range(top.size):
        shift[c] = top[c] if top[c] > -np.inf else 0
    for i in range(count):
        row, to = x[first + i], s.phi[i]
        for c in range(top.size):
            to[c] = exp(row[c] - shift[c])


def _identity(
    m: FeatureRows, x: Floats, first: int, count: int, kept: Bools, top: Floats, s: Space
) -> None:
    for i in range(count):
        row, to = x[first + i], s.phi[i]
        for c in range(top.size):
            to[c] = row[c]


_fill = jit.by_class(
    {
        IdentityRows: _identity,
        SoftmaxRows: _row_softmax,
        ExpRows: _column_exp,
        RandomRows: _random,
        ReluRows: _relu,
    }
)


@jit.device
def features(
    m: FeatureRows, x: Floats, first: int, count: int, kept: Bools, top: Floats, s: Space
) -> None:
    """Features of rows ``first, first + 1, ...``, in ``s.phi[:, :r]``, without eps.

    `top` (r,) are maxima that rows share, and are raised. A row that is not `kept` gets 0;
    an empty `kept` keeps all.
    """
    for i in range(count):
        s.top[i] = 0
    _fill(m, x, first, count, kept, top, s)
    for i in range(count if kept.size else 0):
        if not kept[first + i]:
            for c in range(top.size):
                s.phi[i, c] = 0


@jit.device
def eps_of(m: FeatureRows, top: float) -> Scalar:
    """What each feature still lacks, relative to `top`."""
    return np.exp(m.log_eps - top) if m.stabilizer == NEUTRAL else m.eps


@jit.function
def fill(m: FeatureRows, x: Floats, kept: Bools, top: Floats, s: Space) -> None:
    """Features of all rows of x, for Python: `features`."""
    features(m, x, 0, len(x), kept, top, s)
