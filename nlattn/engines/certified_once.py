"""Certified attention of queries of which some are alike: these are asked once.

Saturated and flat parts of pictures give the same features over and over.
"""

from __future__ import annotations

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Ints
from nlattn.engines import certified
from nlattn.engines.certified import Sums
from nlattn.engines.exhaustive import Slice
from nlattn.engines.random_search import Progress

_FEWER = 0.97
"""Share of the queries that may be left for it to be worth looking further."""


def attend(x: Slice, tolerance: float, v: Floats, progress: Progress = None) -> Sums:
    """As `certified.attend`, of a slice; `progress` is that of the queries that are asked."""
    if tolerance > 0 and not (x.causal or x.pairs.size or x.apart):
        first, which = alike(x.q)
        if len(first) < len(x.q):
            few = x._replace(q=_check.frozen(x.q[first]))
            out, lse, missed, seen, best = certified.attend(
                certified.survey(few, tolerance), v, progress
            )
            return Sums(out[which], lse[which], missed[which], seen[which], best[which])
    return certified.attend(certified.survey(x, tolerance), v, progress)


def alike(x: Floats) -> tuple[Ints, Ints]:
    """First of all rows that are alike, and of each row which of these it is.

    All rows, where few are alike, or where a weighted sum does not tell rows apart.
    """
    every: Ints = np.arange(len(x))
    steps = np.sqrt(np.arange(2.0, x.shape[1] + 2))
    with np.errstate(all="ignore"):
        sums = np.einsum("nc,c->n", x, steps, dtype=np.float64)
    ordered = np.sort(sums)
    if np.count_nonzero(ordered[1:] != ordered[:-1]) + 1 > _FEWER * len(x):
        return every, every
    _, first, which = np.unique(sums, return_index=True, return_inverse=True)
    return (first, which) if np.array_equal(x[first[which]], x) else (every, every)
