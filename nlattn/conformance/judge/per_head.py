"""An array of one number for each head, such as slopes or sinks, read as other numbers.

Results of a head depend on its own number alone, so all are found at once by the slopes of results
along them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nlattn._types import Array
from nlattn.conformance.case import Case
from nlattn.conformance.judge.measure import Effort, attempt, call_of, rms, slack
from nlattn.conformance.judge.slopes import STEP
from nlattn.conformance.judge.variants.base import Call, Variant, first

LEFT = 0.03
"""The share of an error that the numbers found may leave."""
LEAST = 8
"""Elements of a head without which some number would always do."""
STEPS, SHOWN = 12, 2
CLOSE = 1e-4
"""The share of a number by which one that is right may be off."""
RIGHT = Variant("", (), Call.__call__)


def per_head(
    case: Case, want: Mapping[str, Array], got: Mapping[str, Array], effort: Effort
) -> list[str]:
    """Numbers of heads that explain a forward result, in a list; an empty one if none do."""
    name = next(iter(want))
    theirs = got[name]
    lead = theirs.shape[: theirs.ndim - len(case.spec.out.split())]
    if case.kind != "forward" or not np.isfinite(theirs).all() or "q" not in case.arrays:
        return []
    if not lead or theirs.size < LEAST * np.prod(lead):
        return []
    limit = min(LEFT * rms(theirs - want[name]), slack(case) * rms(theirs))
    for option, own in case.arrays.items():
        if own.ndim and own.dtype.kind == "f" and own.shape == lead[-own.ndim :]:
            size = theirs.size // int(np.prod(lead))
            found = _numbers(call_of(case), option, theirs, size, limit, effort)
            if found is not None:
                return [_sentence(option, found, np.asarray(own, float))]
    return []


def _numbers(
    call: Call, option: str, theirs: Array, size: int, limit: float, effort: Effort
) -> Array | None:
    """What an array is to be for these results, of so many elements for each head."""
    x = np.asarray(call[option], float)
    for _ in range(STEPS):
        if effort.over:
            break
        made = np.asarray(first(attempt(RIGHT, call.given(**{option: x + 1j * STEP}))))
        if made.shape != theirs.shape or not np.isfinite(made).all():
            break
        apart, slope = theirs - made.real, made.imag / STEP
        if rms(apart) <= limit:
            return x
        each = (y.reshape(-1, *x.shape, size) for y in (slope * apart, slope * slope))
        inner, square = (y.sum((0, -1)) for y in each)
        x = x + np.where(square > 0, inner / np.where(square > 0, square, 1), 0)
    return None


def _sentence(option: str, theirs: Array, ours: Array) -> str:
    """Which heads have which numbers, the first that are wrong."""
    theirs = np.where(abs(theirs) < CLOSE * abs(ours), 0, theirs)
    wrong = np.argwhere(abs(theirs - ours) > CLOSE * abs(ours))
    each = [
        f"{theirs[tuple(i)]:.4g} in place of {ours[tuple(i)]:.4g} for head {', '.join(map(str, i))}"
        for i in wrong[:SHOWN]
    ]
    more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    return f"with {option} = {'; '.join(each)}{more}"
