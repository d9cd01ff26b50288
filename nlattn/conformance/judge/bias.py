"""A bias that no single case shows: relative errors in common, pooled over all cases of a dtype."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from nlattn.conformance.case import Array
from nlattn.conformance.judge.errors import Errors, same_rows, uncertainty

LEAST = 8
"""Cases that are pooled, at least."""
UNLIKELY = 6.0
"""Standard errors that a bias is beyond by a chance of 2e-9."""


class Lean(NamedTuple):
    """Relative error that the elements of a result share, and what it may be."""

    bias: float
    doubt: float
    """Its standard error, by the rows of the result: elements of one may share an error, and equal
    rows share all of theirs."""
    shared: float
    """What right backends may share: roundings of constants."""

    @classmethod
    def of(cls, got: Array, want: Array, each: Array, found: Errors, shared: float) -> Lean | None:
        """Of one result and its typical errors; None if it tells nothing."""
        known = np.isfinite(got) & np.isfinite(want) & np.isfinite(each) & (each > 0)
        if found.elements < 8 or not 0 < found.doubt < math.inf or not want.ndim:
            return None
        size = np.where(known, each, 1)
        scale = np.where(known, want, 0) / size
        parts = np.subtract(got, want, out=np.zeros(want.shape), where=known) / size
        left = (parts - found.bias * scale) * scale
        doubt = uncertainty(left, scale**2, same_rows(want)) / float((scale**2).sum())
        return cls(found.bias, max(found.doubt, doubt), shared)


def pooled(found: Iterable[Lean]) -> str:
    """What is wrong with the errors of several cases together; empty if nothing is."""
    leans = list(found)
    if len(leans) < LEAST:
        return ""
    weights = [x.doubt**-2 for x in leans]
    total = sum(weights)
    bias, shared = (
        sum(w * x[i] for w, x in zip(weights, leans, strict=True)) / total for i in (0, 2)
    )
    doubt = total**-0.5
    if abs(bias) <= shared + UNLIKELY * doubt:
        return ""
    way = "large" if bias > 0 else "small"
    return (
        f"results of {len(leans)} cases together are too {way} by {abs(bias):.2g} of themselves, "
        f"where roundings average out to {doubt:.2g}"
    )
