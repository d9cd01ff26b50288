"""Sets of numbers as sorted ranges (r, 2), each from its first to before its second."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from nlattn._types import Ints


def joined(a: ArrayLike, b: ArrayLike) -> tuple[int, int] | None:
    """The first numbers that two sets share, as one range; None if they share none."""
    for low, high in np.asarray(b, np.int64):
        for start, stop in np.asarray(a, np.int64):
            if max(low, start) < min(high, stop):
                return int(max(low, start)), int(min(high, stop))
    return None


def add_ranges(a: Ints, b: Ints) -> Ints:
    """Union of two sets that share nothing; ranges that touch become one."""
    both = np.concatenate([a, b])
    both = both[both[:, 1] > both[:, 0]]
    both = both[np.argsort(both[:, 0], kind="stable")]
    opens = np.ones(len(both), bool)
    opens[1:] = both[1:, 0] != both[:-1, 1]
    closes = np.append(opens[1:], True)[: len(both)]
    return np.stack([both[opens, 0], both[closes, 1]], axis=1)
