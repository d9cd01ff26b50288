"""What went wrong: failing results beside the catalogue of wrong variants.

A variant explains results if it leaves a tenth of their error at most, and no more than rounding
makes of a number of their size. Of several the one that leaves least is named, or all that leave
the same. Gradients g of a wrong forward pass f are recognised by their products with random
directions u, without any wrong gradient: ``g.u = Im dout.f(x + ihu)/h``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from typing import TypeAlias

import numpy as np

from nlattn._types import JsonObject, Result
from nlattn.conformance.case import Array, Case, dtype_of
from nlattn.conformance.eight_bit import dequantised
from nlattn.conformance.judge import combined, structure, variants
from nlattn.conformance.judge.measure import (
    Effort,
    Lazy,
    attempt,
    call_of,
    distance,
    results,
    rms,
    slack,
    variants_made,
)
from nlattn.conformance.judge.variants import changes, codes, detached, gradients, options
from nlattn.conformance.judge.variants.base import Call
from nlattn.conformance.judge.variants.options import DEFAULT
from nlattn.conformance.truth.arithmetic import precision
from nlattn.conformance.truth.bounds import exact, wide

_STEP = 1e-30
SAME = "your output equals ours "
"""How a diagnosis begins that names a mistake."""


def diagnose(
    case: Case,
    got: Mapping[str, Array],
    stages: Mapping[str, Array] | None = None,
    two: bool = True,
    effort: Effort | None = None,
) -> str:
    """What happened, as a sentence; empty if nothing is known that explains it.

    `stages` are intermediate results that a backend exposes, named as in `oracle.dense.Stages`.
    `two` says whether two mistakes at once are tried where no single one explains a result. Names
    that earlier failures have, by `effort`, are tried first; then all, until that is over.
    """
    effort = effort or Effort()
    with np.errstate(all="ignore"), effort.spent():
        said = _diagnosis(dequantised(case), got, stages, two, effort)
    if said.startswith(SAME):
        effort.names.update(said.removeprefix(SAME).split(" or "))
    return said


def _diagnosis(
    case: Case,
    got: Mapping[str, Array],
    stages: Mapping[str, Array] | None,
    two: bool,
    effort: Effort,
) -> str:
    want = exact(case)
    got = {name: np.asarray(x, np.float64) for name, x in got.items() if x is not None}
    said = [structure.bisect(case, stages)] if stages else []
    if any(name not in got or got[name].shape != x.shape for name, x in want.items()):
        said.append(structure.shapes(want, got))
    else:
        said.append(
            _sentence(_explanations(case, got, _again(case, effort.names)))
            or _sentence(_explanations(case, got, _ways(case).within(effort)))
            or structure.padding(case, want, got)
            or _beside_nan(case, want, got, effort)
            or _sentence(combined.in_part(case, want, got, effort))
            or structure.multiples(case, want, got)
            or _sentence(combined.other_number(case, want, got))
            or structure.unwritten(case, want, got)
            or _sentence(_explanations(case, got, _held(case).within(effort)))
            or structure.describe(case, want, got)
            or (_sentence(combined.pair(case, want, got, effort)) if two else "")
            or structure.only(case, want, got)
        )
    return "; ".join(filter(None, said))


def _beside_nan(
    case: Case, want: Mapping[str, Array], got: Mapping[str, Array], effort: Effort
) -> str:
    """A variant that is 0 where results are NaN: queries that see no key, divided by nothing."""
    bad = {name: np.isnan(got[name]) & np.isfinite(x) for name, x in want.items()}
    if case.kind != "forward" or not any(x.any() for x in bad.values()):
        return ""
    filled = {name: np.where(bad[name], 0, x) for name, x in got.items() if name in bad}
    found = _sentence(_explanations(case, filled, _ways(case).within(effort)))
    return f"{found}; queries that see no key get NaN" if found else ""


def _sentence(found: list[str]) -> str:
    return SAME + " or ".join(found) if found else ""


def _explanations(
    case: Case, got: Mapping[str, Array], ways: Iterable[Way], most: int = 3
) -> list[str]:
    """Names of the variants that leave least of the error, common traps first."""
    unit = precision(dtype_of(case.dtype)).unit
    # weights of eight bits have errors of their own
    part, near = (0.1, 4.0) if case.codes is None else (0.5, 1.2)
    left: dict[str, float] = {}
    want = exact(case)
    with np.errstate(all="ignore"):
        for name, measure in ways:
            theirs, ours = measure(got), measure(want)
            error = distance(theirs, ours)
            if isinstance(measure, Slopes) and measure.least(theirs) > part * error:
                continue
            wrong = measure(None)
            rest = distance(theirs, wrong)
            told = case.kind == "forward" or np.isfinite(wrong).all()
            if told and rest <= min(part * error, slack(case) * rms(wrong)):
                left[name] = min(rest, left.get(name, rest))
    plain = {n: rest for n, rest in left.items() if not n.startswith("as if ")}
    left = plain or left  # an option that is not looked at mostly has a better name
    least = min(left.values(), default=0.0)
    said = [n for n, rest in left.items() if rest <= near * least + unit * 1e-3]
    twice = {n for n in said if " in place of" in n and n.partition(" in place of")[0] in said}
    said = [n for n in said if n not in twice]
    return [n for n in said if n.startswith(DEFAULT)] or said[:most]


Measure: TypeAlias = Callable[[Mapping[str, Array] | None], Array]
"""What of results is compared with a variant's; of None, the variant's own."""
Way: TypeAlias = tuple[str, Measure]


@lru_cache(maxsize=64)
def _ways(case: Case) -> Lazy[Way]:
    """All variants that make sense for a case, by name."""
    return Lazy({"forward": _forward, "vjp": _vjp, "jvp": _jvp}[case.kind](case))


def _again(case: Case, names: set[str]) -> Iterator[Way]:
    """Those variants that have one of these names."""
    if not names:
        return
    if case.kind == "forward":
        call = call_of(case)
        for variant in _known(case):
            if variant.name in names and (made := results(case, variant, call)) is not None:
                yield variant.name, _whole(made, precision(dtype_of(case.dtype)).huge)
    elif case.kind == "vjp":
        some = (*_known(case), *detached.paths(case))
        yield from _of_variants(case, [v for v in some if v.name in names])


def _known(case: Case) -> list[variants.Variant]:
    return [*variants.of(case.op), *options.others(case)]


@lru_cache(maxsize=64)
def _held(case: Case) -> Lazy[Way]:
    """Gradients that leave out a path."""
    return Lazy(_of_variants(case, detached.paths(case)) if case.kind == "vjp" else iter(()))


def _forward(case: Case) -> Iterator[Way]:
    huge = precision(dtype_of(case.dtype)).huge
    for name, made in codes.wrong(case):
        yield name, _whole(made, huge)
    for variant, made in variants_made(case).within(Effort()):
        yield variant.name, _whole(made, huge)


def _whole(made: Mapping[str, Array], huge: float = np.inf) -> Measure:
    """The results that a variant gives; what its dtype cannot hold is infinite."""

    def joined(results: Mapping[str, Array]) -> Array:
        return np.concatenate([np.ravel(results[name]) for name in made]).astype(float)

    own = joined(made)
    own = np.where(abs(own) > huge, np.sign(own) * np.inf, own)
    return lambda results: own if results is None else joined(results)


def _vjp(case: Case) -> Iterator[Way]:
    """Gradients of variants along random directions; then what goes wrong in gradients alone."""
    want = exact(case)
    yield from _of_variants(case, _known(case))
    for name, made in gradients.wrong(case, want):
        if all(made[n].shape == x.shape for n, x in want.items()):
            yield name, _whole(made)


def _of_variants(case: Case, some: Iterable[variants.Variant]) -> Iterator[Way]:
    """Gradients of wrong forward passes, along random directions."""
    want = exact(case)
    arrays = wide(case.arrays)
    cotangents = {name[1:]: arrays.pop(name) for name in case.directions}
    forward = Call(case.op, arrays, dict(case.options), case.dtype)
    rng = np.random.default_rng(0)
    ways: list[dict[str, Array]] = [
        {n: np.asarray(rng.standard_normal(x.shape)) for n, x in want.items()} for _ in range(3)
    ]

    def along(results: Mapping[str, Array]) -> Array:
        return np.array([sum((results[n] * u).sum() for n, u in way.items()) for way in ways])

    def slope(variant: variants.Variant, way: Mapping[str, Array]) -> float:
        moved = _moved(forward, way)
        results = _by_name(case, attempt(variant, moved))
        if not results:
            return np.nan
        if (
            "lse" in cotangents and "lse" not in results
        ):  # of it the variant says nothing: it is ours
            results["lse"] = moved.given(return_lse=True)()[1]
        return float(sum(_inner(results.get(n), x) for n, x in cotangents.items()) / _STEP)

    for variant in some:
        yield variant.name, Slopes(along, [partial(slope, variant, way) for way in ways])


def _jvp(case: Case) -> Iterator[Way]:
    """What goes wrong in changes alone; then variants along the case's own directions."""
    want = exact(case)
    for name, made in changes.wrong(case, want):
        if all(made[n].shape == x.shape for n, x in want.items()):
            yield name, _whole(made)
    arrays = wide(case.arrays)
    way = {name: arrays.pop(name) for name in case.directions}
    moved = _moved(Call(case.op, arrays, dict(case.options), case.dtype), way)
    for variant in _known(case):
        given = _by_name(case, attempt(variant, moved))
        made = {f"d{n}": np.imag(x) / _STEP for n, x in given.items() if f"d{n}" in want}
        if made and all(made[n].shape == want[n].shape for n in made):
            yield variant.name, _whole(made)


def _moved(forward: Call, way: Mapping[str, Array]) -> Call:
    """The call with arrays a step along a way, in imaginary numbers."""
    return forward.given(**{n[1:]: forward.arrays[n[1:]] + 1j * _STEP * u for n, u in way.items()})


def _by_name(case: Case, result: Result) -> JsonObject:
    """Results of a variant, which may give the first alone; of None there are none."""
    given = result if isinstance(result, tuple) else (result,)
    return {n: x for n, x in zip(case.results, given, strict=False) if x is not None}


def _inner(result: Array | None, cotangent: Array) -> float:
    """How much a result moves along its cotangent; NaN of another shape."""
    if result is None or np.shape(result) != cotangent.shape:
        return np.nan
    change = np.where(np.isfinite(np.real(result)), np.imag(result), 0)
    return float((cotangent * change).sum())


class Slopes:
    """Slopes of a variant along some directions, made as far as they are asked for."""

    def __init__(
        self, along: Callable[[Mapping[str, Array]], Array], slopes: list[Callable[[], float]]
    ):
        self._along, self._slopes = along, slopes
        self._made = list[float]()

    def __call__(self, results: Mapping[str, Array] | None) -> Array:
        """Results along the directions; of None, the variant's own slopes."""
        if results is not None:
            return self._along(results)
        return np.array([self._slope(i) for i in range(len(self._slopes))])

    def _slope(self, i: int) -> float:
        while len(self._made) <= i:
            self._made.append(self._slopes[len(self._made)]())
        return self._made[i]

    def least(self, theirs: Array) -> float:
        """What the distance of results along the directions is at least, by the first alone."""
        apart = abs(float(theirs[0]) - self._slope(0))
        return apart / len(self._slopes) ** 0.5 if np.isfinite(apart) else np.inf
