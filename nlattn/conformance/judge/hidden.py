"""Numbers that a right implementation has not: a ridge, a least exponent, a least weight.

Each is a family of wrong variants by one number, found on a coarse grid and then more finely: the
one that leaves least of an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from nlattn._types import Array, Result
from nlattn.conformance.case import Case
from nlattn.conformance.judge.measure import Effort, attempt, call_of, distance, rms, slack
from nlattn.conformance.judge.variants.base import Call, Variant, first
from nlattn.conformance.judge.variants.dense import stages, translated

LEFT = 0.03
"""The share of an error that the number found may leave."""
FOUND = 1e-6
"""The share that is left at most where a number is found as finely as it is looked for."""
LEAST = 8
"""Elements without which some number would always do."""
STEPS = 40
MOVED = 0.98
"""The share of an error above which no number that is tried first has anything to do with it."""


@dataclass(frozen=True)
class Family:
    """Wrong variants by a number; `words` have a # for it."""

    words: str
    fits: tuple[str, ...]
    """Families of operators, as those of variants."""
    run: Callable[[Call, float], Result]
    grid: tuple[int, ...]
    """What is tried first."""
    power: bool = False
    """Whether numbers are powers of ten, of what is tried."""


def _ridged(c: Call, x: float) -> Result:
    """Keys with as many rows more, of length sqrt(x) along each axis."""
    k = c["k"]
    d = k.shape[-1]
    more = np.broadcast_to(np.sqrt(x) * np.eye(d), (*k.shape[:-2], d, d))
    return c.given(k=np.concatenate([k, more], -2))()[..., : k.shape[-2]]


def _exponents(change: Callable[[Array, Array], Array]) -> Callable[[Call], Result]:
    """Weights ``change(z, seen)`` of scores less their largest, over their sum."""

    def run(c: Call) -> Result:
        if {"sinks", "dropout_mask"} & {*c.arrays} or c.get("return_lse"):
            raise ValueError
        call = translated(c)
        st = stages(call)
        seen = ~np.isneginf(st.masked.real)
        top = st.masked.real.max(-1, keepdims=True, initial=-np.inf)
        powers = np.where(seen, change(st.masked - np.where(np.isneginf(top), 0, top), seen), 0)
        total = powers.sum(-1, keepdims=True)
        v = call["v"]
        if call.get("gqa") and v.ndim > 2:
            v = np.repeat(v, powers.shape[-3] // v.shape[-3], -3)
        return powers / np.where(total == 0, 1, total) @ v

    return run


def _clamped(c: Call, x: float) -> Result:
    return _exponents(lambda z, _: np.exp(np.maximum(z.real, -x)))(c)


def _dropped(c: Call, x: float) -> Result:
    return _exponents(lambda z, _: np.where(z.real < -x, 0, np.exp(z)))(c)


FAMILIES = (
    Family(
        "with a ridge of # added to the Gram matrix",
        ("leverage",),
        _ridged,
        tuple(range(-13, 3)),
        power=True,
    ),
    Family(
        "with exponents no less than -# below the largest",
        ("softmax",),
        _clamped,
        tuple(range(1, 42, 2)),
    ),
    Family(
        "with weights below exp(-#) of the largest left out",
        ("softmax",),
        _dropped,
        tuple(range(1, 42, 2)),
    ),
)


def hidden(
    case: Case, want: Mapping[str, Array], got: Mapping[str, Array], effort: Effort
) -> list[str]:
    """The family and its number that explain a forward result, in a list; an empty one if none."""
    name = next(iter(want))
    if case.kind != "forward" or len(want) > 1 or want[name].size < LEAST:
        return []
    if not np.isfinite(got[name]).all() or not np.isfinite(want[name]).all():
        return []
    call, best = call_of(case), (np.inf, "")
    error = distance(got[name], want[name])
    limit = min(LEFT * error, max(slack(case) * rms(want[name]), FOUND * error))
    for family in FAMILIES:
        if not {*family.fits} & {*case.spec.wrong} or effort.over:
            continue
        number, left = _number(family, call, got[name], error, effort)
        if left <= min(limit, best[0]):
            best = (left, family.words.replace("#", f"{number:.3g}"))
    return [best[1]] if best[1] else []


def _number(
    family: Family, call: Call, got: Array, error: float, effort: Effort
) -> tuple[float, float]:
    """The number that leaves least of an error, and what it leaves."""

    def number(at: float) -> float:
        return 10.0**at if family.power else at

    def left(at: float) -> float:
        made = attempt(Variant("", (), lambda c: family.run(c, number(at))), call)
        x = None if made is None else np.asarray(first(made), float)
        return distance(got, x) if x is not None and x.shape == got.shape else np.inf

    found = []
    for tried in family.grid:
        found.append((left(tried), float(tried)))
        if effort.over or not np.isfinite(found[0][0]):
            return 0.0, np.inf
    least, middle = min(found)
    if least > MOVED * error:
        return 0.0, np.inf
    step = family.grid[1] - family.grid[0]
    low, high, ratio = middle - step, middle + step, (5**0.5 - 1) / 2
    for _ in range(STEPS):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        each = (left(a), a), (left(b), b)
        found += each
        low, high = (low, b) if each[0] < each[1] else (a, high)
        if effort.over:
            break
    least, at = min(found)
    return number(at), least
