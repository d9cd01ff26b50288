"""Stages of a search by trees: each tree is files, each pass over a tree a field of its own.

Queries of a band try the leaves that those of the whole would: a leaf's scores do not depend on
who else tries it.
"""

from __future__ import annotations

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Ints
from nlattn.engines import tree_search as engine
from nlattn.engines.patchmatch import SearchOptions
from nlattn.kernels import leaves
from nlattn.kernels.leaves import SLOTS
from nlattn.kernels.matching import BLOCK
from nlattn.runtime.jit import blocks
from nlattn.tiled import search
from nlattn.tiled.bands import Band
from nlattn.tiled.folder import ArraySpec, Folder
from nlattn.tiled.points import Points
from nlattn.tiled.task import Cost, Done, Stage, TileTask

_FIRST = Band(0, 0, 1, 0, 1)  # what only looks at keys asks for few queries


def stages(x: Points, options: SearchOptions) -> list[Stage]:
    """The trees, the first field, and one for every pass over a tree."""
    planted = [_longest(x, options), *(_plant(x, options, t) for t in range(options.trees))]
    passes = [(r, t) for r in range(1 + options.rounds) for t in range(options.trees)]
    whole = [search.begin(x, options, len(passes))]
    for number, (r, t) in enumerate(passes, 1):
        whole.append(_pass(x, options, number, len(passes), r, t))
    return planted + whole


def _files(t: int) -> tuple[str, str, str, str]:
    return f"order_{t}", f"home_{t}", f"planes_{t}", f"thresholds_{t}"


def _longest(x: Points, options: SearchOptions) -> Stage:
    array = ArraySpec("longest", (1,), x.dtype)

    def begin(_: Folder) -> tuple[list[ArraySpec], list[TileTask]]:
        return [array], [TileTask("longest", _measure, (x, options), {"longest": 0})]

    return Stage("longest", x.files[:2], ("longest",), begin, Cost(1, 3 * _size(x) * x.m, 8))


def _plant(x: Points, options: SearchOptions, t: int) -> Stage:
    depth, size, m = engine.levels(x.m), options.patch**2 * x.d, x.m
    order, home, planes, thresholds = _files(t)
    arrays = [
        ArraySpec(order, (m,), "int32"),
        ArraySpec(home, (m,), "int32"),
        ArraySpec(planes, ((size + 1) << depth,), x.dtype),
        ArraySpec(thresholds, (1 << depth,), x.dtype),
    ]
    own = _files(t)

    def begin(_: Folder) -> tuple[list[ArraySpec], list[TileTask]]:
        task = TileTask(f"tree {t}", _grow, (x, options, t), dict.fromkeys(own, 0))
        return arrays, [task]

    disk = sum(array.nbytes for array in arrays)
    reads = (*x.files[:2], "longest")
    return Stage(f"tree {t}", reads, own, begin, Cost(1, 3 * _size(x) * m + disk, disk, depth * m))


def _pass(x: Points, options: SearchOptions, number: int, last: int, r: int, t: int) -> Stage:
    """Pass `number` of all: tree `t` in round `r`."""
    near = x.bands(int(r > 0))
    index, score = search.names(number, last)
    before = search.names(number - 1, last)
    shape = (*x.query_grid, options.topk)
    arrays = [ArraySpec(index, shape, "int32"), ArraySpec(score, shape, x.dtype)]
    kept = _tried(r, t) if 0 < r < options.rounds else None
    if kept:
        arrays.append(ArraySpec(kept, (*x.query_grid, SLOTS), "int32"))
    made = tuple(array.name for array in arrays)
    reads = [*x.files[:2], "longest", *_files(t), *before]
    drops = [*before]
    if r > 1:
        reads.append(_tried(r - 1, t))
        drops.append(_tried(r - 1, t))
    if r == options.rounds:
        drops += [*_files(t), *(("longest",) if number == last else ())]
    name = f"leaves {number:02d}"

    def begin(_: Folder) -> tuple[list[ArraySpec], list[TileTask]]:
        told = x, options, number, last, r, t
        return arrays, [
            TileTask(f"{name}/{b.number}", _try, (*told, b), dict.fromkeys(made, b.first))
            for b in near
        ]

    widest = max(b.below - b.above for b in near) * x.query_grid[1]
    slots = 1 if r == 0 else SLOTS
    each = _size(x) * x.d + 24 * options.topk + 16 * SLOTS + 40 * slots
    disk = sum(array.nbytes for array in arrays)
    scores = slots * engine.LEAF * x.n
    cost = Cost(len(near), widest * (each + 8 * slots * options.topk), disk, scores)
    return Stage(name, tuple(reads), made, begin, cost, tuple(drops))


def _size(x: Points) -> int:
    return np.dtype(x.dtype).itemsize


def _tried(r: int, t: int) -> str:
    return f"tried_{t}_{r}"


def _measure(folder: Folder, x: Points, options: SearchOptions) -> Done:
    (_, k, *_), plan = search.inputs(folder, x, options, _FIRST)
    return {"longest": engine.key_squares(k[0], plan).max(initial=0)[None]}, 0


def _grow(folder: Folder, x: Points, options: SearchOptions, t: int) -> Done:
    (_, k, *_), plan = search.inputs(folder, x, options, _FIRST)
    extra = engine.lengthening(engine.key_squares(k[0], plan), folder.read("longest")[0], plan)
    grown = engine.grow(k[0], _check.frozen(extra), plan, t)
    return dict(zip(_files(t), grown, strict=True)), 0


def _try(
    folder: Folder,
    x: Points,
    options: SearchOptions,
    number: int,
    last: int,
    r: int,
    t: int,
    band: Band,
) -> Done:
    (q, k, _, masks, pairs), plan = search.inputs(folder, x, options, band)
    order, home, planes, thresholds = (_check.frozen(folder.read(name)) for name in _files(t))
    n = plan.Hq * plan.Wq
    state = search.held(folder, search.names(number - 1, last), band, plan, options.topk)
    reach = engine.reaches(q[0], folder.read("longest")[0], plan)
    own = engine.fall(q[0], reach, plan, planes, thresholds).T
    slots: Ints = np.full((n, SLOTS), -1, np.int32)
    slots[:, : own.shape[1]] = own
    tried = slots.copy()
    if r > 1:
        tried = np.array(folder.read(_tried(r - 1, t))[band.above : band.below]).reshape(n, SLOTS)
    if r:
        leaves.propose(blocks(n, BLOCK), _check.frozen(state[0][0, 0]), home, plan, tried, slots)
        rows = slots.reshape(plan.Hq, -1)
        rows[: band.inner.start] = -1
        rows[band.inner.stop :] = -1
    features: tuple[Floats, Floats] = (q[0], k[0])
    tested = engine.try_leaves(features, (masks[0], pairs[0]), plan, order, slots, 0, 0, state)
    made, _ = search.result(state, 1, band, search.names(number, last))
    if 0 < r < options.rounds:
        made[_tried(r, t)] = tried.reshape(plan.Hq, plan.Wq, SLOTS)[band.inner]
    return made, int(tested.sum())
