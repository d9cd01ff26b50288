"""Candidates by leaves: a query tries all keys that share a leaf with what its neighbours found.

Queries that try the same leaf are gathered, so that scoring is a matrix product. It only chooses:
what enters a list is scored again by the one score, so a stored score equals a recomputed one.
Source: the idea is He and Sun's, propagation-assisted kd-trees.
"""

from __future__ import annotations

import numpy as np

from nlattn._types import Bools, Floats, Ints
from nlattn.kernels import scores
from nlattn.kernels.gemm import aligned, multiply, width
from nlattn.kernels.matching import BLOCK, SAME, SHIFT, Plan, allowed, enter, evaluate, holds
from nlattn.kernels.tree import begins
from nlattn.runtime import jit

_RUN = 16
SLOTS = 9  # leaves that a query tries at most: of its own match, and two of each neighbour's


@jit.device(inline=True)
def _note(leaf: int, slots: Ints, count: int, tried: Ints) -> int:
    """Add a leaf, unless it is there or was tried; returns how many there are."""
    if holds(slots, count, leaf) or holds(tried, SLOTS, leaf):
        return count
    slots[count] = leaf
    return count + 1


@jit.kernel
def propose(block: int, index: Ints, home: Ints, plan: Plan, tried: Ints, slots: Ints) -> None:
    """Leaves of each query's match and of its four neighbours', as they are and shifted; -1 fills.

    `tried` (n, SLOTS) are the last ones of this tree, which come no second time.
    """
    for query in range(block * BLOCK, min(block * BLOCK + BLOCK, len(index))):
        y, x, count = query // plan.Wq, query % plan.Wq, 0
        mine = slots[query]
        if index[query, 0] >= 0:
            count = _note(home[index[query, 0]], mine, 0, tried[query])
            for direction in range(4):
                sign = -1 if direction % 2 == 0 else 1
                across, down = (sign, 0) if direction < 2 else (0, sign)
                if not (0 <= y + down < plan.Hq and 0 <= x + across < plan.Wq):
                    continue
                match = index[query + down * plan.Wq + across, 0]
                if match < 0:
                    continue
                if plan.propagate & SAME:
                    count = _note(home[match], mine, count, tried[query])
                row, column = match // plan.Wk - down, match % plan.Wk - across
                if plan.propagate & SHIFT and 0 <= row < plan.Hk and 0 <= column < plan.Wk:
                    count = _note(home[row * plan.Wk + column], mine, count, tried[query])
        for t in range(count, SLOTS):
            mine[t] = -1
        for t in range(SLOTS - 1, count - 1, -1):
            tried[query, t] = tried[query, t - count]
        for t in range(count):
            tried[query, t] = mine[t]


@jit.device(inline=True)
def _pack(
    plan: Plan, grid: int, x: Floats, position: int, out: Floats, first: int, step: int
) -> None:
    """Write a patch of a grid of some width to ``out[first], out[first + step], ...``."""
    at = begins(plan, grid, position)
    for _ in range(plan.patch):
        for c in range(plan.patch * plan.d):
            out[first] = x[at + c]
            first += step
        at += (grid + plan.patch - 1) * plan.d


@jit.device
def _choose(s: Floats, keys: int, w: int, lane: int, found: Ints, room: Floats) -> None:
    """Rows of the largest numbers of a lane, best first, ties to the first."""
    found[:] = -1
    for j in range(keys):
        if s[j * w + lane] > -np.inf:
            enter(found, room, j, s[j * w + lane])


@jit.device
def _first_of_largest(s: Floats, keys: int, w: int, best: Floats, most: Floats, row: Ints) -> None:
    """First row of the largest number of every lane, -1 for none.

    Rows go by runs: within a run only the maximum is kept, which is a vector instruction.
    """
    for l in range(w):
        best[l], row[l] = -np.inf, -1
    for start in range(0, keys, _RUN):
        last = min(start + _RUN, keys)
        for l in range(w):
            most[l] = -np.inf
        for j in range(start, last):
            line = s[j * w : j * w + w]
            for l in range(w):
                most[l] = line[l] if line[l] > most[l] else most[l]
        for l in range(w):
            if most[l] > best[l]:
                best[l], row[l] = most[l], start
    for l in range(w):
        while row[l] >= 0 and s[row[l] * w + l] != best[l]:
            row[l] += 1


@jit.kernel
def match(
    leaf: int,
    q: Floats,
    k: Floats,
    masks: Bools,
    pairs: Bools,
    plan: Plan,
    order: Ints,
    starts: Ints,
    visitors: Ints,
    found: Ints,
    tested: Ints,
) -> None:
    """Best keys of each leaf for all its visitors: ``found[place]``, -1 fills."""
    leaves, m, size = len(starts) - 1, len(order), plan.patch * plan.patch * plan.d
    most, topk, w = -(-m // leaves), found.shape[1], width(q)
    masked = plan.causal != 0 or len(masks) > 0 or len(pairs) > 0
    first, last = leaf * m // leaves, (leaf + 1) * m // leaves
    keys = last - first
    block, panel = aligned(most * (size + 1), q), aligned((size + 1) * w, q)
    s, middle = aligned(most * w, q), np.zeros(size, q.dtype)
    best, most_here = np.empty(w, q.dtype), np.empty(w, q.dtype)
    row, room = np.empty(w, np.int64), np.empty(topk, q.dtype)
    if plan.kind == scores.NEG_L2 and starts[leaf + 1] > starts[leaf]:
        _pack(plan, plan.Wk, k, order[first], middle, 0, 1)  # small numbers cancel less
    for j in range(keys if starts[leaf + 1] > starts[leaf] else 0):
        at = j * (size + 1)
        _pack(plan, plan.Wk, k, order[first + j], block, at, 1)
        block[at + size] = 0
        for c in range(size):
            block[at + c] -= middle[c]
        if plan.kind == scores.NEG_L2:
            block[at + size] = -scores.terms(scores.DOT, block, at, block, at, size) / 2
    for start in range(starts[leaf], starts[leaf + 1], w):
        lanes = min(w, starts[leaf + 1] - start)
        panel[:] = 0
        factor = q.dtype.type(1 if plan.kind == scores.NEG_L2 else plan.factor)
        for l in range(lanes):
            _pack(plan, plan.Wq, q, visitors[start + l], panel, l, w)
            panel[size * w + l] = 1
            for c in range(size):
                panel[c * w + l] = (panel[c * w + l] - middle[c]) * factor
        multiply(block, 0, size + 1, 1, panel, 0, w, s, 0, w, keys, size + 1)
        if plan.kind == scores.ABSDOT:
            for t in range(keys * w):
                s[t] = abs(s[t])
        for l in range(lanes):
            tested[start + l] = keys
            if masked:
                for j in range(keys):
                    if not allowed(plan, visitors[start + l], order[first + j], masks, pairs):
                        s[j * w + l] = -np.inf
                        tested[start + l] -= 1
        if topk == 1:
            _first_of_largest(s, keys, w, best, most_here, row)
            for l in range(lanes):
                found[start + l, 0] = row[l]
        else:
            for l in range(lanes):
                _choose(s, keys, w, l, found[start + l], room)
        for l in range(lanes):
            for t in range(topk):
                if found[start + l, t] >= 0:
                    found[start + l, t] = order[first + found[start + l, t]]


@jit.kernel
def merge(
    block: int,
    q: Floats,
    k: Floats,
    plan: Plan,
    side: int,
    b: int,
    place: Ints,
    found: Ints,
    index: Ints,
    score: Floats,
) -> None:
    """Enter what the leaves hold into the lists of slice b, from one side to the other."""
    topk = index.shape[3]
    for query in range(block * BLOCK, min(block * BLOCK + BLOCK, len(place))):
        y, x = query // plan.Wq, query % plan.Wq
        best, value = index[1 - side, b, query], score[1 - side, b, query]
        for t in range(topk):
            best[t], value[t] = index[side, b, query, t], score[side, b, query, t]
        for slot in place[query]:
            if slot >= 0:
                for key in found[slot]:
                    if key >= 0 and not holds(best, topk, key):
                        enter(best, value, key, evaluate(plan, q, y, x, k, key))
