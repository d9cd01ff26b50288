"""Where a large call begins to be wrong: offsets that were cut to 32 bits say so by their place."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nlattn._types import Array
from nlattn.conformance.case import Case
from nlattn.conformance.large_call import dimensions
from nlattn.conformance.truth.bounds import allowed, exact, ratios


def beyond(case: Case, got: Mapping[str, Array]) -> str:
    """From which row on results are wrong that are right before; empty if they are not so."""
    want, bounds, first = exact(case), allowed(case), dimensions(case)
    for name, x in want.items():
        place, mine = case.whole.get(first.get(name, "")), np.asarray(got.get(name, np.nan), float)
        if place is None or mine.shape != x.shape:
            continue
        far = ratios(mine, x, bounds[name]) > 1
        wrong = np.any(far, axis=tuple(range(1, far.ndim)))
        if wrong.any() and not wrong[0]:
            row = place["at"][int(wrong.argmax())]
            return (
                f"{name} is right in the first rows and wrong from row {row} of {place['size']} "
                "on: an offset cut to 32 bits?"
            )
    return ""
