"""Losses of the largest scores of every query, in row blocks: the n x m scores are never held."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn._types import Bools, Floats, Ints
from nlattn.engines.features import amplified, amplified_vjp
from nlattn.runtime import threads

_SCORES = 1 << 21
"""Scores of a block."""


class RankNumbers(NamedTuple):
    """Numbers of the loss: ranks ``0..positives-1`` against ``low..high-1``."""

    amplitude: float
    floor: float
    positives: int
    low: int
    high: int
    margin: float
    eps: float


class Ranks(NamedTuple):
    """Queries and keys, their slices (batch, 2), and the numbers."""

    q: Floats
    k: Floats
    slices: Ints
    shape: RankNumbers


class _Rows(NamedTuple):
    """A block of rows of one slice."""

    logits: Floats
    """(rows, m)"""
    positive: Floats
    negative: Floats
    """(rows, positives), (rows, high - low) derivatives of the logarithms of pos and neg + eps."""
    hinge: Floats
    """(rows,) loss of each row."""


def _unit(p: Ranks, x: Floats) -> tuple[Floats, Floats | None]:
    if not p.shape.amplitude:
        return x, None
    return amplified(x, p.shape.amplitude, p.shape.floor)


def _unit_vjp(p: Ranks, u: Floats, length: Floats | None, du: Floats) -> Floats:
    if length is None:
        return du
    return amplified_vjp(u, length, du, p.shape.amplitude, p.shape.floor)


def _tasks(p: Ranks) -> list[tuple[int, slice]]:
    n, m = p.q.shape[1], p.k.shape[1]
    step = max(1, _SCORES // m)
    return [
        (b, slice(i, min(i + step, n))) for b in range(len(p.slices)) for i in range(0, n, step)
    ]


def _rows(p: Ranks, number: int, rows: slice, unit_k: Floats) -> _Rows:
    u, _ = _unit(p, p.q[p.slices[number, 0], rows])
    logits = u @ unit_k.T
    m, s = logits.shape[1], p.shape
    best = np.sort(np.partition(logits, m - s.high, axis=1)[:, m - s.high :], axis=1)[:, ::-1]
    positive, log_pos = _log_mean(best[:, : s.positives], 0.0)
    negative, log_neg = _log_mean(best[:, s.low :], s.eps)
    return _Rows(logits, positive, negative, np.maximum(s.margin - (log_pos - log_neg), 0))


def _log_mean(x: Floats, eps: float) -> tuple[Floats, Floats]:
    """Logarithm of ``mean(exp(x)) + eps`` of each row, descending, and its derivative."""
    with np.errstate(divide="ignore"):
        floor = x.dtype.type(np.log(eps))
    top = np.maximum(x[:, :1], floor)
    powers = np.exp(x - top)
    total = powers.mean(1, keepdims=True) + np.exp(floor - top)
    return powers / (x.shape[1] * total), (top + np.log(total))[:, 0]


def loss(p: Ranks) -> Floats:
    """Mean hinge of each slice, (batch,) float64."""
    total, tasks = np.zeros(len(p.slices)), _tasks(p)
    keys = [_unit(p, p.k[part])[0] for part in p.slices[:, 1]]

    def part(number: int) -> tuple[int, float]:
        b, rows = tasks[number]
        return b, float(_rows(p, b, rows, keys[b]).hinge.sum(dtype=float))

    for b, more in threads.each(part, len(tasks), len(total) * p.q.shape[1]):
        total[b] += more
    total /= p.q.shape[1]
    return total


def jvp(p: Ranks, dq: Floats, dk: Floats, slices: Ints) -> Floats:
    """Change (batch,) of the loss along dq and dk, whose `slices` (batch, 2) are given."""
    total, tasks = np.zeros(len(p.slices)), _tasks(p)
    keys = [_moved(p, p.k[i], dk[j]) for i, j in zip(p.slices[:, 1], slices[:, 1], strict=True)]

    def part(number: int) -> tuple[int, float]:
        b, some = tasks[number]
        u, du = _moved(p, p.q[p.slices[b, 0], some], dq[slices[b, 0], some])
        dlogits = _rows_vjp(p.shape, _rows(p, b, some, keys[b][0]))
        moved = (dlogits @ keys[b][0]) * du + (dlogits @ keys[b][1]) * u
        return b, float(moved.sum(dtype=float))

    for b, more in threads.each(part, len(tasks), len(total) * p.q.shape[1]):
        total[b] += more
    total /= p.q.shape[1]
    return total


def _moved(p: Ranks, x: Floats, dx: Floats) -> tuple[Floats, Floats]:
    """Unit vectors and their change: the derivative is its own transpose."""
    u, length = _unit(p, x)
    return u, _unit_vjp(p, u, length, dx)


def vjp(p: Ranks, dout: Floats) -> tuple[Floats, Floats]:
    """Gradients (batch, n, d), (batch, m, d) of ``sum(dout * loss)``, the ranks held fixed."""
    batch, tasks = len(p.slices), _tasks(p)
    keys = [_unit(p, p.k[part]) for part in p.slices[:, 1]]
    dq = np.empty((batch, *p.q.shape[1:]), p.q.dtype)
    duk = np.zeros((batch, *p.k.shape[1:]))

    def part(number: int) -> tuple[int, Floats]:
        b, some = tasks[number]
        u, length = _unit(p, p.q[p.slices[b, 0], some])
        rows = _rows(p, b, some, keys[b][0])
        dlogits = _rows_vjp(p.shape, rows) * p.q.dtype.type(dout[b] / p.q.shape[1])
        dq[b, some] = _unit_vjp(p, u, length, dlogits @ keys[b][0])
        return b, dlogits.T @ u

    for b, more in threads.each(part, len(tasks), batch * p.q.shape[1]):
        duk[b] += more
    dk = [_unit_vjp(p, *keys[b], duk[b].astype(p.k.dtype)) for b in range(batch)]
    return dq, np.stack(dk) if dk else duk.astype(p.k.dtype)


def _rows_vjp(s: RankNumbers, rows: _Rows) -> Floats:
    """Gradient of each row's hinge with respect to its logits."""
    values = np.zeros((len(rows.logits), s.high), rows.logits.dtype)
    values[:, : s.positives] = -rows.positive
    values[:, s.low :] = rows.negative
    values *= (rows.hinge > 0)[:, None]
    chosen = largest(rows.logits, s.high)
    keys = np.nonzero(chosen)[1].reshape(len(chosen), s.high)
    order = np.argsort(-np.take_along_axis(rows.logits, keys, 1), axis=1, kind="stable")
    dlogits = np.zeros_like(rows.logits)
    np.put_along_axis(dlogits, np.take_along_axis(keys, order, 1), values, 1)
    return dlogits


def largest(x: Floats, count: int) -> Bools:
    """Which entries are among the `count` largest of their row, ties to the lowest index."""
    border = np.partition(x, x.shape[1] - count, axis=1)[:, -count][:, None]
    above, equal = x > border, x == border
    room = count - above.sum(1, keepdims=True)
    chosen: Bools = above | (equal & (np.cumsum(equal, axis=1) <= room))
    chosen[chosen.sum(1) != count] = np.arange(x.shape[1]) < count  # rows with NaN
    return chosen
