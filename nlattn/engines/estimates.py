"""Figures of all queries, estimated from some of them: docs/numerics.md has the formulas."""

from __future__ import annotations

import math
from typing import NamedTuple

from nlattn._types import Floats

_Z = 1.959963984540054  # two-sided 95 % of a normal distribution


class Estimate(NamedTuple):
    """A figure over all queries, estimated from the compared ones."""

    value: float
    error: float
    """Standard error; 0 if every query was compared."""
    low: float
    """Lower end of the 95 % confidence interval."""
    high: float


def mean(x: Floats, n: int, high: float = math.inf) -> Estimate:
    """Mean of a sample without replacement: ``SE^2 = (1 - r/n) s^2 / r``."""
    value, r = float(x.mean()), len(x)
    if not math.isfinite(value):
        return Estimate(value, math.inf, 0.0, high)
    error = math.sqrt((1 - r / n) * float(x.var(ddof=1)) / r) if r > 1 else 0.0
    if r == 1 < n:
        return Estimate(value, math.inf, 0.0, high)
    return Estimate(value, error, max(0.0, value - _Z * error), min(high, value + _Z * error))


def proportion(x: Floats, n: int) -> Estimate:
    """Wilson's interval, the sample counted as if drawn from endlessly many."""
    value, r = float(x.mean()), len(x)
    if r >= n:
        return Estimate(value, 0.0, value, value)
    error = math.sqrt((1 - r / n) * value * (1 - value) / max(r - 1, 1))
    size = r * (n - 1) / (n - r)
    spread = _Z * math.sqrt(value * (1 - value) / size + (_Z / (2 * size)) ** 2)
    centre, scale = value + _Z**2 / (2 * size), 1 + _Z**2 / size
    low, high = (centre - spread) / scale, (centre + spread) / scale
    return Estimate(value, error, max(0.0, low), min(1.0, max(high, value)))


def ratio(a: Floats, b: Floats, n: int) -> Estimate:
    """``sqrt(sum a / sum b)``, its error by linearisation."""
    if not b.sum():
        value = math.inf if a.sum() else 0.0
        return Estimate(value, 0.0, value, value)
    share, r = float(a.sum() / b.sum()), len(a)
    root = math.sqrt(share)
    if r == 1 < n:
        return Estimate(root, math.inf, 0.0, math.inf)
    residual = float(((a - share * b) ** 2).sum()) / max(r - 1, 1)
    error = math.sqrt((1 - r / n) / r * residual) / float(b.mean()) / (2 * root) if root else 0.0
    return Estimate(root, error, max(0.0, root - _Z * error), root + _Z * error)
