"""Compressed rows of keys: what makes them valid, and their transpose."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Ints, Support
from nlattn.kernels import sparse as kernels


def checked_support(op: str, support: object) -> Support:
    """`support`, frozen; ValueError naming the first row that breaks its rules."""
    if not (
        isinstance(support, tuple) and len(support) == 3 and isinstance(support[2], (tuple, list))
    ):
        text = "expected a Support as from support(), support_from_index() or scram_support()"
        _check.fail_type(op, "support", f"is a {type(support).__name__}, {text}")
    shape = tuple(_check.integer(op, "support.shape", size, low=0) for size in support[2])
    if len(shape) < 2 or shape[-1] >= 2**31:
        _check.fail(op, "support.shape", f"is {shape}, expected (..., n, m) with m below 2^31")
    rows, m = math.prod(shape[:-1]), shape[-1]
    indptr = _check.integers(op, "support.indptr", support[0])
    indices = _check.integers(op, "support.indices", support[1])
    if indptr.shape != (rows + 1,):
        _check.fail(op, "support.indptr", f"has shape {indptr.shape}, expected ({rows + 1},)")
    if indices.ndim != 1:
        _check.fail(op, "support.indices", f"has shape {indices.shape}, expected (nnz,)")
    if indptr[0] != 0 or indptr[-1] != len(indices):
        _check.fail(
            op,
            "support.indptr",
            f"runs from {indptr[0]} to {indptr[-1]}, expected 0 to the {len(indices)} indices",
        )
    falls = indptr[1:] < indptr[:-1]
    if falls.any():
        _check.fail(op, "support.indptr", f"falls at row {falls.argmax()}, expected no decrease")
    if len(indices) and not 0 <= indices.min() <= indices.max() < m:
        edge = int(((indices < 0) | (indices >= m)).argmax())
        _check.fail(
            op,
            "support",
            f"row {_row(indptr, edge)} holds key {indices[edge]}, expected 0 to {m - 1}",
        )
    stalls = indices[1:] <= indices[:-1]
    inner = indptr[(indptr > 0) & (indptr < len(indices))]
    stalls[inner - 1] = False  # a new row may start lower
    if stalls.any():
        edge = int(stalls.argmax()) + 1
        text = f"row {_row(indptr, edge)} holds key {indices[edge]} after {indices[edge - 1]}"
        _check.fail(op, "support", f"{text}, expected ascending keys without duplicates")
    return Support(_check.frozen(indptr, np.int64), _check.frozen(indices, np.int32), shape)


def _row(indptr: Ints, edge: int) -> int:
    return int(np.searchsorted(indptr, edge, side="right")) - 1


class Transposed(NamedTuple):
    """A support by key, as `kernels.sparse.gather` takes it."""

    edges: Ints
    """(nnz,) where each edge stands in the support."""
    indptr: Ints
    """(slices * m + 1,) where each key's edges start."""
    queries: Ints
    """(nnz,) int32 queries, ascending for each key."""

    @classmethod
    def of(cls, support: Support, m: int) -> Transposed:
        """Counting sort by key: ``O(nnz + slices m)``."""
        slices = int(np.prod(support.shape[:-2], dtype=np.int64))
        indptr = np.full(slices * m + 1, len(support.indices), np.int64)
        edges = np.empty(len(support.indices), np.int64)
        queries = np.empty(len(support.indices), np.int32)
        cursor = np.empty((slices, m), np.int64)
        kernels.transpose(slices, support.indptr, support.indices, cursor, indptr, edges, queries)
        return cls(_check.frozen(edges), _check.frozen(indptr), _check.frozen(queries))
