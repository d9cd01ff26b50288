"""Codes of eight bits read wrongly, and scales taken wrongly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from nlattn.conformance.case import Array, Case
from nlattn.conformance.eight_bit import (
    FLOATING,
    Format,
    decode,
    expanded,
    format_of,
    meant,
    shared_by,
)
from nlattn.conformance.truth.bounds import exact


def wrong(case: Case) -> Iterator[tuple[str, Mapping[str, Array]]]:
    """Names, and the results of inputs that are not what codes and scales mean."""
    given = case.codes
    if given is None:
        return
    names = [name for name in case.arrays if f"{name}_scale" in given.arrays]
    for name in names:
        codes, scale = given.arrays[name], given.arrays[f"{name}_scale"]
        for words, x in _readings(given, name, codes, scale):
            if x.shape == case.arrays[name].shape:
                yield words, exact(replace(case, arrays={**case.arrays, name: x}))
    for words, which, read in _OF_SEVERAL:
        arrays = dict(case.arrays)
        try:
            for name in [name for name in names if name in which]:
                arrays[name] = read(given, name)
        except LookupError:
            continue
        yield words, exact(replace(case, arrays=arrays))


def _readings(case: Case, name: str, codes: Array, scale: Array) -> Iterator[tuple[str, Array]]:
    """One array read wrongly."""
    own = format_of(case.dtype, name)
    plain, share = decode(codes, own), shared_by(scale, codes)
    each = expanded(scale, codes.shape, share)
    yield f"without the scale of {name}", plain
    yield f"with the scale of {name} squared", plain * each**2
    yield f"divided by the scale of {name}", plain / each
    for words, other in _scales_misplaced(scale):
        yield f"with the scale of {name} of {words}", meant(case, name, codes, other)
    for x in ("q", "k", "v"):
        theirs = case.arrays.get(f"{x}_scale")
        if x != name and theirs is not None and theirs.shape == scale.shape:
            yield f"with the scale of {x} for {name}", meant(case, name, codes, theirs)
    for to in FLOATING:
        if to != own:
            yield f"with {name} read as {to}", meant(case, name, codes.view(np.uint8), scale, to)
    if own != "int8":
        yield f"with {name} read as int8", meant(case, name, codes.view(np.int8), scale, "int8")


def _scales_misplaced(scale: Array) -> Iterator[tuple[str, Array]]:
    """Scales of another head, row or block."""
    if scale.size == 1:
        return
    first = scale[(slice(0, 1),) * scale.ndim]
    yield "the first", np.broadcast_to(first, scale.shape)
    heads = scale.ndim > 2 and scale.shape[-3] > 1
    if heads:
        yield "the next head", np.roll(scale, -1, -3)
        yield "the first head", np.broadcast_to(scale[..., :1, :, :], scale.shape)
    if scale.shape[-2] > 1:
        yield "the next row or block", np.roll(scale, -1, -2)
        yield "the first row or block", np.broadcast_to(scale[..., :1, :], scale.shape)


def _as(to: str) -> Callable[[Case, str], Array]:
    def read(case: Case, name: str) -> Array:
        if format_of(case.dtype, name) in (to, "int8"):
            raise LookupError
        codes = case.arrays[name].view(np.int8 if to == "int8" else np.uint8)
        return meant(case, name, codes, case.arrays[f"{name}_scale"], to)

    return read


def _finite(case: Case, name: str) -> Array:
    """E4M3 read as E5M2, infinities as the numbers that would be next."""
    if format_of(case.dtype, name) != "e4m3":
        raise LookupError
    plain = Format(5, 2, ieee=False).values[case.arrays[name]]
    scale = case.arrays[f"{name}_scale"]
    return np.asarray(plain * expanded(scale, plain.shape, shared_by(scale, plain)))


def _of_first_head(case: Case, name: str) -> Array:
    scale = case.arrays[f"{name}_scale"]
    if scale.ndim < 3:
        raise LookupError
    first = np.broadcast_to(scale[..., :1, :, :], scale.shape)
    return meant(case, name, case.arrays[name], first)


def _flushed(case: Case, name: str) -> Array:
    """Subnormal numbers count as 0."""
    own = format_of(case.dtype, name)
    least = {"e4m3": 2.0**-6, "e5m2": 2.0**-14}[own]
    codes, scale = case.arrays[name], case.arrays[f"{name}_scale"]
    x = meant(case, name, codes, scale)
    return np.where(abs(decode(codes, own)) < least, 0.0, x)


def _clipped(case: Case, name: str) -> Array:
    """The largest number is 240, as in the format of another maker (bias 8)."""
    codes, scale = case.arrays[name], case.arrays[f"{name}_scale"]
    if format_of(case.dtype, name) != "e4m3":
        raise LookupError
    x = np.clip(decode(codes, "e4m3"), -240, 240)
    return np.asarray(x * expanded(scale, codes.shape, shared_by(scale, codes)))


def _unscaled(case: Case, name: str) -> Array:
    return decode(case.arrays[name], format_of(case.dtype, name))


def _half(case: Case, name: str) -> Array:
    """E4M3 with a bias of 8, the format of another maker: all numbers half as large."""
    if format_of(case.dtype, name) != "e4m3":
        raise LookupError
    return meant(case, name, case.arrays[name], case.arrays[f"{name}_scale"]) / 2


_OF_SEVERAL: tuple[tuple[str, str, Callable[[Case, str], Array]], ...] = (
    ("without any scale", "qkv", _unscaled),
    ("without the scales of q and k", "qk", _unscaled),
    ("with the scales of q and k of the first head", "qk", _of_first_head),
    ("with scales of the first head", "qkv", _of_first_head),
    ("with e5m2 read as e4m3", "qkv", _as("e4m3")),
    ("with e4m3 read as e5m2", "qkv", _as("e5m2")),
    ("with e4m3 read as e5m2, infinities as numbers", "qkv", _finite),
    ("with codes read as int8", "qkv", _as("int8")),
    ("with subnormal numbers of eight bits as 0", "qkv", _flushed),
    ("with numbers beyond 240 cut off", "qkv", _clipped),
    ("with e4m3 of bias 8 (e4m3fnuz)", "qkv", _half),
)
