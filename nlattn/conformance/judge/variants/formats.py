"""Floating formats by their bits: numbers too large or too small for them are another mistake."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn._types import Array
from nlattn.conformance.truth.arithmetic import Arithmetic


class NarrowFormat(NamedTuple):
    """A floating format by its bits, the leading one counted."""

    name: str
    bits: int
    cut: bool = False
    """Whether numbers are cut off, not rounded to the nearest."""

    @property
    def error(self) -> float:
        """How large errors are, beside those of other formats."""
        return 2.0 ** (self.cut - self.bits)

    @property
    def words(self) -> str:
        """What is done to numbers."""
        return f"{'cut off' if self.cut else 'rounded'} to {self.name}"


FORMATS = (
    NarrowFormat("float32", 24),
    NarrowFormat("float16 (or TF32)", 11),
    NarrowFormat("bfloat16", 8),
)


def coarser(dtype: str) -> list[NarrowFormat]:
    """Formats coarser than that of sums, and no finer than that of results."""
    how = Arithmetic.of(dtype)
    units = ((2.0**-form.bits, form) for form in FORMATS)
    return [form for unit, form in units if unit > how.sums.unit and unit >= how.results.unit]


def rounded(x: Array, form: NarrowFormat) -> Array:
    """Numbers of a format nearest to those of x, or the next towards 0; of any size."""
    finite = np.isfinite(x)
    mantissa, exponent = np.frexp(np.where(finite, x, 0.0))
    whole = (np.trunc if form.cut else np.rint)(np.ldexp(mantissa, form.bits))
    return np.where(finite, np.ldexp(whole, exponent - form.bits), x)
