"""The attention map that holds queries and keys, and computes what it is asked for."""

from __future__ import annotations

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Ints, State, Work
from nlattn.engines import dense as engine
from nlattn.kernels.panel import Scores
from nlattn.maps.base import AttentionMap
from nlattn.maps.state import Stored, common, dense_options


class DenseMap(AttentionMap):
    """Softmax of all scores, never stored; the normalisers are computed once, on first need.

    `work` counts the pairs within the causal band and the window: what the normalisers take.
    """

    kind = "dense"

    def __init__(
        self,
        p: Scores,
        query_grid: tuple[int, ...] | None = None,
        key_grid: tuple[int, ...] | None = None,
    ):
        n, m, d = p.q.shape[1], p.k.shape[1], p.q.shape[2]
        pairs = np.maximum(0, p.band[0, :, 1] - p.band[0, :, 0])
        scores = int(pairs.sum())
        size = p.q.dtype.itemsize
        work = Work(scores, scores * d, size * (scores * d + n * d + n), pairs)
        lse: Floats = np.empty(n)
        super().__init__(p.q.dtype, lse, m, work, query_grid, key_grid)
        self._p = p
        self._norm: Floats | None = None
        self._share: Floats | None = None

    @property
    def lse(self) -> Floats:
        """(n,) log of each row's normaliser; -inf where a query may attend to nothing."""
        self._normalisers()
        return self._lse

    def _normalisers(self) -> Floats:
        if self._norm is None:
            self._attend(_check.frozen(np.zeros((self.shape[1], 1), self.dtype)))
        return self._norm  # type: ignore[return-value]

    def _attend(self, x: Floats) -> Floats:
        out, norm = engine.attend(self._p, x[None])
        self._remember(norm)
        result: Floats = out[0]
        return result

    def _remember(self, norm: Floats) -> None:
        if self._norm is None:
            self._norm = _check.frozen(norm)
            self._lse[:] = engine.log_normaliser(norm[:, 0])

    def _apply(self, x: Floats) -> Floats:
        return self._attend(x)

    def _apply_adjoint(self, x: Floats) -> Floats:
        return engine.adjoint(self._p, self._normalisers(), x)

    def _rows(self, index: Ints) -> Floats:
        rows = engine.rows(self._p, index, normalise=True)
        return rows if self._sink == -np.inf else rows * self._of_keys()[index, None]

    def _scores(self, index: Ints) -> Floats:
        return engine.rows(self._p, index, normalise=False)

    def _topk(self, k: int) -> tuple[Floats, Ints]:
        values, keys = engine.topk(self._p, k)
        return (values if self._sink == -np.inf else values * self._of_keys()[:, None]), keys

    @property
    def _sink(self) -> float:
        """Score of a key without a column; -inf for none."""
        return float(self._p.logits[0, 0])

    def _of_keys(self) -> Floats:
        """(n,) what a sink leaves to the keys."""
        if self._share is None:
            p = self._p
            logits = _check.frozen(np.where([True, False], -np.inf, p.logits).astype(p.q.dtype))
            none = _check.frozen(np.zeros((1, self.shape[1], 1), self.dtype))
            own = engine.log_normaliser(engine.attend(p._replace(logits=logits), none)[1][:, 0])
            whole = np.where(np.isneginf(own), 0, self.lse)
            self._share = np.exp(own - whole).astype(self.dtype)
        return self._share

    @property
    def nbytes(self) -> int:
        """Bytes of queries, keys, bias, mask and normalisers."""
        p = self._p
        return sum(int(x.nbytes) for x in (p.q, p.k, p.bias, p.mask, self._lse))

    def state(self) -> State:
        """Arrays and options that rebuild the map."""
        p = self._p
        options = {
            "scale": np.array([p.scale, p.cap, p.logits[0, 1]], np.float64),
            "band": p.band[0],
            "given": np.array([p.has_bias, p.has_mask], np.int64),
        }
        arrays = {"q": p.q[0], "k": p.k[0], "bias": p.bias[0], "mask": p.mask[0]}
        arrays["norm"] = self._normalisers()[:, 0]
        if self._sink > -np.inf:
            arrays["sink"] = np.array([self._sink])
        return {**common(self), **arrays, **options}

    @classmethod
    def from_state(cls, state: State, max_bytes: float = 4e9) -> DenseMap:
        """The map that gave this `state`; ValueError if the arrays do not fit."""
        stored = Stored(state, max_bytes)
        q = stored.array("q", "f", (None, None))
        k = stored.array("k", "f", (None, q.shape[1]))
        bias = stored.array("bias", "f", (None, None))
        mask = stored.array("mask", "b", (None, None))
        scale, band, (has_bias, has_mask) = dense_options(stored, len(q), len(k))
        norm, sink = stored.array("norm", "f", (2, len(q))), stored.optional("sink", "f", (1,))
        stored.array("lse", "f", (len(q),))
        if (
            q.dtype not in (np.float32, np.float64)
            or not q.dtype == k.dtype == bias.dtype == norm.dtype
        ):
            raise ValueError("its arrays are not of one dtype, float32 or float64")
        for name, x in (("bias", bias), ("mask", mask)):
            if any(
                have not in (1, want) for have, want in zip(x.shape, (len(q), len(k)), strict=True)
            ):
                raise ValueError(
                    f"{name} has shape {x.shape}, for {len(q)} queries and {len(k)} keys"
                )
        factor, cap, slope = scale
        arrays = q[None], k[None], bias[None], mask[None], band[None]
        flags = bool(has_bias), bool(has_mask)
        logit = -np.inf if sink is None else float(sink[0])
        p = engine.of_one(*arrays, factor, cap, slope, *flags, sink=logit)
        result = cls(p, stored.grid("query_grid"), stored.grid("key_grid"))
        stored.work(len(q))
        stored.done()
        result._remember(norm[:, None])
        return result
