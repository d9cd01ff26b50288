"""A number added to the scores of each key, as two more channels of queries and keys.

Of products ``factor q.k + b = factor (q, c, c).(k, x, y)`` with ``x + y = b / (factor c)``. Of
distances ``b - f |q - k|^2 = 1 - f |(q, 0, 0) - (k, x, y)|^2`` with ``x^2 + y^2 = (1 - b) / f``. In
both y is what the rounding of x leaves, so that float32 keys hold b in 48 bits. Biases are counted
from the largest one, which only the log-normaliser sees.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Bools, Floats
from nlattn.engines.exhaustive import Slice
from nlattn.kernels.scores import DOT, NEG_L2

_WEAK = 2.0**-60
"""Scores that the bias alone decides."""
_ROUNDED = 2.0**-50  # share of a bias that float64 may lose on the way into the channels


class KeyBias(NamedTuple):
    """A slice whose keys have a bias, and how gradients and changes go through it."""

    slice: Slice
    times: float
    """Of gradients of queries."""
    slope: Floats
    """(m,) change of x with the bias."""

    def gradients(self, dq: Floats, dk: Floats) -> tuple[Floats, Floats, Floats]:
        """Those of queries, keys and the bias."""
        d = dq.shape[1] - 2
        return dq[:, :d] * self.times, dk[:, :d], dk[:, d] * self.slope

    def changes(self, dq: Floats, dk: Floats, db: Floats | float) -> tuple[Floats, Floats]:
        """Of queries and keys, with their channels."""
        none, moved = np.zeros((len(dq), 2)), np.zeros((len(dk), 2))
        moved[:, 0] = self.slope * db
        return np.concatenate([self.times * dq, none], 1), np.concatenate([dk, moved], 1)


def add(x: Slice, bias: Floats) -> KeyBias:
    """The slice with a bias (m,) of its keys; -inf hides a key."""
    shown = ~np.isneginf(bias)
    mask = shown & x.key_mask if x.key_mask.size else shown
    most = float(bias.max(initial=-np.inf, where=mask & np.isfinite(bias)))
    most = most if math.isfinite(most) else 0.0
    with np.errstate(all="ignore"):
        b = np.where(mask, bias.astype(np.float64) - most, 0)
        far = math.sqrt(abs(x.factor) * x.q.shape[1]) * (_largest(x.q) + _largest(x.k[mask]))
        times, lost = 1.0, 0.0
        if far * far <= _WEAK:
            times, lost = x.factor * (2 if x.kind == NEG_L2 else 1), _WEAK
            q = _check.frozen(x.q * times, x.q.dtype)
            x = x._replace(q=q, kind=DOT, factor=1.0)
        if x.kind == NEG_L2:
            most, b = most + 1, b - 1
            end, ends, slope, held = 0.0, *_heights(-b / x.factor, x)
        else:
            end, ends, slope, held = _products(b / x.factor, x, mask)
        blur = lost + float(np.abs(held - b).max(initial=0)) + _ROUNDED * _largest(b)
    kind = x.q.dtype
    q = np.concatenate([x.q, np.full((len(x.q), 2), end, kind)], 1)
    k = np.concatenate([x.k, ends], 1)
    slice_ = x._replace(
        q=_check.frozen(q),
        k=_check.frozen(k),
        key_mask=_check.frozen(x.key_mask if shown.all() else mask),
        above=most,
        blur=blur if blur < np.inf else np.inf,
    )
    return KeyBias(slice_, times, np.broadcast_to(slope, len(k)))


def _products(b: Floats, x: Slice, mask: Bools) -> tuple[float, Floats, Floats, Floats]:
    """Channel of queries, those of keys, the slope, and what they hold."""
    sizes = _largest(x.q), _largest(b), _largest(x.k[mask])
    power = 0
    if all(sizes):  # so that no product of lengths is in vain
        q, own, k = (math.log2(size) for size in sizes)
        most = np.finfo(x.q.dtype).maxexp // 2
        power = max(-most, min(most, round((q + own - k) / 2)))
    end, ends = 2.0**power, np.zeros((len(b), 2), x.q.dtype)
    ends[:, 0] = b / end
    ends[:, 1] = b / end - ends[:, 0]
    ends[~np.isfinite(ends[:, 1]), 1] = 0
    held = x.factor * end * ends.sum(1, dtype=np.float64)
    return end, ends, np.array(1 / (x.factor * end)), held


def _heights(square: Floats, x: Slice) -> tuple[Floats, Floats, Floats]:
    """Channels of keys whose squares sum to these, the slope, and what they hold."""
    ends = np.zeros((len(square), 2), x.q.dtype)
    first = np.sqrt(square).astype(x.q.dtype)
    over = first.astype(np.float64) ** 2 > square
    ends[:, 0] = np.where(over, np.nextafter(first, first.dtype.type(0)), first)
    wide = ends.astype(np.float64)
    ends[:, 1] = np.sqrt(np.maximum(square - wide[:, 0] ** 2, 0))
    held = -x.factor * (ends.astype(np.float64) ** 2).sum(1)
    return ends, -1 / (2 * x.factor * wide[:, 0]), held


def _largest(x: Floats) -> float:
    """The largest finite magnitude."""
    return float(np.abs(x).max(initial=0, where=np.isfinite(x)))
