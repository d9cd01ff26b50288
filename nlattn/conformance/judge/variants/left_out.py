"""The oracle's own formulas with a part of one stage left out: its diagonal, or an end of an axis.

What is left out is 0, and False in a mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from nlattn._types import Array
from nlattn.conformance.judge.variants.base import Call, Variant
from nlattn.conformance.judge.variants.roundings import StageChange, shapes


@dataclass(frozen=True)
class LeftOut(StageChange):
    """One stage without its diagonal, or without the first or the last along an axis."""

    axis: int | None = None
    """From the end; the diagonal is that of the last two."""
    last: bool = False
    alone: bool = False
    """Whether all else is left out."""

    @property
    def name(self) -> str:
        """Completes "your output equals ours ..."."""
        end = f"{'last' if self.last else 'first'} along axis {self.axis}"
        where = "on the diagonal" if self.axis is None else f"at the {end}"
        where = f"but at the {end}" if self.alone else where
        return f"with {self.stage.words} left out {where} in {self.where}"

    def of(self, x: Array) -> Array:
        """An array without it."""
        if self.axis is None:
            n, m = x.shape[-2:]
            return x * (np.arange(n)[:, None] != np.arange(m)).astype(x.dtype)
        size = x.shape[self.axis]
        kept = (np.arange(size) == (size - 1 if self.last else 0)) == self.alone
        return x * kept.astype(x.dtype).reshape(-1, *[1] * (-1 - self.axis))


def changes(c: Call) -> Iterator[LeftOut]:
    """All of them that make sense for a call of a function of the table."""
    for stage, shape in shapes(c.op, c):
        if len(shape) > 1 and min(shape[-2:]) > 1:
            yield LeftOut(stage)
        for axis in range(-1, -1 - len(shape), -1) if stage.whole else ():
            for last in (False, True) if shape[axis] > 1 else ():
                yield LeftOut(stage, axis=axis, last=last)
                if shape[axis] > 2:
                    yield LeftOut(stage, axis=axis, last=last, alone=True)


def variants(c: Call) -> Iterator[Variant]:
    """The same of a forward call."""
    for change in changes(c):
        yield Variant(change.name, (), partial(change, c.op))
