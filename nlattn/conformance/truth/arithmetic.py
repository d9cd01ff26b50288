"""In which arithmetic a backend is expected to compute: formats of sums, factors and results."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import NamedTuple

import numpy as np

from nlattn._types import Array
from nlattn.conformance.case import dtype_of


class Precision(NamedTuple):
    """A floating format."""

    unit: float
    """Half the distance from 1 to the next number."""
    tiny: float
    """What a product may lose by underflow."""
    huge: float


def precision(dtype: np.dtype) -> Precision:
    """That of a dtype; all but float16 may flush subnormal numbers to 0."""
    if dtype.name == "bfloat16":
        return Precision(2.0**-8, 2.0**-126, float.fromhex("0x1.fep127"))
    info = np.finfo(dtype)
    tiny = info.smallest_subnormal if dtype.name == "float16" else info.smallest_normal
    return Precision(float(info.eps) / 2, float(tiny), float(info.max))


_SINGLE = precision(np.dtype(np.float32))
TF32 = Precision(2.0**-10, _SINGLE.tiny, _SINGLE.huge)
"""Ten bits after the first: tensor cores read no more of a factor, and many kernels cut it off."""
THREE_TF32 = Precision(2.0**-21, _SINGLE.tiny, _SINGLE.huge)
"""Each factor as two numbers of TF32; the product of the two small parts is dropped."""

HOPPER = 2.0**-13
"""Hopper's tensor cores keep 14 bits of a sum of products of eight-bit numbers, cut off at each
step of 32 [deepseek2024, section 3.5.2]."""
E4M3, E5M2 = Precision(2.0**-4, 2.0**-10, 448.0), Precision(2.0**-3, 2.0**-17, 57344.0)
INT8 = Precision(0.0, 1 / 254, math.inf)
"""Of weights up to 1, in steps of 1/127."""

ACCUMULATE = ("float32", "float16", "bfloat16", "own", "14bits")
PRODUCTS = ("own", "tf32", "3xtf32")
WEIGHTS = ("e4m3", "e5m2", "int8", "float16", "bfloat16", "float32")
RESULTS = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Arithmetic:
    """How numbers of one dtype are computed with.

    By default as hardware does: of 16-bit arrays products and sums in float32, what enters a
    second matrix product (such as the softmax's weights) rounded to 16 bits, and results rounded.
    """

    sums: Precision
    """Of every elementary operation."""
    factors: Precision | None
    """To which the factors of matrix products are rounded; None where they are of `sums`."""
    results: Precision
    gathered: float = 0.0
    """Roundoff of sums inside matrix products, where it is not that of `sums`; cut off."""
    exact_inputs: bool = False
    """Whether inputs enter products as they are, in fewer bits than factors that are computed."""
    typical: bool = False
    """Whether errors add as independent ones do, by the root of the sum of their squares."""

    @classmethod
    def of(cls, dtype: str, accumulate: str = "float32", products: str = "own") -> Arithmetic:
        """That of a dtype.

        `accumulate` is the format of sums of 16-bit numbers: "float32", or any other word for their
        own. `products` tells how float32 matrices are multiplied: as they are ("own"), by "tf32"
        or "3xtf32".
        """
        own = precision(dtype_of(dtype))
        if own.unit > _SINGLE.unit:
            wide = accumulate in ("float32", "14bits")
            return cls(_SINGLE if wide else own, own, own)
        factors = {"tf32": TF32, "3xtf32": THREE_TF32}.get(products)
        return cls(own, factors if dtype == "float32" else None, own)

    @classmethod
    def of_codes(cls, weights: str, results: str, accumulate: str = "float32") -> Arithmetic:
        """That of inputs of eight bits: softmax's weights in a format, sums in float32.

        `accumulate` is "float32" or "14bits". Of weights in 16 bits inputs may be rounded, too.
        """
        narrow = {"e4m3": E4M3, "e5m2": E5M2, "int8": INT8}.get(weights)
        factors = narrow or (None if weights == "float32" else precision(dtype_of(weights)))
        gathered = HOPPER if accumulate == "14bits" else 0.0
        own = precision(dtype_of(results))
        return cls(_SINGLE, factors, own, gathered, exact_inputs=narrow is not None)

    @property
    def common(self) -> float:
        """Roundoff of what all elements may share: of constants, and of factors that are cut off.

        Numbers cut off towards 0 are all too small.
        """
        if self.gathered:
            return 8 * self.gathered
        if self.exact_inputs:
            return min(self.results.unit, _SINGLE.unit)
        if self.factors is not None and self.factors.unit > self.results.unit:
            return self.factors.unit
        return min(self.results.unit, _SINGLE.unit)

    def total(self, *errors: Array | float) -> Array | float:
        """Bound, or typical size, of a sum of errors."""
        if self.typical:
            return reduce(np.hypot, errors)
        return reduce(np.add, errors)

    @cached_property
    def unit(self) -> float:
        """What one operation loses, of its result."""
        return self.sums.unit / math.sqrt(3) if self.typical else self.sums.unit

    @cached_property
    def tiny(self) -> Array:
        """What a product may lose by underflow; an array, with which NumPy is quicker."""
        return np.asarray(self.sums.tiny)

    def units(self, number: float) -> Array:
        """What so many operations lose, of their result."""
        kept: dict[float, Array] = self.__dict__.setdefault("_units", {})
        if number not in kept:
            kept[number] = np.asarray(number * self.unit)
        return kept[number]

    def gathering(self, n: float) -> float:
        """`growth` inside a matrix product: what is cut off adds up, it is all of one sign."""
        if not self.gathered:
            return self.growth(n)
        return self.gathered * (math.sqrt(n + 1) / 3 if self.typical else n + 1)

    def growth(self, n: float) -> float:
        """What a sum of n products loses, of the sum of their magnitudes.

        ``2 sqrt(n)`` is what n independent roundings stay below; where n u nears 1 a sum stagnates,
        and every term may be lost. Typically a sum in order loses ``u sqrt(n) / 3``.
        """
        unit = self.sums.unit
        stagnant = 1 + 2 * n * unit
        if self.typical:
            return unit * math.sqrt(n + 1) / 3 * stagnant
        return unit * min(n + 1, 2 * math.sqrt(n + 1) * stagnant)
