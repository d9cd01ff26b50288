"""The search by trees: queries try the leaves that their neighbours' matches lie in."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from nlattn._types import Floats, Ints
from nlattn.engines.random_search import Inputs, Progress
from nlattn.kernels import leaves, scores, tree
from nlattn.kernels.leaves import SLOTS
from nlattn.kernels.matching import BLOCK, Plan
from nlattn.runtime.jit import blocks

LEAF = 256
"""Most keys of a leaf: a block that stays in the cache for all who try it."""


class LeafDivision(NamedTuple):
    """One division of the keys into leaves."""

    order: Ints
    """Keys, leaf by leaf."""
    home: Ints
    """Leaf of every key."""
    own: Ints
    """(n, 1), or (n, 2) if large negative products count too: leaves that queries fall into."""
    tried: Ints
    """(n, SLOTS) leaves that queries tried lately."""


def levels(m: int) -> int:
    """Halvings of `m` keys after which no leaf has more than LEAF."""
    return (max(1, -(-m // LEAF)) - 1).bit_length()


def nbytes(n: int, m: int, trees: int, topk: int, itemsize: int) -> int:
    """Bytes that a search by trees holds beside its field, at most."""
    lasting = 4 * (2 * m + n * (SLOTS + 2)) * trees
    return lasting + 2 * m * itemsize + n * SLOTS * (4 * topk + 40)


def plant(q: Floats, k: Floats, plan: Plan, count: int) -> list[LeafDivision]:
    """Trees over the keys of one slice, and where its queries fall."""
    n, m, size = plan.Hq * plan.Wq, plan.Hk * plan.Wk, plan.patch**2 * plan.d
    extra, reach = _lengths(q, k, plan)
    depth = levels(m)
    planes = np.empty((size + 1) << depth, k.dtype)
    thresholds, along = np.empty(1 << depth, k.dtype), np.empty(m, k.dtype)
    trees = []
    for number in range(count):
        order, home = np.arange(m, dtype=np.int32), np.empty(m, np.int32)
        for level in range(depth):
            tree.split(1 << level, k, extra, plan, number, level, order, along, planes, thresholds)
        tree.settle(1 << depth, depth, order, home)
        own = np.empty((2 if plan.kind == scores.ABSDOT else 1, n), np.int32)
        for sign, leaf in zip((1, -1), own, strict=False):
            tree.descend(blocks(n, BLOCK), q, sign * reach, plan, depth, planes, thresholds, leaf)
        if len(own) == 2:
            own[1][own[1] == own[0]] = -1
        trees.append(LeafDivision(order, home, own.T, np.full((n, SLOTS), -1, np.int32)))
    return trees


def _lengths(q: Floats, k: Floats, plan: Plan) -> tuple[Floats, Floats]:
    """What makes all keys equally long, and the factor that makes queries so too."""
    n, m = plan.Hq * plan.Wq, plan.Hk * plan.Wk
    if plan.kind == scores.NEG_L2:
        return np.zeros(m, k.dtype), np.ones(n, q.dtype)
    squares = _squares(k, plan.Hk, plan.Wk, plan)
    longest = squares.max(initial=0)
    extra = np.sqrt(np.maximum(longest - squares, 0))
    length = np.sqrt(_squares(q, plan.Hq, plan.Wq, plan))
    sign = -1 if plan.kind == scores.DOT and plan.factor < 0 else 1
    reach = np.divide(sign * np.sqrt(longest), length, out=np.zeros_like(length), where=length > 0)
    return extra, reach


def _squares(x: Floats, height: int, width: int, plan: Plan) -> Floats:
    """Squared length of every patch of a padded grid."""
    p, margin = plan.patch, plan.patch - 1
    pixels = x.reshape(height + margin, width + margin, plan.d)
    rows = np.square(pixels).sum(-1)
    total = np.zeros((height, width), x.dtype)
    for a in range(p):
        for b in range(p):
            total += rows[a : a + height, b : b + width]
    return total.reshape(-1)


def search(
    inputs: Inputs,
    plan: Plan,
    trees: int,
    rounds: int,
    progress: Progress,
    calm: Callable[[Ints, Ints], bool],
    state: tuple[Ints, Floats, Ints],
) -> int:
    """Search all slices from side 0 of the field; returns the side of the result.

    First every query tries the leaves it falls into, then, round by round, those of its
    neighbours' matches; a tree begins where the one before it ended.
    """
    q, k, slices, key_mask, mask = inputs
    index, score, counts = state
    n, topk = index.shape[2:]
    forests = [plant(q[a], k[b], plan, trees) for a, b, *_ in slices]
    slots, side = np.empty((n, SLOTS), np.int32), 0
    for number in range(1 + rounds):
        before = index[side].copy()
        for t in range(trees):
            for b, row in enumerate(slices):
                one, features = forests[b][t], (q[row[0]], k[row[1]])
                if number:
                    known = index[side, b], one.home, plan
                    leaves.propose(blocks(n, BLOCK), *known, one.tried, slots)
                else:
                    slots[:] = -1
                    slots[:, : one.own.shape[1]] = one.own
                    one.tried[:] = slots
                starts, visitors, place = _by_leaf(slots, 1 << levels(len(one.order)))
                found = np.empty((len(visitors), topk), np.int32)
                tested = np.empty(len(visitors), np.int32)
                masks = key_mask[row[2]], mask[row[3]]
                leaf_inputs = *features, *masks, plan, one.order, starts, visitors
                leaves.match(len(starts) - 1, *leaf_inputs, found, tested)
                leaves.merge(blocks(n, BLOCK), *features, plan, side, b, place, found, index, score)
                counts[b] += np.bincount(visitors, tested, n).astype(np.int64)
            side = 1 - side
            if progress is not None:
                progress(number * trees + t + 1, (1 + rounds) * trees)
        if number and calm(before, index[side]):
            break
    return side


def _by_leaf(slots: Ints, count: int) -> tuple[Ints, Ints, Ints]:
    """Where each leaf's visitors begin, the queries leaf by leaf, and the place of each slot."""
    used = np.flatnonzero(slots >= 0)
    leaf = slots.reshape(-1)[used]
    order = np.argsort(leaf.astype(np.min_scalar_type(count)), kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(leaf, minlength=count))])
    place = np.full(slots.shape, -1, np.int32)
    place.reshape(-1)[used[order]] = np.arange(len(used), dtype=np.int32)
    return starts, (used[order] // slots.shape[1]).astype(np.int32), place
