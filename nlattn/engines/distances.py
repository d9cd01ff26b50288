"""Scores as distances of points: ``s_ij = (top_i - |p_i - x_j|^2) / per_i``, whatever the score.

A dot product is one after one more coordinate has made all keys equally long. Where one channel of
the queries is constant and that of the keys a parabola of the others, as in
``images.queries_and_keys``, the product is a distance in disguise, and that channel is the term
that no order of the keys and no softmax sees. Everything is computed in float64, centred, in units
of the largest key, turned to principal axes and rounded once; what that may have cost is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from nlattn import _check
from nlattn._types import Floats
from nlattn.kernels import scores
from nlattn.kernels.nearest import ERROR, PER_SCORE, SLACK, SLOPE, TINY, TOP, WIDTH
from nlattn.runtime.threads import serial_blas

_U = 2.0**-53
_BLOCK = 1 << 15
_DISGUISED = 0.99  # share of the constant channel's variance that a parabola must explain


class Geometry(NamedTuple):
    """Points and what their distances say of scores."""

    queries: Floats
    """(n, dims), in the dtype that boxes and distances are computed in."""
    keys: Floats
    """(m, dims)."""
    numbers: Floats
    """(n, 7) float64, see `kernels.nearest`."""
    rounding: float
    """Relative error of a computed squared distance."""
    far: Floats
    """(n,) length of a query's point and that of the longest key's."""
    unit: float
    """A power of two."""
    form: Unturned
    """Points as far apart as those of queries and keys before these were rounded,"""
    width: Floats
    """(n,) and what these are known to in float64."""


class Unturned(NamedTuple):
    """Points in units, before they are turned: ``p = factor_i q_i``, ``x = k``, and a height."""

    without: int
    """Channel that is left out; -1 for none."""
    factor: Floats
    height: Floats
    """(m,) the additional coordinate of keys; queries have 0 there."""
    top: Floats
    per: Floats
    slack: Floats


def geometry(
    q: Floats, k: Floats, kind: int, factor: float, dtype: DTypeLike, runs: int = 1
) -> Geometry:
    """Points of queries (n, d) and keys (m, d), for points and distances in `dtype`.

    Scores are sums of so many `runs` of products.
    """
    n, d = q.shape
    unit = max(_unit(k), _unit(q) * 2.0**-900)
    lengths, key_lengths = _lengths(q, unit), _lengths(k, unit)
    longest = float(key_lengths.max(initial=0))
    if kind == scores.NEG_L2:
        steep = factor * unit * unit
        per = np.full(n, 1 / steep if steep > 0 else np.inf)
        form = Unturned(-1, np.ones(n), np.zeros(0), np.zeros(n), per, np.zeros(n))
    else:
        form = _products(q, k, factor, unit, lengths, key_lengths, longest)
    points, places, far, left, centre = _turned(q, k, form, unit, dtype)
    numbers = np.zeros((n, 7))
    numbers[:, TOP], numbers[:, PER_SCORE] = form.top, form.per
    numbers[:, SLACK] = form.slack
    u = float(np.finfo(dtype).eps) / 2
    dims = points.shape[1]
    steps = 32 * (dims + 8) * _U
    reach = np.abs(form.factor) * lengths + longest + centre
    width = steps * reach
    numbers[:, WIDTH] = 1.01 * left + width
    numbers[:, TINY] = 4 * dims * float(np.finfo(dtype).tiny)
    added = scores.additions(d // runs) + runs
    _errors(numbers, q.dtype, kind, abs(factor), lengths * unit, longest * unit, added, d)
    rounding = 2 * (dims + 8) * u + steps
    return Geometry(
        _check.frozen(points),
        _check.frozen(places),
        _check.frozen(numbers),
        rounding,
        far,
        unit,
        form,
        width,
    )


def _unit(k: Floats) -> float:
    """A power of two of the size of the largest coordinate of a key."""
    largest = float(np.abs(k).max(initial=0))
    return 2.0 ** int(np.frexp(largest)[1]) if 0 < largest < np.inf else 1.0


def _blocks(count: int) -> Iterator[slice]:
    return (slice(i, min(i + _BLOCK, count)) for i in range(0, count, _BLOCK))


def _lengths(x: Floats, unit: float) -> Floats:
    """Length of each row, in units."""
    out = np.empty(len(x))
    for rows in _blocks(len(x)):
        some = x[rows].astype(np.float64)
        some /= unit
        square = np.einsum("nc,nc->n", some, some)
        out[rows] = np.sqrt(square)
        odd = ~((square > 1e-200) & (square < 1e200))  # also of zeros
        if odd.any():
            few = some[odd]
            big = np.abs(few).max(1, initial=0, keepdims=True)
            few /= np.where(big > 0, big, 1)
            out[rows][odd] = np.sqrt(np.einsum("nc,nc->n", few, few)) * big[:, 0]
    return out


def _without(x: Floats, channel: int) -> Floats:
    """All other channels."""
    if channel == x.shape[1] - 1:
        return x[:, :channel]
    return x[:, np.arange(x.shape[1]) != channel]


def _products(
    q: Floats,
    k: Floats,
    factor: float,
    unit: float,
    lengths: Floats,
    key_lengths: Floats,
    longest: float,
) -> Unturned:
    """Points whose distances tell ``factor q.k``."""
    hidden = _disguised(q, k, factor, unit)
    with np.errstate(all="ignore"):
        if hidden is not None:
            channel, gain, constant = hidden[0], np.float64(hidden[1]), hidden[2]
            inner, key_inner = _lengths(_without(q, channel), unit), hidden[3]
            height = k[:, channel].astype(np.float64) / unit
            offset = key_inner**2 + 2 * gain * constant * height
            most = float(offset.max(initial=0))
            size = (
                gain**2 * inner**2
                + np.abs(key_inner**2).max()
                + 2 * gain * np.abs(constant * height).max()
            )
            if np.isfinite(size).all():
                return Unturned(
                    channel,
                    np.full(len(q), gain),
                    np.sqrt(most - offset),
                    gain**2 * inner**2 + most,
                    np.full(len(q), 2 * gain / (factor * unit * unit)),
                    64 * (q.shape[1] + 8) * _U * size,
                )
        known = (lengths > 0) & (longest > 0)
        stretch = np.where(known, np.minimum(longest / lengths, 2.0**500), 1.0) * np.sign(factor)
        return Unturned(
            -1,
            stretch,
            np.sqrt(np.maximum(longest**2 - key_lengths**2, 0)),
            (stretch * lengths) ** 2 + longest**2,
            2 * stretch / (factor * unit * unit) if factor else np.full(len(q), np.inf),
            np.full(len(q), 64 * (q.shape[1] + 8) * _U * 2 * longest**2),
        )


def _disguised(
    q: Floats, k: Floats, factor: float, unit: float
) -> tuple[int, float, float, Floats] | None:
    """The constant channel of queries that hides a distance, its gain, and the constant.

    And the lengths of keys without it.
    """
    if q.shape[1] < 2 or not len(q) or not len(k) or factor <= 0:
        return None
    for channel in np.flatnonzero((q == q[:1]).all(0))[::-1]:
        constant = float(q[0, channel]) / unit
        lengths = _lengths(_without(k, channel), unit)
        square = lengths**2
        height = constant * k[:, channel].astype(np.float64) / unit
        square_c, height_c = square - square.mean(), height - height.mean()
        with np.errstate(over="ignore", invalid="ignore"):  # then it is no distance
            spread, rise, steep = (
                float(a @ b)
                for a, b in ((square_c, square_c), (square_c, height_c), (height_c, height_c))
            )
        if spread > 0 > rise and math.inf > rise * rise >= _DISGUISED * spread * steep:
            return int(channel), -spread / (2 * rise), constant, lengths
    return None


@serial_blas
def _turned(
    q: Floats, k: Floats, form: Unturned, unit: float, dtype: DTypeLike
) -> tuple[Floats, Floats, Floats, Floats, float]:
    """Centred points on the principal axes of the keys, (any, dims), rounded.

    And of each query its length and that of the farthest key together, the same of what rounding
    leaves of them, and the centre's length.
    """
    tall = form.height.size > 0
    dims = k.shape[1] - (form.without >= 0) + tall

    def begun(x: Floats) -> Floats:
        some = _without(x, form.without) if form.without >= 0 else x
        out = np.zeros((len(x), dims))
        np.divide(some, unit, out=out[:, : some.shape[1]], dtype=np.float64)
        return out

    def keys(rows: slice, centre: Floats) -> Floats:
        out = begun(k[rows])
        if tall:
            out[:, -1] = form.height[rows]
        return np.subtract(out, centre, out=out)

    def queries(rows: slice, centre: Floats) -> Floats:
        out = begun(q[rows])
        out *= form.factor[rows, None]
        return np.subtract(out, centre, out=out)

    points, places = (np.empty((len(x), dims), dtype) for x in (q, k))
    far, left = (np.empty(len(q)), np.empty(len(k))), (np.empty(len(q)), np.empty(len(k)))
    with np.errstate(all="ignore"):
        some = keys(slice(None, None, len(k) // _BLOCK | 1), np.zeros(dims))
        centre = some.sum(0) / max(len(some), 1)
        some -= centre
        axes = np.linalg.eigh(some.T @ some)[1][:, ::-1] if len(k) else np.eye(dims)
        for rows_of, out, length, rest in zip(
            (queries, keys), (points, places), far, left, strict=True
        ):
            for rows in _blocks(len(out)):
                x = rows_of(rows, centre) @ axes
                length[rows] = _norms(x)
                out[rows] = x
                x -= out[rows]
                rest[rows] = _norms(x)
        reach, missed = (a + float(b.max(initial=0)) for a, b in (far, left))
    return points, places, reach, missed, float(np.linalg.norm(centre))


def _norms(x: Floats) -> Floats:
    """Length of each row."""
    return np.sqrt(np.einsum("nc,nc->n", x, x))


def _errors(
    numbers: Floats,
    dtype: np.dtype,
    kind: int,
    factor: float,
    lengths: Floats,
    longest: float,
    added: int,
    d: int,
) -> None:
    """How far computed scores may be from true ones: rounding of the score routine."""
    info = np.finfo(dtype)
    u, tiny = float(info.eps) / 2, float(info.tiny)
    with np.errstate(over="ignore"):
        most = lengths * longest if kind != scores.NEG_L2 else (lengths + longest) ** 2
        if kind == scores.NEG_L2:
            numbers[:, SLOPE] = 2 * (added + 8) * u
            numbers[:, ERROR] = 2 * (d + 2) * tiny * max(factor, 1)
        else:
            numbers[:, ERROR] = 1.1 * (added + 4) * u * factor * most
            numbers[:, ERROR] += 2 * (d + 2) * tiny * max(factor, 1)
        over = np.maximum(most, most * factor) >= float(info.max) / 4
    numbers[over, ERROR] = np.inf
