"""What stands beside the arrays of a call: masks, integers, and which slice of them is whose."""

from __future__ import annotations

import math
import os

import numpy as np

from nlattn._check.arrays import Fit, numbers
from nlattn._check.words import fail, quoted
from nlattn._types import Array, Bools, Ints


def integers(op: str, name: str, value: object) -> Ints:
    """`value` as an array of integers."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{op}: {name} is a masked array, expected integers; use {name}.filled()")
    try:
        result: Array = np.asarray(value)
    except (ValueError, OverflowError):
        raise TypeError(f"{op}: {name}={quoted(value)} holds no integers of one shape") from None
    if result.dtype.kind not in "iu" and result.size:
        raise TypeError(f"{op}: {name} has dtype {result.dtype}, expected integers")
    return result


def booleans(op: str, name: str, value: object) -> Bools:
    """`value` as an array of bool."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{op}: {name} is a masked array, expected bool; use {name}.filled()")
    result: Array = np.asarray(value)
    if result.dtype != np.bool_:
        remedy = f"convert it with {name}.astype(bool)"
        if result.dtype.kind == "f":  # -inf, which other libraries add to scores, would be True
            remedy = (
                f"{name} != 0 if it is 1 there, {name} == 0 if it is 0 there and -inf elsewhere"
            )
        raise TypeError(
            f"{op}: {name} has dtype {result.dtype}, expected bool, True where a key may be used; "
            f"{remedy}"
        )
    return result


def broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Whether an array of `shape` broadcasts to another shape, as it is."""
    try:
        return np.broadcast_shapes(shape, to) == to
    except ValueError:
        return False


def slices(op: str, name: str, lead: tuple[int, ...], whole: tuple[int, ...]) -> Ints:
    """For each slice of leading axes `whole`, which slice of an array with axes `lead` it reads."""
    numbers = np.arange(math.prod(lead), dtype=np.int64).reshape(lead)
    try:
        return np.broadcast_to(numbers, whole).reshape(-1)
    except ValueError:
        fail(op, name, f"has leading axes {tuple(lead)}, expected axes that broadcast to {whole}")


def one_head(fit: Fit, shapes: str = "(n, d), (m, d)", what: str = "one head") -> None:
    """Refuse leading axes: a map is of one head."""
    if fit.lead:
        names = [name for name in fit.names if fit.lead_of(name)]
        have = "have" if len(names) > 1 else "has"
        text = f"{have} leading axes {fit.lead}, expected {what} {shapes}".rstrip()
        fail(fit.op, ", ".join(names), text)


def first_of(bad: Bools) -> list[int]:
    """Where the first True stands, to be named."""
    return [int(i) for i in np.argwhere(bad)[0]]


_COLOURS = 16  # channels that a picture has at most, where its first axis has as few as they


def channels_first(shape: tuple[int, ...]) -> bool:
    """Whether a picture's shape is (..., C, H, W), where (..., H, W, C) is asked for."""
    return len(shape) > 2 and shape[-3] in (1, 3) and shape[-1] > _COLOURS


def picture(op: str, name: str, x: Array, channels: tuple[int, ...] = ()) -> None:
    """Refuse what is no picture (H, W, channels); one with its channels first by name."""
    shape = x.shape
    first = len(shape) == 3 and channels_first(shape)
    if len(shape) == 3 and 0 not in shape and not first and shape[2] in (channels or shape):
        return
    if first:
        text = f"has shape {shape}, expected channels last; np.moveaxis({name}, 0, -1) turns it"
        fail(op, name, text)
    last = " or ".join(map(str, channels)) or "C"
    grey = len(shape) == 2 and 0 not in shape and 1 in (channels or (1,))
    more = f"; {name}[..., None] has one channel" if grey else ", none of them 0"
    fail(op, name, f"has shape {shape}, expected (H, W, {last}){more}")


def real(op: str, name: str, value: object) -> Array:
    """`value` as an array of real numbers, whole ones and bools too."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{op}: {name} is a masked array, whose mask would be lost; fill it")
    if isinstance(value, (str, bytes, os.PathLike)):
        raise TypeError(f"{op}: {name} is a {type(value).__name__}, expected an array")
    result = numbers(op, name, value)
    if result.dtype.kind not in "fiub":
        raise TypeError(f"{op}: {name} has dtype {result.dtype}, expected real numbers")
    return result


def pixels(op: str, name: str, image: object, channels: tuple[int, ...] = ()) -> Array:
    """A picture (H, W, channels) of finite real numbers."""
    values = real(op, name, image)
    picture(op, name, values, channels)
    if values.dtype.kind == "b":
        raise TypeError(f"{op}: {name} has dtype bool, expected real numbers")
    if not np.isfinite(values).all():
        fail(op, name, "holds NaN or infinities")
    return values
