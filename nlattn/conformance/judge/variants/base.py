"""What a wrong variant is, and the ways in which one is made from an oracle."""

from __future__ import annotations

import importlib
import inspect
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias
from unittest.mock import patch

import numpy as np

from nlattn._types import Array as Array
from nlattn._types import Function, Options, Result
from nlattn.conformance.case import scale_of
from nlattn.conformance.table import find, owner
from nlattn.conformance.truth.transcription import transcription

lock = threading.RLock()


@dataclass(frozen=True)
class Call:
    """Arguments of an operator's oracle; arrays may be complex."""

    op: str
    arrays: Options
    options: Options
    dtype: str = "float64"
    """That of the case, of which `arrays` hold the numbers."""
    then: Run | None = None
    """What is asked in place of the oracle: another variant, so that two mistakes are made."""

    def __call__(self) -> Result:
        """Ask the oracle."""
        if self.then is not None:
            return self.then(replace(self, then=None))
        return transcription(self.op, self.arrays, self.options)

    def __getitem__(self, name: str) -> Result:
        return self.arrays[name] if name in self.arrays else self.options[name]

    def get(self, name: str, otherwise: Any = None) -> Result:
        """An array or an option, if it is given."""
        return self.arrays.get(name, self.options.get(name, otherwise))

    @property
    def scale(self) -> float:
        """Factor on the scores."""
        return scale_of(self.options, self["q"])

    def default(self, name: str) -> Result:
        """What the oracle takes for an option that is not given."""
        return inspect.signature(find(self.op).oracle()).parameters[name].default

    def given(self, **changes: object) -> Call:
        """The same call with other arrays and options; None leaves one out."""
        names = {name.replace("__", "."): value for name, value in changes.items()}
        arrays = {n: x for n, x in self.arrays.items() if n not in names}
        options = {n: x for n, x in self.options.items() if n not in names}
        for name, value in names.items():
            if isinstance(value, np.ndarray):
                arrays[name] = value
            elif value is not None:
                options[name] = value
        return replace(self, arrays=arrays, options=options)


Run: TypeAlias = Callable[[Call], Result]
"""A wrong way to answer a call."""


@dataclass(frozen=True)
class Variant:
    """One way to get operators wrong."""

    name: str
    """Completes "your output equals ours ...": "with the softmax over queries"."""
    families: tuple[str, ...]
    """It fits operators whose row names one of them as `wrong`."""
    run: Run
    """Outputs of a forward call; any error means that the variant makes no sense for it."""


def several(families: tuple[str, ...], wrong: Mapping[str, Run]) -> tuple[Variant, ...]:
    """Variants of the same families by name."""
    return tuple(Variant(name, families, run) for name, run in wrong.items())


def both(outer: Variant, inner: Variant) -> Variant:
    """Two mistakes in one call; that of `outer` is made first, of arrays and options."""
    joined = f"{outer.name}, and {inner.name}"
    return Variant(joined, outer.families, lambda c: outer.run(replace(c, then=inner.run)))


def option(**changes: object) -> Run:
    """The oracle with other options; a function is called with the call to give one."""
    return lambda c: c.given(**{n: x(c) if callable(x) else x for n, x in changes.items()})()


def needs(name: str, run: Run) -> Run:
    """A variant of calls that have an array or option."""

    def only(c: Call) -> Result:
        c[name]
        return run(c)

    return only


@dataclass(frozen=True)
class Step:
    """The oracle with one function of its file replaced."""

    name: str
    wrong: Function
    stem: str | None

    def __call__(self, c: Call) -> Result:
        """What it gives for a call, of a gradient, too."""
        module = importlib.import_module(f"nlattn.oracle.{self.stem or find(owner(c.op)).stem}")
        function = getattr(module, self.name)

        def instead(*args: object, **options: object) -> Result:
            return self.wrong(c, function, *args, **options)

        with lock, patch.object(module, self.name, instead):
            return c()


def step(name: str, wrong: Function, stem: str | None = None) -> Run:
    """The oracle with one function of its file replaced by ``wrong(call, function, *args)``."""
    return Step(name, wrong, stem)


def after(change: Callable[[Call, Array], Array]) -> Run:
    """The oracle's output, changed."""
    return lambda c: change(c, first(c()))


def first(result: object) -> Result:
    """The output, of several results the first."""
    return result[0] if isinstance(result, tuple) else result


def softmax(s: Array, axis: int = -1) -> Array:
    """Softmax; 0 where all scores are -inf."""
    top = s.real.max(axis, keepdims=True, initial=-np.inf)
    powers = np.where(np.isneginf(s.real), 0, np.exp(s - np.where(np.isneginf(top), 0, top)))
    total = powers.sum(axis, keepdims=True)
    return np.asarray(powers / np.where(total == 0, 1, total))


def unit(x: Array, axis: int = -1) -> Array:
    """Vectors of length 1."""
    return np.asarray(x / np.sqrt((x * x).sum(axis, keepdims=True)))
