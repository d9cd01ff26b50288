"""Laws fitted to costs: how much each is to be believed, and where they lead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nlattn._types import Floats
from nlattn.scaling.growth import FAMILY, growth

_FLOOR = 1e-3  # log2 units, the least deviation that is taken for noise
_DRAWS = 4000


class _Fit(NamedTuple):
    """``log2 cost = level + log2 law(n)``, and a jump from some size on."""

    law: str
    level: float
    """Behind the jump, if there is one."""
    rest: float
    criterion: float
    """Akaike's, corrected for few points."""


def _fits(n: Sequence[int], cost: Sequence[float]) -> list[_Fit]:
    """Each law alone and, given points enough, with its best jump."""
    sizes = np.asarray(n, np.float64)
    y = np.log2(np.asarray(cost, np.float64))
    found = []
    for law in FAMILY:
        z = y - growth(law).log2(sizes)
        found.append(_fit(law, z, z.mean(), 2))
        if len(z) > 6:
            parts = [(z[:i], z[i:]) for i in range(1, len(z))]
            split = min(parts, key=lambda p: sum(len(a) * a.var() for a in p))
            rest = np.concatenate([a - a.mean() for a in split])
            found.append(_fit(law, rest + split[1].mean(), split[1].mean(), 4))
    return found


def _fit(law: str, z: Floats, level: float, parameters: int) -> _Fit:
    count, rest = len(z), max(float(((z - level) ** 2).sum()), len(z) * _FLOOR**2)
    spare = count - parameters - 1
    penalty = 2 * parameters + (2 * parameters * (parameters + 1) / spare if spare > 0 else 1e9)
    return _Fit(law, float(level), rest, count * math.log(rest / count) + penalty)


def _shares(fits: list[_Fit]) -> Floats:
    criteria = np.array([fit.criterion for fit in fits])
    shares = np.exp((criteria.min() - criteria) / 2)
    return np.asarray(shares / shares.sum())


def law_weights(n: Sequence[int], cost: Sequence[float]) -> dict[str, float]:
    """How much each law of `FAMILY` is to be believed: Akaike weights, jumps allowed for."""
    fits = _fits(n, cost)
    weights = dict.fromkeys(FAMILY, 0.0)
    for fit, share in zip(fits, _shares(fits), strict=True):
        weights[fit.law] += float(share)
    return weights


class Range(NamedTuple):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


def extrapolate(n: Sequence[int], cost: Sequence[float], at: int) -> Range:
    """Cost at another size: draws from all laws as far as they are believed, with their noise."""
    fits = _fits(n, cost)
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(fits), _DRAWS, p=_shares(fits))
    centres = np.array([fit.level + float(growth(fit.law).log2(at)) for fit in fits])
    spreads = np.array([math.sqrt(fit.rest / max(1, len(n) - 2)) for fit in fits])
    noise = rng.standard_t(max(1, len(n) - 2), _DRAWS) * math.sqrt(1 + 1 / len(n))
    drawn: Floats = np.exp2(centres[chosen] + spreads[chosen] * noise)
    low, middle, high = np.quantile(drawn, [0.025, 0.5, 0.975])
    return Range(float(middle), float(low), float(high))


def bytes_at(n: Sequence[int], peak: Sequence[int], at: int) -> int:
    """Memory at another size: ``a + b n + c n^2``, none negative, by relative least squares."""
    from scipy.optimize import nnls

    sizes, held = np.asarray(n, np.float64), np.asarray(peak, np.float64)
    powers = np.arange(3)
    unit = sizes.max()
    M = (sizes[:, None] / unit) ** powers / held[:, None]
    factors, _ = nnls(M, np.ones_like(held))
    return round(float((factors * (at / unit) ** powers).sum()))
