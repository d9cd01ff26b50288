"""Calls whose numbers lie near the edges of their format, computed in other units.

A `RangeLaw` says of a function which products of its arguments are formed on the way, and how
arguments and results grow together: ``softmax(scale q.k) v`` stays what it is when q is halved and
scale doubled, and doubles with v. `ranged` looks at the largest entry of every array. Where no
product can leave the format, which is the case for all but extreme numbers, the function is called
as it stands. Otherwise it is called in float64, arrays times powers of two so that their largest
entries are near 1, options in the same units, and results are brought back and rounded once. What
leaves even that is refused, as is an option that the arrays' own format does not hold.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Ints

P = ParamSpec("P")
R = TypeVar("R")


class RangeLaw(NamedTuple):
    """How a function's arguments and results grow. A product is written ``"dout v /q"``."""

    results: tuple[str, ...] = ()
    """Units of the results; further ones have none and are not rounded."""
    options: Mapping[str, str] = {}
    """What an option is multiplied by: ``{"scale": "q k"}``."""
    upper: tuple[str, ...] = ()
    """Products that must not overflow."""
    both: tuple[str, ...] = ()
    """Products that must not underflow either."""
    same: tuple[str, ...] = ()
    """Arrays that share a unit."""
    rows: tuple[str, ...] = ()
    """Arrays whose rows have units of their own where they are longer than `floor`."""
    columns: tuple[str, ...] = ()
    """Arrays whose columns have units of their own."""
    own: tuple[str, ...] = ()
    """Options that have a unit as arrays do."""
    fixed: tuple[str, ...] = ()
    """Arrays that keep theirs."""
    sums: Mapping[str, str] = {}
    """Arrays that are added to products: ``{"dlse": "dout v"}``."""
    clamp: Mapping[str, tuple[int, int]] = {}
    """Exponents beyond which an option changes nothing any more, in the units of its arrays."""
    default: Mapping[str, float] = {}
    """Powers of d that stand for an option of None."""
    steady: tuple[str, ...] = ()
    """Arrays whose products decide by their sign: their changes may be larger than they."""
    unless: str = ""
    """An option with which the function brings its arrays to one size itself."""


Laws = RangeLaw | Callable[[Mapping[str, Any]], RangeLaw]


class _Format(NamedTuple):
    """The largest number of a format, and exponents: beyond all numbers, and of the least digit."""

    max: float
    maxexp: int
    digit: int


class _Formed(NamedTuple):
    """A law, and the names in its products."""

    law: RangeLaw
    arrays: tuple[str, ...]
    """What the law speaks of."""
    products: tuple[str, ...]
    """What its products are made of."""

    @classmethod
    def of(cls, law: RangeLaw) -> _Formed:
        products = _products(*law.upper, *law.both, *law.same, *law.results)
        return cls(law, _names(law), products)


def ranged(law: Laws) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a public function by its law, or by what makes the law of names and words given."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        op, parameters = function.__name__, inspect.signature(function).parameters
        names, defaults = list(parameters), {n: p.default for n, p in parameters.items()}
        numbers = [n for n, p in parameters.items() if _is_number(n, p.annotation)]

        @functools.lru_cache(maxsize=64)
        def formed(*told: tuple[str, str | None]) -> _Formed:
            return _Formed.of(law if isinstance(law, RangeLaw) else law({**defaults, **dict(told)}))

        @functools.wraps(function)
        def call(*positional: P.args, **options: P.kwargs) -> R:
            given: dict[str, Any] = {**dict(zip(names, positional, strict=False)), **options}
            mine = formed(*((n, x if type(x) is str else None) for n, x in given.items()))
            if mine.law.unless and given.get(mine.law.unless) is not None:
                return function(*positional, **options)
            arrays = {n: given[n] for n in mine.arrays if n in given and _floating(given[n])}
            for n in mine.law.fixed:
                if isinstance(given.get(n), np.float32 | np.float16):  # a sink of all heads
                    arrays[n] = np.asarray(given[n])
            dtypes = {_check.native_of(x.dtype) for x in arrays.values()}
            if (
                len(positional) > len(names)
                or len(dtypes) != 1
                or not given.keys() <= defaults.keys()
            ):
                return function(*positional, **options)  # which says what is wrong
            dtype = dtypes.pop()
            inner = np.dtype(np.float64 if dtype == np.float64 else np.float32)
            _held(op, {n: given[n] for n in numbers if n in given}, inner)
            tops = {n: _check.largest(arrays[n]) for n in mine.products if n in arrays}
            known = [arrays[name] for name, top in tops.items() if not math.isnan(top)]
            if len(known) < len(tops):
                if given.get("nonfinite", "raise") == "raise":
                    return function(*positional, **options)
                for name in [n for n, top in tops.items() if math.isnan(top)]:
                    tops[name] = _largest_finite(arrays[name])
            full = {
                n: given.get(n, defaults[n]) for n in (*numbers, *mine.law.options) if n in defaults
            }
            setting = _Setting(op, mine.law, tops, arrays, full)
            with _check.known_finite(known):
                if setting.ordinary(inner):
                    return function(*positional, **options)
            changed = setting.changed()
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                result: Any = function(**{**given, **changed})  # type: ignore[call-arg]
                return setting.restored(result, dtype)

        return call

    return decorate


@functools.lru_cache(maxsize=256)
def _products(*products: str) -> tuple[str, ...]:
    """Names in products, each once."""
    return tuple(dict.fromkeys(name for product in products for name, _ in _factors(product)))


def _names(law: RangeLaw) -> tuple[str, ...]:
    """Arrays that a law speaks of, and options."""
    return _products(*law.results, *law.upper, *law.both, *law.same, *law.sums, *law.fixed)


def _is_number(name: str, annotation: Any) -> bool:
    return str(annotation).startswith("float") and name != "max_bytes"


@functools.cache
def _finfo(dtype: np.dtype) -> _Format:
    info = np.finfo(dtype)
    return _Format(float(info.max), int(info.maxexp), int(info.minexp) + int(info.nmant))


def _floating(x: object) -> bool:
    if not isinstance(x, np.ndarray) or isinstance(x, np.ma.MaskedArray):
        return False
    return x.dtype.kind == "f" or x.dtype.name == "bfloat16"


def _plain(value: object) -> bool:
    """Whether `value` is a number that later checks accept; timedelta64 counts as an integer."""
    numbers, others = (int, float, np.integer, np.floating), (bool, np.timedelta64)
    return isinstance(value, numbers) and not isinstance(value, others)


def _held(op: str, options: Mapping[str, Any], dtype: np.dtype) -> None:
    """Refuse options that a format does not hold."""
    largest = _finfo(dtype).max
    for name, value in options.items():
        if _plain(value) and largest < abs(value) < math.inf:
            text = f"expected a magnitude of at most {largest:.6g}, the largest {dtype}"
            _check.fail(op, f"{name}={_check.quoted(value)}", f"is out of range, {text}")


def _largest_finite(x: Floats) -> float:
    x = x[np.isfinite(x)].astype(float)
    return float(abs(x).max(initial=0))


@functools.lru_cache(maxsize=512)
def _factors(product: str) -> tuple[tuple[str, int], ...]:
    """Names in a product, and their powers."""
    return tuple((w.removeprefix("/"), -1 if w[0] == "/" else 1) for w in product.split())


@functools.lru_cache(maxsize=256)
def _all_factors(*products: str) -> tuple[tuple[str, int], ...]:
    return tuple(factor for product in products for factor in _factors(product))


class _Setting:
    """One call: its law, the largest entries of its arrays, and its options."""

    def __init__(
        self,
        op: str,
        law: RangeLaw,
        tops: dict[str, float],
        arrays: Mapping[str, Any],
        options: Mapping[str, Any],
    ):
        self.op, self.law, self.arrays = op, law, arrays
        self.options: dict[str, float] = {}
        d = int(arrays["q"].shape[-1]) if "q" in arrays and arrays["q"].size else 1
        for name, value in options.items():
            number = d ** law.default[name] if value is None and name in law.default else value
            if _plain(number) and math.isfinite(number):
                self.options[name] = float(number)
        self.units: dict[str, Any] = {}
        self.tops = self._shared(tops)

    def _shared(self, tops: dict[str, float]) -> dict[str, float]:
        """Largest entries, those of arrays that share a unit together."""
        together = max((tops[name] for name in self.law.same if name in tops), default=0.0)
        return tops | {name: together for name in self.law.same if name in tops}

    def ordinary(self, dtype: np.dtype) -> bool:
        """Whether no product leaves a format, with room for sums."""
        info = _finfo(dtype)
        terms = max((x.size for x in self.arrays.values()), default=1)
        high = min(info.maxexp - 4 - math.log2(max(terms, 1)), 0.8 * info.maxexp)
        low = info.digit + 4
        numbers = {**self.options, **self.tops}
        for name, sign in _all_factors(*self.law.upper, *self.law.both):
            if sign < 0 and self.options.get(name) == 0:
                return True  # left to the function to refuse, or to do without
        return all(_size(product, numbers) < high for product in self.law.upper) and all(
            low < size < high or size == -math.inf
            for size in (_size(product, numbers) for product in self.law.both)
        )

    def changed(self) -> dict[str, Any]:
        """Arguments in units that suit them, in float64."""
        law = self.law
        # not bounds: what is called inside must not find other units
        self.tops = self._shared({n: _largest_finite(self.arrays[n]) for n in self.tops})
        units: dict[str, Any] = {
            n: 0 if n in law.fixed else math.frexp(x)[1] for n, x in self.tops.items()
        }
        units |= {n: math.frexp(self.options[n])[1] for n in law.own if n in self.options}
        for name, product in law.sums.items():
            if name in units and product not in law.steady:
                first = product.split()[0]
                raised = units[first] + max(0, units[name] - _power(product, units))
                units |= dict.fromkeys(law.same if first in law.same else (first,), raised)
        for name, product in law.sums.items():
            if name in units and product not in law.steady:
                units[name] = _power(product, units)
        self.units = units
        options = {n: self._option(n, p) for n, p in law.options.items() if n in self.options}
        inner = {**self.options, **options}
        inner |= {n: math.ldexp(top, -units[n]) for n, top in self.tops.items()}
        inner |= dict.fromkeys(law.rows, 1.0)
        for product in (*law.upper, *law.both):
            if _size(product, inner) > 1000:
                words = " ".join(name for name, _ in _factors(product))
                size = _size(product, {**self.options, **self.tops})
                text = f"make numbers of some 2**{size:.0f}, expected at most 1.79769e+308"
                _check.fail(self.op, words, f"{text}, the largest float64")
        for name in law.rows:
            units[name] = _row_units(self.arrays[name], self.options.get("floor", 0.0))
        units["along"] = self._along()
        for name in law.columns:
            tops = abs(self.arrays[name].astype(np.float64)).max(-2, keepdims=True, initial=0)
            units[name] = np.frexp(np.where(tops < np.inf, tops, 0))[1]
        arrays = {
            name: shifted(x.astype(np.float64), -units.get(name, 0))
            for name, x in self.arrays.items()
        }
        return {**arrays, **options}

    def _along(self) -> int:
        """By which changes are divided, beside the units of what changes; results are so, too."""
        far, alone = 0, (*self.law.rows, *self.law.steady)
        for name in alone:
            if f"d{name}" in self.arrays:
                tops = abs(self.arrays[f"d{name}"].astype(np.float64)).max(-1, keepdims=True)
                far = max(far, int((np.frexp(tops)[1] - self.units[name]).max(initial=0)) - 900)
        for name, product in self.law.sums.items():
            if far > 0 or product in alone:
                self.units[name] = self.units.get(product, 0) + far
        return far

    def _option(self, name: str, product: str) -> float:
        """An option in the arrays' units; these change where it would underflow."""
        value = self.options[name]
        if value <= 0 and name != "scale":  # left to the function to refuse, or to do without
            return value
        for array, sign in _factors(product):
            far = math.frexp(value)[1] + _power(product, self.units)
            own = self.units.get(array, 0)
            if abs(far) > 500 and own < 0 < own * sign * far and array not in self.law.own:
                together = self.law.same if array in self.law.same else (array,)
                self.units |= dict.fromkeys(together, 0)
        mantissa, exponent = math.frexp(value)
        exponent += _power(product, self.units)
        if name in self.law.clamp and value:
            low, high = self.law.clamp[name]
            exponent = max(low, min(high, exponent))
        if exponent > 1023:
            text = f"makes numbers of some 2**{exponent}, expected at most 1.79769e+308"
            _check.fail(self.op, f"{name}={value}", f"{text}, the largest float64")
        return math.ldexp(mantissa, exponent)

    def restored(self, result: object, dtype: np.dtype) -> Any:
        """Results in the caller's units and dtype."""
        if type(result) is tuple:
            units = (*self.law.results, *[None] * len(result))
            return tuple(self._result(x, u, dtype) for x, u in zip(result, units, strict=False))
        return self._result(result, self.law.results[0] if self.law.results else None, dtype)

    def _result(self, x: object, unit: str | None, dtype: np.dtype) -> Any:
        if hasattr(x, "score") and hasattr(x, "_replace"):  # matches
            return x._replace(score=shifted(x.score, _power(unit or "", self.units)).astype(dtype))
        if unit is None or not isinstance(x, (np.ndarray, np.generic)):
            return x
        return shifted(x, _power(unit, self.units)).astype(dtype)


def _row_units(x: Floats, floor: float) -> Ints:
    """Exponents (..., n, 1) that bring rows longer than a floor to a length near 1, or above it."""
    top = abs(x.astype(np.float64)).max(-1, keepdims=True, initial=0)
    least = max(0, math.frexp(floor)[1] + 1)
    return np.where(top > 2 * floor, np.frexp(top)[1] - least, 0)


def _power(product: str, units: Mapping[str, Any]) -> Any:
    return sum(sign * units.get(name, 0) for name, sign in _factors(product))


def _size(product: str, numbers: Mapping[str, float]) -> float:
    """log2 of the largest value of a product; -inf for 0, or where a factor is not there.

    Also where it is divided by an array of zeros: what is divided has a floor of its own.
    """
    total = 0.0
    for name, sign in _factors(product):
        if name not in numbers:
            return -math.inf
        value = abs(numbers[name])
        if value == 0:
            return -math.inf
        total += sign * math.log2(value)
    return total


def shifted(x: Any, power: Ints | int) -> Any:
    """``x 2**power``, in steps that float64 holds; a power for each row, or one."""
    while np.any(power):
        step = np.clip(power, -1000, 1000)
        x, power = np.ldexp(x, step), power - step
    return x
