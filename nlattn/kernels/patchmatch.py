"""PatchMatch: the best keys of every query of a grid, by propagation and random search.

A round reads one side of the field and writes the other, each query its own cell, so that neither
the order of queries nor the number of threads can change the result. Queries are visited in square
tiles: neighbours match neighbouring keys, whose features then are still in the cache.
"""

from __future__ import annotations

import numpy as np

from nlattn._types import Bools, Floats, Ints
from nlattn.kernels import rng
from nlattn.kernels.matching import (
    SAME,
    SHIFT,
    TILE,
    ListRound,
    Plan,
    Round,
    allowed,
    better,
    enter,
    evaluate,
    holds,
    mapped,
)
from nlattn.kernels.scores import fetch
from nlattn.runtime import jit

_NEAR, _MOST = 8, 32  # proposals of neighbours, and draws: one for each halving of the side
_TRIES = 8  # draws of a random valid key before the keys are walked


@jit.device(inline=True)
def _state(plan: Plan, b: int, iteration: int, query: int) -> np.uint64:
    state = rng.absorb(rng.start(np.uint64(np.int64(plan.seed))), plan.first_slice + b)
    return rng.absorb(rng.absorb(state, iteration), plan.above + query)


@jit.device(inline=True)
def _own(plan: Plan, y: int, x: int) -> int:
    """Key at a query's own place."""
    rows = plan.rows if plan.rows > 0 else plan.Hq
    return mapped(y + plan.above // plan.Wq, x, rows, plan.Wq, plan.Hk, plan.Wk)


@jit.device
def _up_to(valid: Ints, query: int) -> int:
    """How many of the ascending keys are no later than a query."""
    low, high = 0, len(valid)
    while low < high:
        middle = (low + high) // 2
        if valid[middle] <= query:
            low = middle + 1
        else:
            high = middle
    return low


@jit.device(once=True)
def _first_key(plan: Plan, b: int, query: int, key_mask: Bools, mask: Bools, valid: Ints) -> int:
    """A random key that the query may be matched to, -1 if there is none.

    Keys before `query` are drawn from their list, for causal searches and padded keys; a general
    mask is tried a few times, then its own place, then all keys in order: nothing can spin.
    """
    state = _state(plan, b, 0, query)
    if mask.shape[0] == 0:
        count = _up_to(valid, plan.above + query) if plan.causal else len(valid)
        if len(valid) == plan.Hk * plan.Wk and not plan.causal:
            row = rng.bounded(rng.absorb(state, 0), plan.Hk)
            return int(row * plan.Wk + rng.bounded(rng.absorb(state, 1), plan.Wk))
        return int(valid[rng.bounded(rng.absorb(state, 0), count)]) if count > 0 else -1
    for c in range(_TRIES):
        row = rng.bounded(rng.absorb(state, 2 * c), plan.Hk)
        key = row * plan.Wk + rng.bounded(rng.absorb(state, 2 * c + 1), plan.Wk)
        if allowed(plan, query, key, key_mask, mask):
            return int(key)
    key = _own(plan, query // plan.Wq, query % plan.Wq)
    if allowed(plan, query, key, key_mask, mask):
        return int(key)
    for key in valid:
        if allowed(plan, query, key, key_mask, mask):
            return int(key)
    return -1


@jit.kernel
def begin(
    run: int,
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
    """Fill side 0 of TILE queries with a random match, and their own place if ``valid[0]`` says so.

    ``valid`` (slices of key_mask, 2 + Hk Wk): whether the own place is tried, number of valid keys,
    and those keys ascending.
    """
    n = plan.Hq * plan.Wq
    runs = -(-n // TILE)
    b, start = run // runs, run % runs * TILE
    features, keys = q[slices[b, 0]], k[slices[b, 1]]
    masks, pairs = key_mask[slices[b, 2]], mask[slices[b, 3]]
    listed = valid[slices[b, 2]]
    for query in range(start, min(start + TILE, n)):
        y, x = query // plan.Wq, query % plan.Wq
        best, value = index[0, b, query], score[0, b, query]
        key = _first_key(plan, b, query, masks, pairs, listed[2 : 2 + listed[1]])
        counts[b, query] = 0
        if key >= 0:
            counts[b, query] = 1
            enter(best, value, key, evaluate(plan, features, y, x, keys, key))
            own = _own(plan, y, x)
            if listed[0] and allowed(plan, query, own, masks, pairs):
                counts[b, query] = 2
                if own != key:
                    enter(best, value, own, evaluate(plan, features, y, x, keys, own))


@jit.device(inline=True)
def _propose(
    plan: Plan,
    step: Round,
    y: int,
    x: int,
    index: Ints,
    entry: int,
    keys: Floats,
    proposals: Ints,
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
            fetch(keys, match * plan.d)
            count += 1
        if plan.propagate & SHIFT:
            row = match // plan.Wk
            column = match - row * plan.Wk - across * step.across
            row -= down * step.down
            if 0 <= row < plan.Hk and 0 <= column < plan.Wk:
                proposals[count] = row * plan.Wk + column
                fetch(keys, proposals[count] * plan.d)
                count += 1
    return count


@jit.device(inline=True)
def _draw(plan: Plan, state: np.uint64, radius: int, number: int, centre: int) -> int:
    """A random key of the box of a radius around a centre, clipped to the grid."""
    row = centre // plan.Wk
    column = centre - row * plan.Wk
    top, left = max(row - radius, 0), max(column - radius, 0)
    height = min(row + radius, plan.Hk - 1) - top + 1
    width = min(column + radius, plan.Wk - 1) - left + 1
    row = top + rng.bounded(rng.absorb(state, 2 * number), height)
    return int(row * plan.Wk + left + rng.bounded(rng.absorb(state, 2 * number + 1), width))


@jit.device(inline=True)
def _halvings(plan: Plan) -> int:
    """How often the side of the key grid can be halved until nothing is left."""
    number = 0
    while max(plan.Hk, plan.Wk) >> number >= 1:
        number += 1
    return number


@jit.device(inline=True)
def _draws(
    plan: Plan, state: np.uint64, first: int, centre: int, keys: Floats, proposals: Ints
) -> None:
    """List the random keys around a centre, from number `first`, one for each halving."""
    for number in range(first, _halvings(plan)):
        radius = max(plan.Hk, plan.Wk) >> number
        proposals[number] = _draw(plan, state, radius, number, centre)
        fetch(keys, proposals[number] * plan.d)


@jit.device(inline=True)
def _prepare(
    step: Round, plan: Plan, before: Ints, b: int, y: int, x: int, keys: Floats, room: Ints
) -> None:
    """List what a query will be compared to: how many proposals of neighbours, they, and draws."""
    query = y * plan.Wq + x
    room[0] = _propose(plan, step, y, x, before, 0, keys, room[1:])
    if step.search and before[query, 0] >= 0:
        state = _state(plan, b, step.iteration, query)
        _draws(plan, state, 0, before[query, 0], keys, room[1 + _NEAR :])


def _renew_one(
    step: Round,
    plan: Plan,
    features: Floats,
    keys: Floats,
    masks: Bools,
    pairs: Bools,
    before: Ints,
    b: int,
    y: int,
    x: int,
    after: Ints,
    new: Floats,
    room: Ints,
) -> int:
    """Better a query's only match in place; returns how many candidates were tested.

    Those of the next query are listed first, so that memory is read while this one's are compared.
    """
    query, tested = y * plan.Wq + x, 0
    end = min(x - x % TILE + TILE, plan.Wq)
    for column in range(x + (x % TILE > 0), min(x + 2, end)):
        _prepare(step, plan, before, b, y, column, keys, room[column % 2])
    best, value = after[query, 0], new[query, 0]
    if best < 0:
        return 0
    masked = plan.causal != 0 or len(masks) > 0 or len(pairs) > 0
    near = room[x % 2]
    draws, centre = near[1 + _NEAR :], best
    for t in range(near[0]):
        key = near[1 + t]
        if masked and not allowed(plan, query, key, masks, pairs):
            continue
        tested += 1
        s = evaluate(plan, features, y, x, keys, key)
        if better(s, key, value, best):
            best, value = key, s
    if step.search:
        state = _state(plan, b, step.iteration, query)
        moved = best != centre
        for t in range(_halvings(plan)):
            if moved:
                _draws(plan, state, t, best, keys, draws)
                moved = False
            key = draws[t]
            if not masked or allowed(plan, query, key, masks, pairs):
                tested += 1
                s = evaluate(plan, features, y, x, keys, key)
                if better(s, key, value, best):
                    best, value, moved = key, s, True
    after[query, 0], new[query, 0] = best, value
    return tested


def _renew_list(
    step: Round,
    plan: Plan,
    features: Floats,
    keys: Floats,
    masks: Bools,
    pairs: Bools,
    before: Ints,
    b: int,
    y: int,
    x: int,
    after: Ints,
    new: Floats,
    room: Ints,
) -> int:
    """Better a query's list of matches in place; returns how many candidates were tested.

    The boxes of the random search lie around the matches held after propagation.
    """
    query, tested, proposals = y * plan.Wq + x, 0, room[0]
    best, value, topk = after[query], new[query], after.shape[1]
    if best[0] < 0:
        return 0
    for entry in range(topk):
        for t in range(_propose(plan, step, y, x, before, entry, keys, proposals)):
            key = proposals[t]
            if allowed(plan, query, key, masks, pairs):
                tested += 1
                if not holds(best, topk, key):
                    enter(best, value, key, evaluate(plan, features, y, x, keys, key))
    if step.search:
        state = _state(plan, b, step.iteration, query)
        number = 0
        for t in range(topk):
            proposals[t] = best[t]
        for t in range(topk):
            centre, radius = proposals[t], max(plan.Hk, plan.Wk)
            while radius >= 1 and centre >= 0:
                key = _draw(plan, state, radius, number, centre)
                if allowed(plan, query, key, masks, pairs):
                    tested += 1
                    if not holds(best, topk, key):
                        enter(best, value, key, evaluate(plan, features, y, x, keys, key))
                radius //= 2
                number += 1
    return tested


_renew = jit.by_class({Round: _renew_one, ListRound: _renew_list}, forceinline=True, _nrt=False)


@jit.kernel
def renew(
    tile: int,
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
    down, across = -(-(step.last - step.first) // TILE), -(-plan.Wq // TILE)
    topk = index.shape[3]
    b, left = tile // (down * across), tile % across * TILE
    top = step.first + tile // across % down * TILE
    features, keys = q[slices[b, 0]], k[slices[b, 1]]
    masks, pairs = key_mask[slices[b, 2]], mask[slices[b, 3]]
    before, after = index[step.side, b], index[1 - step.side, b]
    old, new = score[step.side, b], score[1 - step.side, b]
    room = np.empty((2, max(1 + _NEAR + _MOST, topk)), np.int32)
    for y in range(top, min(top + TILE, step.last)):
        for x in range(left, min(left + TILE, plan.Wq)):
            query = y * plan.Wq + x
            for t in range(topk):
                after[query, t], new[query, t] = before[query, t], old[query, t]
            counts[b, query] += _renew(
                step,
                plan,
                features,
                keys,
                masks,
                pairs,
                before,
                b,
                y,
                x,
                after,
                new,
                room,
            )
