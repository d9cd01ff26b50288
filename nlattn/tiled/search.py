"""Stages of a search for matches: a field of the picture for each round, made from the last one.

A round reads the field of the round before with a halo of its jump. Draws depend on the number of
a query, not on who makes it, so the matches are those of `patchmatch` on the whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Ints
from nlattn.engines import patchmatch as engine
from nlattn.engines import random_search
from nlattn.engines.patchmatch import Masks, SearchOptions
from nlattn.engines.random_search import Inputs
from nlattn.kernels import patchmatch as kernels
from nlattn.kernels.matching import TILE, Plan, Round
from nlattn.tiled.bands import Band, bands
from nlattn.tiled.features import Features, queries
from nlattn.tiled.folder import Array, Folder
from nlattn.tiled.task import Cost, Stage, TileTask

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


def stages(x: Features, options: SearchOptions) -> list[Stage]:
    """The first field, and one for every round."""
    whole = [_stage("begin", 0, x, options, 0, ())]
    for number, (_, jump, _) in enumerate(rounds(options), 1):
        whole.append(_stage("search", number, x, options, jump, _names(options, number - 1)))
    return whole


def _names(options: SearchOptions, number: int) -> tuple[str, str]:
    if number == len(rounds(options)):
        return MATCHES
    return f"index_{number:02d}", f"score_{number:02d}"


def _stage(
    kind: str, number: int, x: Features, options: SearchOptions, halo: int, reads: tuple[str, ...]
) -> Stage:
    index, score = _names(options, number)
    shape = (x.height, x.width, options.topk)
    arrays = [Array(index, shape, "int32"), Array(score, shape, "float32")]
    name = f"{kind} {number:02d}" if number else kind
    near = bands(x.height, x.rows, halo)
    tried = 2
    if number:
        last = rounds(options)[number - 1][2]
        tried = options.topk * (8 + last * (max(x.height, x.width).bit_length() + 1))
    widest = max(b.below - b.above for b in near) * x.width
    nbytes = widest * (8 * (x.channels + 1) + 16 * options.topk + 8)
    disk = sum(array.nbytes for array in arrays)
    cost = Cost(len(near), nbytes, disk, tried * x.pixels)

    def begin(_: Folder) -> tuple[list[Array], list[TileTask]]:
        return arrays, [
            TileTask(
                f"{name}/{b.number}",
                _search if number else _begin,
                (x, options, b, number),
                {index: b.first, score: b.first},
            )
            for b in near
        ]

    return Stage(name, ("keys", "scale", *reads), (index, score), begin, cost, reads)


def _inputs(folder: Folder, x: Features, options: SearchOptions, band: Band) -> tuple[Inputs, Plan]:
    """What kernels read: queries of a band with its halo, and all keys, where they lie."""
    keys = folder.read("keys")
    d = keys.shape[2]
    factor = float(folder.read("scale")[0])
    q = queries(keys, band.above, band.below)
    plan = Plan(
        *(len(q), x.width, x.height, x.width, d, 1, engine.SCORES[options.score], factor),
        *(engine.PROPAGATE[options.propagate], 0, options.signed_seed, 0),
        above=band.above * x.width,
        rows=x.height,
    )
    masks = Masks.none(1)
    table = _check.frozen(np.zeros((1, 4), np.int64))
    flat = _check.frozen(q.reshape(1, -1)), _check.frozen(keys.reshape(1, -1))
    return (*flat, table, masks.key_mask, masks.mask), plan


def _begin(folder: Folder, x: Features, options: SearchOptions, band: Band, _: int) -> Any:
    arrays, plan = _inputs(folder, x, options, band)
    state = _state(plan, options.topk)
    valid = np.zeros(
        (1, 2 + x.pixels), np.int32
    )  # without a mask the list of keys is not looked at
    valid[0, :2] = options.identity, x.pixels
    runs = -(-plan.Hq * plan.Wq // TILE)
    for some in random_search.calls(runs, TILE * 2):
        kernels.begin(some, *arrays, _check.frozen(valid), plan, *state)
    return _result(state, 0, band, x, _names(options, 0))


def _search(folder: Folder, x: Features, options: SearchOptions, band: Band, number: int) -> Any:
    inputs, plan = _inputs(folder, x, options, band)
    state = _state(plan, options.topk)
    for array, name in zip(state, _names(options, number - 1), strict=False):
        before = folder.read(name)[band.above : band.below]
        array[0, 0] = before.reshape(array.shape[2:])
    iteration, jump, last = rounds(options)[number - 1]
    inner = band.inner
    step = Round(0, iteration, jump, 0, 0, last, inner.start, inner.stop)
    random_search.renew(inputs, plan, step, state)
    return _result(state, 1, band, x, _names(options, number))


def _state(plan: Plan, topk: int) -> tuple[Ints, Floats, Ints]:
    n = plan.Hq * plan.Wq
    index = np.full((2, 1, n, topk), -1, np.int32)
    return index, np.full(index.shape, -np.inf, np.float32), np.zeros((1, n), np.int64)


def _result(
    state: tuple[Ints, Floats, Ints], side: int, band: Band, x: Features, names: tuple[str, str]
) -> Any:
    shape = (band.below - band.above, x.width, -1)
    blocks = {
        name: array[side, 0].reshape(shape)[band.inner]
        for name, array in zip(names, state, strict=False)
    }
    return blocks, int(state[2].sum())
