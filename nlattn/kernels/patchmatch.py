"""PatchMatch: the best keys of every query of a grid, by propagation and random search.

A round reads one side of the field and writes the other, each query its own cell, so that neither
the order of queries nor the number of threads can change the result. Queries are visited in square
tiles: neighbours match neighbouring keys, whose features then are still in the cache.

Features are flat arrays of grids padded by ``patch // 2`` on every side, in which a patch is
``patch`` runs of ``patch * d`` numbers. Section numbers are those of docs/algorithms/patchmatch.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nlattn import _jit
from nlattn._types import Bools, Floats, Ints
from nlattn.kernels import rng, scores

TILE = 32
SAME, SHIFT = 1, 2
_TRIES = 8  # draws of a random valid key before the keys are walked
_LINE = 16  # numbers from one prefetch to the next: a cache line of float32


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
    last: int
    """Tiles, of all slices."""


@_jit.device(inline=True)
def _evaluate(plan: Plan, q: Floats, y: int, x: int, k: Floats, key: int) -> Any:
    """Score of query ``(y, x)`` and a key, over their patches; NaN counts as -inf."""
    margin = plan.patch - 1
    row_q, row_k = (plan.Wq + margin) * plan.d, (plan.Wk + margin) * plan.d
    at_q, at_k = y * row_q + x * plan.d, (key + key // plan.Wk * margin) * plan.d
    total = scores.terms(plan.kind, q, at_q, k, at_k, plan.patch * plan.d)
    for _ in range(margin):
        at_q += row_q
        at_k += row_k
        total += scores.terms(plan.kind, q, at_q, k, at_k, plan.patch * plan.d)
    total = scores.finish(plan.kind, q.dtype.type(plan.factor), total)
    return total if total == total else q.dtype.type(-np.inf)


@_jit.device(inline=True)
def _fetch(plan: Plan, k: Floats, key: int) -> None:
    """Ask for a key's features ahead of their use."""
    if plan.patch == 1:
        for c in range(0, plan.d, _LINE):
            scores.prefetch(k, key * plan.d + c)


@_jit.device(inline=True)
def _allowed(plan: Plan, query: int, key: int, key_mask: Bools, mask: Bools) -> bool:
    """Whether a query may be matched to a key; masks of one row of none stand for no mask."""
    if plan.causal and key > query:
        return False
    if len(key_mask) > 0 and not key_mask[key]:
        return False
    return mask.shape[0] == 0 or bool(mask[query, key])


@_jit.device(inline=True)
def _enter(index: Ints, score: Floats, key: int, value: Any) -> None:
    """Enter a candidate into a list, best first, ties to the lowest key."""
    t = len(index) - 1
    if index[t] >= 0 and not (value > score[t] or (value == score[t] and key < index[t])):
        return
    while t > 0 and (
        index[t - 1] < 0 or value > score[t - 1] or (value == score[t - 1] and key < index[t - 1])
    ):
        index[t], score[t] = index[t - 1], score[t - 1]
        t -= 1
    index[t], score[t] = key, value


@_jit.device(inline=True)
def _holds(index: Ints, count: int, key: int) -> bool:
    for t in range(count):
        if index[t] == key:
            return True
    return False


@_jit.device(inline=True)
def mapped(y: int, x: int, Hq: int, Wq: int, Hk: int, Wk: int) -> int:
    """Key at a query's own place, on a grid of another size."""
    return ((2 * y + 1) * Hk) // (2 * Hq) * Wk + ((2 * x + 1) * Wk) // (2 * Wq)


@_jit.device(inline=True)
def _step(delta: int, size_q: int, size_k: int) -> int:
    """A step on the query grid in steps of the key grid, rounded half away from zero."""
    length = (2 * abs(delta) * size_k + size_q) // (2 * size_q)
    return length if delta > 0 else -length


@_jit.device(inline=True)
def _state(plan: Plan, b: int, iteration: int, query: int) -> Any:
    state = rng.absorb(rng.start(np.uint64(plan.seed)), plan.first_slice + b)
    return rng.absorb(rng.absorb(state, iteration), query)


@_jit.device
def _first_key(plan: Plan, b: int, query: int, key_mask: Bools, mask: Bools, valid: Ints) -> int:
    """A random key that the query may be matched to, -1 if there is none.

    Keys before `query` are drawn from their list, for causal searches and padded keys; a general
    mask is tried a few times, then its own place, then all keys in order: nothing can spin.
    """
    state = _state(plan, b, 0, query)
    if mask.shape[0] == 0:
        count = int(np.searchsorted(valid, query, side="right")) if plan.causal else len(valid)
        if len(valid) == plan.Hk * plan.Wk and not plan.causal:
            row = rng.bounded(rng.absorb(state, 0), plan.Hk)
            return int(row * plan.Wk + rng.bounded(rng.absorb(state, 1), plan.Wk))
        return int(valid[rng.bounded(rng.absorb(state, 0), count)]) if count > 0 else -1
    for c in range(_TRIES):
        row = rng.bounded(rng.absorb(state, 2 * c), plan.Hk)
        key = row * plan.Wk + rng.bounded(rng.absorb(state, 2 * c + 1), plan.Wk)
        if _allowed(plan, query, key, key_mask, mask):
            return int(key)
    key = mapped(query // plan.Wq, query % plan.Wq, plan.Hq, plan.Wq, plan.Hk, plan.Wk)
    if _allowed(plan, query, key, key_mask, mask):
        return int(key)
    for key in valid:
        if _allowed(plan, query, key, key_mask, mask):
            return int(key)
    return -1


@_jit.kernel
def begin(
    q: Floats,
    k: Floats,
    slices: Ints,
    key_mask: Bools,
    mask: Bools,
    valid: Ints,
    plan: Plan,
    index: Ints,
    score: Floats,
    counts: Ints,
) -> None:
    """Fill side 0 with one random match per query, and its own place if ``valid[0]`` says so.

    ``valid`` (slices of key_mask, 2 + Hk Wk): whether the own place is tried, number of valid keys,
    and those keys ascending.
    """
    n = plan.Hq * plan.Wq
    for row in _jit.prange(len(slices) * n):
        b, query = row // n, row % n
        features, keys = q[slices[b, 0]], k[slices[b, 1]]
        masks, pairs = key_mask[slices[b, 2]], mask[slices[b, 3]]
        listed = valid[slices[b, 2]]
        y, x = query // plan.Wq, query % plan.Wq
        best, value = index[0, b, query], score[0, b, query]
        key = _first_key(plan, b, query, masks, pairs, listed[2 : 2 + listed[1]])
        tested, evaluated = 0, 0
        if key >= 0:
            tested, evaluated = 1, 1
            _enter(best, value, key, _evaluate(plan, features, y, x, keys, key))
            own = mapped(y, x, plan.Hq, plan.Wq, plan.Hk, plan.Wk)
            if listed[0] and _allowed(plan, query, own, masks, pairs):
                tested += 1
                if own != key:
                    evaluated += 1
                    _enter(best, value, own, _evaluate(plan, features, y, x, keys, own))
        counts[0, b, query], counts[1, b, query] = tested, evaluated


@_jit.device(inline=True)
def _propose(
    plan: Plan, step: Round, y: int, x: int, index: Ints, entry: int, proposals: Ints
) -> int:
    """List the matches of four neighbours at a distance, and those matches shifted back."""
    count = 0
    for direction in range(4):
        sign = -1 if direction % 2 == 0 else 1
        across, down = (sign, 0) if direction < 2 else (0, sign)
        ny, nx = y + down * step.jump, x + across * step.jump
        if not (0 <= ny < plan.Hq and 0 <= nx < plan.Wq):
            continue
        match = index[ny * plan.Wq + nx, entry]
        if match < 0:
            continue
        if plan.propagate & SAME:
            proposals[count] = match
            count += 1
        if plan.propagate & SHIFT:
            row = match // plan.Wk
            column = match - row * plan.Wk - across * step.across
            row -= down * step.down
            if 0 <= row < plan.Hk and 0 <= column < plan.Wk:
                proposals[count] = row * plan.Wk + column
                count += 1
    return count


@_jit.device(inline=True)
def _draw(plan: Plan, state: Any, radius: int, number: int, centre: int) -> int:
    """A random key of the box of a radius around a centre, clipped to the grid."""
    row = centre // plan.Wk
    column = centre - row * plan.Wk
    top, left = max(row - radius, 0), max(column - radius, 0)
    height = min(row + radius, plan.Hk - 1) - top + 1
    width = min(column + radius, plan.Wk - 1) - left + 1
    row = top + rng.bounded(rng.absorb(state, 2 * number), height)
    return int(row * plan.Wk + left + rng.bounded(rng.absorb(state, 2 * number + 1), width))


@_jit.device(inline=True)
def _better(value: Any, key: int, score: Any, index: int) -> bool:
    """The total order: by score, ties to the lowest key."""
    return value > score or (value == score and key < index)


@_jit.device(inline=True)
def _renew_one(
    plan: Plan,
    step: Round,
    features: Floats,
    keys: Floats,
    masks: Bools,
    pairs: Bools,
    before: Ints,
    b: int,
    y: int,
    x: int,
    best: int,
    value: Any,
    proposals: Ints,
) -> tuple[int, Any, int, int]:
    """A query's best match after a round, its score, candidates tested and evaluated."""
    query, tested, evaluated = y * plan.Wq + x, 0, 0
    count = _propose(plan, step, y, x, before, 0, proposals)
    for t in range(count):
        _fetch(plan, keys, proposals[t])
    for t in range(count):
        key = proposals[t]
        if not _allowed(plan, query, key, masks, pairs):
            continue
        tested += 1
        if key == best or _holds(proposals, t, key):
            continue
        evaluated += 1
        s = _evaluate(plan, features, y, x, keys, key)
        if _better(s, key, value, best):
            best, value = key, s
    if step.search:
        state = _state(plan, b, step.iteration, query)
        radius, number = max(plan.Hk, plan.Wk), 0
        while radius >= 1:
            key = _draw(plan, state, radius, number, best)
            if _allowed(plan, query, key, masks, pairs):
                tested += 1
                if key != best:
                    evaluated += 1
                    s = _evaluate(plan, features, y, x, keys, key)
                    if _better(s, key, value, best):
                        best, value = key, s
            radius //= 2
            number += 1
    return best, value, tested, evaluated


@_jit.kernel
def renew(
    q: Floats,
    k: Floats,
    slices: Ints,
    key_mask: Bools,
    mask: Bools,
    plan: Plan,
    step: Round,
    index: Ints,
    score: Floats,
    counts: Ints,
) -> None:
    """One round over some tiles, from one side to the other: propagate, then search."""
    down, across = -(-plan.Hq // TILE), -(-plan.Wq // TILE)
    topk = index.shape[3]
    for tile in _jit.prange(step.first, step.last):
        b, top, left = tile // (down * across), tile // across % down * TILE, tile % across * TILE
        features, keys = q[slices[b, 0]], k[slices[b, 1]]
        masks, pairs = key_mask[slices[b, 2]], mask[slices[b, 3]]
        before, after = index[step.side, b], index[1 - step.side, b]
        old, new = score[step.side, b], score[1 - step.side, b]
        proposals = np.empty(8, np.int32)
        centres = np.empty(topk, np.int32)
        for y in range(top, min(top + TILE, plan.Hq)):
            for x in range(left, min(left + TILE, plan.Wq)):
                query = y * plan.Wq + x
                if topk == 1:
                    match, reached = before[query, 0], old[query, 0]
                    if match >= 0:
                        match, reached, tested, evaluated = _renew_one(
                            plan,
                            step,
                            features,
                            keys,
                            masks,
                            pairs,
                            before,
                            b,
                            y,
                            x,
                            match,
                            reached,
                            proposals,
                        )
                        counts[0, b, query] += tested
                        counts[1, b, query] += evaluated
                    after[query, 0], new[query, 0] = match, reached
                    continue
                best, value = after[query], new[query]
                for t in range(topk):
                    best[t], value[t] = before[query, t], old[query, t]
                if best[0] < 0:
                    continue
                tested, evaluated = 0, 0
                for entry in range(topk):
                    count = _propose(plan, step, y, x, before, entry, proposals)
                    for t in range(count):
                        _fetch(plan, keys, proposals[t])
                    for t in range(count):
                        key = proposals[t]
                        if not _allowed(plan, query, key, masks, pairs):
                            continue
                        tested += 1
                        if _holds(best, topk, key) or _holds(proposals, t, key):
                            continue
                        evaluated += 1
                        _enter(best, value, key, _evaluate(plan, features, y, x, keys, key))
                if step.search:
                    state = _state(plan, b, step.iteration, query)
                    for t in range(topk):
                        centres[t] = best[t]
                    number = 0
                    for entry in range(topk):
                        radius = max(plan.Hk, plan.Wk)
                        while radius >= 1 and centres[entry] >= 0:
                            centre = best[0] if topk == 1 else centres[entry]
                            key = _draw(plan, state, radius, number, centre)
                            if _allowed(plan, query, key, masks, pairs):
                                tested += 1
                                if not _holds(best, topk, key):
                                    evaluated += 1
                                    s = _evaluate(plan, features, y, x, keys, key)
                                    _enter(best, value, key, s)
                            radius //= 2
                            number += 1
                counts[0, b, query] += tested
                counts[1, b, query] += evaluated
