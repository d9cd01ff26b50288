"""Gradients that leave out a path: something the forward pass computes was held constant."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from nlattn._types import Function, Result
from nlattn.conformance.case import Case
from nlattn.conformance.judge.variants.base import Call, Run, Variant, step
from nlattn.conformance.table import find


def paths(case: Case) -> Iterator[Variant]:
    """A variant for each function of the oracle's file, and for each of its arguments."""
    for name, parameters in _functions(case.op):
        said = name.strip("_")
        yield Variant(f"without the gradient through {said}", (), step(name, _constant))
        for i, parameter in enumerate(parameters if len(parameters) > 1 else ()):
            words = f"without the gradient through {parameter} of {said}"
            yield Variant(words, (), _of_argument(name, i))


@cache
def _functions(op: str) -> list[tuple[str, list[str]]]:
    """Functions that an oracle calls, and the names of their arguments."""
    spec = find(op)
    module = importlib.import_module(f"nlattn.oracle.{spec.stem}")
    found = []
    for name, f in vars(module).items():
        own = inspect.isfunction(f) and inspect.unwrap(f).__module__ == module.__name__
        if own and name != op and not name.endswith(("_vjp", "_jvp")):
            kinds = inspect.signature(f).parameters.values()
            found.append((name, [p.name for p in kinds if p.default is p.empty]))
    return found


def _constant(_: Call, f: Function, *args: Any, **options: Any) -> Result:
    return held(f(*args, **options))


def _of_argument(name: str, i: int) -> Run:
    def wrong(_: Call, f: Function, *args: Any, **options: Any) -> Result:
        return f(*(held(x) if at == i else x for at, x in enumerate(args)), **options)

    return step(name, wrong)


def held(x: Any) -> Any:
    """Without its imaginary part, which is its change."""
    if isinstance(x, tuple):
        return tuple(map(held, x))
    complex_ = isinstance(x, np.ndarray) and x.dtype.kind == "c"
    return x.real.astype(x.dtype) if complex_ else x
