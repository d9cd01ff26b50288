"""Arrays that move: a value and its change, carried through the parts of a layer to first order.

A layer's own code is run with `Dual` arrays in place of plain ones. NumPy hands them its
functions, whose derivatives stand here; operators of this library have forward modes of their own,
which `lifted` asks. What has no rule is an error: nothing that moves is held fixed in silence.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar, cast

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from nlattn import _check
from nlattn._types import Array, Function

P = ParamSpec("P")
R = TypeVar("R")
Rule: TypeAlias = Callable[[Array, Sequence[Array], Sequence[Array | None]], Array | None]
"""A result's change, from it, the arguments and their changes; None for what is no number."""


class Dual(NDArrayOperatorsMixin):
    """An array and its change, of one shape."""

    __slots__ = ("change", "value")

    def __init__(self, value: Array, change: Array) -> None:
        self.value, self.change = value, change

    shape = property(lambda self: self.value.shape)
    ndim = property(lambda self: self.value.ndim)
    dtype = property(lambda self: self.value.dtype)
    size = property(lambda self: self.value.size)
    T = property(lambda self: Dual(self.value.T, self.change.T))

    def __len__(self) -> int:
        return len(self.value)

    def __float__(self) -> float:
        return float(self.value)

    def __getitem__(self, index: Any) -> Dual:
        return Dual(self.value[index], self.change[index])

    def __array__(self, *_: object, **__: object) -> Array:
        _check.fail_type("block_jvp", "an array that moves", "was given to what has no rule for it")

    def max(self, axis: int) -> Dual:
        """Of equal numbers the first moves the maximum."""
        at = np.expand_dims(self.value.argmax(axis), axis)
        best = (np.take_along_axis(x, at, axis).squeeze(axis) for x in (self.value, self.change))
        return Dual(*best)

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Dual | Array, **_: object
    ) -> Dual | Array:
        if method != "__call__" or ufunc not in _UFUNCS:
            return NotImplemented
        values = [held(x) for x in inputs]
        value = ufunc(*values)
        changes = [x.change if isinstance(x, Dual) else None for x in inputs]
        change = _UFUNCS[ufunc](value, values, changes)
        return value if change is None else Dual(value, change)

    def __array_function__(self, function: Any, _: Any, args: Any, options: Any) -> Any:
        if function in _LINEAR:
            values, changes = _parts(args, held), _parts(args, change_of)
            found, moved = function(*values, **options), function(*changes, **options)
            if isinstance(found, list):
                return [Dual(*pair) for pair in zip(found, moved, strict=True)]
            return Dual(found, moved)
        rule = _RULES.get(function)
        return NotImplemented if rule is None else rule(*args, **options)


def _method(name: str) -> Function:
    """A method of arrays that is linear: done to both."""

    def method(self: Dual, *args: object, **options: object) -> Dual:
        value, change = (getattr(x, name)(*args, **options) for x in (self.value, self.change))
        return Dual(value, change)

    return method


for _name in ("reshape", "swapaxes", "transpose", "astype", "copy", "sum", "mean"):
    setattr(Dual, _name, _method(_name))


def held(x: object) -> Any:
    """The value alone of what may move."""
    return x.value if isinstance(x, Dual) else x


def parted(given: Mapping[str, object]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Values of arrays by name, and the changes of those that move."""
    changes = {name: x.change for name, x in given.items() if isinstance(x, Dual)}
    return {name: held(x) for name, x in given.items()}, changes


def change_of(x: object) -> Array:
    """Its change; of what does not move zeros."""
    return x.change if isinstance(x, Dual) else np.zeros_like(np.asarray(x))


def _parts(args: Iterable[object], pick: Callable[[object], object]) -> list[Any]:
    """Arguments with what `pick` gives in place of what moves."""

    def part(x: object) -> object:
        if isinstance(x, (list, tuple)) and any(isinstance(y, Dual) for y in x):
            return [pick(y) for y in x]
        return pick(x) if isinstance(x, Dual) else x

    return [part(x) for x in args]


def _sum(terms: Iterable[Array | None]) -> Array:
    """Of the terms that there are."""
    return functools.reduce(operator.add, [x for x in terms if x is not None])


def _product(function: Function) -> Rule:
    """The rule of what is linear in each of two arrays."""

    def rule(_: Array, values: Sequence[Array], changes: Sequence[Array | None]) -> Array:
        (a, b), (da, db) = values, changes
        return _sum([None if da is None else function(da, b),
                     None if db is None else function(a, db)])  # fmt: skip

    return rule


def _quotient(y: Array, values: Sequence[Array], changes: Sequence[Array | None]) -> Array:
    (_, b), (da, db) = values, changes
    return _sum([None if da is None else da / b, None if db is None else -y * db / b])


def _added(sign: int) -> Rule:
    def rule(y: Array, _: object, changes: Sequence[Array | None]) -> Array:
        da, db = changes
        moved = _sum([da, None if db is None else sign * db])
        return np.broadcast_to(moved, y.shape)

    return rule


def _root(y: Array, _: object, changes: Sequence[Array | None]) -> Array:
    """At 0, where a norm has a corner, it does not move."""
    return np.where(y == 0, 0, changes[0] / np.where(y == 0, 1, 2 * y)).astype(y.dtype)


_UFUNCS: Mapping[np.ufunc, Rule] = {
    np.add: _added(1),
    np.subtract: _added(-1),
    np.multiply: _product(np.multiply),
    np.matmul: _product(np.matmul),
    np.divide: _quotient,
    np.negative: lambda _, __, changes: -_sum(changes),
    np.sqrt: _root,
    np.square: lambda _, values, changes: 2 * values[0] * _sum(changes),
    np.power: lambda _, values, changes: (
        values[1] * values[0] ** (values[1] - 1) * changes[0]
    ),
    np.greater: lambda _, __, ___: None,
}  # fmt: skip
_LINEAR = {
    np.reshape, np.moveaxis, np.swapaxes, np.transpose, np.broadcast_to, np.concatenate, np.stack,
    np.split, np.pad, np.lib.stride_tricks.sliding_window_view,
}  # fmt: skip


def _where(yes: Array, a: object, b: object) -> Dual:
    return Dual(np.where(yes, held(a), held(b)), np.where(yes, change_of(a), change_of(b)))


def _einsum(subscripts: str, *arrays: object) -> Dual:
    values = [held(x) for x in arrays]
    terms = [
        np.einsum(subscripts, *values[:i], x.change, *values[i + 1 :])
        for i, x in enumerate(arrays)
        if isinstance(x, Dual)
    ]
    return Dual(np.einsum(subscripts, *values), _sum(terms))


_RULES: Mapping[object, Function] = {
    np.where: _where,
    np.einsum: _einsum,
    np.shape: lambda x: x.shape,
    np.ndim: lambda x: x.ndim,
}


def lifted(function: Callable[P, R], jvp: Function) -> Callable[P, R]:
    """An operator that takes arrays that move, too, by its forward mode."""

    @functools.wraps(function)
    def call(*arrays: P.args, **options: P.kwargs) -> R:
        given = {name: held(x) for name, x in options.items()}
        moving = {f"d{name}": x.change for name, x in options.items() if isinstance(x, Dual)}
        values = [held(x) for x in arrays]
        found = function(*values, **given)
        if not moving and not any(isinstance(x, Dual) for x in arrays):
            return found
        change = jvp(*values, *map(change_of, arrays), **given, **moving)
        return cast(R, Dual(np.asarray(found), change))

    return call


def linear(
    function: Callable[Concatenate[Array, P], Array],
) -> Callable[Concatenate[Array, P], Array]:
    """A function that is linear in its first array, and takes one that moves, too."""

    def call(x: Array | Dual, /, *args: P.args, **options: P.kwargs) -> Any:
        if not isinstance(x, Dual):
            return function(x, *args, **options)
        return Dual(*(function(y, *args, **options) for y in (x.value, x.change)))

    return functools.update_wrapper(call, function)


def bilinear(
    function: Callable[Concatenate[Array, Array, P], Array],
) -> Callable[Concatenate[Array, Array, P], Array]:
    """A function that is linear in each of its first two arrays, and takes ones that move, too."""

    def call(x: Array | Dual, w: Array | Dual, /, *args: P.args, **options: P.kwargs) -> Any:
        if not isinstance(x, Dual) and not isinstance(w, Dual):
            return function(x, w, *args, **options)
        terms = []
        if isinstance(x, Dual):
            terms.append(function(x.change, held(w), *args, **options))
        if isinstance(w, Dual):
            terms.append(function(held(x), w.change, *args, **options))
        return Dual(function(held(x), held(w), *args, **options), _sum(terms))

    return functools.update_wrapper(call, function)


class DualFit(_check.Fit):
    """Checked arrays of a call, of which some move."""

    def __init__(self, plain: _check.Fit) -> None:
        vars(self).update(vars(plain))

    def __getitem__(self, name: str) -> Any:
        x = super().__getitem__(name)
        return Dual(x, super().__getitem__(f"d{name}")) if f"d{name}" in self else x


def fit(op: str, arrays: Mapping[str, tuple[Any, str]], *, nonfinite: str) -> _check.Fit:
    """`_check.fit` of arrays that may move."""
    plain = {name: (held(x), dims) for name, (x, dims) in arrays.items()}
    moved = {
        f"d{name}": (x.change, dims) for name, (x, dims) in arrays.items() if isinstance(x, Dual)
    }
    found = _check.fit(op, {**plain, **moved}, nonfinite=nonfinite)
    return DualFit(found) if moved else found
