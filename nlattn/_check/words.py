"""Numbers, choices and sizes: what is said of an argument that is no array."""

from __future__ import annotations

import functools
import math
import operator
import os
from collections.abc import Callable, Sequence
from typing import NoReturn, ParamSpec, TypeVar

import numpy as np

W = TypeVar("W", bound=str)
P = ParamSpec("P")
R = TypeVar("R")


def fail(op: str, name: str, text: str) -> NoReturn:
    """Raise the ValueError ``op: name text``."""
    raise ValueError(f"{op}: {name} {text}")


def quoted(value: object, most: int = 64) -> str:
    """`value` as it would be written, on one line, cut to some characters."""
    try:
        text = repr(value[: most + 1] if isinstance(value, (str, bytes, list, tuple)) else value)
    except Exception:  # an int of too many digits, an object of others
        text = f"<{type(value).__name__}>"
    text = " ".join(text.split()) if "\n" in text else text
    return text if len(text) <= most else f"{text[: most - 3]}..."


def fail_all(op: str, problems: Sequence[str]) -> NoReturn:
    """Raise one ValueError for several problems."""
    raise ValueError(f"{op}: {'; '.join(problems)}")


def speaks_for(*inner: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Have errors of some `inner` functions name the function that was called in their place."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except (ValueError, TypeError, MemoryError) as error:
                name, colon, text = str(error).partition(": ")
                if not colon or name not in inner:
                    raise
                kind = next(k for k in (ValueError, TypeError, MemoryError) if isinstance(error, k))
                raise kind(f"{function.__name__}: {text}") from None

        return call

    return decorate


def fail_type(op: str, name: str, text: str) -> NoReturn:
    """Raise the TypeError ``op: name text``."""
    raise TypeError(f"{op}: {name} {text}")


def instance(op: str, name: str, value: object, kind: type, wanted: str = "") -> None:
    """Refuse what is not of a class; `wanted` says more than the name of the class."""
    if not isinstance(value, kind):
        expected = wanted or f"a{'n' if kind.__name__[0] in 'AEIOU' else ''} {kind.__name__}"
        fail_type(op, name, f"is a {type(value).__name__}, expected {expected}")


def pair_of(op: str, name: str, value: object, what: str) -> Sequence[object]:
    """`value`, a tuple or list of two."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{op}: {name}={quoted(value)}, expected {what}")
    return value


def choice(op: str, name: str, value: object, options: Sequence[W]) -> W:
    """`value`, one of a closed set of strings."""
    for option in options:
        if isinstance(value, str) and value == option:
            return option
    listed = " or ".join(filter(None, [", ".join(map(repr, options[:-1])), repr(options[-1])]))
    raise ValueError(f"{op}: {name}={quoted(value)}, expected {listed}")


def integer(
    op: str, name: str, value: object, *, low: int | None = None, high: int | None = None
) -> int:
    """`value` as an int within ``[low, high]``."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{op}: {name}={quoted(value)} is no integer") from None
    if low is not None and number < low:
        raise ValueError(f"{op}: {name}={quoted(number)}, expected at least {low}")
    if high is not None and number > high:
        raise ValueError(f"{op}: {name}={quoted(number)}, expected at most {high}")
    return number


def odd(op: str, name: str, value: object, why: str, *, high: int | None = None) -> int:
    """`value` as an odd positive int; `why` completes "expected an odd width so that"."""
    number = integer(op, name, value, low=1, high=high)
    if number % 2 == 0:
        raise ValueError(f"{op}: {name}={number} is even, expected an odd width so that {why}")
    return number


def pair(op: str, name: str, value: object, low: int) -> tuple[int, int]:
    """One integer for both axes, or one for each."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            fail(op, f"{name}={quoted(value)}", "has not two entries, expected an int or a pair")
        first, second = (integer(op, f"{name}[{i}]", x, low=low) for i, x in enumerate(value))
        return first, second
    number = integer(op, name, value, low=low)
    return number, number


def number(
    op: str,
    name: str,
    value: object,
    *,
    positive: bool = False,
    low: float | None = None,
    high: float | None = None,
    why: str = "",
) -> float:
    """`value` as a finite float, of at least `low` and at most `high`; `why` ends the error."""
    result = as_float(op, name, value)
    if not math.isfinite(result):
        raise ValueError(f"{op}: {name}={result} is not finite")
    if positive and result <= 0:
        raise ValueError(f"{op}: {name}={result}, expected a positive number")
    if low is not None and result < low:
        raise ValueError(f"{op}: {name}={result}, expected at least {low:g}{why}")
    if high is not None and result > high:
        raise ValueError(f"{op}: {name}={result:g}, expected at most {high:g}{why}")
    return result


def as_float(op: str, name: str, value: object) -> float:
    """`value` as a float, infinite ones and NaN too."""
    kind = getattr(getattr(value, "dtype", None), "kind", "f")
    try:
        if isinstance(value, (bool, str, bytes, np.ma.MaskedArray)) or kind in "bcmMSU":
            raise TypeError
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TypeError(f"{op}: {name}={quoted(value)} is no number") from None
    except OverflowError:
        fail(op, f"{name}={quoted(value)}", "is more than a float holds")


def share(op: str, name: str, value: object) -> float:
    """`value` as a share of weights that may be misplaced: at least 0, below 1."""
    result = number(op, name, value)
    if not 0 <= result < 1:
        fail(op, f"{name}={result}", "is a share of the weights, expected 0 to below 1")
    return result


def flag(op: str, name: str, value: object) -> bool:
    """`value`, a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{op}: {name}={quoted(value)} is no bool")
    return bool(value)


def file_name(op: str, name: str, value: object) -> None:
    """Refuse what names no file or folder."""
    if not isinstance(value, (str, os.PathLike)) or isinstance(os.fspath(value), bytes):
        fail_type(op, name, f"is a {type(value).__name__}, expected the name of a file or folder")
    if not os.fspath(value) or "\0" in os.fspath(value):
        fail(op, f"{name}={quoted(value)}", "is no name, expected that of a file or folder")


def wide_dtype(op: str, dtype: object) -> None:
    """Refuse every dtype of a result but float32 and float64."""
    try:
        found = np.dtype(dtype)  # type: ignore[call-overload]
    except TypeError:
        fail(op, f"dtype={quoted(dtype)}", "is none, expected float32 or float64")
    if found not in (np.float32, np.float64):
        fail(op, f"dtype={found}", "is unknown here, expected float32 or float64")


def memory(op: str, needed: int, max_bytes: float, what: str, remedy: str) -> None:
    """Refuse an allocation of `needed` bytes above `max_bytes`; `what` is e.g. "n x m float32"."""
    most = as_float(op, "max_bytes", max_bytes)
    if math.isnan(most):
        fail(op, "max_bytes", "is nan, expected a number of bytes")
    if needed > most:
        raise MemoryError(
            f"{op}: needs {size(needed)} ({what}), above max_bytes={size(most)}; {remedy}"
        )


def size(n_bytes: float) -> str:
    """Bytes in decimal units: ``275 GB``."""
    value, unit = float(n_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB", "EB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"
