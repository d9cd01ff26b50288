"""Gradients of wrong forward passes, seen along a few random directions.

The complex step differentiates an oracle, right or wrong: ``g.u = Im dout.f(x + ihu)/h``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TypeAlias

import numpy as np

from nlattn._types import JsonObject, Result
from nlattn.conformance.case import Array, Case
from nlattn.conformance.judge.measure import attempt
from nlattn.conformance.judge.variants.base import Call, Variant
from nlattn.conformance.truth.bounds import exact, wide

STEP = 1e-30
Measure: TypeAlias = Callable[[Mapping[str, Array] | None], Array]
"""What of results is compared with a variant's; of None, the variant's own."""
Way: TypeAlias = tuple[str, Measure]


def slopes(
    case: Case, some: Iterable[Variant], names: tuple[str, ...] | None = None
) -> Iterator[Way]:
    """Gradients of wrong forward passes, along random directions of all arrays or of some."""
    want = exact(case)
    arrays = wide(case.arrays)
    cotangents = {name[1:]: arrays.pop(name) for name in case.directions}
    forward = Call(case.op, arrays, dict(case.options), case.dtype)
    rng = np.random.default_rng(0)
    ways: list[dict[str, Array]] = [
        {n: np.asarray(rng.standard_normal(x.shape)) for n, x in want.items()} for _ in range(3)
    ]
    ways = [{n: u for n, u in way.items() if names is None or n in names} for way in ways]

    def along(results: Mapping[str, Array]) -> Array:
        return np.array([sum((results[n] * u).sum() for n, u in way.items()) for way in ways])

    def slope(variant: Variant, way: Mapping[str, Array]) -> float:
        there = moved(forward, way)
        results = by_name(case, attempt(variant, there))
        if not results:
            return np.nan
        if "lse" in cotangents and "lse" not in results:  # the variant says nothing: it is ours
            results["lse"] = there.given(return_lse=True)()[1]
        return float(sum(_inner(results.get(n), x) for n, x in cotangents.items()) / STEP)

    for variant in some:
        yield variant.name, Slopes(along, [partial(slope, variant, way) for way in ways])


def whole(made: Mapping[str, Array], huge: float = np.inf) -> Measure:
    """The results that a variant gives; what its dtype cannot hold is infinite."""

    def joined(results: Mapping[str, Array]) -> Array:
        return np.concatenate([np.ravel(results[name]) for name in made]).astype(float)

    own = joined(made)
    own = np.where(abs(own) > huge, np.sign(own) * np.inf, own)
    return lambda results: own if results is None else joined(results)


def changed(case: Case, variant: Variant) -> dict[str, Array]:
    """A variant's changes of results along the directions of a case in forward mode."""
    want, arrays = exact(case), wide(case.arrays)
    way = {name: arrays.pop(name) for name in case.directions}
    call = moved(Call(case.op, arrays, dict(case.options), case.dtype), way)
    given = by_name(case, attempt(variant, call))
    made = {f"d{n}": np.imag(x) / STEP for n, x in given.items() if f"d{n}" in want}
    return made if all(made[n].shape == want[n].shape for n in made) else {}


def moved(forward: Call, way: Mapping[str, Array]) -> Call:
    """The call with arrays a step along a way, in imaginary numbers."""
    return forward.given(**{n[1:]: forward.arrays[n[1:]] + 1j * STEP * u for n, u in way.items()})


def by_name(case: Case, result: Result) -> JsonObject:
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
