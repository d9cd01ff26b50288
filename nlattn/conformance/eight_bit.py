"""Inputs of eight bits with scales: floating numbers as OCP's FP8 has them, and integers.

A case of dtype "e4m3" holds codes, uint8 or int8, and beside ``q`` its ``q_scale``, float32; the
number meant is ``scale * decoded``. Codes are the nearest ones, ties to the even code, and what is
beyond the largest number is that number (saturation). [ocp2023]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from nlattn.conformance.case import Array, Case

QUANTISED: Mapping[str, tuple[str, str]] = {
    "e4m3": ("e4m3", "e4m3"),
    "e5m2": ("e5m2", "e5m2"),
    "int8": ("int8", "int8"),
    "int8-e4m3": ("int8", "e4m3"),
    "int8-float16": ("int8", "float16"),
}
"""Dtypes of cases: formats of queries and keys, and of values."""
SCALES = ("tensor", "head", "row", "block")
"""What shares a scale; a block is of 64 rows, the last may be shorter."""
BLOCK = 64


class Format(NamedTuple):
    """Bits of exponent and mantissa, and whether the largest exponent is of infinities alone."""

    exponent: int
    mantissa: int
    ieee: bool

    @property
    def values(self) -> Array:
        """The number of each of the 256 codes."""
        code = np.arange(256)
        sign = np.where(code < 128, 1.0, -1.0)
        e = (code >> self.mantissa) & (2**self.exponent - 1)
        f = (code & (2**self.mantissa - 1)) / 2.0**self.mantissa
        bias = 2 ** (self.exponent - 1) - 1
        size = np.where(e == 0, np.ldexp(f, 1 - bias), np.ldexp(1 + f, e - bias))
        if self.ieee:
            size = np.where(e == 2**self.exponent - 1, np.where(f == 0, np.inf, np.nan), size)
        else:  # e4m3: one code is NaN, none is infinite
            size = np.where((code & 127) == 127, np.nan, size)
        return np.asarray(sign * size)


FLOATING = {"e4m3": Format(4, 3, ieee=False), "e5m2": Format(5, 2, ieee=True)}
"""Largest numbers 448 and 57344."""


@cache
def table(name: str) -> Array:
    """Numbers of all codes of a floating format."""
    values = FLOATING[name].values
    values.flags.writeable = False
    return values


def largest(name: str) -> float:
    """The largest finite number of a format; -128 is no integer of ours."""
    return 127.0 if name == "int8" else float(np.nanmax(np.where(np.isinf(v := table(name)), 0, v)))


def encode(x: object, name: str) -> Array:
    """Codes of the numbers nearest to x; NaN has one in floating formats, in int8 it is 0."""
    x = np.asarray(x, np.float64)
    if name == "int8":
        return np.clip(np.round(np.where(np.isnan(x), 0, x)), -127, 127).astype(np.int8)
    steps = table(name)[:128]
    steps = steps[np.isfinite(steps)]
    size = np.minimum(abs(np.where(np.isnan(x), 0, x)), steps[-1])
    middles = (steps[1:] + steps[:-1]) / 2
    code = np.searchsorted(middles, size)  # a middle belongs to the code below it
    tie = (code < len(middles)) & (size == middles[np.minimum(code, len(middles) - 1)])
    code = code + (tie & (code % 2 == 1))
    code = np.where(np.isnan(x), 127, code) + 128 * np.signbit(x)
    return np.asarray(code.astype(np.uint8))


def decode(codes: Array, name: str) -> Array:
    """The numbers of codes, float64."""
    return codes.astype(np.float64) if name == "int8" else np.asarray(table(name)[codes])


def format_of(dtype: str, name: str) -> str:
    """The format of an array of a case."""
    return QUANTISED[dtype][name not in ("q", "k")]


def quantised(arrays: Mapping[str, Array], names: Any, dtype: str, share: str) -> dict[str, Array]:
    """Arrays with codes and scales in place of some of them; others that are floating, float32."""
    found: dict[str, Array] = {}
    for name, x in arrays.items():
        to = format_of(dtype, name)
        if x.dtype.kind != "f":
            found[name] = x
        elif name not in names:
            found[name] = x.astype(np.float32)
        elif to == "float16":
            found[name] = x.astype(np.float16)
        else:
            found[f"{name}_scale"] = scale = _scales(x, to, share)
            found[name] = encode(x / expanded(scale, x.shape, share), to)
    return found


def _scales(x: Array, to: str, share: str) -> Array:
    """Float32 scales by which the largest number of each share is the format's largest."""
    size = np.where(np.isfinite(x), abs(x), 0)
    if share == "tensor":
        most = size.max(initial=0)
    elif share == "row":
        most = size.max(-1, keepdims=True, initial=0)
    elif share == "head":
        most = size.max((-2, -1), keepdims=True, initial=0)
    else:
        starts = np.arange(0, x.shape[-2], BLOCK)
        most = np.maximum.reduceat(size.max(-1, keepdims=True, initial=0), starts, -2)
    return np.asarray(np.where(most == 0, 1, most / largest(to)), np.float32)


def expanded(scale: Array, shape: tuple[int, ...], share: str) -> Array:
    """Scales that broadcast against an array of `shape`, float64."""
    scale = scale.astype(np.float64)
    return np.repeat(scale, BLOCK, -2)[..., : shape[-2], :] if share == "block" else scale


@lru_cache(maxsize=64)
def dequantised(case: Case) -> Case:
    """The same call with the numbers that codes and scales mean, in the dtype of its results."""
    if case.dtype not in QUANTISED:
        return case
    arrays = {n: x for n, x in case.arrays.items() if not n.endswith("_scale")}
    for name in arrays:
        scale = case.arrays.get(f"{name}_scale")
        if scale is not None:
            arrays[name] = meant(case, name, arrays[name], scale)
    return replace(case, dtype=case.results_in, arrays=arrays, codes=case)


def meant(case: Case, name: str, codes: Array, scale: Array, to: str = "") -> Array:
    """The numbers of one array, of another format if that is said."""
    share = shared_by(scale, codes)
    plain = decode(codes, to or format_of(case.dtype, name))
    return np.asarray(plain * expanded(scale, codes.shape, share))


def shared_by(scale: Array, codes: Array) -> str:
    """What shares a scale, by the shape of the scales."""
    rows = scale.shape[-2] if scale.ndim > 1 else 0
    return "block" if 1 < rows < codes.shape[-2] else "head"
