"""A number that results have and the oracle's formulas have not: added to a term, or a factor.

An epsilon under a fraction, a factor 1/log 2 on scores alone: the number is found by the slope of
results along it, for every term of every function that the oracle calls.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from nlattn._types import Array, Arrays
from nlattn.conformance.case import Case
from nlattn.conformance.judge.by_formula import LARGEST, with_change
from nlattn.conformance.judge.combined import pairs
from nlattn.conformance.judge.measure import Effort, rms, slack
from nlattn.conformance.judge.structure import numbers
from nlattn.conformance.judge.variants import formulas
from nlattn.conformance.truth.bounds import exact

STEP = 2.0**-12
"""The number by which slopes are seen."""
LIKE = 0.3
"""The share of an error, in squares, that a slope must explain for its number to be looked for."""
LEFT = 0.03
"""The share of an error that may be left."""
LEAST = 12
"""Elements without which any number could be had."""
NEARLY_0 = 1e-3
"""A factor below which a term is left out, not multiplied."""
TINY = 1e-6
"""A number that no one adds: what it explains is a comparison that it turns."""
STEPS = 6


def amounts(
    case: Case, names: tuple[str, ...], want: Arrays, got: Arrays, effort: Effort, new: bool
) -> list[str]:
    """Terms with a number more that explain some results; those of earlier failures, or `new`."""
    if pairs(case) > LARGEST or not names:
        return []
    ours, theirs = (np.concatenate([x[n].ravel() for n in names]) for x in (want, got))
    kept = np.isfinite(ours)
    if kept.sum() < LEAST or not np.isfinite(theirs[kept]).all() or ours.std() == 0:
        return []
    found = _fitting(case, names, ours, theirs, effort.amounts, effort)
    if not found and new:
        whole = formulas.amounts(case.function)
        every = (*whole, *formulas.uses(case.function, some=whole))
        found = _fitting(case, names, ours, theirs, every, effort)
        effort.amounts += [change for _, change, _ in found]
    least = min((left for left, _, _ in found), default=0.0)
    also = f", in {' and '.join(names)} alone" if len(names) < len(want) else ""
    near = sorted((x for x in found if x[0] <= 2 * least), key=lambda x: x[0])
    return [_sentence(case, change, number) + also for _, change, number in near[:2]]


def _sentence(case: Case, change: formulas.Change, number: float) -> str:
    if change.added:
        return change.name.replace("#", f"{number:.3g}")
    factor = 1 + number
    words = [text for text, x in numbers(case) if abs(x - factor) < 1e-4 * abs(factor)]
    return change.name.replace("#", words[0] if words else f"{factor:.4g}")


def _fitting(
    case: Case,
    names: tuple[str, ...],
    ours: Array,
    theirs: Array,
    changes: Iterable[formulas.Change],
    effort: Effort,
) -> list[tuple[float, formulas.Change, float]]:
    found = []
    for change in changes:
        if effort.over:
            break
        number, left = _number(case, names, ours, theirs, change)
        if abs(number) > TINY and (change.added or abs(1 + number) > NEARLY_0):
            found.append((left, change, number))
    return found


def _number(
    case: Case, names: tuple[str, ...], ours: Array, theirs: Array, change: formulas.Change
) -> tuple[float, float]:
    """The number that leaves least of an error, 0 if it leaves much; and what it leaves."""
    kept = np.isfinite(ours)
    error = theirs[kept] - ours[kept]
    limit = min(LEFT * rms(error), slack(case) * rms(theirs[kept]))

    def at(number: float) -> Array | None:
        with formulas.more(number):
            made = with_change(case, change)
        want = exact(case)
        if made is None or any(np.shape(made.get(n, 0)) != want[n].shape for n in names):
            return None
        x = np.concatenate([np.ravel(np.asarray(made[n], float)) for n in names])[kept]
        return x if np.isfinite(x).all() else None

    before, number, x = 0.0, STEP, at(STEP)
    last = ours[kept]
    for _ in range(STEPS):
        if x is None:
            break
        left = rms(theirs[kept] - x)
        if left <= limit and number != STEP:
            return number, left
        slope = (x - last) / (number - before)
        weight, apart = float((slope**2).sum()), theirs[kept] - x
        part = float((slope * apart).sum())
        if not weight or part**2 < LIKE * weight * float((apart**2).sum()):
            break
        last, before, number = x, number, number + part / weight
        x = at(number) if abs(number) < 1e6 and number != before else None
    return 0.0, np.inf
