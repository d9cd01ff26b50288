"""The arrays that a map is rebuilt from: those all maps have, and how they are taken back."""

from __future__ import annotations

import numpy as np

from nlattn import _check
from nlattn._types import Array, Ints, State, Work
from nlattn.engines.dense import FAR
from nlattn.maps.base import AttentionMap

OP = "load_map"
REMEDY = "pass a larger max_bytes"


def common(attention_map: AttentionMap) -> State:
    """Normalisers (NaN for a map that has none), grids and work of any map."""
    work = attention_map.work
    none = np.full(attention_map.shape[0], np.nan)
    state = {
        "lse": getattr(attention_map, "lse", none),
        "query_grid": np.array(attention_map.query_grid, np.int64),
        "key_grid": np.array(attention_map.key_grid, np.int64),
        "work": np.array(work[:3], np.int64),
    }
    if work.per_query is not None:
        state["work_per_query"] = work.per_query
    if work.changed is not None:
        state["work_changed"] = work.changed
    return state


class Stored:
    """A state being taken apart: every array is checked, and none is left over."""

    def __init__(self, state: State, max_bytes: float = 4e9):
        self._left, self._most = dict(state), max_bytes

    def memory(self, needed: int, what: str) -> None:
        """Refuse to allocate so many bytes beside the arrays, if that is too much."""
        _check.memory(OP, needed, self._most, what, REMEDY)

    def array(self, name: str, kinds: str, shape: tuple[int | None, ...]) -> Array:
        """The array `name`, frozen, of dtype kind in `kinds` and of `shape`; None is any size."""
        if name not in self._left:
            raise ValueError(f"it lacks {name}")
        array = np.asarray(self._left.pop(name))
        fits = array.ndim == len(shape) and all(
            want in (None, have) for want, have in zip(shape, array.shape, strict=True)
        )
        if array.dtype.kind not in kinds or not fits:
            expected = tuple("any" if size is None else size for size in shape)
            have = _check.quoted(array.shape)
            raise ValueError(f"{name} is {array.dtype} {have}, expected {expected}")
        return _check.frozen(array)

    def optional(self, name: str, kinds: str, shape: tuple[int | None, ...]) -> Array | None:
        """The array `name`, or None if the state has none."""
        return self.array(name, kinds, shape) if name in self._left else None

    def grid(self, name: str) -> tuple[int, ...]:
        """The sizes of a grid."""
        grid = tuple(int(size) for size in self.array(name, "i", (None,)))
        if not grid or min(grid) < 0:
            raise ValueError(f"{name} is {_check.quoted(grid)}, expected sizes of its axes")
        return grid

    def work(self, n: int) -> Work:
        """The work of a map of `n` queries."""
        scores, multiply_adds, n_bytes = (int(x) for x in self.array("work", "i", (3,)))
        per_query = self.optional("work_per_query", "i", (n,))
        changed = self.optional("work_changed", "i", (None,))
        return Work(scores, multiply_adds, n_bytes, per_query, changed)

    def done(self) -> None:
        """Refuse what nobody took."""
        if self._left:
            raise ValueError(f"it has {', '.join(sorted(self._left))}, which no such map has")


def dense_options(stored: Stored, n: int, m: int) -> tuple[list[float], Ints, list[int]]:
    """Scale, cap and slope; the band; whether there are a bias and a mask.

    Files of version 0.1 say of the band its lowest and highest ``key - query``.
    """
    given = stored.optional("given", "i", (2,))
    if given is not None:
        scale, band = stored.array("scale", "f", (3,)), stored.array("band", "i", (n, 3))
        if ((band[:, 0] < 0) | (band[:, 1] < -1) | (band[:, 1] > m)).any():
            raise ValueError(f"band leaves the {m} keys")
        if (abs(band[:, 2]) > FAR).any():
            raise ValueError("band holds a place far from all keys")
        return list(map(float, scale)), band, list(map(int, given))
    scale, four = stored.array("scale", "f", (2,)), stored.array("band", "i", (4,))
    low, high, *flags = map(int, four)
    if max(abs(low), abs(high)) > FAR:
        raise ValueError(f"band is {low} to {high}")
    row = np.arange(n)
    band = np.stack([np.clip(row + low, 0, m), np.clip(row + high + 1, 0, m), row], -1)
    return [*map(float, scale), 0.0], band, flags
