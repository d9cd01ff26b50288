"""The attention map ``relu(a_i + b_j) / m``, held as two vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Ints, Work
from nlattn.kernels import concatenation as kernels
from nlattn.kernels.concatenation import KEYS, Ranked
from nlattn.maps.base import OP, AttentionMap
from nlattn.maps.state import Stored, common

_BLOCK = 1 << 20  # pairs made at a time


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
        dtype: Any,
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
        out, _ = read(a[None], b[None], x[None], slices, self.shape[1])
        result: Floats = out[0]
        return result

    def _rows(self, index: Ints) -> Floats:
        return self._pairs(index, self.shape[1])

    def _scores(self, index: Ints) -> Floats:
        return self._pairs(index, 1)

    def _pairs(self, index: Ints, divisor: int) -> Floats:
        """``relu(a + b) / divisor`` of some queries and all keys."""
        out: Floats = np.empty((len(index), self.shape[1]), self.dtype)
        step = max(1, _BLOCK // self.shape[1])
        for start in range(0, len(index), step):
            rows = slice(start, start + step)
            out[rows] = np.maximum(self.a[index[rows], None] + self.b, 0) / divisor
        return out

    def _topk(self, k: int) -> tuple[Floats, Ints]:
        first = np.argsort(-self.b, kind="stable")[:k]
        weights = np.maximum(self.a[:, None] + self.b[first], 0) / self.shape[1]
        keys = np.where(weights > 0, first, -1)
        return weights.astype(self.dtype), keys

    @property
    def nbytes(self) -> int:
        """Bytes of both vectors."""
        return int(self.a.nbytes + self.b.nbytes)

    def state(self) -> dict[str, Any]:
        """Both vectors, beside what all maps have; `like` is of the map's dtype."""
        return {**common(self), "a": self.a, "b": self.b, "like": np.zeros(0, self.dtype)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> ConcatenationMap:
        """The map that gave this `state`; ValueError if the arrays do not fit."""
        stored = Stored(state)
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


def read(
    a: Floats, b: Floats, x: Floats, slices: Ints, divisor: int, y: Floats | None = None
) -> tuple[Floats, Floats]:
    """``sum_j relu(a_i + b_j) x_j / divisor`` (B, n, e), and its slope in a along y (B, n).

    `a` (Ba, n) and `b` (Bb, m) float64, `x` (Bx, m, e), `y` (By, n, e); `slices` (B, 4) say which
    of b, x, a and y belong to each slice of the result.
    """
    m, e = x.shape[1:]
    order = np.argsort(b, axis=1, kind="stable")[:, ::-1]  # NaN first, so that everyone reads it
    keys = Ranked(b, _check.frozen(order), x, _check.frozen(slices))
    sums: Floats = np.empty((len(slices), m // KEYS, 4, e))
    kernels.collect(keys, sums)
    rising = np.take_along_axis(b, order, 1)[:, ::-1]
    counts = np.empty((len(slices), a.shape[1]), np.int64)
    for head, (of_b, _, of_a, _) in enumerate(slices):
        counts[head] = m - np.searchsorted(rising[of_b], -a[of_a], side="right")
    queries = np.argsort(counts, axis=1, kind="stable")
    out: Floats = np.empty((*counts.shape, e), x.dtype)
    slope: Floats = np.empty(counts.shape)
    along = np.empty((1, 1, 0), x.dtype) if y is None else y
    before, a, along = (_check.frozen(z) for z in (_before(sums), a, along))
    ranks = _check.frozen(queries), _check.frozen(counts)
    kernels.read(keys, before, a, along, *ranks, float(max(1, divisor)), out, slope)
    return out, slope


def _before(sums: Floats) -> Floats:
    """Sums before each block of keys, and after the last, from those of the blocks."""
    heads, blocks, _, e = sums.shape
    result: Floats = np.zeros((heads, blocks + 1, 4, e))
    with np.errstate(all="ignore"):
        for block in range(blocks):
            for part in (0, 2):
                old, own = result[:, block, part], sums[:, block, part]
                total = old + own
                virtual = total - old
                error = (old - (total - virtual)) + (own - virtual)
                left = result[:, block, part + 1] + sums[:, block, part + 1] + error
                result[:, block + 1, part], result[:, block + 1, part + 1] = total, left
    return result
