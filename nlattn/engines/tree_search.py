"""The search by trees: queries try the leaves that their neighbours' matches lie in."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from nlattn._types import Array, Bools, Floats, Ints
from nlattn.engines.random_search import Inputs, Progress
from nlattn.kernels import leaves, scores, tree
from nlattn.kernels.leaves import SLOTS
from nlattn.kernels.matching import BLOCK, Plan
from nlattn.runtime.jit import blocks

LEAF = 256
"""Most keys of a leaf: a block that stays in the cache for all who try it."""

_PIXELS = 1 << 18  # whose squares are in memory at a time


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
    n = plan.Hq * plan.Wq
    squares = key_squares(k, plan)
    longest = squares.max(initial=0)
    extra, reach = lengthening(squares, longest, plan), reaches(q, longest, plan)
    trees = []
    for number in range(count):
        order, home, planes, thresholds = grow(k, extra, plan, number)
        own = fall(q, reach, plan, planes, thresholds)
        trees.append(LeafDivision(order, home, own.T, np.full((n, SLOTS), -1, np.int32)))
    return trees


def grow(k: Floats, extra: Floats, plan: Plan, number: int) -> tuple[Ints, Ints, Floats, Floats]:
    """One tree: its keys leaf by leaf, the leaf of every key, planes and thresholds."""
    m, size = plan.Hk * plan.Wk, plan.patch**2 * plan.d
    depth = levels(m)
    planes, along = np.zeros((size + 1) << depth, k.dtype), np.empty(m, k.dtype)
    thresholds = np.zeros(1 << depth, k.dtype)
    order, home = np.arange(m, dtype=np.int32), np.empty(m, np.int32)
    for level in range(depth):
        tree.split(1 << level, k, extra, plan, number, level, order, along, planes, thresholds)
    tree.settle(1 << depth, depth, order, home)
    return order, home, planes, thresholds


def fall(q: Floats, reach: Floats, plan: Plan, planes: Floats, thresholds: Floats) -> Ints:
    """Leaf of every query (1, n), or of it and its opposite (2, n), -1 where they are one."""
    n, depth = len(reach), (len(thresholds) - 1).bit_length()
    own = np.empty((2 if plan.kind == scores.ABSDOT else 1, n), np.int32)
    for sign, leaf in zip((1, -1), own, strict=False):
        tree.descend(blocks(n, BLOCK), q, sign * reach, plan, depth, planes, thresholds, leaf)
    if len(own) == 2:
        own[1][own[1] == own[0]] = -1
    return own


def key_squares(k: Floats, plan: Plan) -> Floats:
    """Squared length of every key, if scores ask for it; else 0."""
    if plan.kind == scores.NEG_L2:
        return np.zeros(plan.Hk * plan.Wk, k.dtype)
    return _squares(k, plan.Hk, plan.Wk, plan)


def lengthening(squares: Floats, longest: Array, plan: Plan) -> Floats:
    """The coordinate more of every key that makes all equally long."""
    if plan.kind == scores.NEG_L2:
        return squares
    extra: Floats = np.sqrt(np.maximum(longest - squares, 0))
    return extra


def reaches(q: Floats, longest: Array, plan: Plan) -> Floats:
    """The factor that makes every query as long as the longest key."""
    if plan.kind == scores.NEG_L2:
        return np.ones(plan.Hq * plan.Wq, q.dtype)
    length = np.sqrt(_squares(q, plan.Hq, plan.Wq, plan))
    sign = -1 if plan.kind == scores.DOT and plan.factor < 0 else 1
    reach: Floats = np.zeros_like(length)
    np.divide(sign * np.sqrt(longest), length, out=reach, where=length > 0)
    return reach


def _squares(x: Floats, height: int, width: int, plan: Plan) -> Floats:
    """Squared length of every patch of a padded grid."""
    p, margin = plan.patch, plan.patch - 1
    pixels = x.reshape(height + margin, width + margin, plan.d)
    rows = np.empty(pixels.shape[:2], x.dtype)
    step = max(1, _PIXELS // rows.shape[1])
    for top in range(0, len(rows), step):
        rows[top : top + step] = np.square(pixels[top : top + step]).sum(-1)
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
    index, _, counts = state
    n = index.shape[2]
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
                masks = key_mask[row[2]], mask[row[3]]
                counts[b] += try_leaves(features, masks, plan, one.order, slots, side, b, state)
            side = 1 - side
            if progress is not None:
                progress(number * trees + t + 1, (1 + rounds) * trees)
        if number and calm(before, index[side]):
            break
    return side


def try_leaves(
    features: tuple[Floats, Floats],
    masks: tuple[Bools, Bools],
    plan: Plan,
    order: Ints,
    slots: Ints,
    side: int,
    b: int,
    state: tuple[Ints, Floats, Ints],
) -> Ints:
    """Try the leaves of a tree that `slots` (n, SLOTS) name; returns the keys tested of each query.

    From one side of the field of slice b to the other.
    """
    index, score, _ = state
    n, topk = index.shape[2:]
    starts, visitors, place = _by_leaf(slots, 1 << levels(len(order)))
    found = np.empty((len(visitors), topk), np.int32)
    tested = np.empty(len(visitors), np.int32)
    leaf_inputs = *features, *masks, plan, order, starts, visitors
    leaves.match(len(starts) - 1, *leaf_inputs, found, tested)
    leaves.merge(blocks(n, BLOCK), *features, plan, side, b, place, found, index, score)
    counts: Ints = np.bincount(visitors, tested, n).astype(np.int64)
    return counts


def _by_leaf(slots: Ints, count: int) -> tuple[Ints, Ints, Ints]:
    """Where each leaf's visitors begin, the queries leaf by leaf, and the place of each slot."""
    used = np.flatnonzero(slots >= 0)
    leaf = slots.reshape(-1)[used]
    order = np.argsort(leaf.astype(np.min_scalar_type(count)), kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(leaf, minlength=count))])
    place = np.full(slots.shape, -1, np.int32)
    place.reshape(-1)[used[order]] = np.arange(len(used), dtype=np.int32)
    return starts, (used[order] // slots.shape[1]).astype(np.int32), place
