"""The attention map whose rows have weights on a support only."""

from __future__ import annotations

import math

import numpy as np
from scipy.sparse import csr_array

from nlattn import _check
from nlattn._types import Floats, Ints, State, Support, Work
from nlattn.engines.support import Transposed, checked_support
from nlattn.kernels import sparse as kernels
from nlattn.maps.base import OP, AttentionMap
from nlattn.maps.state import Stored, common
from nlattn.runtime.jit import blocks

_PLAIN = np.array([1.0, 0.0])
_ROWS = 1 << 18  # rows whose largest weights are sorted at a time


class SparseMap(AttentionMap):
    """Weights and scores on the edges of a support.

    Products with values are sums over rows, those of the transpose over keys: both run in
    parallel, in one fixed order. The transposed support is built when it is first needed.
    """

    kind = "sparse"

    def __init__(
        self,
        support: Support,
        weights: Floats,
        scores: Floats,
        lse: Floats,
        work: Work,
        query_grid: tuple[int, ...] | None = None,
        key_grid: tuple[int, ...] | None = None,
    ):
        super().__init__(weights.dtype, lse, support.shape[-1], work, query_grid, key_grid)
        self.support = support
        """Keys of every query."""
        self.weights: Floats = _check.frozen(weights)
        """(nnz,) weights, in the order of the support."""
        self.edge_scores: Floats = _check.frozen(scores)
        """(nnz,) scores, in the order of the support."""
        self._transposed: Transposed | None = None

    def _apply(self, x: Floats) -> Floats:
        none = _check.frozen(np.empty(0, np.int64))
        return self._gather(none, self.support.indptr, self.support.indices, x, self.shape[0])

    def _apply_adjoint(self, x: Floats) -> Floats:
        if self._transposed is None:
            self._transposed = Transposed.of(self.support, self.shape[1])
        return self._gather(*self._transposed, x, self.shape[1])

    def _gather(self, edges: Ints, indptr: Ints, indices: Ints, x: Floats, rows: int) -> Floats:
        out: Floats = np.empty((rows, x.shape[1]), self.dtype)
        slices = _check.frozen(np.zeros((1, 4), np.int64))
        options = _check.frozen(_PLAIN)
        arrays = edges, indptr, indices, x[None], x[None]
        kernels.gather(
            blocks(rows, kernels.BLOCK), self.weights, *arrays, slices, options, out[None]
        )
        return out

    def _edges(self, index: Ints) -> tuple[Ints, Ints]:
        """For the edges of some queries: number of the query in `index`, and place of the edge."""
        first = self.support.indptr[index]
        sizes = self.support.indptr[index + 1] - first
        row = np.repeat(np.arange(len(index)), sizes)
        ends = np.cumsum(sizes)
        return row, np.arange(len(row)) + np.repeat(first - ends + sizes, sizes)

    def _filled(self, index: Ints, data: Floats, empty: float) -> Floats:
        rows = np.full((len(index), self.shape[1]), empty, self.dtype)
        row, edge = self._edges(index)
        rows[row, self.support.indices[edge]] = data[edge]
        return rows

    def _rows(self, index: Ints) -> Floats:
        return self._filled(index, self.weights, 0)

    def _scores(self, index: Ints) -> Floats:
        return self._filled(index, self.edge_scores, -np.inf)

    def _topk(self, k: int) -> tuple[Floats, Ints]:
        n = self.shape[0]
        values, keys = np.zeros((n, k), self.dtype), np.full((n, k), -1, np.int64)
        for first in range(0, n, _ROWS):
            some = slice(first, min(first + _ROWS, n))
            values[some], keys[some] = self.largest_of(np.arange(some.start, some.stop), k)
        return values, keys

    def largest_of(self, index: Ints, k: int) -> tuple[Floats, Ints]:
        """What `topk` gives, of the queries `index` only: values (r, k) and keys (r, k)."""
        values, keys = np.zeros((len(index), k), self.dtype), np.full((len(index), k), -1, np.int64)
        row, edge = self._edges(index)
        key, weight = self.support.indices[edge], self.weights[edge]
        order = np.lexsort((key, -weight, row))
        sizes = np.bincount(row, minlength=len(index))
        place = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        to, order = (row[place < k], place[place < k]), order[place < k]
        values[to], keys[to] = weight[order], key[order]
        return values, keys

    def _to_csr(self, max_bytes: float) -> csr_array:
        nnz = len(self.weights)
        needed = nnz * (8 + self.dtype.itemsize) + 8 * len(self.support.indptr)
        what = f"{nnz} {self.dtype} weights and their keys"
        _check.memory(f"{OP}.to_csr", needed, max_bytes, what, "use rows() or topk()")
        parts = (self.weights.copy(), self.support.indices.copy(), self.support.indptr.copy())
        return csr_array(parts, shape=self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the support, the weights and scores, and the transposed support if built."""
        held = [self.lse, self.weights, self.edge_scores, *self.support[:2]]
        return sum(x.nbytes for x in [*held, *(self._transposed or ())])

    def state(self) -> State:
        """Support, weights and scores, beside what all maps have."""
        return {
            **common(self),
            "indptr": self.support.indptr,
            "indices": self.support.indices,
            "weights": self.weights,
            "scores": self.edge_scores,
        }

    @classmethod
    def from_state(cls, state: State, max_bytes: float = 4e9) -> SparseMap:
        """The map that gave this `state`; raises ValueError if the arrays do not fit."""
        stored = Stored(state, max_bytes)
        lse = stored.array("lse", "f", (None,))
        query_grid, key_grid = stored.grid("query_grid"), stored.grid("key_grid")
        indptr = stored.array("indptr", "i", (len(lse) + 1,))
        indices = stored.array("indices", "i", (None,))
        shape = (len(lse), math.prod(key_grid))
        support = checked_support("sparse map", Support(indptr, indices, shape))
        weights = stored.array("weights", "f", indices.shape)
        scores = stored.array("scores", "f", indices.shape)
        if not weights.dtype == scores.dtype in (np.float32, np.float64):
            raise ValueError(f"weights are {weights.dtype} and scores {scores.dtype}")
        work = stored.work(len(lse))
        stored.done()
        return cls(support, weights, scores, lse, work, query_grid, key_grid)
