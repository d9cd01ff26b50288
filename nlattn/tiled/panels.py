"""Stages of certified attention: groups of queries are tasks, the trees are files.

A group is some panels of the order in which the queries lie in a tree of their own, so that every
panel is one of the whole. What panels give up is left to dense attention, some queries a task.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Ints, JsonObject
from nlattn.engines import certified as engine
from nlattn.engines import exhaustive
from nlattn.engines.certified_values import middle_of, powers_of
from nlattn.engines.exhaustive import Slice
from nlattn.kernels import certified as kernels
from nlattn.kernels.gemm import width
from nlattn.kernels.panel import groups
from nlattn.tiled import ground
from nlattn.tiled.folder import ArraySpec, Folder
from nlattn.tiled.points import Points
from nlattn.tiled.task import Cost, Done, Stage, TileTask

_SUMMED = "values", "totals", "exact"
"""What `node_values` returns."""
_NONE = np.empty(0, bool), np.empty((0, 0), bool)
_DENSE = 1 << 10  # queries of a task that looks at all keys


class CertifiedOptions(NamedTuple):
    """How far, and what is summed."""

    tolerance: float
    kind: int
    group: int
    """Queries of a task."""


def stages(x: Points, options: CertifiedOptions, *, scored: int) -> list[Stage]:
    """From queries and keys to means of values, normalisers and what may be missed.

    `scored` keys a query are foretold, for lack of what trees will save.
    """
    size, e = np.dtype(x.dtype).itemsize, x.e
    told = x, options
    own = tuple(f"{name}{p}" for p in range(ground.PARTS) for name in _SUMMED)
    survey = (x.n + x.m) * (x.d + 8) * (16 + size)

    def plant(_: Folder) -> tuple[list[ArraySpec], list[TileTask]]:
        starts = dict.fromkeys(ground.all_names(), 0)
        return [], [TileTask("survey", _survey, told, starts)]

    def total(_: Folder) -> tuple[list[ArraySpec], list[TileTask]]:
        middle = ArraySpec("middle", (2, e), "float64")
        starts = dict.fromkeys((*own, "middle"), 0)
        return [middle], [TileTask("values", _values, told, starts)]

    def leave(folder: Folder) -> tuple[list[ArraySpec], list[TileTask]]:
        return _leaving(folder, *told)

    def end(_: Folder) -> tuple[list[ArraySpec], list[TileTask]]:
        return _ending(x)

    values = 3 * x.m * e * (size + 8)
    found = [_gathering(x, options, p, scored) for p in range(ground.PARTS)]
    left = ("left", "left_out", "left_lse")
    rows = x.query_grid[1] * x.rows
    gathered = tuple(name for p in range(ground.PARTS) for name in _sums(p))
    makes = ("out", "lse", "missed")
    return [
        Stage("survey", x.files[:2], ground.all_names(), plant,
              Cost(1, survey, survey, kernels.NEAR * x.n)),
        Stage("values", (*ground.all_names(), *x.files[2:]), (*own, "middle"), total,
              Cost(1, values, values, x.m)),
        *found,
        Stage("dense", (*x.files, "middle", *gathered, *ground.all_names()), left,
              leave,
              Cost(max(1, x.n // _DENSE), x.m * (x.d + e) * (8 + size) + (1 << 26),
                   8 * (e + 2) * x.n)),
        Stage("means", (*left, *gathered, "middle", *ground.all_names()), makes,
              end,
              Cost(len(x.bands()), 16 * rows * (e + 8), x.n * (e * size + 16)),
              (*left, *gathered, "middle", *own, *ground.all_names(), *x.files)),
    ]  # fmt: skip


def _sums(p: int) -> tuple[str, str, str]:
    return f"sums{p}", f"norms{p}", f"counts{p}"


def _whole(folder: Folder, x: Points, options: CertifiedOptions, q: Floats) -> Slice:
    k = _check.frozen(x.keys(folder).reshape(x.m, x.d))
    factor, none = float(folder.read("scale")[0]), [_check.frozen(mask) for mask in _NONE]
    return Slice(_check.frozen(q), k, options.kind, factor, none[0], none[1], False)


def _survey(folder: Folder, x: Points, options: CertifiedOptions) -> Done:
    q = x.queries(folder, 0, x.query_grid[0]).reshape(x.n, x.d)
    found = engine.survey(_whole(folder, x, options, q), options.tolerance)
    return ground.save(folder, found), int(found.seen.sum())


def _values(folder: Folder, x: Points, _: CertifiedOptions) -> Done:
    v = x.values(folder).reshape(x.m, x.e)
    powers = powers_of(v)
    v = np.ldexp(v, -powers)
    middle = middle_of(v)
    centred = v.astype(np.float64) - middle
    made: JsonObject = {"middle": np.stack([middle, powers])}
    for p in range(ground.PARTS):
        part = ground.part(folder, p)
        summed = engine.node_values(part, centred) if part else [np.zeros(0)] * len(_SUMMED)
        for name, values in zip(_SUMMED, summed, strict=True):
            folder.make(ArraySpec(f"{name}{p}", values.shape, values.dtype.str))
            made[f"{name}{p}"] = values
    return made, 0


def _gathering(x: Points, options: CertifiedOptions, p: int, scored: int) -> Stage:
    """Sums of the panels of one part, some panels a task."""

    def begin(folder: Folder) -> tuple[list[ArraySpec], list[TileTask]]:
        part = ground.part(folder, p)
        if part is None:
            return [], []
        w, n = width(part.tree.shorts), len(part.asked.order)
        step = max(1, options.group // w)
        panels = -(-n // w)
        made = [
            ArraySpec(_sums(p)[0], (n, x.e), "float64"),
            ArraySpec(_sums(p)[1], (n, 5), "float64"),
            ArraySpec(_sums(p)[2], (panels, 5), "int64"),
        ]
        tasks = []
        for number, first in enumerate(range(0, panels, step)):
            starts = dict(zip(_sums(p), (first * w, first * w, first), strict=True))
            some = x, options, p, first, min(first + step, panels)
            tasks.append(TileTask(f"panels{p}/{number}", _gather, some, starts))
        return made, tasks

    size = np.dtype(x.dtype).itemsize
    each = 8 * (x.e + 16) + (x.d + 1) * (16 + size)
    tasks = max(1, -(-x.n // options.group))
    cost = Cost(tasks, options.group * each, x.n * 8 * (x.e + 6), scored * x.n * (p == 0))
    reads = (*ground.names(p), *(f"{name}{p}" for name in _SUMMED))
    return Stage(f"panels{p}", reads, _sums(p), begin, cost)


def _gather(
    folder: Folder, x: Points, options: CertifiedOptions, p: int, first: int, last: int
) -> Done:
    whole = ground.part(folder, p)
    assert whole is not None
    w, asked = width(whole.tree.shorts), whole.asked.panels
    here = asked[(asked >= first) & (asked < last)] - first
    part = ground.some(whole, first * w, min(last * w, len(whole.asked.order)), here)
    n = len(part.asked.order)
    out, norm = np.zeros((n, x.e)), np.zeros((n, 5))
    counts, none = np.zeros((last - first, 5), np.int64), np.zeros(0, np.int32)
    values, totals, exact = (_check.frozen(folder.read(f"{name}{p}")) for name in _SUMMED)
    masks = _whole(folder, x, options, np.zeros((0, x.d), x.dtype))
    told = engine.terms(part, (values, totals, exact), options.tolerance, x.m, masks, True)
    given = part.tree, part.asked, told, out, norm, counts, none
    for some in groups(len(here), 64 * w * x.d):
        kernels.gather(some, *given)
    seen = int((np.maximum(counts[:, 0], counts[:, 3]) + counts[:, 1]).sum()) * w
    return dict(zip(_sums(p), (out, norm, counts), strict=True)), seen


def _left(folder: Folder) -> Ints:
    """Queries that are left to dense attention, in the order of the whole."""
    left = [folder.read("dense")]
    for p in range(ground.PARTS):
        part = ground.part(folder, p)
        if part is not None:
            panels, counts = part.asked.panels, folder.read(_sums(p)[2])
            left.append(engine.queries_of(part, panels[counts[panels, 2] != 0]))
    return np.concatenate(left)


def _leaving(
    folder: Folder, x: Points, options: CertifiedOptions
) -> tuple[list[ArraySpec], list[TileTask]]:
    count = len(_left(folder))
    made = [
        ArraySpec("left", (count,), "int64"),
        ArraySpec("left_out", (count, x.e), "float64"),
        ArraySpec("left_lse", (count,), "float64"),
    ]
    tasks = []
    for number, first in enumerate(range(0, max(count, 1), _DENSE)):
        some = x, options, first, min(first + _DENSE, count)
        starts = dict.fromkeys(("left", "left_out", "left_lse"), first)
        tasks.append(TileTask(f"dense/{number}", _dense, some, starts))
    return made, tasks


def _dense(folder: Folder, x: Points, options: CertifiedOptions, first: int, last: int) -> Done:
    some = _left(folder)[first:last]
    if not len(some):
        return {"left": some, "left_out": np.zeros((0, x.e)), "left_lse": np.zeros(0)}, 0
    wide, v = np.array(folder.read("dense_wide")[some]), x.values(folder).reshape(x.m, x.e)
    middle, powers = folder.read("middle")
    centred = np.ldexp(v, -powers.astype(int)).astype(np.float64) - middle
    rows, columns = np.divmod(some, x.query_grid[1])
    q = np.stack([x.queries(folder, r, r + 1)[0, c] for r, c in zip(rows, columns, strict=True)])
    part = _whole(folder, x, options, q)
    out, lse = exhaustive.attend(part, centred, np.arange(len(some)), wide)
    return {"left": some, "left_out": out, "left_lse": lse}, len(some) * x.m


def _ending(x: Points) -> tuple[list[ArraySpec], list[TileTask]]:
    made = [
        ArraySpec("out", (*x.query_grid, x.e), x.dtype),
        ArraySpec("lse", (x.n,), "float64"),
        ArraySpec("missed", (x.n,), "float64"),
    ]
    tasks = []
    for b in x.bands():
        pixel = b.first * x.query_grid[1]
        starts = {"out": b.first, "lse": pixel, "missed": pixel}
        tasks.append(TileTask(f"means/{b.number}", _mean, (x, b.first, b.last), starts))
    return made, tasks


def _mean(folder: Folder, x: Points, top: int, bottom: int) -> Done:
    """Rows of the picture, from wherever their sums are."""
    wide, (middle, powers) = x.query_grid[1], folder.read("middle")
    first, last = top * wide, bottom * wide
    out, lse = np.zeros((last - first, x.e)), np.full(last - first, -np.inf)
    missed = np.zeros(last - first)
    for p in range(ground.PARTS):
        part = ground.part(folder, p)
        if part is None:
            continue
        place = np.array(folder.read(f"part{p}_position")[first:last])
        sound = np.isin(place // width(part.tree.shorts), part.asked.panels)
        rows = np.flatnonzero((place >= 0) & sound)
        norm = folder.read(_sums(p)[1])[place[rows]]
        rows, norm = rows[norm[:, 0] > 0], norm[norm[:, 0] > 0]
        total = norm[:, 0]
        out[rows] = folder.read(_sums(p)[0])[place[rows]] / total[:, None] + middle
        lse[rows] = part.top[first + rows] - norm[:, 2] + np.log(total)
        missed[rows] = norm[:, 1] / total + norm[:, 3]
    left = folder.read("left")
    own = np.flatnonzero((left >= first) & (left < last))
    rows, found = left[own] - first, folder.read("left_lse")[own]
    there = ~np.isneginf(found)
    lse[rows], out[rows] = found, folder.read("left_out")[own] + there[:, None] * middle
    missed[rows] = np.where(there, folder.read("dense_rounding")[left[own]], 0)
    out = np.ldexp(out, powers.astype(int))
    return {"out": out.reshape(bottom - top, wide, x.e), "lse": lse, "missed": missed}, 0
