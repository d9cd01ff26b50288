"""Mistakes that come in pairs, and mistakes that are made in a part of a result alone."""

from __future__ import annotations

import math

import numpy as np

from nlattn._types import Array, Arrays
from nlattn.conformance.case import Case
from nlattn.conformance.judge.measure import (
    Effort,
    call_of,
    distance,
    results,
    rms,
    slack,
    variants_made,
)
from nlattn.conformance.judge.variants.base import Variant, both, first
from nlattn.conformance.judge.where import axes, place

LARGEST = 2500
"""Pairs of queries and keys above which two mistakes are not looked for."""
LIKELY = 10
"""Variants of which each is tried with every other: those that explain most on their own."""

FEW_ROWS, MOST_ROWS = 4, 8
"""Rows at one end, or here and there, of which a mistake may be told that others do not show."""


def in_part(case: Case, want: Arrays, got: Arrays, effort: Effort) -> list[str]:
    """Variants that explain the wrong elements, where others are right, and where these are."""
    name = next(iter(want))
    if case.kind != "forward" or not want[name].size:
        return []
    mine, ours = got[name], want[name]
    size = rms(ours)
    wrong = ~((abs(mine - ours) <= slack(case) * size) | (mine == ours))
    wrong &= ~(np.isnan(mine) & np.isnan(ours))
    where, places = place(wrong, axes(case, ours, name))
    seen = mine[wrong & np.isfinite(mine)]
    if wrong.sum() < 4 or not where or not seen.any():  # much gives 0, or NaN
        return []
    whole = "head" in where or "batch" in where
    if not whole and places < (MOST_ROWS if where.startswith("at") else FEW_ROWS):
        return []
    error = distance(mine[wrong], ours[wrong])
    for variant, made in variants_made(case).within(effort):
        if name in made and not variant.name.startswith("as if"):
            rest = distance(mine[wrong], made[name][wrong])
            if rest <= min(0.1 * error, slack(case) * max(size, rms(made[name][wrong]))):
                return [f"{variant.name}, {where} alone"]
    return []


def other_number(case: Case, want: Arrays, got: Arrays) -> list[str]:
    """An option whose number is a little off, by the slope of the result along it."""
    name = next(iter(want))
    apart = got[name] - want[name]
    if case.kind != "forward" or apart.size < 8 or not np.isfinite(apart).all():
        return []
    if any(_share(got[n], x) > _share(got[name], want[name]) for n, x in want.items()):
        return []  # more is wrong than this result, of which alone an option is told
    call = call_of(case)
    options = {n: float(x) for n, x in case.options.items() if type(x) is float}
    if case.spec.softmax and "scale" not in options:
        options["scale"] = case.spec.softmax.scale or float(case.arrays["q"].shape[-1] ** -0.5)
    for option, x in options.items():
        try:
            up, down = (first(call.given(**{option: x * (1 + h)})()) for h in (1e-5, -1e-5))
        except (ArithmeticError, LookupError, TypeError, ValueError):
            continue
        slope = (np.asarray(up, float) - np.asarray(down, float)) / 2e-5
        weight = float((slope**2).sum())
        if not 0 < weight < math.inf:
            continue
        part = float((slope * apart).sum()) / weight
        if abs(part) < 0.02 and rms(apart - part * slope) <= 0.2 * rms(apart):
            digits = 9 if abs(part) > 1e-7 else 17
            said, own = f"{x * (1 + part):.{digits}g}", f"{x:.9g}"
            return (
                [f"with {option} = {said} in place of {own}"] if float(said) != float(own) else []
            )
    return []


def _share(got: Array, want: Array) -> float:
    """Size of the error over that of the result."""
    return distance(got, want) / max(rms(want), 1e-300)


def pair(case: Case, want: Arrays, got: Arrays, effort: Effort) -> list[str]:
    """Two variants that explain a result together."""
    if case.kind != "forward" or pairs(case) > LARGEST:
        return []
    name = next(iter(want))
    mine, ours = got[name], want[name]
    limit = slack(case)
    scored: list[tuple[float, float, int, Variant]] = []
    for variant, made in variants_made(case).within(effort):
        x = made.get(name)
        if x is None or variant.name.startswith("as if") or same(x, ours, limit):
            continue
        matched = np.mean((abs(x - mine) <= limit * rms(ours)) | (np.isnan(x) & np.isnan(mine)))
        far = rms(np.where(np.isfinite(x) & np.isfinite(mine), x - mine, 0))
        scored.append((-float(matched), far, len(scored), variant))
    scored.sort()
    some = [variant for *_, variant in scored]
    error, call = distance(mine, ours), call_of(case)
    for likely in some[:LIKELY]:
        for other in some:
            if effort.over:
                return []
            for outer, inner in ((likely, other), (other, likely)) if likely is not other else ():
                together = both(outer, inner)
                found = results(case, together, call)
                if found is None or name not in found:
                    continue
                rest = distance(mine, found[name])
                if rest <= min(0.1 * error, limit * rms(found[name])):
                    return [", and ".join(sorted((likely.name, other.name)))]
    return []


def same(x: Array, y: Array, limit: float) -> bool:
    """Whether two results are equal but for rounding."""
    return distance(x, y) <= 1e-3 * limit * rms(y)


def pairs(case: Case) -> int:
    """Pairs of queries and keys, of all heads."""
    arrays = case.arrays
    if not {"q", "k"} <= arrays.keys():
        return max((x.size for x in arrays.values()), default=0)
    dims = len(case.spec.arrays["q"].split())
    lead, n = math.prod(arrays["q"].shape[:-dims]), math.prod(arrays["q"].shape[-dims:-1])
    return int(lead * n * math.prod(arrays["k"].shape[-dims:-1]))
