"""Exact search: every key of every query, the measure of all other searches."""

from __future__ import annotations

from nlattn._types import Bools, Floats, Ints
from nlattn.kernels.matching import TILE, Plan, allowed, enter, evaluate
from nlattn.runtime import jit

_KEYS = 256  # a block stays in the cache for a whole run of queries


@jit.kernel
def scan(
    run: int,
    q: Floats,
    k: Floats,
    slices: Ints,
    key_mask: Bools,
    mask: Bools,
    plan: Plan,
    index: Ints,
    score: Floats,
    counts: Ints,
) -> None:
    """Exact search into side 0: every key of every query of some runs of TILE queries."""
    n, m = plan.Hq * plan.Wq, plan.Hk * plan.Wk
    runs = -(-n // TILE)
    b, start = run // runs, run % runs * TILE
    features, keys = q[slices[b, 0]], k[slices[b, 1]]
    masks, pairs = key_mask[slices[b, 2]], mask[slices[b, 3]]
    best, value = index[0, b], score[0, b]
    for first in range(0, m, _KEYS):
        for query in range(start, min(start + TILE, n)):
            y, x = query // plan.Wq, query % plan.Wq
            tested = 0
            for key in range(first, min(first + _KEYS, m)):
                if allowed(plan, query, key, masks, pairs):
                    tested += 1
                    s = evaluate(plan, features, y, x, keys, key)
                    enter(best[query], value[query], key, s)
            counts[b, query] += tested
