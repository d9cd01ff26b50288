"""Stages from matches to a sparse map: how many keys each band attends to, then which, and how.

The files are the arrays of a `SparseMap`, in the order of queries: bands follow one another.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Field, Support, Work
from nlattn.engines.matches import KINDS, support_of_field
from nlattn.engines.sparse import Edges, WeightFunction
from nlattn.kernels import support as kernels
from nlattn.maps.sparse import SparseMap
from nlattn.tiled.bands import Band
from nlattn.tiled.folder import ArraySpec, Folder
from nlattn.tiled.points import Points
from nlattn.tiled.search import MATCHES
from nlattn.tiled.task import Cost, Done, Stage, TileTask

OP = "tiled"


class NearKeys(NamedTuple):
    """Which keys are attended to, given the matches."""

    kind: str
    radius: int
    reach: int

    def most(self, x: Points, topk: int) -> int:
        """Keys of a query, at most."""
        flags, box = KINDS[self.kind], (2 * self.radius + 1) ** 2
        centres = bool(flags & kernels.WINDOW) + bool(flags & kernels.LOCAL)
        centres += 2 * (2 * self.reach + 1) ** 2 * bool(flags & kernels.NEIGHBOURS)
        return min(x.m, centres * box + (topk if flags & kernels.TOPK else 1))


def stages(x: Points, chosen: NearKeys, topk: int, values: bool) -> list[Stage]:
    """Count keys, then list and weigh them, and sum the picture over them if so."""
    near = x.bands(max(1, chosen.reach))

    def count(_: Folder) -> tuple[list[ArraySpec], list[TileTask]]:
        return [ArraySpec("counts", (len(near),), "int64")], [
            TileTask(f"count/{b.number}", _count, (x, chosen, b), {"counts": b.number})
            for b in near
        ]

    makes = ("indptr", "indices", "weights", "scores", "lse", *(("out",) if values else ()))

    def weigh(folder: Folder) -> tuple[list[ArraySpec], list[TileTask]]:
        starts = np.concatenate([[0], np.cumsum(folder.read("counts"))])
        nnz = int(starts[-1])
        arrays = [
            ArraySpec("indptr", (x.n + 1,), "int64"),
            ArraySpec("indices", (nnz,), "int32"),
            ArraySpec("weights", (nnz,), x.dtype),
            ArraySpec("scores", (nnz,), x.dtype),
            ArraySpec("lse", (x.n,), "float64"),
            *[ArraySpec("out", (*x.query_grid, x.e), x.dtype)] * values,
        ]
        tasks = []
        for b in near:
            first, pixel = int(starts[b.number]), b.first * x.query_grid[1]
            rows = {"indptr": pixel + 1, "lse": pixel}
            rows |= dict.fromkeys(("indices", "weights", "scores"), first)
            rows |= {"out": b.first} if values else {}
            tasks.append(TileTask(f"weigh/{b.number}", _weigh, (x, chosen, b, first, values), rows))
        return arrays, tasks

    field = (MATCHES[0],)
    reads, drops = (*x.files, "counts", *field), ("counts", *x.files)
    most, size = chosen.most(x, topk), np.dtype(x.dtype).itemsize
    band = max(b.below - b.above for b in near) * x.query_grid[1]
    listed = band * (8 * topk + 16 + 8 * most)
    weighed = listed + band * ((22 + 2 * size) * most + size * x.d + 24 + 2 * size * x.e)
    disk = x.n * ((4 + 2 * size) * most + 16 + size * x.e * values)
    return [
        Stage("count", field, ("counts",), count, Cost(len(near), listed, 8 * len(near))),
        Stage("weigh", reads, makes, weigh,
              Cost(len(near), weighed, disk, most * x.n), drops),
    ]  # fmt: skip


def _support(folder: Folder, x: Points, chosen: NearKeys, band: Band) -> Support:
    """Keys of the queries of a band."""
    index = folder.read(MATCHES[0])[band.above : band.below]
    field = Field(index, index, Work(0, 0, 0), x.key_grid)
    around = (chosen.reach, True)
    part = (x.query_grid[0], band.above)
    every = None, None, False
    near = support_of_field(
        OP, field, chosen.kind, chosen.radius, around, every, float("inf"), part
    )
    first, last = (row * x.query_grid[1] for row in (band.inner.start, band.inner.stop))
    indptr = near.indptr[first : last + 1]
    indices = near.indices[indptr[0] : indptr[-1]]
    return Support(indptr - indptr[0], indices, (last - first, x.m))


def _count(folder: Folder, x: Points, chosen: NearKeys, band: Band) -> Done:
    keys = len(_support(folder, x, chosen, band).indices)
    return {"counts": np.array([keys])}, 0


def _weigh(
    folder: Folder, x: Points, chosen: NearKeys, band: Band, first: int, values: bool
) -> Done:
    support, keys = _support(folder, x, chosen, band), x.keys(folder)
    q = x.queries(folder, band.first, band.last)
    arrays = {"q": (q, "Hq Wq d"), "k": (keys, "Hk Wk d")}
    fit = _check.fit(OP, arrays, nonfinite="propagate")
    weights = WeightFunction.checked(fit, scale=float(folder.read("scale")[0]))
    entries = Edges(fit, support).entries(weights)
    blocks = {
        "indptr": entries.support.indptr[1:] + first,
        "indices": entries.support.indices,
        "weights": entries.weights,
        "scores": entries.scores,
        "lse": entries.lse,
    }
    if values:
        out = SparseMap(*entries) @ x.values(folder).reshape(x.m, x.e)
        blocks["out"] = out.reshape(-1, x.query_grid[1], x.e)
    return blocks, len(entries.weights)
