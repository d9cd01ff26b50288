"""Inner products of some rows with all others, and the largest of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from nlattn._types import Floats, Ints
from nlattn.kernels.softmax import insert
from nlattn.runtime import jit


@jit.device(fast=True, inline=True)
def inner(a: Floats, b: Floats) -> Any:
    """Inner product of two rows."""
    total = a.dtype.type(0)
    for c in range(a.size):
        total += a[c] * b[c]
    return total


@jit.kernel
def rows(r: int, left: Floats, right: Floats, index: Ints, out: Floats) -> None:
    """``out[r, j] = left[index[r]] . right[j]``."""
    row = left[index[r]]
    for j in range(right.shape[0]):
        out[r, j] = inner(row, right[j])


@jit.kernel
def topk(i: int, left: Floats, right: Floats, value: Floats, index: Ints) -> None:
    """Largest products of a row of left, descending, ties to the lowest."""
    size = value.shape[1]
    row = left[i]
    for x in range(size):
        value[i, x], index[i, x] = -np.inf, -1
    for j in range(right.shape[0]):
        product = inner(row, right[j])
        if product > value[i, size - 1]:
            insert(value[i], index[i], product, j)
