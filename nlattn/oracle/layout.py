"""Oracles see one layout: the bits of a result are those of the numbers, however they lie."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])


def any_layout(function: Function) -> Function:
    """Give `function` its arrays contiguous, aligned and in this machine's byte order.

    Order of memory decides the order of sums in BLAS, and whether ``reshape`` is a copy, into which
    a gradient would be added in vain. Other kinds of arrays, such as those that carry rounding
    errors, pass as they are.
    """

    @functools.wraps(function)
    def call(*arguments: object, **options: Any) -> Any:
        return function(*map(_plain, arguments), **{n: _plain(x) for n, x in options.items()})

    return call  # type: ignore[return-value]


def _plain(x: object) -> Any:
    if type(x) is np.ndarray:
        return np.require(x, x.dtype.newbyteorder("="), ["C", "A"])
    if isinstance(x, tuple):  # a support, a field of matches
        each = map(_plain, x)
        return type(x)(*each) if hasattr(x, "_fields") else tuple(each)
    return x
