"""Values in units and from an origin that sums in float32 hold, channel by channel."""

from __future__ import annotations

import numpy as np

from nlattn._types import Floats, Ints

_VAST = 2.0**60


def powers_of(v: Floats) -> Ints:
    """(e,) exponents of two of the units of channels whose values are vast or tiny, else 0.

    Weights may be as large as exp(30) before their unit is raised.
    """
    tops = np.abs(v).max(0, initial=0)
    odd = ((tops > _VAST) & (tops < np.inf)) | ((tops > 0) & (tops < 1 / _VAST))
    found: Ints = np.where(odd, np.frexp(np.where(odd, tops, 1))[1], 0)
    return found


def middle_of(v: Floats) -> Floats:
    """Middle of every channel's range, if it is far from 0 beside its width.

    Then no value exceeds 1.5 widths, and sums round by as much; values around 0 keep their digits.
    """
    if not len(v):
        return np.zeros(v.shape[1])
    low, high = v.min(0).astype(np.float64), v.max(0).astype(np.float64)
    middle = low / 2 + high / 2
    return np.where(np.abs(middle) > high - low, middle, 0)
