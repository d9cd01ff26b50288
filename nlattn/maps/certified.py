"""The attention map that sums what matters, to a stated tolerance."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from nlattn import _check
from nlattn._types import Floats, Ints, State, Work
from nlattn.engines import certified as engine
from nlattn.engines import certified_rows, exhaustive
from nlattn.engines import certified_vjp as backward
from nlattn.engines.certified_left import adjoint_bounds
from nlattn.engines.exhaustive import Slice
from nlattn.kernels import scores
from nlattn.maps.base import OP, AttentionMap
from nlattn.maps.state import Stored, common


class CertifiedMap(AttentionMap):
    """Exponential weights of all keys; sums of values miss at most `tolerance` of each row.

    So do sums over queries, ``A.T @ g``: ``sum_j |error_j|`` is at most twice ``tolerance`` times
    ``sum |g|``, and rounding. Rows are those of the keys that could not be left out, others have
    weight 0: at most twice ``tolerance`` is misplaced in each.

    `work` counts the keys and boxes that were compared with each query for the normalisers.
    """

    kind = "certified"

    def __init__(
        self,
        x: Slice,
        tolerance: float,
        query_grid: tuple[int, ...] | None = None,
        key_grid: tuple[int, ...] | None = None,
    ):
        n, m = len(x.q), len(x.k)
        ground = engine.survey(x, tolerance)
        found = engine.attend(ground, _check.frozen(np.zeros((m, 1), x.q.dtype)))
        seen = found.seen
        total, d, size = int(seen.sum()), x.q.shape[1], x.q.dtype.itemsize
        work = Work(total, total * d, size * (total * d + n * d + n), seen)
        super().__init__(x.q.dtype, found.lse, m, work, query_grid, key_grid)
        self.tolerance = tolerance
        """Share of each row that may be misplaced."""
        self.missed: Floats = found.missed
        """(n,) share of each row that may be misplaced, rounding included."""
        self._x, self._ground = x, ground  # whose slice may be in float64
        self._visits: list[backward.Visits] | None = None

    def _apply(self, x: Floats) -> Floats:
        return engine.attend(self._ground, x).out.astype(self.dtype)

    def _apply_adjoint(self, x: Floats) -> Floats:
        return backward.adjoint(self._ground, self._seen(), self.lse, x).astype(self.dtype)

    def _seen(self) -> list[backward.Visits]:
        if self._visits is None:
            self._visits = backward.visits(self._ground)
        return self._visits

    def adjoint_bounds(self, g: Floats) -> tuple[Floats, Floats]:
        """Ends (m, e) in float64 between which each number of the true ``A.T @ g`` lies, g (n, e).

        Twice the time of ``A.T @ g``. What was left out is bounded box by box: a key that no query
        needs has an interval that is narrow, whatever others have.
        """
        n, m = self.shape
        x = _check.frozen(np.asarray(g), self.dtype)
        if x.ndim != 2 or len(x) != n:
            _check.fail(f"{OP}.adjoint_bounds", "g", f"has shape {x.shape}, expected ({n}, e)")
        if 0 in (n, m, x.shape[1]):
            return np.zeros((m, x.shape[1])), np.zeros((m, x.shape[1]))
        return adjoint_bounds(self._ground, self._seen(), self.lse, self.missed, x)

    def _rows(self, index: Ints) -> Floats:
        single = self.dtype == np.float32
        if self._ground.parts or (single and self._ground.dense_wide[index].any()):
            return certified_rows.rows(self._ground, index).astype(self.dtype)
        return exhaustive.rows(self._ground.slice, index, normalise=True)

    def _to_csr(self, max_bytes: float) -> csr_array:
        if not self._ground.parts:
            return super()._to_csr(max_bytes)
        found, held = [], 0
        for kept in certified_rows.kept(self._ground):
            row, column = np.nonzero(kept.weights)
            part = kept.rows[row], kept.keys[column], kept.weights[row, column].astype(self.dtype)
            held += sum(x.nbytes for x in part)
            _check.memory(
                f"{OP}.to_csr", held, max_bytes, "some of the rows", "use rows() or topk()"
            )
            found.append(part)
        rows, keys, weights = (np.concatenate(x) for x in zip(*found, strict=True))
        return csr_array((weights, (rows, keys)), self.shape)

    def _scores(self, index: Ints) -> Floats:
        return exhaustive.rows(self._ground.slice, index, normalise=False).astype(self.dtype)

    def _topk(self, k: int) -> tuple[Floats, Ints]:
        value, index = exhaustive.topk(self._ground.slice, k)
        there = index >= 0
        lse = np.where(np.isneginf(self.lse), 0, self.lse)[:, None]
        weights = np.exp(np.where(there, np.minimum(value - lse, 0), -np.inf))
        return weights.astype(self.dtype), index

    def scores_of(self, keys: Ints) -> Floats:
        """Score of each query with one key, `keys` (n,), in float64; -inf for key -1."""
        return exhaustive.pairs(self._x, keys)

    @property
    def nbytes(self) -> int:
        """Bytes of queries, keys, masks, the tree and normalisers."""
        g, x = self._ground, self._x
        held = [x.q, x.k, x.key_mask, x.pairs, g.keys, g.dense, g.dense_rounding, g.seen]
        held += [g.slice.q, g.slice.k] if g.slice.q is not x.q else []
        for part in g.parts:
            kept = (*part.tree, *part.asked, part.numbers, part.top)
            held += [a for a in kept if isinstance(a, np.ndarray)]
        for visited in self._visits or ():
            held += [a for a in visited if isinstance(a, np.ndarray)]
        return sum(a.nbytes for a in [*held, self.lse, self.missed])

    def state(self) -> State:
        """Arrays and options that rebuild the map."""
        x = self._x
        arrays = {"q": x.q, "k": x.k, "key_mask": x.key_mask, "pairs": x.pairs}
        numbers = np.array([x.factor, self.tolerance])
        flags = np.array([x.kind, x.causal], np.int64)
        state = {**common(self), **arrays, "factor": numbers, "flags": flags}
        biased = {"bias": np.array([x.above, x.blur])} if x.above or x.blur else {}
        return {**state, **biased}

    @classmethod
    def from_state(cls, state: State, max_bytes: float = 4e9) -> CertifiedMap:
        """The map that gave this `state`; ValueError if the arrays do not fit."""
        stored = Stored(state, max_bytes)
        q = stored.array("q", "f", (None, None))
        k = stored.array("k", "f", (None, q.shape[1]))
        key_mask, pairs = (
            stored.array("key_mask", "b", (None,)),
            stored.array("pairs", "b", (None, None)),
        )
        factor, tolerance = (float(x) for x in stored.array("factor", "f", (2,)))
        biased = stored.optional("bias", "f", (2,))
        above, blur = (0.0, 0.0) if biased is None else (float(x) for x in biased)
        kind, causal = (int(x) for x in stored.array("flags", "i", (2,)))
        stored.array("lse", "f", (len(q),))
        if q.dtype not in (np.float32, np.float64) or q.dtype != k.dtype:
            raise ValueError("its arrays are not of one dtype, float32 or float64")
        if key_mask.size not in (0, len(k)) or pairs.shape not in ((0, 0), (len(q), len(k))):
            raise ValueError(f"its masks are not those of {len(q)} queries and {len(k)} keys")
        if kind not in (scores.DOT, scores.NEG_L2) or not 0 <= tolerance < 1 or not blur >= 0:
            raise ValueError(f"kind is {kind}, tolerance {tolerance} and blur {blur}")
        x = Slice(q, k, kind, factor, key_mask, pairs, bool(causal), above=above, blur=blur)
        grids = stored.grid("query_grid"), stored.grid("key_grid")
        stored.work(len(q))
        stored.done()
        return cls(x, tolerance, *grids)
