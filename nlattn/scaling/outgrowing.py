"""A part of a cost that outgrows a law, while it is still too small to bend a straight line.

Of ``n log n + n^2 / 10^6`` the square is 13 % at n = 2^18 and everything at 2^25. A line through
logarithms takes it for noise; a sum of laws with factors that are not negative does not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn._types import Floats
from nlattn.scaling.growth import GrowthRate

_FASTER = (0.5, 1.0)
"""By which power of n a part may outgrow the law; by a logarithm, a line tells better."""
_FAMILY = [GrowthRate(half / 2, logs) for half in range(7) for logs in range(3)]
"""What a cost may be made of besides."""
_RISK = 0.001
"""How unlikely the residuals must be without the part."""


class GrowthPart(NamedTuple):
    """What outgrows a law."""

    share: float
    """Of the cost at the largest size; 0 if nothing does."""
    law: GrowthRate
    """Its growth."""


def outgrowing(sizes: Floats, costs: Floats, law: GrowthRate, floor: float) -> GrowthPart:
    """The largest part of `costs` that outgrows `law` by a power of n, if it is significant.

    ``cost = sum_i c_i f_i(n)``, all ``c_i >= 0``, is fitted by relative least squares, without the
    part and with it; what else there may be is ``law log n`` and all ``n^a log^b n`` below. `floor`
    is the relative deviation that is taken for noise where residuals are smaller.
    """
    from scipy.special import chdtri, fdtri

    best, logarithm = GrowthPart(0.0, law), GrowthRate(law.power, law.logs + 1)
    slower = sorted({law, logarithm, *(f for f in _FAMILY if f < logarithm)})
    _, without, _ = _fit(slower, sizes, costs)
    for more in _FASTER:
        part = GrowthRate(law.power + more, law.logs)
        factors, rest, free = _fit([*slower, part], sizes, costs)
        noise = rest / free
        least = noise * fdtri(1, free, 1 - _RISK) if noise > floor**2 else 0.0
        if without - rest > max(least, floor**2 * chdtri(1, _RISK)):  # noise estimated, or known
            share = float(factors[-1] * part(sizes[-1]) / costs[-1])
            if share > best.share:
                best = GrowthPart(share, part)
    return best


def _fit(laws: list[GrowthRate], sizes: Floats, costs: Floats) -> tuple[Floats, float, int]:
    """Factors, the sum of squared relative residuals, and their degrees of freedom."""
    from scipy.optimize import nnls

    M = np.stack([law(sizes) for law in laws], 1) / costs[:, None]
    top = M.max(0)
    factors, rest = nnls(M / top, np.ones(len(costs)))
    return factors / top, float(rest) ** 2, max(1, len(costs) - int((factors > 0).sum()))
