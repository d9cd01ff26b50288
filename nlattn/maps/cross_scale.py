"""The map of cross-scale attention, from pixels of values to pixels s times finer than queries."""

from __future__ import annotations

import math

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Ints, State, Work
from nlattn.engines.cross_scale import (
    OVERLAPS,
    Cells,
    CrossScaleOptions,
    add_outer,
    multiply,
    to_cells,
    to_pixels,
)
from nlattn.maps.base import OP, AttentionMap
from nlattn.maps.state import Stored, common


class CrossScaleMap(AttentionMap):
    """Weights of cells for cells: a pixel reads the pixels at its own place in other cells.

    The map holds queries and keys and computes what it is asked for. Rows sum to 1 with
    ``overlap="mass"``, to at most 1 with "average".
    """

    kind = "cross_scale"
    normalised = False

    def __init__(self, q: Floats, k: Floats, options: CrossScaleOptions):
        self._cells = cells = Cells(q, k, options)
        s = options.scale
        query_grid = s * cells.rows, s * cells.columns
        key_grid = s * cells.grid.h, s * cells.grid.w
        scores, products = cells.work
        bytes_ = (2 * products + scores) * q.itemsize
        per_query = np.full(cells.grid.H * cells.grid.W, cells.grid.h * cells.grid.w)
        none = np.full(query_grid[0] * query_grid[1], np.nan)
        work = Work(scores, products, bytes_, per_query)
        super().__init__(q.dtype, none, key_grid[0] * key_grid[1], work, query_grid, key_grid)
        self.options = options

    @property
    def lse(self) -> Floats:
        """There is none: a row is made of the weights of many queries."""
        raise AttributeError(
            f"{OP}.lse: a row of cross-scale attention is made of the weights of many queries, so "
            "there is no log-sum-exp; use rows()"
        )

    def _apply(self, x: Floats) -> Floats:
        cells, s = self._cells, self.options.scale
        V = to_cells(x.reshape(*self.key_grid, -1), s)
        V = _check.frozen(V.reshape(len(cells.keys), -1))
        return to_pixels(apply(cells, V), s).reshape(self.shape[0], -1)

    def _apply_adjoint(self, x: Floats) -> Floats:
        cells, s = self._cells, self.options.scale
        dout = to_cells(x.reshape(*self.query_grid, -1), s)
        dV: Floats = np.zeros((len(cells.keys), dout.shape[2]), self.dtype)
        for row, B, _ in cells.weights(range(cells.rows)):
            add_outer(_check.frozen(B), dout[row], dV)
        dV = dV.reshape(cells.grid.h, cells.grid.w, -1)
        return to_pixels(dV, s).reshape(self.shape[1], -1)

    def _of_cells(self, numbers: Ints) -> Floats:
        """Weights of the keys for some cells (r,): (r, L)."""
        cells = self._cells
        out: Floats = np.empty((len(numbers), len(cells.keys)), self.dtype)
        rows = numbers // cells.columns
        for row, B, _ in cells.weights(np.unique(rows).tolist()):
            chosen = rows == row
            out[chosen] = B[numbers[chosen] % cells.columns]
        return out

    def _places(self, index: Ints) -> tuple[Ints, Ints, Ints]:
        """Cell of each pixel, and its row and column there."""
        s, width = self.options.scale, self.query_grid[1]
        y, x = np.divmod(index, width)
        return (y // s) * (width // s) + x // s, y % s, x % s

    def _rows(self, index: Ints) -> Floats:
        s = self.options.scale
        (h, w), places = self._cells.grid[2:4], self._places(index)
        cells, inverse = np.unique(places[0], return_inverse=True)
        known = self._of_cells(cells).reshape(len(cells), h, w)
        out: Floats = np.zeros((len(index), s * h, s * w), self.dtype)
        for i, (cell, y, x) in enumerate(zip(inverse, *places[1:], strict=True)):
            out[i, y::s, x::s] = known[cell]
        return out.reshape(len(index), -1)

    def _scores(self, index: Ints) -> Floats:
        with np.errstate(divide="ignore"):
            return np.log(self._rows(index))

    def _topk(self, k: int) -> tuple[Floats, Ints]:
        s, (h, w) = self.options.scale, self._cells.grid[2:4]
        values, keys = np.zeros((self.shape[0], k), self.dtype), np.full((self.shape[0], k), -1)
        numbers = np.arange(self.shape[0]).reshape(self.query_grid)
        few = min(k, h * w)
        for row, B, _ in self._cells.weights(range(self._cells.rows)):
            order = np.argsort(-B, axis=1, kind="stable")[:, :few]
            best = np.take_along_axis(B, order, 1)
            for y in range(s):
                for x in range(s):
                    pixels = numbers[row * s + y, x::s]
                    finer = (order // w * s + y) * (s * w) + order % w * s + x
                    values[pixels, :few] = best
                    keys[pixels, :few] = np.where(best > 0, finer, -1)
        return values, keys

    @property
    def nbytes(self) -> int:
        """Bytes of queries and keys, and of the rings."""
        cells = self._cells
        return cells.q.nbytes + cells.k.nbytes + 2 * cells._A.nbytes

    def state(self) -> State:
        """Queries, keys and options."""
        o = self.options
        numbers = [o.scale, o.patch, OVERLAPS.index(o.overlap), o.hard, o.published]
        return {
            **common(self),
            "q": self._cells.q,
            "k": self._cells.k,
            "factors": np.array([o.temperature, o.floor, o.divisor]),
            "options": np.array(numbers, np.int64),
        }

    @classmethod
    def from_state(cls, state: State, max_bytes: float = 4e9) -> CrossScaleMap:
        """The map that gave this `state`; ValueError if the arrays do not fit."""
        stored = Stored(state, max_bytes)
        q = stored.array("q", "f", (None, None, None))
        k = stored.array("k", "f", (None, None, q.shape[2]))
        temperature, floor, divisor = stored.array("factors", "f", (3,)).tolist()
        scale, patch, overlap, hard, published = stored.array("options", "i", (5,)).tolist()
        if q.dtype not in (np.float32, np.float64) or q.dtype != k.dtype or 0 in q.shape + k.shape:
            raise ValueError(f"q is {q.dtype} {q.shape} and k {k.dtype} {k.shape}")
        positive = min(floor, divisor) > 0 and np.isfinite([temperature, floor, divisor]).all()
        if scale < 1 or patch < 1 or patch % 2 == 0 or not 0 <= overlap < 3 or not positive:
            raise ValueError("its options are outside their sets")
        options = CrossScaleOptions(
            scale,
            patch,
            temperature,
            floor,
            OVERLAPS[overlap],
            divisor,
            bool(hard),
            bool(published),
        )
        cells = [options.cells(n) for n in q.shape[:2]]
        if min(cells) < 1:
            raise ValueError("it has no cells")
        grids = stored.grid("query_grid"), stored.grid("key_grid")
        if grids != (tuple(scale * n for n in cells), tuple(scale * n for n in k.shape[:2])):
            raise ValueError(f"its grids are {_check.quoted(grids)}")
        stored.array("lse", "f", (math.prod(grids[0]),))
        numbers = (2 * patch + 4) * max(q.shape[1], cells[1]) * math.prod(k.shape[:2])
        stored.memory(numbers * q.itemsize, "rows of weights")
        result = cls(q, k, options)
        stored.work(q.shape[0] * q.shape[1])
        stored.done()
        return result


def apply(cells: Cells, V: Floats) -> Floats:
    """Cells of the result (rows, columns, s s e) for cells of values (L, s s e)."""
    out: Floats = np.empty((cells.rows, cells.columns, V.shape[1]), V.dtype)
    for row, B, _ in cells.weights(range(cells.rows)):
        multiply(_check.frozen(B), V, out[row])
    return out
