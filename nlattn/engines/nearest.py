"""The best keys of every query, proved by bounds on boxes of keys."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Bools, Floats, Ints, Work
from nlattn.engines import boxes
from nlattn.engines.distances import Geometry, geometry
from nlattn.engines.not_finite import cleaned, finite, wild
from nlattn.kernels import nearest as kernels
from nlattn.kernels.boxes import Tree
from nlattn.kernels.gemm import aligned, width
from nlattn.kernels.matching import Plan
from nlattn.kernels.nearest import Asked

ALL = 1 << 62
_TRIED = 256
SHARE = 0.5
"""A panel of queries that has looked at so much of the tree looks at all keys instead."""


class Ready(NamedTuple):
    """What a search by bounds needs of one slice."""

    tree: Tree
    asked: Asked
    geometry: Geometry


def prepare(q: Floats, k: Floats, keys: Ints, plan: Plan) -> Ready:
    """Trees over the `keys` of a slice, queries in order; points of the dtype of q."""
    rows, places = unfolded(q, plan, plan.Hq, plan.Wq), unfolded(k, plan, plan.Hk, plan.Wk)
    rows, places = _check.frozen(rows), _check.frozen(places)
    some = places if len(keys) == len(places) else places[keys]
    shape = geometry(rows, some, plan.kind, plan.factor, q.dtype, plan.patch)
    tree = boxes.plant(shape.keys, places, keys)
    wide = width(tree.shorts)
    few = tree.dims if tree.short == tree.dims else tree.short - 1
    shorts = _check.frozen(boxes.shorten(shape.queries, few))
    order = _check.frozen(boxes.ordered(shape.queries, boxes.levels(len(rows), wide)))
    panels = _check.frozen(np.arange(-(-len(rows) // wide)))
    asked = Asked(
        order,
        shape.queries,
        shorts,
        shape.numbers,
        shape.rounding,
        panels,
        ALL,
        SHARE,
    )
    return Ready(tree, asked, shape)


def unfolded(x: Floats, plan: Plan, height: int, width: int) -> Floats:
    """Patches of a padded flat grid as rows, (height width, patch^2 d)."""
    p, d = plan.patch, plan.d
    if p == 1:
        return x.reshape(height * width, d)
    grid = x.reshape(height + p - 1, width + p - 1, d)
    views = np.lib.stride_tricks.sliding_window_view(grid, (p, p), (0, 1))
    rows: Floats = np.ascontiguousarray(np.moveaxis(views, 2, -1)).reshape(height * width, -1)
    return rows


def by_coordinate(tree: Tree) -> Tree:
    """The tree with short points as the search reads them, and room for a panel behind."""
    strips = aligned(len(tree.shorts) + width(tree.shorts), tree.shorts)
    strips[len(tree.shorts) :] = 0
    kernels.lay(1 << kernels.pairs_of(tree), tree, strips)
    return tree._replace(shorts=_check.frozen(strips))


def search(
    q: Floats,
    k: Floats,
    key_mask: Bools,
    pairs: Bools,
    start: Ints | None,
    plan: Plan,
    index: Ints,
    score: Floats,
) -> tuple[Ints, Bools | None]:
    """Fill the lists `index` and `score` (n, topk) of one slice; -1 and -inf where none is left.

    Features are padded flat grids. `key_mask` (m,) and `pairs` (n, m) are empty for no mask, and
    `start` (n, any) are keys to begin with. Returns (n, 3) counts of keys and boxes that were
    compared with each query and of keys scored; and whether its first key was a best one.
    """
    n, m = plan.Hq * plan.Wq, plan.Hk * plan.Wk
    keys = np.flatnonzero(key_mask) if key_mask.size else np.arange(m)
    counts, right = np.zeros((n, 3), np.int64), None
    first = np.zeros(0, score.dtype)
    if start is not None:
        start = _check.frozen(start, np.int32)
        first = np.empty(n, score.dtype)
        blocks = -(-n // kernels.BLOCK)
        kernels.begin_lists(blocks, q, k, key_mask, pairs, plan, start, index, score, first)
    neat = q, k
    if not finite(q, k):  # no bounds of these: they are tried
        neat = cleaned(q), cleaned(k)
        bad, bad_keys = (
            wild(unfolded(x, plan, *grid))
            for x, grid in ((q, (plan.Hq, plan.Wq)), (k, (plan.Hk, plan.Wk)))
        )
        _try(q, k, key_mask, pairs, plan, ~bad, keys[bad_keys[keys]], index, score)
        _try(q, k, key_mask, pairs, plan, bad, keys, index, score)
        keys = keys[~bad_keys[keys]]
    if n and len(keys):
        ready = prepare(*neat, _check.frozen(keys, np.int32), plan)
        tree, asked = by_coordinate(ready.tree), ready.asked
        del ready  # keys as they were
        kernels.seek(len(asked.panels), q, k, pairs, plan, tree, asked, index, score, counts)
    if start is not None:
        right = (start[:, 0] >= 0) & (first == score[:, 0])
    return counts, right


def _try(
    q: Floats,
    k: Floats,
    key_mask: Bools,
    pairs: Bools,
    plan: Plan,
    some: Bools,
    keys: Ints,
    index: Ints,
    score: Floats,
) -> None:
    """Enter keys into the lists of `some` (n,) queries, one by one."""
    if not some.any():
        return
    first = np.empty(len(some), score.dtype)
    for at in range(0, len(keys), _TRIED):
        each = keys[at : at + _TRIED]
        start = _check.frozen(np.where(some[:, None], each, -1), np.int32)
        blocks = -(-len(some) // kernels.BLOCK)
        kernels.begin_lists(blocks, q, k, key_mask, pairs, plan, start, index, score, first)


def work(counts: Ints, length: int, itemsize: int, per_query: Ints) -> Work:
    """Keys and boxes compared with each query, of `length` numbers each, and keys scored."""
    total = int(per_query.sum())
    products = (total + int(counts[..., 2].sum())) * length
    return Work(total, products, 2 * products * itemsize, per_query)
