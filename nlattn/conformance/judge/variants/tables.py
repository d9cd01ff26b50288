"""Tables of keys (..., n, t) read wrongly: what stands for none, and keys that are named twice.

Whoever gathers the keys of a table counts each entry: a key comes in as often as it is read.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nlattn._types import Array, Result
from nlattn.conformance.judge.variants.base import Call, Run, several


def _read(entries: Callable[[Array, int], Array], *, once: bool = False) -> Run:
    """With other entries in each row, -1 for none; those left count once, or as often as named."""

    def run(c: Call) -> Result:
        table, m = np.asarray(c["support.index"]), int(c["support.shape"][-1])
        if not once and c.get("weight", "softmax") != "softmax":
            raise ValueError
        read = entries(table, m)
        rows = [row[row >= 0] for row in read.reshape(-1, read.shape[-1])]
        named = [np.unique(row, return_counts=True) for row in rows]
        keys = np.concatenate([own for own, _ in named])
        pointers = np.cumsum([0, *(len(own) for own, _ in named)])
        other = c.given(support__indptr=pointers, support__indices=keys.astype(np.int32))
        if once:
            return other()
        return other.given(bias=np.log(np.concatenate([counts for _, counts in named])))()

    return run


def _none(table: Array, m: int) -> Array:
    return (table < 0) | (table >= m)


def _kept(table: Array, m: int) -> Array:
    return np.where(_none(table, m), -1, table)


def _until_none(table: Array, m: int) -> Array:
    """Rows end at their first entry that is none."""
    return np.where(np.logical_or.accumulate(_none(table, m), -1), -1, table)


def _beyond(table: Array, m: int, last: Array | int) -> Array:
    if not (table >= m).any():
        raise ValueError
    return np.where(table >= m, last, np.maximum(table, -1))


_EMPTY: dict[str, Callable[[Array, int], Array]] = {
    "with the first key for an empty entry": lambda t, m: np.where(_none(t, m), 0, t),
    "with the last key for an empty entry": lambda t, m: np.where(_none(t, m), m - 1, t),
    "with the first key for -1, the last for what is beyond": lambda t, m: np.clip(t, 0, m - 1),
    "with the last key for entries beyond the keys": lambda t, m: _beyond(t, m, m - 1),
    "with the first key for entries beyond the keys": lambda t, m: _beyond(t, m, 0),
    "with entries beyond the keys taken modulo their number": lambda t, m: _beyond(t, m, t % m),
}
"""What stands for none read as a key, which then counts as often as it is read, or is marked."""

VARIANTS = several(
    ("support",),
    {
        "with keys counted as often as they are named": _read(_kept),
        **{words: _read(how) for words, how in _EMPTY.items()},
        **{f"{words}, each key once": _read(how, once=True) for words, how in _EMPTY.items()},
        "with entries of 0 taken for none": _read(lambda t, m: np.where(t == 0, -1, _kept(t, m))),
        "with rows that end at their first empty entry": _read(_until_none),
        "without the last entry of each row": _read(lambda t, m: _kept(t, m)[..., :-1]),
        "with the first query's keys for all": _read(
            lambda t, m: np.broadcast_to(_kept(t, m)[..., :1, :], t.shape)
        ),
    },
)
