"""The attention map whose queries all attend to one small set of keys."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from scipy.sparse import csr_array

from nlattn import _check
from nlattn._types import Floats, Ints, State
from nlattn.maps.base import OP, AttentionMap
from nlattn.maps.dense import DenseMap
from nlattn.maps.state import Stored, common


class SelectedMap(AttentionMap):
    """Softmax over the keys `index`: a dense map of these, and zeros.

    It holds the queries and the selected keys, ``O(n d)`` numbers, and computes what it is asked
    for. Which keys stand for the others is a choice that no theorem covers: `guarantee` says so.
    """

    kind = "selected"
    guarantee: ClassVar[str] = "heuristic"
    """What is known of the softmax mass that the selected keys hold: nothing in general."""

    def __init__(
        self,
        dense: DenseMap,
        index: Ints,
        n_keys: int,
        query_grid: tuple[int, ...] | None = None,
        key_grid: tuple[int, ...] | None = None,
    ):
        super().__init__(dense.dtype, dense._lse, n_keys, dense.work, query_grid, key_grid)
        self._dense = dense
        self.index: Ints = _check.frozen(index, np.int64)
        """(s,) keys that are attended to, ascending."""

    @property
    def lse(self) -> Floats:
        """(n,) log of each row's normaliser over the selected keys; -inf where there are none."""
        return self._dense.lse

    def _apply(self, x: Floats) -> Floats:
        return self._dense._apply(_check.frozen(x[self.index]))

    def _apply_adjoint(self, x: Floats) -> Floats:
        out: Floats = np.zeros((self.shape[1], x.shape[1]), self.dtype)
        out[self.index] = self._dense._apply_adjoint(x)
        return out

    def _rows(self, index: Ints) -> Floats:
        rows: Floats = np.zeros((len(index), self.shape[1]), self.dtype)
        rows[:, self.index] = self._dense._rows(index)
        return rows

    def _scores(self, index: Ints) -> Floats:
        rows: Floats = np.full((len(index), self.shape[1]), -np.inf, self.dtype)
        rows[:, self.index] = self._dense._scores(index)
        return rows

    def _topk(self, k: int) -> tuple[Floats, Ints]:
        n, held = self.shape[0], min(k, len(self.index))
        values: Floats = np.zeros((n, k), self.dtype)
        keys: Ints = np.full((n, k), -1, np.int64)
        if held:
            values[:, :held], place = self._dense._topk(held)
            keys[:, :held] = np.where(place < 0, -1, self.index[place])
        return values, keys

    def _to_csr(self, max_bytes: float) -> csr_array:
        n, s = self.shape[0], len(self.index)
        needed = n * s * (8 + self.dtype.itemsize)
        _check.memory(f"{OP}.to_csr", needed, max_bytes, f"{n} x {s} {self.dtype}", "use rows()")
        weights = self._dense._rows(np.arange(n))
        keys = np.tile(self.index, n)
        return csr_array((weights.ravel(), keys, np.arange(n + 1) * s), shape=self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of queries, selected keys, their index and the normalisers."""
        return self._dense.nbytes + int(self.index.nbytes)

    def state(self) -> State:
        """The dense map of the selected keys, and which they are."""
        return {**self._dense.state(), **common(self), "index": self.index}

    @classmethod
    def from_state(cls, state: State, max_bytes: float = 4e9) -> SelectedMap:
        """The map that gave this `state`; ValueError if the arrays do not fit."""
        grids = Stored({name: state[name] for name in ("query_grid", "key_grid") if name in state})
        query_grid, key_grid = grids.grid("query_grid"), grids.grid("key_grid")
        held = Stored({"index": state["index"]} if "index" in state else {})
        index = held.array("index", "i", (None,))
        n_keys = math.prod(key_grid)
        rising = (index[1:] > index[:-1]).all()  # a difference may not fit
        if (
            not rising
            or (len(index) and not 0 <= index[0] <= index[-1] < n_keys)
            or (n_keys and not len(index))
        ):
            raise ValueError(f"index holds no ascending keys from 0 to {n_keys - 1}")
        inner = {name: x for name, x in state.items() if name != "index"}
        inner["key_grid"] = np.array([len(index)], np.int64)
        return cls(DenseMap.from_state(inner, max_bytes), index, n_keys, query_grid, key_grid)
