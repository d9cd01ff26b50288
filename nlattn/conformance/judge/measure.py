"""What wrong variants give for a case, and how far results are from it."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, Generic, TypeVar

import numpy as np

from nlattn._types import Array
from nlattn.conformance.case import Case, dtype_of
from nlattn.conformance.judge import structure, variants
from nlattn.conformance.judge.variants import options
from nlattn.conformance.judge.variants.base import Call, Variant
from nlattn.conformance.truth.arithmetic import precision
from nlattn.conformance.truth.bounds import exact, wide

T = TypeVar("T")


def call_of(case: Case) -> Call:
    """The forward call of a case, in float64."""
    return Call(case.op, wide(case.arrays), dict(case.options), case.dtype)


class Effort:
    """What diagnosing one operator may take, and the names that its failures have so far."""

    def __init__(self, seconds: float = math.inf):
        self.seconds = seconds
        """Of the processor, that are left."""
        self.names: set[str] = set()
        self.amounts: list[Any] = []
        """Terms of formulas that had a number more."""
        self._since: float | None = None

    @contextmanager
    def spent(self) -> Iterator[None]:
        """Count the time that passes inside."""
        self._since = time.process_time()
        try:
            yield
        finally:
            self.seconds -= time.process_time() - self._since
            self._since = None

    @property
    def over(self) -> bool:
        """Whether nothing is left."""
        since = time.process_time() - self._since if self._since is not None else 0.0
        return since >= self.seconds


class Lazy(Generic[T]):
    """A list that is made as far as it is read, and kept."""

    def __init__(self, made: Iterator[T]):
        self._made, self._kept = made, list[T]()

    def within(self, effort: Effort) -> Iterator[T]:
        """Its items, until the effort is over."""
        i = 0
        while not effort.over:
            if i == len(self._kept):
                try:
                    with np.errstate(all="ignore"):
                        self._kept.append(next(self._made))
                except StopIteration:
                    return
            yield self._kept[i]
            i += 1


@lru_cache(maxsize=64)
def variants_made(case: Case) -> Lazy[tuple[Variant, dict[str, Array]]]:
    """All variants that make sense for a forward case, and their results by name."""
    return Lazy(_made(case))


def _made(case: Case) -> Iterator[tuple[Variant, dict[str, Array]]]:
    call = call_of(case)
    for variant in (*variants.of(case.op), *misread(case), *options.others(case)):
        made = results(case, variant, call)
        if made is not None:
            yield variant, made


def misread(case: Case) -> Iterator[Variant]:
    """Arrays that do not lie row by row, read as if they did."""
    lying = dict[str, Array]()
    for name, x in case.arrays.items():
        if x.ndim > 1 and x.size > 1 and not x.flags.c_contiguous and min(x.strides) > 0:
            lying |= wide({name: x.ravel("K").reshape(x.shape)})
            words = f"with {name} read as if it lay row by row in memory"
            yield Variant(words, (), partial(_given, {name: lying[name]}))
    if len(lying) > 1:
        words = f"with {', '.join(lying)} read as if they lay row by row in memory"
        yield Variant(words, (), partial(_given, lying))


def _given(lying: dict[str, Array], c: Call) -> Any:
    return c.given(**lying)()


def results(case: Case, variant: Variant, call: Call) -> dict[str, Array] | None:
    """A variant's results by name; None where it makes no sense, or shapes are others."""
    want, result = exact(case), attempt(variant, call)
    made = dict(zip(case.outputs, result if isinstance(result, tuple) else (result,), strict=False))
    right = all(np.shape(x) == want[name].shape for name, x in made.items())
    return {name: np.asarray(x, float) for name, x in made.items()} if right else None


def attempt(variant: variants.Variant, call: Call) -> Any:
    """What a variant gives; None where it makes no sense."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of means of nothing, and their like
            return variant.run(call)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError):
        return None


def slack(case: Case) -> float:
    """Relative error of a result that a variant may leave; 16-bit results are rounded once."""
    unit = precision(dtype_of(case.dtype)).unit
    if case.codes is not None:
        return 2.0**-4
    return structure.slack(unit)


def rms(x: Array) -> float:
    """Root of the mean square of the finite elements."""
    x = x[np.isfinite(x)]
    return float(np.sqrt(np.mean(x**2))) if x.size else 0.0


def distance(x: Array, y: Array) -> float:
    """`rms` of a difference; infinite unless both are NaN or infinite at the same places."""
    if not np.array_equal(np.where(np.isfinite(x), 0, x), np.where(np.isfinite(y), 0, y), True):
        return np.inf
    return rms(x - y)
