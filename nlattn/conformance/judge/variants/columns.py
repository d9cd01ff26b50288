"""Grids read column by column, where the queries and keys of a support are numbered by rows."""

from __future__ import annotations

import numpy as np

from nlattn._types import Array, Result
from nlattn.conformance.judge.variants.base import Call, several


def _read(c: Call, *names: str) -> Result:
    """The call with some arrays on grids in the order of their columns."""
    if "support.indptr" not in c.arrays:
        raise ValueError
    turned = {n: np.swapaxes(c[n], -3, -2).reshape(c[n].shape) for n in names}
    return c.given(**turned)()


def _written(x: Array, axis: int) -> Array:
    """What is in order by rows, written by columns; the grid's rows are axis `axis`."""
    shape = list(x.shape)
    shape[axis], shape[axis + 1] = shape[axis + 1], shape[axis]
    return np.asarray(np.swapaxes(x.reshape(shape), axis, axis + 1))


def _queries(c: Call) -> Result:
    made = _read(c, "q")
    if isinstance(made, tuple):
        return _written(made[0], -3), *(_written(x, -2) for x in made[1:])
    return _written(made, -3)


VARIANTS = several(
    ("boxes",),
    {
        "with grids read column by column, results written row by row": lambda c: _read(c, *"qkv"),
        "with the grid of queries read column by column": _queries,
    },
)
