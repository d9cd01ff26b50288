"""The attention map ``relu(a_i + b_j) / m``, held as two vectors."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from nlattn import _check
from nlattn._types import Floats, Ints, State, Work
from nlattn.engines import concatenation as engine
from nlattn.maps.base import OP, AttentionMap
from nlattn.maps.state import Stored, common


class ConcatenationMap(AttentionMap):
    """Weights of the sum of a number of the query and one of the key, where that is positive.

    Products sort the keys and read prefix sums: ``O((n + m) log m + (n + m) e)``. Rows need not sum
    to 1, so there is no ``lse``; scores are weights times m, 0 for keys without weight.
    """

    kind = "concatenation"
    normalised = False

    def __init__(
        self,
        a: Floats,
        b: Floats,
        dtype: DTypeLike,
        work: Work,
        query_grid: tuple[int, ...] | None = None,
        key_grid: tuple[int, ...] | None = None,
    ):
        none = np.full(len(a), np.nan)
        super().__init__(dtype, none, len(b), work, query_grid, key_grid)
        self.a: Floats = _check.frozen(a, np.float64)
        """(n,) float64, of the queries."""
        self.b: Floats = _check.frozen(b, np.float64)
        """(m,) float64, of the keys."""

    @property
    def lse(self) -> Floats:
        """Nothing: AttributeError, since rows do not sum to 1."""
        raise AttributeError(
            f"{OP}.lse: weights relu(a + b) / m need not sum to 1, so there is no log-sum-exp; "
            "use rows()"
        )

    def _apply(self, x: Floats) -> Floats:
        return self._read(self.a, self.b, x)

    def _apply_adjoint(self, x: Floats) -> Floats:
        return self._read(self.b, self.a, x)

    def _read(self, a: Floats, b: Floats, x: Floats) -> Floats:
        slices = _check.frozen(np.zeros((1, 4), np.int64))
        out, _ = engine.read(a[None], b[None], x[None], slices, self.shape[1])
        result: Floats = out[0]
        return result

    def _rows(self, index: Ints) -> Floats:
        return engine.pairs(self.a[index], self.b, self.shape[1], self.dtype)

    def _scores(self, index: Ints) -> Floats:
        return engine.pairs(self.a[index], self.b, 1, self.dtype)

    def _topk(self, k: int) -> tuple[Floats, Ints]:
        return engine.topk(self.a, self.b, k, self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of both vectors."""
        return int(self.a.nbytes + self.b.nbytes)

    def state(self) -> State:
        """Both vectors, beside what all maps have; `like` is of the map's dtype."""
        return {**common(self), "a": self.a, "b": self.b, "like": np.zeros(0, self.dtype)}

    @classmethod
    def from_state(cls, state: State, max_bytes: float = 4e9) -> ConcatenationMap:
        """The map that gave this `state`; ValueError if the arrays do not fit."""
        stored = Stored(state, max_bytes)
        a = stored.array("a", "f", (None,))
        b = stored.array("b", "f", (None,))
        like = stored.array("like", "f", (0,))
        stored.array("lse", "f", (len(a),))
        if not a.dtype == b.dtype == np.float64 or like.dtype not in (np.float32, np.float64):
            raise ValueError(f"a is {a.dtype}, b {b.dtype} and the map {like.dtype}")
        work = stored.work(len(a))
        query_grid, key_grid = stored.grid("query_grid"), stored.grid("key_grid")
        stored.done()
        return cls(a, b, like.dtype, work, query_grid, key_grid)
