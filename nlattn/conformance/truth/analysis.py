"""The functions of NumPy that oracles use, for arrays that carry their rounding errors.

`analysed` lets every oracle see this module's `Analysis` as its ``np``: what an oracle computes,
and in which order, is then what is analysed, for every operator alike.
"""

from __future__ import annotations

import importlib
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import DTypeLike

from nlattn.conformance.table import JUDGED
from nlattn.conformance.truth.arithmetic import Arithmetic
from nlattn.conformance.truth.rounding import (
    Doubtful,
    Operand,
    Rounded,
    Shape,
    carries,
    parts,
    product,
)

_lock = threading.Lock()


@contextmanager
def analysed(arithmetic: Arithmetic, backward: bool = False) -> Iterator[None]:
    """Oracles compute with Rounded arrays, in this arithmetic; `backward` of a gradient."""
    with (
        standing_in(Analysis()),
        np.errstate(all="ignore"),  # what overflows or divides by 0 has an infinite error
        patch.object(Rounded, "now", arithmetic),
        patch.object(Rounded, "backward", backward),
    ):
        yield


@contextmanager
def standing_in(functions: Any) -> Iterator[None]:
    """Oracles find `functions` where ``np`` was."""
    with _lock:
        before = [(module, module.np) for module in oracles()]
        try:
            for module, _ in before:
                module.np = functions
            yield
        finally:
            for module, own in before:
                module.np = own


@cache
def oracles() -> list[Any]:
    """The modules that oracles are in."""
    stems = {"seen", *(spec.stem for spec in JUDGED)}
    return [importlib.import_module(f"nlattn.oracle.{stem}") for stem in sorted(stems)]


class _Add:
    """``np.add.at``."""

    def at(self, x: Rounded, index: Operand, terms: Rounded) -> None:
        """Each cell is a sum of some of the terms."""
        count = terms.size / max(x.size, 1)
        np.add.at(x.value, index, terms.value)
        own = (x.now.growth(count) + x.now.unit) * abs(terms.value)
        error = x.now.total(terms.error, own)
        if x.now.typical:
            x.error = np.square(x.error)
            np.add.at(x.error, index, np.square(error))
            x.error = np.sqrt(x.error)
        else:
            np.add.at(x.error, index, error)


class Analysis:
    """Stands where ``np`` does; what is not named here never meets a Rounded array."""

    add = _Add()

    def isfinite(self, x: Operand) -> Operand:
        return np.isfinite(parts(x)[0])

    def __getattr__(self, name: str) -> Operand:
        self.__dict__[name] = found = self._found(name)  # it is looked for once
        return found

    def _found(self, name: str) -> Operand:
        whole = getattr(np, name)
        if name not in _MOVING:
            return whole

        def moved(x: Operand, *args: Operand, **options: object) -> Operand:
            if not carries(x):
                return whole(x, *args, **options)
            value, error = parts(x)
            return Rounded(whole(value, *args, **options), whole(error, *args, **options))

        return moved

    def zeros(self, shape: Shape, dtype: object = float) -> Operand:
        return self._filled(np.zeros(shape, dtype))

    def ones(self, shape: Shape, dtype: object = float) -> Operand:
        return self._filled(np.ones(shape, dtype))

    def full(self, shape: Shape, fill: Operand, dtype: DTypeLike | None = None) -> Operand:
        return self._filled(np.full(shape, fill, dtype))

    def zeros_like(self, x: Operand) -> Operand:
        return self.zeros(np.shape(x.value) if isinstance(x, Rounded) else x.shape, x.dtype)

    empty_like = zeros_like

    def ones_like(self, x: Operand) -> Operand:
        return self.zeros_like(x) + 1

    def _filled(self, x: Operand) -> Operand:
        return Rounded(x) if x.dtype == np.float64 else x

    def asarray(self, x: Operand, dtype: DTypeLike | None = None) -> Operand:
        return x if isinstance(x, Rounded) else np.asarray(x, dtype)

    def array(self, x: Operand, dtype: DTypeLike | None = None) -> Operand:
        return Rounded(*map(np.array, parts(x))) if carries(x) else np.array(x, dtype)

    def ndim(self, x: Operand) -> int:
        return x.ndim if isinstance(x, Rounded) else np.ndim(x)

    def shape(self, x: Operand) -> Operand:
        return x.shape if isinstance(x, Rounded) else np.shape(x)

    def result_type(self, *_: Operand) -> Operand:
        return np.dtype(np.float64)

    def append(self, x: Operand, y: Operand) -> Operand:
        if not carries((x, y)):
            return np.append(x, y)
        (a, e), (b, f) = parts(x), parts(y)
        return Rounded(np.append(a, b), np.append(e, np.zeros(np.shape(b)) + f))

    def where(self, condition: Operand, x: Operand, y: Operand) -> Operand:
        if not carries((x, y)):
            return np.where(condition, x, y)
        (a, e), (b, f) = parts(x), parts(y)
        error = np.where(condition, e, f)
        if isinstance(condition, Doubtful):
            both = Rounded.now.total(e, f, abs(a - np.asarray(b)))
            error = np.where(condition.doubt, both, error)
        return Rounded(np.where(condition, a, b), error)

    def put_along_axis(self, x: Operand, index: Operand, values: Operand, axis: int) -> None:
        value, error = parts(values)
        np.put_along_axis(x.value, index, value, axis)
        np.put_along_axis(x.error, index, error, axis)

    def exp(self, x: Operand) -> Operand:
        if not isinstance(x, Rounded):
            return np.exp(x)
        value = np.exp(x.value)
        grown = np.expm1(x.now.total(x.error, x.now.units(1.0) * abs(x.value)))
        error = np.where(value == 0, 0, value * grown)
        return Rounded.of(value, error, x.now.sums.tiny, units=5.0)

    def log(self, x: Operand) -> Operand:
        if not isinstance(x, Rounded):
            return np.log(x)
        value = np.log(x.value)
        error = -np.log1p(-np.minimum(x.error / x.value, 1))
        return Rounded.of(value, error, 2 * x.now.unit)

    def sqrt(self, x: Operand) -> Operand:
        if not isinstance(x, Rounded):
            return np.sqrt(x)
        value = np.sqrt(x.value)
        return Rounded.of(value, value - np.sqrt(np.maximum(x.value - x.error, 0)))

    def tanh(self, x: Operand) -> Operand:
        if not isinstance(x, Rounded):
            return np.tanh(x)
        slope = 1 - np.tanh(np.maximum(abs(x.value) - x.error, 0)) ** 2
        return Rounded.of(np.tanh(x.value), np.minimum(x.error * slope, 2), units=4.0)

    def einsum(self, subscripts: str, *operands: Operand) -> Operand:
        if not carries(operands):
            return np.einsum(subscripts, *operands)
        a, b = operands
        axes, out = subscripts.replace("...", "").split("->")
        sizes: dict[str, int] = {}
        for letters, x in zip(axes.split(","), operands, strict=True):
            shape = self.shape(x)
            sizes |= zip(letters, shape[len(shape) - len(letters) :], strict=True)
        n = math.prod(size for letter, size in sizes.items() if letter not in out)
        return product(lambda x, y: np.einsum(subscripts, x, y), a, b, n)


_MOVING = (
    "broadcast_to", "concatenate", "moveaxis", "pad", "repeat", "stack", "swapaxes",
    "take_along_axis",
)  # fmt: skip
