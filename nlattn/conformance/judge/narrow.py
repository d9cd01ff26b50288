"""Results that are ours, rounded once more at the end, to fewer bits than their dtype has.

Their own bits tell: all are numbers of a narrower format, and each is what that format makes of a
number within its bound of ours. This needs no row, no size and no formula.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from nlattn._types import Array
from nlattn.conformance.case import Case, dtype_of
from nlattn.conformance.judge.variants.formats import FORMATS, rounded
from nlattn.conformance.truth.arithmetic import precision
from nlattn.conformance.truth.bounds import allowed

CHANCE = 24
"""Bits that results must lack together: by chance as many are 0 once in 2^24."""
Narrow = Callable[[Array], Array]


def narrowed(
    case: Case, names: tuple[str, ...], want: Mapping[str, Array], got: Mapping[str, Array]
) -> list[str]:
    """To what some results are rounded, in a list; an empty one if no format fits all of them."""
    unit = precision(dtype_of(case.dtype)).unit
    if case.codes is not None or case.spec.cases.result != "numbers" or not names:
        return []
    for words, bits, narrow in _formats(unit):
        missing = -np.log2(unit) - bits
        told = [_short(want[n], got[n], allowed(case)[n], narrow) for n in names]
        if min(told) * missing >= CHANCE:
            return [f"with {_what(names, want)} {words} at the end"]
    return []


def _what(names: tuple[str, ...], want: Mapping[str, Array]) -> str:
    if len(want) == 1:
        return "the result"
    return "all results" if len(names) == len(want) else " and ".join(names)


def _formats(unit: float) -> Iterator[tuple[str, int, Narrow]]:
    """What narrower formats make of numbers, in words, how many bits these keep, and a function."""
    for form in FORMATS:
        if 2.0**-form.bits > unit:
            for each in (form, form._replace(cut=True)):
                yield each.words, form.bits, partial(rounded, form=each)
    if unit < 2.0**-11:  # numbers that it cannot hold become infinite, or 0
        yield "rounded to float16", 11, lambda x: x.astype(np.float16).astype(float)


def _short(want: Array, got: Array, bound: Array, narrow: Narrow) -> int:
    """Numbers that would have more bits; 0 if any is not what a format makes of ours."""
    finite = np.isfinite(want)
    if not np.array_equal(got[~finite], want[~finite], equal_nan=True):
        return 0
    ours, theirs = want[finite], got[finite]
    off = np.broadcast_to(bound, want.shape)[finite]
    with np.errstate(all="ignore"):
        least, most = narrow(ours - off), narrow(ours + off)
        fits = (least <= theirs) & (theirs <= most) & (narrow(theirs) == theirs)
        return int((narrow(ours) != ours).sum()) if fits.all() else 0
