"""Stages of a search for matches: a field of the picture for each round, made from the last one.

A round reads the field of the round before with a halo of its jump. Draws depend on the number of
a query, not on who makes it, so the matches are those of `patchmatch` on the whole.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import DTypeLike

from nlattn import _check
from nlattn._types import Floats, Ints, JsonObject
from nlattn.engines import patchmatch as engine
from nlattn.engines import random_search
from nlattn.engines.patchmatch import Masks, SearchOptions
from nlattn.engines.random_search import Inputs
from nlattn.engines.scores import SCORES
from nlattn.kernels import patchmatch as kernels
from nlattn.kernels.matching import TILE, Plan, Round
from nlattn.tiled.bands import Band
from nlattn.tiled.folder import ArraySpec, Folder
from nlattn.tiled.points import Points
from nlattn.tiled.task import Cost, Done, Stage, TileTask

MATCHES = ("matches", "match_scores")
"""Arrays of the last field."""


def rounds(options: SearchOptions) -> list[tuple[int, int, int]]:
    """Iteration and jump of every round, and whether the random search follows."""
    steps = options.jumps or (0,)
    return [
        (iteration, jump, int(number == len(steps) - 1))
        for iteration in range(1, options.rounds + 1)
        for number, jump in enumerate(steps)
    ]


def stages(x: Points, options: SearchOptions) -> list[Stage]:
    """The first field, and one for every round."""
    steps = rounds(options)
    whole = [begin(x, options, len(steps))]
    for number, (_, jump, last) in enumerate(steps, 1):
        before = names(number - 1, len(steps))
        tried = options.topk * (8 + last * (max(x.key_grid).bit_length() + 1))
        stage = _stage(f"search {number:02d}", x, options, jump, before, names(number, len(steps)))
        whole.append(stage(_search, (number,), tried))
    return whole


def names(number: int, last: int) -> tuple[str, str]:
    """Arrays of a field, of so many."""
    if number == last:
        return MATCHES
    return f"index_{number:02d}", f"score_{number:02d}"


def begin(x: Points, options: SearchOptions, last: int) -> Stage:
    """The first field, of so many."""
    made = names(0, last)
    return _stage("begin", x, options, 0, (), made)(_begin, (made,), 2)


def _stage(
    name: str,
    x: Points,
    options: SearchOptions,
    halo: int,
    reads: tuple[str, ...],
    makes: tuple[str, str],
) -> Callable[[Callable[..., Done], tuple[object, ...], int], Stage]:
    shape = (*x.query_grid, options.topk)
    arrays = [ArraySpec(makes[0], shape, "int32"), ArraySpec(makes[1], shape, x.dtype)]
    near, size = x.bands(halo), np.dtype(x.dtype).itemsize
    widest = max(b.below - b.above for b in near) * x.query_grid[1]
    nbytes = widest * (2 * size * x.d + (8 + 2 * size) * options.topk + 8)
    disk = sum(array.nbytes for array in arrays)

    def made(function: Callable[..., Done], more: tuple[object, ...], tried: int) -> Stage:
        def tasks(_: Folder) -> tuple[list[ArraySpec], list[TileTask]]:
            return arrays, [
                TileTask(
                    f"{name}/{b.number}",
                    function,
                    (x, options, b, *more),
                    dict.fromkeys(makes, b.first),
                )
                for b in near
            ]

        cost = Cost(len(near), nbytes, disk, tried * x.n)
        return Stage(name, (*x.files[:2], *reads), makes, tasks, cost, reads)

    return made


def inputs(folder: Folder, x: Points, options: SearchOptions, band: Band) -> tuple[Inputs, Plan]:
    """What kernels read: queries of a band with its halo, and all keys, where they lie."""
    keys, (high, wide) = x.keys(folder), x.query_grid
    factor = float(folder.read("scale")[0])
    q = x.queries(folder, band.above, band.below)
    plan = Plan(
        *(band.below - band.above, wide, *x.key_grid, x.d, options.patch),
        *(SCORES[options.score], factor),
        *(engine.PROPAGATE[options.propagate], 0, options.signed_seed, 0),
        above=band.above * wide,
        rows=high,
    )
    masks = Masks.none(1)
    table = _check.frozen(np.zeros((1, 4), np.int64))
    flat = _check.frozen(q.reshape(1, -1)), _check.frozen(keys.reshape(1, -1))
    return (*flat, table, masks.key_mask, masks.mask), plan


def _begin(
    folder: Folder, x: Points, options: SearchOptions, band: Band, makes: tuple[str, str]
) -> Done:
    arrays, plan = inputs(folder, x, options, band)
    state = _empty(plan, options.topk, x.dtype)
    valid = np.zeros((1, 2 + x.m), np.int32)  # its list is looked at with a mask alone
    valid[0, :2] = options.identity, x.m
    runs = -(-plan.Hq * plan.Wq // TILE)
    for some in random_search.calls(runs, TILE * 2):
        kernels.begin(some, *arrays, _check.frozen(valid), plan, *state)
    return result(state, 0, band, makes)


def _search(folder: Folder, x: Points, options: SearchOptions, band: Band, number: int) -> Done:
    arrays, plan = inputs(folder, x, options, band)
    steps, inner = rounds(options), band.inner
    state = held(folder, names(number - 1, len(steps)), band, plan, options.topk)
    iteration, jump, last = steps[number - 1]
    step = Round(0, iteration, jump, 0, 0, last, inner.start, inner.stop)
    random_search.renew(arrays, plan, step, state)
    return result(state, 1, band, names(number, len(steps)))


def held(
    folder: Folder, names: tuple[str, str], band: Band, plan: Plan, topk: int
) -> tuple[Ints, Floats, Ints]:
    """A field of two sides, the first as the arrays of these names have it."""
    state = _empty(plan, topk, np.dtype(folder.read(names[1]).dtype))
    for array, name in zip(state, names, strict=False):
        before = folder.read(name)[band.above : band.below]
        array[0, 0] = before.reshape(array.shape[2:])
    return state


def _empty(plan: Plan, topk: int, dtype: DTypeLike) -> tuple[Ints, Floats, Ints]:
    n = plan.Hq * plan.Wq
    index = np.full((2, 1, n, topk), -1, np.int32)
    return index, np.full(index.shape, -np.inf, dtype), np.zeros((1, n), np.int64)


def result(
    state: tuple[Ints, Floats, Ints], side: int, band: Band, names: tuple[str, str]
) -> tuple[JsonObject, int]:
    """The rows of a band of one side, and how many candidates were tested."""
    width = state[0].shape[2] // (band.below - band.above)
    blocks = {
        name: array[side, 0].reshape(-1, width, array.shape[3])[band.inner]
        for name, array in zip(names, state, strict=False)
    }
    return blocks, int(state[2].sum())
