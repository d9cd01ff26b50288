"""The weights of a layer: names, shapes, dtypes and values checked before work starts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from nlattn import _check
from nlattn._check import Fit
from nlattn._modes import Nonfinite
from nlattn._types import Array, Floats, Ints, StateDict
from nlattn.layers import _state
from nlattn.layers._dual import Dual, parted


class Weights(StateDict):
    """Checked weights by name, read-only and in the dtype that is computed in."""

    def __init__(
        self,
        arrays: Mapping[str, Array],
        sizes: dict[str, int],
        out_dtype: DTypeLike,
        changes: Mapping[str, Array],
    ):
        self._arrays = arrays
        self._changes = changes
        self.sizes = sizes
        """Sizes of the named dimensions."""
        self._out_dtype = out_dtype

    def __getitem__(self, name: str) -> Any:
        x = self._arrays[name]
        return Dual(x, self._changes[name]) if name in self._changes else x

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def matrix(self, name: str) -> Floats:
        """A 1x1 convolution's weight (out, in, 1, ...) as a matrix (out, in)."""
        weight: Floats = self[name]
        return weight.reshape(weight.shape[:2])

    def gradients(self, found: Mapping[str, Floats]) -> dict[str, Floats]:
        """Gradients in the order and shapes of the weights, rounded once to the caller's dtype."""
        return {
            name: np.asarray(found[name]).reshape(x.shape).astype(self._out_dtype, copy=False)
            for name, x in self._arrays.items()
            if name in found
        }


def take(
    fit: Fit,
    weights: object,
    shapes: Mapping[str, str],
    *,
    counters: Sequence[str] = (),
    nonfinite: Nonfinite = "raise",
) -> Weights:
    """Weights of a layer whose input is `fit`, checked.

    `shapes` says which there are and what shape each has, ``{"g.weight": "c C 1 1"}``: numbers, and
    sizes by name, perhaps with a factor, ``2c``. A name of `fit` has the size it has there, another
    that of its first weight. `counters` are whole numbers, 0 if missing. ValueError lists every
    name that is missing, superfluous or misshaped; TypeError every weight of another dtype than
    the input's.
    """
    given, moving = parted(_state.mapping(fit.op, weights))
    needed, expected = [*shapes], [*shapes, *counters]
    problems = names(given, needed, expected)
    present = {name: given[name] for name in expected if name in given}
    arrays = {name: _check.array(fit.op, name, present[name]) for name in shapes if name in present}
    sizes, misshaped = _sizes(fit, arrays, shapes)
    counts = {name: _counter(fit.op, name, present.get(name, 0)) for name in counters}
    if problems or misshaped:
        helps = [_state.channels_first(fit, present, shapes), _state.advice(given, needed)]
        _check.fail_all(fit.op, [*problems, *misshaped, *filter(None, helps)])
    others = {
        name: x.dtype for name, x in arrays.items() if x.dtype.newbyteorder("=") != fit.out_dtype
    }
    remedy = f"; convert each with .astype(np.{fit.out_dtype})"
    _check.one_dtype(fit.op, {"x": fit.out_dtype, **others}, remedy)
    frozen = {name: _check.frozen(x, fit.dtype) for name, x in arrays.items()}
    changes = {name: _check.frozen(x, fit.dtype) for name, x in moving.items()}
    if nonfinite == "raise":
        for name, x in [*frozen.items(), *((f"d{n}", x) for n, x in changes.items())]:
            _check.finite(fit.op, name, x)
    return Weights({**frozen, **counts}, sizes, fit.out_dtype, changes)


def names(given: StateDict, needed: Sequence[str], expected: Sequence[str]) -> list[str]:
    """What is wrong with the names of weights, in words."""
    missing = [repr(name) for name in needed if name not in given]
    more = [repr(name) for name in given if name not in expected]
    return [
        *([f"weights lack {', '.join(missing)}"] if missing else []),
        *([f"weights hold {', '.join(more)}, expected none of that name"] if more else []),
    ]


def _sizes(
    fit: Fit, arrays: StateDict, shapes: Mapping[str, str]
) -> tuple[dict[str, int], list[str]]:
    """Sizes of the named dimensions, and which weights do not have them, in words."""
    sizes, source = dict(fit.dims), dict.fromkeys(fit.dims, "x")
    wrong = []
    for name, x in arrays.items():
        spec = [_part(part) for part in shapes[name].split()]
        if x.ndim == len(spec):
            for (factor, dim), length in zip(spec, x.shape, strict=True):
                if dim and length and factor == 1 and dim not in sizes:
                    sizes[dim], source[dim] = length, name
        want = tuple(factor * sizes.get(dim, 0) if dim else factor for factor, dim in spec)
        if x.shape != want or 0 in want:
            known = [dim for _, dim in spec if dim in sizes]
            whence = ", ".join(
                f"{dim}={sizes[dim]} from {source[dim]}" for dim in dict.fromkeys(known)
            )
            listed = ", ".join(shapes[name].split()) + ("," if len(spec) == 1 else "")
            text = f"{name} has shape {x.shape}, expected ({listed})"
            wrong.append(f"{text} with {whence}" if whence else text)
    return sizes, wrong


def _part(text: str) -> tuple[int, str]:
    """Factor and name of a dimension: ``2c``, ``c``, or a number and no name."""
    factor, dim = re.fullmatch(r"(\d*)([A-Za-z_]*)", text).groups()  # type: ignore[union-attr]
    return int(factor or 1), dim


def _counter(op: str, name: str, value: object) -> Ints:
    count = np.asarray(value)
    if count.dtype.kind not in "iu" or count.shape:
        _check.fail_type(op, name, f"is {count.dtype} {count.shape}, expected one integer")
    return count
