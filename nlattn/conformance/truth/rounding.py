"""Running error analysis: arrays that carry a bound of what rounding has done to each element.

An oracle computes with `Rounded` arrays as it does with NumPy's, and each operation adds what it
may lose in the precision that is analysed, ``u`` its unit roundoff:

    x + y    e_x + e_y + u |x + y|      x y      |x| e_y + e_x |y| + e_x e_y + u |x y|
    sum x    sum e_x + g sum |x|        x @ y    |x| e_y + e_x |y| + e_x e_y + g |x| |y|
    exp x    exp(x) (expm1(e_x + u |x|) + 5 u)
    g = u min(n + 1, 2 sqrt(n + 1) (1 + 2 n u))  for n terms

``2 sqrt(n)`` is what n independent roundings stay below; where n u nears 1 a sum stagnates, and
every term may be lost. Exponentials may be powers of two, and by polynomials. As in the complex
step, ``.real`` is exact: where a formula does not depend on the maximum it subtracts, no error of
that maximum counts. A comparison that rounding could turn makes `where` allow for both sides.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from nlattn._types import Array, Function
from nlattn.conformance.truth.arithmetic import Arithmetic, Precision

Operand: TypeAlias = Any
"""A number or an array, of floats, of `Long` or of `Rounded`: what stands for NumPy takes all."""
Shape: TypeAlias = int | tuple[int, ...]


INEXACT = 1e-300
"""An error that lets an input count as rounded when it is a factor."""
_LARGE = 1e150
"""Stands for an infinite error in products, where 0 times it must be 0."""
_ENDLESS = 1e140
"""Errors above it are infinite."""
_MANY = 1e6
"""Errors so much larger than another are not changed by it."""


class Doubtful(np.ndarray):
    """Booleans, and where rounding could turn them."""

    doubt: Array

    def __array_finalize__(self, other: Operand) -> None:
        self.doubt = getattr(other, "doubt", np.zeros((), bool))

    def __getitem__(self, index: Operand) -> Operand:
        part = np.asarray(self)[index].view(Doubtful)
        part.doubt = np.broadcast_to(self.doubt, self.shape)[index]
        return part


class Real(np.ndarray):
    """Values to compare; their errors show in the outcome only."""

    error: Array

    def __array_finalize__(self, other: Operand) -> None:
        self.error = np.zeros(())

    def __getitem__(self, index: Operand) -> Operand:
        part = np.asarray(self)[index]
        if self.dtype != np.float64:  # places of maxima
            return part
        return real(part, np.broadcast_to(self.error, self.shape)[index])

    def __gt__(self, other: Operand) -> Operand:
        return self._compared(np.greater, other)

    def __lt__(self, other: Operand) -> Operand:
        return self._compared(np.less, other)

    def _compared(self, how: Function, other: Operand) -> Operand:
        a, b = np.asarray(self), np.asarray(other)
        outcome = np.asarray(how(a, b)).view(Doubtful)
        error = self.error + getattr(other, "error", 0.0)
        outcome.doubt = (abs(a - b) <= error) & (error > 0)
        return outcome


def real(value: Operand, error: Operand) -> Real:
    """Values that are compared as if exact, with their errors kept for the doubt."""
    result = np.asarray(value, np.float64).view(Real)
    result.error = error
    return result


def carries(x: Operand) -> bool:
    """Whether there is a Rounded in it."""
    if isinstance(x, (list, tuple)):
        return any(carries(y) for y in x)
    return isinstance(x, Rounded)


def parts(x: Operand) -> tuple[Any, Any]:
    """Value and error bound of a Rounded, of an exact array, or of a list of either."""
    if isinstance(x, Rounded):
        return x.value, x.error
    if carries(x):
        both = [parts(y) for y in x]
        return [value for value, _ in both], [np.zeros(np.shape(v)) + e for v, e in both]
    return x, 0.0


class Rounded:
    """An array of float64 values, and how far a computation in less precision may be from each."""

    now = Arithmetic.of("float64")
    """The arithmetic that is analysed."""
    backward = False
    """Whether a gradient is: what the forward pass made may lie in the format of factors."""
    __array_ufunc__ = None  # NumPy's arrays leave arithmetic to this class
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: Operand, error: Operand = 0.0):
        self.value = np.asarray(value, np.float64)
        self.error = np.asarray(error, np.float64)
        if self.error.shape != self.value.shape:
            self.error = np.broadcast_to(self.error, self.value.shape).copy()

    @classmethod
    def of(cls, value: Operand, *errors: Operand, units: float = 1.0) -> Rounded:
        """A result, with its own rounding added; infinite where it may overflow."""
        now, size = cls.now, abs(value)
        own = (now.units(units) * size,) if units else ()
        error = now.total(*errors, *own, now.tiny * np.sign(size))
        reach, most = size + error, min(now.sums.huge, _ENDLESS)
        if not np.maximum.reduce(reach, None, initial=0.0) <= most:  # of NaN, too
            held = np.less_equal(reach, most)
            error = np.where(np.isfinite(value), np.where(held, error, np.inf), 0.0)
        return cls(value, error)

    def __array__(self, *_: Operand, **__: object) -> Operand:
        raise TypeError("this NumPy function has no error analysis")

    shape = property(lambda self: self.value.shape)
    ndim = property(lambda self: self.value.ndim)
    size = property(lambda self: self.value.size)
    dtype = property(lambda self: self.value.dtype)
    real = property(lambda self: real(self.value, self.error))
    T = property(lambda self: self._each(np.transpose))

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self) -> Operand:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Operand) -> Rounded:
        return Rounded(self.value[index], self.error[index])

    def __setitem__(self, index: Operand, x: Operand) -> None:
        self.value[index], self.error[index] = parts(x)

    def _each(self, how: Function, *args: Operand, **options: object) -> Rounded:
        return Rounded(how(self.value, *args, **options), how(self.error, *args, **options))

    def reshape(self, *shape: Shape) -> Rounded:
        return self._each(lambda x: x.reshape(*shape))

    def repeat(self, *args: Operand, **options: object) -> Rounded:
        return self._each(np.repeat, *args, **options)

    def ravel(self) -> Rounded:
        return self.reshape(-1)

    def copy(self) -> Rounded:
        return self._each(np.copy)

    def astype(self, dtype: object, **_: Operand) -> Rounded:  # noqa: ARG002
        return self.copy()

    def sum(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Rounded:
        value = self.value.sum(axis, keepdims=keepdims)
        count = self.size / max(value.size, 1)
        error = self.error.sum(axis, keepdims=keepdims)
        if self.now.typical:
            error = np.sqrt(np.square(self.error).sum(axis, keepdims=keepdims))
        if count == 1:
            return Rounded(value, error)
        spread = abs(self.value).sum(axis, keepdims=keepdims) * self.now.growth(count)
        return Rounded.of(value, error, spread, units=0.0)

    def max(
        self,
        axis: int | tuple[int, ...] | None = None,
        keepdims: bool = False,
        initial: Operand = None,
    ) -> Array:
        return np.asarray(self.value.max(axis, keepdims=keepdims, initial=initial))

    def mean(self, axis: int | tuple[int, ...] | None = None) -> Rounded:
        total = self.sum(axis)
        return quotient(total, self.size / max(total.size, 1))

    def __matmul__(self, other: Operand) -> Rounded:
        return product(np.matmul, self, other, self.shape[-1])

    def __rmatmul__(self, other: Operand) -> Rounded:
        return product(np.matmul, other, self, np.shape(other)[-1])

    def __neg__(self) -> Rounded:
        return Rounded(-self.value, self.error)

    def __abs__(self) -> Rounded:
        return Rounded(abs(self.value), self.error)

    def __eq__(self, other: Operand) -> Operand:
        return self.value == parts(other)[0]

    def __ne__(self, other: Operand) -> Operand:
        return self.value != parts(other)[0]

    def __gt__(self, other: Operand) -> Operand:
        return self.real > other

    def __lt__(self, other: Operand) -> Operand:
        return self.real < other

    def __add__(self, other: Operand) -> Rounded:
        y, e = parts(other)
        return Rounded.of(self.value + y, self.error, e)

    __radd__ = __add__

    def __sub__(self, other: Operand) -> Rounded:
        y, e = parts(other)
        return Rounded.of(self.value - y, self.error, e)

    def __rsub__(self, other: Operand) -> Rounded:
        y, e = parts(other)
        return Rounded.of(y - self.value, self.error, e)

    def __mul__(self, other: Operand) -> Rounded:
        return product(np.multiply, self, other, 0)

    __rmul__ = __mul__

    def __truediv__(self, other: Operand) -> Rounded:
        return quotient(self, other)

    def __rtruediv__(self, other: Operand) -> Rounded:
        return quotient(other, self)

    def __pow__(self, p: Any) -> Rounded:
        x, e = abs(self.value), self.error
        if p == 2:
            return Rounded.of(x**2, 2 * x * e + e**2)
        value = self.value**p
        grown = (x + e) ** p - x**p
        lost = x**p - np.maximum(x - e, 0) ** p
        steep = np.where(x > 0, abs(p * np.log(np.where(x > 0, x, 1))), 0)
        extra = 2 * self.now.unit * (4 + steep) * abs(value)
        return Rounded.of(value, np.maximum(grown, lost), extra)

    def __iadd__(self, other: Operand) -> Rounded:
        self[...] = self + other
        return self

    def __isub__(self, other: Operand) -> Rounded:
        self[...] = self - other
        return self

    def __itruediv__(self, other: Operand) -> Rounded:
        self[...] = self / other
        return self


def product(how: Function, a: Operand, b: Operand, n: float) -> Rounded:
    """A bilinear operation of which each result sums n products; 0 is multiplication."""
    now = Rounded.now
    if now.factors is None:
        pass
    elif n:
        a, b = factor(a), factor(b)
    elif given(a) != given(b):  # weights times values, of which a sum is taken later
        a, b = (a, factor(b)) if given(a) else (factor(a), b)
    elif Rounded.backward and np.ndim(a) == np.ndim(b) > 1:  # ``P (dP - delta)``, P in 16 bits
        a, b = factor(a), factor(b)
    (x, e), (y, f) = _operand(a), _operand(b)
    value, u, w = how(x, y), abs(x), abs(y)
    grown = now.gathering(n) if n else 0.0
    if now.typical:
        e, f = (None if z is None else z**2 for z in (e, f))
        errors = [np.sqrt(_lost(how, u**2, w**2, e, f))]
        errors += [how(u, w) * grown] if n else []
    else:
        errors = [_lost(how, u, w, e, f, grown)]
    if not n:
        return Rounded.of(value, *errors)
    tiny = n * now.sums.tiny  # what products lose that are subnormal
    if ((errors[-1] > 0) & (errors[-1] < _MANY * tiny)).any():
        errors.append(tiny * (how(u, w) != 0))
    return Rounded.of(value, *errors, units=0.0)


def _operand(x: Operand) -> tuple[Operand, Array | None]:
    """Its values, and their errors; None where it is exact."""
    if isinstance(x, Rounded):
        return x.value, np.minimum(x.error, _LARGE)
    return np.asarray(x, np.float64), None


def _lost(
    how: Function, u: Array, w: Array, e: Array | None, f: Array | None, grown: float = 0.0
) -> Array:
    """``u f + e w + e f + grown u w``, the errors e of u and f of w, in two products at most."""
    if f is None and not grown:
        return how(e, w)
    more = how(u, grown * w if f is None else f + grown * w if grown else f)
    return more if e is None else more + how(e, w if f is None else w + f)


def given(x: Operand) -> bool:
    """Whether it is an input as it was, not a number that was computed or a constant."""
    return (
        isinstance(x, Rounded)
        and x.ndim > 0
        and bool(np.fmax.reduce(x.error, None, initial=0.0) <= INEXACT)
    )


def factor(x: Operand) -> Operand:
    """As it enters a matrix product: rounded to the format of factors, unless it is exact."""
    return _rounded(x, Rounded.now.factors)


def stored(x: Operand) -> Operand:
    """As a result, rounded to the format of results, before it is added to others."""
    now = Rounded.now
    return _rounded(x, now.results if now.results != now.sums else None)


def _rounded(x: Operand, to: Precision | None) -> Operand:
    if to is None or not isinstance(x, Rounded):
        return x
    now, size = Rounded.now, abs(x.value)
    unit = to.unit / 3**0.5 if now.typical else to.unit
    error = now.total(x.error, unit * size, to.tiny * (size != 0))
    error = np.where(size + error <= to.huge, error, np.inf)
    held = now.exact_inputs or _held(x.value, to.unit)
    return Rounded(x.value, np.where((x.error == 0) & held, 0.0, error))


def _held(x: Array, unit: float) -> Array:
    """Whether a format of this unit holds numbers exactly."""
    mantissa = np.frexp(np.where(np.isfinite(x), x, 0.0))[0]
    return np.asarray(mantissa / unit == np.round(mantissa / unit)) | ~np.isfinite(x)


def quotient(a: Operand, b: Operand) -> Rounded:
    """``a / b``; the error is infinite where b may be 0."""
    (x, e), (y, f) = parts(a), parts(b)
    value = np.asarray(np.true_divide(x, y))
    left = np.maximum(abs(np.asarray(y)) - f, 0)
    lost = Rounded.now.total(e, abs(value) * f)
    error = np.where(lost == 0, 0, lost / left)
    return Rounded.of(value, error, units=2.0)
