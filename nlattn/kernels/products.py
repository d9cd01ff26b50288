"""Inner products of some rows with all others; the largest numbers of a row."""

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


@jit.kernel
def largest(i: int, rows: Floats, value: Floats, index: Ints) -> None:
    """Largest positive numbers of a row, descending, ties to the lowest; 0 and -1 for fewer."""
    size = value.shape[1]
    for x in range(size):
        value[i, x], index[i, x] = 0.0, -1
    for j in range(rows.shape[1]):
        if rows[i, j] > value[i, size - 1]:
            insert(value[i], index[i], rows[i, j], j)
