"""Products of a tall matrix with small ones, in fixed blocks of rows, accumulated in float64.

Rows may carry a factor each, so that a reweighted matrix is never written down. The order of
every sum comes from the blocks alone.
"""

from __future__ import annotations

import numpy as np

from nlattn._types import Floats
from nlattn.runtime import jit

ROWS = 1024
"""Rows of a block: with 64 channels of float64 they fit the second-level cache."""


@jit.device
def block(k: Floats, row: Floats, T: Floats, b: int) -> Floats:
    """``diag(row) k T`` of block `b`; `row` empty: no factors."""
    start = b * ROWS
    count, d = min(ROWS, k.shape[0] - start), k.shape[1]
    x = np.empty((count, d), np.float64)
    for i in range(count):
        factor = row[start + i] if row.size else 1.0
        for c in range(d):
            x[i, c] = factor * k[start + i, c]
    return np.dot(x, T)


@jit.kernel(blas=True)
def gram(b: int, k: Floats, row: Floats, T: Floats, partial: Floats) -> None:
    """``partial[b] = X_b^T X_b`` for the blocks of ``X = diag(row) k T``."""
    x = block(k, row, T, b)
    product = np.dot(x.T, x)
    for i in range(product.shape[0]):
        for j in range(product.shape[1]):
            partial[b, i, j] = product[i, j]


@jit.kernel(blas=True)
def lengths(b: int, k: Floats, row: Floats, T: Floats, out: Floats) -> None:
    """``out[i] = |row_i k_i T|^2``."""
    x = block(k, row, T, b)
    for i in range(x.shape[0]):
        total = 0.0
        for c in range(x.shape[1]):
            total += x[i, c] * x[i, c]
        out[b * ROWS + i] = total


@jit.kernel(blas=True)
def project(b: int, k: Floats, row: Floats, T: Floats, out: Floats) -> None:
    """``out = diag(row) k T``."""
    x = block(k, row, T, b)
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            out[b * ROWS + i, c] = x[i, c]
