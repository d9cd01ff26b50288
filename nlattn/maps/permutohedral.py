"""The attention map that is a filter on a sparse lattice."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import DTypeLike
from scipy.sparse import csr_array, dia_array

from nlattn import _check
from nlattn._types import Floats, Ints, State, Work
from nlattn.engines.lattice import LatticePoints, numbered
from nlattn.engines.permutohedral import Head, normaliser
from nlattn.kernels import products
from nlattn.maps.base import OP, AttentionMap
from nlattn.maps.state import Stored, common
from nlattn.runtime.helpers import remembered

_BLOCK = 1 << 24

FAR = 1 << 40
"""Beyond all coordinates of lattice points."""


class PermutohedralMap(AttentionMap):
    """``A = diag(inverse) alpha S_q B_d .. B_0 S_k^T diag(factor)``, held as its lattice.

    Products are splat, blur and slice, linear in points; rows are products of sparse matrices.
    The published filter is not normalised and has no ``lse``.
    """

    kind = "permutohedral"

    def __init__(
        self,
        dtype: DTypeLike,
        lattice: LatticePoints,
        factor: Floats,
        lse: Floats | None,
        inverse: Floats,
        work: Work,
        query_grid: tuple[int, ...] | None = None,
        key_grid: tuple[int, ...] | None = None,
    ):
        self.normalised = lse is not None
        known = np.full(len(inverse), np.nan) if lse is None else lse
        super().__init__(dtype, known, len(factor), work, query_grid, key_grid)
        self.lattice = lattice
        self.factor: Floats = _check.frozen(factor)
        """(m,) of each key: 1, or what the softmax weighs it by."""
        self.inverse: Floats = _check.frozen(inverse)
        """(n,) one over the filtered ones; 1 for the published filter."""

    @classmethod
    def of(
        cls,
        head: Head,
        dtype: DTypeLike,
        query_grid: tuple[int, ...] | None,
        key_grid: tuple[int, ...] | None,
    ) -> PermutohedralMap:
        """The map of one head."""
        lse: Floats | None = None
        inverse: Floats = np.ones(len(head.q.b))
        if head.options.normalize:
            with np.errstate(all="ignore"):
                ones = head.filter(head.splat(np.ones((len(head.factor), 1))))
                inverse, log = normaliser(ones[:, 0])
                lse = log + head.shift
        work = head.work(int(head.options.normalize))
        grids = query_grid, key_grid
        return cls(dtype, head.lattice, head.factor[:, 0], lse, inverse, work, *grids)

    @property
    def points(self) -> int:
        """M, the number of lattice points."""
        return len(self.lattice.points)

    @property
    def lse(self) -> Floats:
        """(n,) log of each row's normaliser; AttributeError for the published filter."""
        if not self.normalised:
            raise AttributeError(f"{OP}.lse: rows of the published filter are divided by nothing")
        return self._lse

    def _apply(self, x: Floats) -> Floats:
        lattice = self.lattice
        with np.errstate(all="ignore"):
            z = lattice.forward(self.factor[:, None] * x)
            out = lattice.read(lattice.at_queries, lattice.q_weights, z)
            return np.asarray(self.inverse[:, None] * out, self.dtype)

    def _apply_adjoint(self, x: Floats) -> Floats:
        lattice = self.lattice
        with np.errstate(all="ignore"):
            z = lattice.backward(self.inverse[:, None] * x)
            out = lattice.read(lattice.at_keys, lattice.k_weights, z)
            return np.asarray(self.factor[:, None] * out, self.dtype)

    @remembered
    def _matrices(self) -> tuple[list[Any], Any]:
        """Blurs in the order in which a row meets them, and ``S_k^T`` with factors, as CSR."""
        M, blurs = self.points, []
        for above in self.lattice.neighbours[0][::-1]:
            here = np.flatnonzero(above < M)
            up = csr_array((np.full(len(here), 0.5), (here, above[here])), shape=(M, M))
            own = dia_array((np.ones((1, M)), [0]), shape=(M, M)).tocsr()
            blurs.append((own + up + up.T).tocsr())
        spread = _spread(self.lattice.at_keys, self.lattice.k_weights * self.factor[:, None], M)
        return blurs, spread.T.tocsr()

    def _sparse(self, index: Ints) -> Iterator[csr_array]:
        """Rows of some queries as sparse blocks."""
        lattice, (m, d) = self.lattice, (self.shape[1], self.lattice.d)
        blurs, keys = self._matrices
        scale = lattice.alpha * self.inverse
        step = max(1, _BLOCK // max(min(self.points * 2, m * (d + 1)), 1))
        for start in range(0, len(index), step):
            some = index[start : start + step]
            b = lattice.q_weights[some] * scale[some, None]
            rows = _spread(lattice.at_queries[some], b, self.points)
            yield csr_array(reduce(lambda a, B: a @ B, [rows, *blurs, keys]), dtype=self.dtype)

    def _rows(self, index: Ints) -> Floats:
        out: Floats = np.zeros((len(index), self.shape[1]), self.dtype)
        done = 0
        for block in self._sparse(index):
            out[done : done + block.shape[0]] = block.toarray()
            done += block.shape[0]
        return out

    def _scores(self, index: Ints) -> Floats:
        weights = self._rows(index)
        if not self.normalised:
            return weights
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(weights) + self.lse[index, None].astype(self.dtype)
        scores: Floats = np.where(weights > 0, logs, -np.inf)
        return scores

    def _topk(self, k: int) -> tuple[Floats, Ints]:
        n = self.shape[0]
        value: Floats = np.empty((n, k), self.dtype)
        index: Ints = np.empty((n, k), np.int64)
        done = 0
        for block in self._sparse(np.arange(n)):
            to = slice(done, done + block.shape[0])
            dense = _check.frozen(block.toarray())
            products.largest(len(dense), dense, value[to], index[to])
            done = to.stop
        return value, index

    def _csr_blocks(self) -> Iterator[csr_array]:
        for block in self._sparse(np.arange(self.shape[0])):
            block.eliminate_zeros()
            block.sort_indices()
            yield block

    @property
    def nbytes(self) -> int:
        """Bytes of the lattice with its neighbours, factors and normalisers."""
        lattice = self.lattice
        integers = [lattice.points, lattice.at_keys, lattice.at_queries, *lattice.neighbours]
        floats = [lattice.k_weights, lattice.q_weights, self.factor, self.inverse, self._lse]
        return sum(x.nbytes for x in (*integers, *floats))

    def state(self) -> State:
        """The lattice without its neighbours, which follow, beside what all maps have."""
        return {
            **common(self),
            "points": self.lattice.points,
            "at_keys": self.lattice.at_keys,
            "at_queries": self.lattice.at_queries,
            "k_weights": self.lattice.k_weights,
            "q_weights": self.lattice.q_weights,
            "factor": self.factor,
            "inverse": self.inverse,
            "dtype": np.zeros(0, self.dtype),
        }

    @classmethod
    def from_state(cls, state: State, max_bytes: float = 4e9) -> PermutohedralMap:
        """The map that gave this `state`; ValueError if the arrays do not fit."""
        stored = Stored(state, max_bytes)
        points = _check.frozen(stored.array("points", "i", (None, None)), np.int64)
        if points.size and not -FAR < points.min() <= points.max() < FAR:
            raise ValueError(f"points lie beyond {FAR}")
        corners = points.shape[1] + 1
        arrays = []
        for name in ("keys", "queries"):
            at = stored.array(f"at_{name}", "i", (None, corners))
            if at.size and not 0 <= at.min() <= at.max() <= len(points) - (name == "keys"):
                raise ValueError(f"at_{name} names no lattice points below {len(points)}")
            arrays.append(at)
        shapes = zip("kq", arrays, strict=True)
        weights = [stored.array(f"{x}_weights", "f", at.shape) for x, at in shapes]
        factor = stored.array("factor", "f", (len(arrays[0]),))
        inverse = stored.array("inverse", "f", (len(arrays[1]),))
        lse = stored.array("lse", "f", (len(arrays[1]),))
        dtype = stored.array("dtype", "f", (0,)).dtype
        work = stored.work(len(lse))
        query_grid, key_grid = stored.grid("query_grid"), stored.grid("key_grid")
        stored.done()
        for x in (*weights, factor, inverse, lse):
            if x.dtype != np.float64:
                raise ValueError(f"an array is {x.dtype}, expected float64")
        if dtype not in (np.float32, np.float64):
            raise ValueError(f"dtype is {dtype}")
        if not np.array_equal(numbered(points)[1], np.arange(len(points))):
            raise ValueError("points are not distinct and in lexicographic order")
        known = None if np.isnan(lse).all() and len(lse) else lse
        lattice = LatticePoints(points, *arrays, *weights)
        return cls(dtype, lattice, factor, known, inverse, work, query_grid, key_grid)


def _spread(at: Ints, b: Floats, M: int) -> csr_array:
    """``S`` (n, M): the weights of every point's vertices; absent ones are left out."""
    row = np.repeat(np.arange(len(at)), at.shape[1])
    kept = at.reshape(-1) < M
    parts = (b.reshape(-1)[kept], (row[kept], at.reshape(-1)[kept]))
    return csr_array(parts, shape=(len(at), M))
