"""The oracles in 50 digits: the same formulas, every operation one of mpmath's.

They certify the float64 truth that backends are judged by: what it is off must be a small share of
the error that a backend is allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from nlattn._types import Array
from nlattn.conformance.case import Case, named
from nlattn.conformance.truth import bounds
from nlattn.conformance.truth.analysis import standing_in
from nlattn.conformance.truth.bounds import floating, ratios
from nlattn.conformance.truth.rounding import Operand, Shape
from nlattn.conformance.truth.transcription import transcription

DIGITS = 50


class Long(np.ndarray):
    """An array of mpmath's numbers; sums stay arrays."""

    def sum(self, *args: Operand, **options: Operand) -> Operand:
        return np.asarray(super().sum(*args, **options), object).view(Long)

    def astype(self, *_: Operand, **__: Operand) -> Operand:
        return self.copy()


def long(x: Operand) -> Long:
    """Numbers of a NumPy array, exactly."""
    import mpmath

    found = np.empty(np.shape(x), object)
    found[...] = np.frompyfunc(mpmath.mpf, 1, 1)(np.asarray(x, np.float64))
    return found.view(Long)


class Functions:
    """Stands where ``np`` does; what is not named here does for objects as it is."""

    def __getattr__(self, name: str) -> Operand:
        return getattr(np, name)

    def zeros(self, shape: Shape, dtype: DTypeLike = float) -> Operand:
        return self._long_if_floating(np.zeros(shape), dtype)

    empty = zeros

    def ones(self, shape: Shape, dtype: DTypeLike = float) -> Operand:
        return self._long_if_floating(np.ones(shape), dtype)

    def full(self, shape: Shape, fill: Operand, dtype: DTypeLike | None = None) -> Operand:
        x = np.full(shape, fill)
        return self._long_if_floating(x, x.dtype if dtype is None else dtype)

    def zeros_like(self, x: Operand) -> Operand:
        return self.zeros(x.shape, x.dtype)

    empty_like = zeros_like

    def ones_like(self, x: Operand) -> Operand:
        return self.ones(x.shape, x.dtype)

    def _long_if_floating(self, x: Operand, dtype: DTypeLike) -> Operand:
        return long(x) if np.dtype(dtype).kind in "fO" else x.astype(dtype)

    def result_type(self, *_: Operand) -> Operand:
        return np.dtype(object)

    def finfo(self, _: object) -> Operand:
        import mpmath

        return mpmath.mp  # its eps

    def frexp(self, x: Operand) -> Operand:
        return np.frexp(np.asarray(x, np.float64))

    def ldexp(self, x: Operand, exponent: Operand) -> Operand:
        return long(np.ldexp(float(x), exponent))

    def exp(self, x: Operand) -> Operand:
        return self._each("exp", x)

    def log(self, x: Operand) -> Operand:
        import mpmath

        return self._each(lambda y: mpmath.log(y) if y else -mpmath.inf, x)

    def sqrt(self, x: Operand) -> Operand:
        return self._each("sqrt", x)

    def tanh(self, x: Operand) -> Operand:
        return self._each("tanh", x)

    def isfinite(self, x: Operand) -> Operand:
        return self._told("isfinite", x)

    def isnan(self, x: Operand) -> Operand:
        return self._told("isnan", x)

    def isneginf(self, x: Operand) -> Operand:
        return np.asarray(x) == -np.inf

    def _each(self, function: str | Callable[[Any], Any], x: Operand) -> Operand:
        import mpmath

        one = getattr(mpmath, function) if isinstance(function, str) else function
        result = np.frompyfunc(one, 1, 1)(x)
        return result.view(Long) if isinstance(result, np.ndarray) else result

    def _told(self, function: str, x: Operand) -> Operand:
        import mpmath

        return np.asarray(np.frompyfunc(getattr(mpmath, function), 1, 1)(x)).astype(bool)


def exact(case: Case) -> dict[str, Array]:
    """Results by name, arrays of mpmath's numbers; ModuleNotFoundError without mpmath."""
    import mpmath

    arrays = {name: long(x) if floating(x) else x for name, x in case.arrays.items()}
    with standing_in(Functions()), mpmath.workdps(DIGITS), np.errstate(all="ignore"):
        result = transcription(case.function, arrays, case.options)
    return {name: np.asarray(x) for name, x in named(case, result).items()}


def share(case: Case) -> float:
    """The largest error of the float64 truth, as a share of what a backend is allowed there."""
    import mpmath

    want, allowed, worst = bounds.exact(case), bounds.allowed(case), 0.0
    with mpmath.workdps(DIGITS):
        for name, x in exact(case).items():
            near = x.astype(np.float64)
            sure = np.isfinite(near) & np.isfinite(want[name])
            lost = np.where(sure, x - np.where(sure, want[name], 0), 0).astype(np.float64)
            each = ratios(lost, np.zeros_like(lost), allowed[name])
            each = np.where(sure, each, ratios(near, want[name], allowed[name]))
            worst = max(worst, float(each.max(initial=0)))
    return worst
