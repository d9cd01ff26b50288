"""The attention map of the entries that are at least eps."""

from __future__ import annotations

import numpy as np

from nlattn import _check
from nlattn._types import Floats, State, Support, Work
from nlattn.maps.sparse import SparseMap


class HeavyMap(SparseMap):
    """Entries ``A_ij >= eps`` of a row-normalised map, with their values in it.

    A row sums to what its heavy entries hold, at most 1; `lse` is the logarithm of the normaliser
    over all keys.
    """

    kind = "heavy"
    normalised = False

    def __init__(
        self,
        support: Support,
        weights: Floats,
        scores: Floats,
        lse: Floats,
        work: Work,
        query_grid: tuple[int, ...] | None = None,
        key_grid: tuple[int, ...] | None = None,
        interval: Floats | None = None,
    ):
        super().__init__(support, weights, scores, lse, work, query_grid, key_grid)
        ends = np.stack([lse, lse], 1) if interval is None else interval
        self.lse_interval: Floats = _check.frozen(ends)
        """(n, 2) between which `lse` lies; twice itself unless it was estimated."""

    @property
    def nbytes(self) -> int:
        """Bytes of the map, interval included."""
        return super().nbytes + self.lse_interval.nbytes

    def state(self) -> State:
        """That of a sparse map, and the interval."""
        return {**super().state(), "interval": self.lse_interval}

    @classmethod
    def from_state(cls, state: State, max_bytes: float = 4e9) -> HeavyMap:
        """The map that gave this `state`; raises ValueError if the arrays do not fit."""
        rest = dict(state)
        interval = np.asarray(rest.pop("interval", None))
        plain = SparseMap.from_state(rest, max_bytes)
        if interval.dtype != np.float64 or interval.shape != (plain.shape[0], 2):
            have = _check.quoted(interval.shape)
            raise ValueError(f"interval is {interval.dtype} {have}, expected (n, 2)")
        parts = plain.support, plain.weights, plain.edge_scores, plain.lse, plain.work
        return cls(*parts, plain.query_grid, plain.key_grid, interval)
