"""What every search for matches shares: the plan, the score of a pair, the order of candidates.

Features are flat arrays of grids padded by ``patch // 2`` on every side, in which a patch is
``patch`` runs of ``patch * d`` numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nlattn._types import Bools, Floats, Ints
from nlattn.kernels import scores
from nlattn.runtime import jit

TILE = 32
SAME, SHIFT = 1, 2


class Plan(NamedTuple):
    """What all queries of a search have in common."""

    Hq: int
    Wq: int
    Hk: int
    Wk: int
    d: int
    patch: int
    kind: int
    """Which of ``kernels.scores``."""
    factor: float
    propagate: int
    """SAME, SHIFT, or both."""
    causal: int
    seed: int
    """The seed's 64 bits as a signed integer."""
    first_slice: int
    """Number of the first slice in the full problem."""
    above: int = 0
    """Queries of the full grid before the first of these, which may be some of its rows."""
    rows: int = 0
    """Rows of the full grid of queries; 0 if these are all."""


BLOCK = 256
"""Queries of a task that does little for each."""


class Round(NamedTuple):
    """One pass over the queries of some tiles."""

    side: int
    """Which side of the field is read."""
    iteration: int
    jump: int
    down: int
    across: int
    """The jump in rows and columns of the key grid."""
    search: int
    """Whether the random search follows."""
    first: int
    """First row of the queries to renew."""
    last: int
    """The row after their last."""


class ListRound(Round):
    """A pass that keeps several matches of each query."""


@jit.device
def _patch_terms(plan: Plan, q: Floats, y: int, x: int, k: Floats, key: int) -> Any:
    """Sum of a score's terms over two patches."""
    margin = plan.patch - 1
    row_q, row_k = (plan.Wq + margin) * plan.d, (plan.Wk + margin) * plan.d
    at_q, at_k = y * row_q + x * plan.d, (key + key // plan.Wk * margin) * plan.d
    total = q.dtype.type(0)
    for _ in range(plan.patch):
        total += scores.terms(plan.kind, q, at_q, k, at_k, plan.patch * plan.d)
        at_q += row_q
        at_k += row_k
    return total


@jit.device(inline=True)
def evaluate(plan: Plan, q: Floats, y: int, x: int, k: Floats, key: int) -> Any:
    """Score of query ``(y, x)`` and a key, over their patches."""
    if plan.patch == 1:  # apart, for the general case costs a division
        at_q, at_k = (y * plan.Wq + x) * plan.d, key * plan.d
        total = scores.terms(plan.kind, q, at_q, k, at_k, plan.d)
    else:
        total = _patch_terms(plan, q, y, x, k, key)
    return scores.finish(plan.kind, q.dtype.type(plan.factor), total)


@jit.device(inline=True)
def allowed(plan: Plan, query: int, key: int, key_mask: Bools, mask: Bools) -> bool:
    """Whether a query may be matched to a key; masks of one row of none stand for no mask."""
    if plan.causal and key > plan.above + query:
        return False
    if len(key_mask) > 0 and not key_mask[key]:
        return False
    return mask.shape[0] == 0 or bool(mask[query, key])


@jit.device(inline=True)
def better(value: float, key: int, score: float, index: int) -> bool:
    """The total order: by score, ties to the lowest key."""
    return value > score or (value == score and key < index)


@jit.device(inline=True)
def enter(index: Ints, score: Floats, key: int, value: Any) -> None:
    """Enter a candidate into a list, best first, ties to the lowest key; NaN counts as -inf."""
    t = len(index) - 1
    if value != value:
        value = -np.inf
    if index[t] >= 0 and not better(value, key, score[t], index[t]):
        return
    while t > 0 and (index[t - 1] < 0 or better(value, key, score[t - 1], index[t - 1])):
        index[t], score[t] = index[t - 1], score[t - 1]
        t -= 1
    index[t], score[t] = key, value


@jit.device(inline=True)
def holds(index: Ints, count: int, key: int) -> bool:
    """Whether a key is among the first `count`."""
    for t in range(count):
        if index[t] == key:
            return True
    return False


@jit.device(inline=True)
def mapped(y: int, x: int, Hq: int, Wq: int, Hk: int, Wk: int) -> int:
    """Key at a query's own place, on a grid of another size."""
    return ((2 * y + 1) * Hk) // (2 * Hq) * Wk + ((2 * x + 1) * Wk) // (2 * Wq)
