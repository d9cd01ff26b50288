"""What every attention map can do, whatever its structure."""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike
from scipy.sparse import csr_array, vstack
from scipy.sparse.linalg import LinearOperator

from nlattn import _check
from nlattn._types import Array, Floats, Ints, State, Work
from nlattn.files import npz

_BLOCK_BYTES = 1 << 26
OP = "attention_map"
FORMAT = "nlattn map 1"


class AttentionMap(LinearOperator):
    """The linear operator of one attention head: ``(A @ v)[i] = sum_j weights[i, j] v[j]``.

    A subclass gives ``_apply``, ``_apply_adjoint``, ``_rows``, ``_scores``, ``_topk``, ``nbytes``
    and, to be saved, ``kind``, ``state`` and ``from_state``; none of them is asked for nothing: no
    queries, keys or columns. Vectors are computed in the map's own dtype; a complex vector is the
    two real ones. A map without a normaliser raises AttributeError from ``lse``.

    Examples
    --------
    >>> A = nlattn.attention_map(q, k)
    >>> out, columns = A @ v, A.T @ v
    >>> A.rows([0, 5]).shape
    (2, 64)
    """

    kind: ClassVar[str]
    """Name of the structure, in saved files."""
    normalised: bool = True
    """Whether weights are positive and sum to 1 over each row; if not, there is no ``lse``."""

    def __init__(
        self,
        dtype: DTypeLike,
        lse: Floats,
        n_keys: int,
        work: Work,
        query_grid: tuple[int, ...] | None = None,
        key_grid: tuple[int, ...] | None = None,
    ):
        super().__init__(np.dtype(dtype), (len(lse), n_keys))
        self._lse = lse
        self.work = work
        """Work that making the map took."""
        self.query_grid = _grid("query_grid", query_grid, self.shape[0])
        """Shape of the grid of queries, raster order; ``(n,)`` if they have none."""
        self.key_grid = _grid("key_grid", key_grid, self.shape[1])
        """Shape of the grid of keys, raster order; ``(m,)`` if they have none."""

    @property
    def lse(self) -> Floats:
        """(n,) log of each row's normaliser; -inf where a query may attend to nothing."""
        return self._lse

    @abstractmethod
    def _apply(self, x: Floats) -> Floats:
        """``A @ x`` for contiguous x (m, e) of the map's dtype."""

    @abstractmethod
    def _apply_adjoint(self, x: Floats) -> Floats:
        """``A.T @ x`` for contiguous x (n, e) of the map's dtype."""

    @abstractmethod
    def _rows(self, index: Ints) -> Floats:
        """Weights of the queries `index` (r,), int64 and within range: (r, m)."""

    @abstractmethod
    def _scores(self, index: Ints) -> Floats:
        """Scores of the queries `index` (r,), -inf for keys without weight: (r, m)."""

    @abstractmethod
    def _topk(self, k: int) -> tuple[Floats, Ints]:
        """Largest `k` weights of each row and their keys."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that the map holds."""

    @abstractmethod
    def state(self) -> State:
        """Arrays that rebuild the map through ``from_state``; none of dtype object."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: State, max_bytes: float = 4e9) -> AttentionMap:
        """The map that gave this `state`; ValueError if the arrays do not fit each other.

        MemoryError before more than `max_bytes` are allocated beside them.
        """

    def dot(self, x: Any) -> Any:
        """``A @ x`` for x (m,) or (m, e)."""
        _operand(f"{OP} @ x", x, self.key_grid)
        return super().dot(x)

    def _adjoint(self) -> LinearOperator:
        return _Adjoint(self)

    _transpose = _adjoint

    def _matmat(self, x: Array) -> Array:
        if np.iscomplexobj(x):
            return self._matmat(x.real) + 1j * self._matmat(x.imag)
        if 0 in (*self.shape, x.shape[1]):
            return np.zeros((self.shape[0], x.shape[1]), self.dtype)
        return self._apply(_check.frozen(np.asarray(x), self.dtype))

    def _rmatmat(self, x: Array) -> Array:
        if np.iscomplexobj(x):
            return self._rmatmat(x.real) + 1j * self._rmatmat(x.imag)
        if 0 in (*self.shape, x.shape[1]):
            return np.zeros((self.shape[1], x.shape[1]), self.dtype)
        return self._apply_adjoint(_check.frozen(np.asarray(x), self.dtype))

    def _rmatvec(self, x: Array) -> Array:  # SciPy 1.11 has none of its own
        return self._rmatmat(np.reshape(x, (-1, 1))).reshape(-1)

    def __array__(self, *_: object, **__: object) -> Array:
        _check.fail_type(OP, "A", "is no array; A.to_dense() makes one")

    def __repr__(self) -> str:
        grids = (" x ".join(map(str, grid)) for grid in (self.query_grid, self.key_grid))
        queries, keys = grids
        held = _check.size(self.nbytes)
        return f"<{type(self).__name__} of {queries} queries, {keys} keys, {self.dtype}, {held}>"

    def _repr_html_(self) -> str:
        return f"<code>{repr(self)[1:-1]}</code>"

    def rows(self, index: object, *, max_bytes: float = 4e9) -> Floats:
        """Weights of some queries: integers of any shape in, ``index.shape + (m,)`` out."""
        flat, shape = self._queries("rows", index, max_bytes)
        return self._some_rows(flat).reshape(shape)

    def scores(self, index: object, *, max_bytes: float = 4e9) -> Floats:
        """Scores of some queries, -inf for keys without weight; shapes as in `rows`."""
        flat, shape = self._queries("scores", index, max_bytes)
        if 0 in shape:
            return np.zeros(shape, self.dtype)
        return self._scores(flat).reshape(shape)

    def topk(self, k: int) -> tuple[Floats, Ints]:
        """Values (n, k) and keys (n, k) of each row's largest weights, largest first.

        Ties go to the lowest key. A row with fewer weights is filled with key -1 and weight 0.
        """
        n, m = self.shape
        count = _check.integer(f"{OP}.topk", "k", k, low=1, high=max(m, 1))
        if 0 in (n, m):
            return np.zeros((n, count), self.dtype), np.full((n, count), -1)
        return self._topk(count)

    def to_dense(self, max_bytes: float = 4e9) -> Floats:
        """The (n, m) matrix of weights; MemoryError above `max_bytes`."""
        n, m = self.shape
        _check.memory(
            f"{OP}.to_dense",
            n * m * self.dtype.itemsize,
            max_bytes,
            f"{n} x {m} {self.dtype}",
            "use rows() or topk()",
        )
        return self._some_rows(np.arange(n))

    def to_csr(self, max_bytes: float = 4e9) -> csr_array:
        """The weights as a SciPy array: the non-zero ones, or all that a sparse map holds.

        MemoryError above `max_bytes`.
        """
        if 0 in self.shape:
            return csr_array(self.shape, dtype=self.dtype)
        return self._to_csr(max_bytes)

    def _to_csr(self, max_bytes: float) -> csr_array:
        blocks, held, done = [], 0, 0
        for block in self._csr_blocks():
            held += block.data.nbytes + block.indices.nbytes
            done += block.shape[0]
            what = f"the first {done} of {self.shape[0]} rows"
            _check.memory(f"{OP}.to_csr", held, max_bytes, what, "use rows() or topk()")
            blocks.append(block)
        return vstack(blocks, format="csr")

    def _csr_blocks(self) -> Iterator[csr_array]:
        """All rows, some at a time."""
        n, m = self.shape
        step = max(1, _BLOCK_BYTES // (m * self.dtype.itemsize))
        for start in range(0, n, step):
            yield csr_array(self._rows(np.arange(start, min(start + step, n))))

    def _some_rows(self, index: Ints) -> Floats:
        if 0 in (len(index), self.shape[1]):
            return np.zeros((len(index), self.shape[1]), self.dtype)
        return self._rows(index)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the map to `path` (.npz), to be read back by ``nlattn.load_map``.

        FileExistsError if there is something at `path`, unless `overwrite`.
        """
        members = {"format": FORMAT, "kind": self.kind, **self.state()}
        npz.write("save_map", path, members, overwrite=overwrite)

    def _queries(self, name: str, index: object, max_bytes: float) -> tuple[Ints, tuple[int, ...]]:
        op = f"{OP}.{name}"
        queries = _check.integers(op, "index", index)
        n, m = self.shape
        outside = (queries < 0) | (queries >= n)
        if outside.any():
            _check.fail(op, "index", f"holds {queries[outside][0]}, expected 0 to {n - 1}")
        _check.memory(
            op,
            queries.size * m * self.dtype.itemsize,
            max_bytes,
            f"{queries.size} x {m} {self.dtype}",
            "ask for fewer rows at a time",
        )
        return queries.reshape(-1).astype(np.int64), (*queries.shape, m)


class _Adjoint(LinearOperator):
    """``A.T`` of a map."""

    def __init__(self, A: AttentionMap):
        super().__init__(A.dtype, A.shape[::-1])
        self._map = A

    def __array__(self, *_: object, **__: object) -> Array:
        _check.fail_type(OP, "A.T", "is no array; A.to_dense().T is one")

    def dot(self, x: Any) -> Any:
        """``A.T @ x`` for x (n,) or (n, e)."""
        _operand(f"{OP}.T @ x", x, self._map.query_grid)
        return super().dot(x)

    def _matmat(self, x: Array) -> Array:
        return self._map._rmatmat(x)

    def _rmatmat(self, x: Array) -> Array:
        return self._map._matmat(x)

    def _rmatvec(self, x: Array) -> Array:  # SciPy 1.11 has none of its own
        return self._rmatmat(np.reshape(x, (-1, 1))).reshape(-1)

    def _adjoint(self) -> LinearOperator:
        return self._map

    _transpose = _adjoint


def _operand(op: str, x: Any, grid: tuple[int, ...]) -> None:
    """Refuse an array x whose first axis is not the points of `grid`, in raster order."""
    if isinstance(x, LinearOperator) or np.isscalar(x):
        return
    shape, size = np.shape(x), math.prod(grid)
    if len(shape) in (1, 2) and shape[0] == size:
        return
    more = f"; x.reshape({size}, -1) has it" if shape[: len(grid)] == grid else ""
    _check.fail(op, "x", f"has shape {shape}, expected ({size},) or ({size}, e){more}")


def _grid(name: str, grid: tuple[int, ...] | None, size: int) -> tuple[int, ...]:
    if grid is None:
        return (size,)
    if math.prod(grid) != size:
        _check.fail(OP, name, f"is {_check.quoted(tuple(grid))}, expected a product of {size}")
    return tuple(grid)
