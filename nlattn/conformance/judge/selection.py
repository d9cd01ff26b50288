"""A table of chosen keys: whether the set is right, in order, and which of equal keys it holds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn._types import Array


class SelectionVerdict(NamedTuple):
    """What is to be said of a table of keys; each of these is a question of its own."""

    right: bool
    """No key that is left out scores above one that is kept, by more than both bounds."""
    ordered: bool
    """Best first, within bounds."""
    lowest: bool
    """Of keys that score the same, the lowest are kept, in ascending order."""
    detail: str
    """The first that is wrong."""


def judge_selection(
    scores: Array, index: Array, *, bound: float = 0.0, causal: bool = False, causal_offset: int = 0
) -> SelectionVerdict:
    """Judge a backend's best keys `index` (..., n, t), -1 for none, by `scores` (..., n, m).

    `bound` is what its scores may be off, a number or an array like scores, such as the kit's
    bounds of `index_scores`; 0 where it was given the scores themselves. -inf hides a key.
    """
    s, table = np.asarray(scores, np.float64), np.asarray(index)
    n, m = s.shape[-2:]
    allowed = ~np.isneginf(s)
    if causal:
        allowed &= np.arange(m) <= np.arange(n)[:, None] + causal_offset
    slack = np.broadcast_to(np.asarray(bound, np.float64), s.shape)
    if table.shape[:-1] != s.shape[:-1]:
        return SelectionVerdict(
            False, False, False, f"has shape {table.shape}, for scores {s.shape}"
        )
    ordered, lowest, detail = True, True, ""
    for at in np.ndindex(s.shape[:-1]):
        wrong, late, high = _row(s[at], slack[at], allowed[at], table[at])
        if wrong:
            return SelectionVerdict(False, False, False, f"query {list(at)} {wrong}")
        detail = detail or (f"query {list(at)} {late or high}" if late or high else "")
        ordered, lowest = ordered and not late, lowest and not high
    return SelectionVerdict(True, ordered, lowest, detail)


def _row(s: Array, bound: Array, allowed: Array, found: Array) -> tuple[str, str, str]:
    """What is wrong with one query's set, its order, and its choice of equal keys."""
    keys = found[found >= 0].astype(np.int64)
    wanted = min(len(found), int(allowed.sum()))
    if len(keys) != wanted or len({*keys.tolist()}) != wanted:
        return f"has {len({*keys.tolist()})} different keys, expected {wanted}", "", ""
    unseen = (keys >= len(s)) | ~allowed[np.minimum(keys, len(s) - 1)]
    if unseen.any():
        return f"has key {keys[unseen][0]}, which it may not see", "", ""
    out = np.flatnonzero(allowed & ~np.isin(np.arange(len(s)), keys))
    if len(keys) and len(out):
        worst, best = keys[(s + bound)[keys].argmin()], out[(s - bound)[out].argmax()]
        if s[best] - bound[best] > s[worst] + bound[worst]:
            return f"keeps key {worst} and leaves out key {best}, which scores above it", "", ""
    above, below = keys[:-1], keys[1:]
    late = s[above] + bound[above] < s[below] - bound[below]
    order = f"has key {below[late][0]} too late" if late.any() else ""
    ideal = sorted(np.flatnonzero(allowed).tolist(), key=lambda j: (-s[j], j))[:wanted]
    same = bool(order) or bound.any() or keys.tolist() == ideal
    return "", order, "" if same else "holds other keys of the same score"
