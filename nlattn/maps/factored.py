"""The attention map that is a product of two thin matrices."""

from __future__ import annotations

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Ints, State, Work
from nlattn.engines import factored
from nlattn.engines.features import Identity
from nlattn.engines.not_finite import finite
from nlattn.kernels import products
from nlattn.kernels.panel import groups
from nlattn.maps.base import OP, AttentionMap
from nlattn.maps.state import Stored, common


class FactoredMap(AttentionMap):
    """``A = diag(1 / norm) left right.T``, held as its factors: O(n + m) numbers.

    With positive features rows sum to 1 and ``lse`` is the logarithm of what they were divided by.
    A map of plain products has any sign, is not normalised and has no ``lse``.
    """

    kind = "factored"

    def __init__(
        self,
        left: Floats,
        right: Floats,
        lse: Floats | None,
        work: Work,
        query_grid: tuple[int, ...] | None = None,
        key_grid: tuple[int, ...] | None = None,
    ):
        self.normalised = lse is not None
        known = np.full(len(left), np.nan) if lse is None else lse
        super().__init__(left.dtype, known, len(right), work, query_grid, key_grid)
        self.left: Floats = _check.frozen(left)
        """(n, r) features of the queries, divided by each row's normaliser."""
        self.right: Floats = _check.frozen(right)
        """(m, r) features of the keys."""

    @property
    def lse(self) -> Floats:
        """(n,) log of each row's normaliser; AttributeError for a map that has none."""
        if not self.normalised:
            raise AttributeError(
                f"{OP}.lse: weights q k.T / m have any sign and rows need not sum to 1, "
                "so there is no log-sum-exp; use rows()"
            )
        return self._lse

    def _apply(self, x: Floats) -> Floats:
        return self._through(self.left, self.right, x)

    def _apply_adjoint(self, x: Floats) -> Floats:
        return self._through(self.right, self.left, x)

    def _through(self, to: Floats, of: Floats, x: Floats) -> Floats:
        """``to (of.T x)``; a row of nothing but zeros is hidden, and reads and gives nothing."""
        none = np.zeros((1, 3), np.int64)
        if not finite(of, x):
            x = _check.frozen(np.where(of.any(1, keepdims=True), x, 0), self.dtype)
        sums = factored.key_sums(Identity(), of[None], x[None], none)
        out, _ = factored.read(Identity(), to[None], none[:, 0], sums.values.astype(self.dtype))
        result: Floats = out[0]
        if not finite(result):
            result[~to.any(1)] = 0
        return result

    def _rows(self, index: Ints) -> Floats:
        out: Floats = np.empty((len(index), self.shape[1]), self.dtype)
        for some in groups(len(index), self.shape[1] * self.left.shape[1]):
            at = slice(some.start, some.stop)
            products.rows(len(some), self.left, self.right, _check.frozen(index[at]), out[at])
        if not finite(self.left):
            out[:, ~self.right.any(1)] = 0
        return out

    def _scores(self, index: Ints) -> Floats:
        weights = self._rows(index)
        if not self.normalised:
            return weights
        with np.errstate(divide="ignore"):
            scores: Floats = np.log(weights) + self.lse[index, None].astype(self.dtype)
        return scores

    def _topk(self, k: int) -> tuple[Floats, Ints]:
        n, m = self.shape
        value: Floats = np.empty((n, k), self.dtype)
        index: Ints = np.empty((n, k), np.int64)
        for some in groups(n, m * self.left.shape[1]):
            products.topk(some, self.left, self.right, value, index)
        value[index < 0] = 0
        return value, index

    @property
    def nbytes(self) -> int:
        """Bytes of both factors and the normalisers."""
        return int(self.left.nbytes + self.right.nbytes + self._lse.nbytes)

    def state(self) -> State:
        """Factors, beside what all maps have; `lse` is NaN for a map that has none."""
        return {**common(self), "left": self.left, "right": self.right}

    @classmethod
    def from_state(cls, state: State, max_bytes: float = 4e9) -> FactoredMap:
        """The map that gave this `state`; ValueError if the arrays do not fit."""
        stored = Stored(state, max_bytes)
        left = stored.array("left", "f", (None, None))
        right = stored.array("right", "f", (None, left.shape[1]))
        lse = stored.array("lse", "f", (len(left),))
        if not left.dtype == right.dtype in (np.float32, np.float64):
            raise ValueError(f"left is {left.dtype} and right {right.dtype}")
        work = stored.work(len(left))
        query_grid, key_grid = stored.grid("query_grid"), stored.grid("key_grid")
        stored.done()
        known = None if np.isnan(lse).all() else lse
        return cls(left, right, known, work, query_grid, key_grid)
