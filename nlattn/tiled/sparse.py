"""Stages from matches to a sparse map: how many keys each band attends to, then which, and how.

The files are the arrays of a `SparseMap`, in the order of queries: bands follow one another.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Field, Support, Work
from nlattn.engines.matches import KINDS, support_of_field
from nlattn.engines.sparse import Edges, WeightFunction
from nlattn.kernels import support as kernels
from nlattn.maps.sparse import SparseMap
from nlattn.tiled.bands import Band, bands
from nlattn.tiled.features import Features, queries
from nlattn.tiled.folder import Array, Folder
from nlattn.tiled.search import MATCHES
from nlattn.tiled.task import Cost, Stage, TileTask

OP = "tiled"


class NearKeys(NamedTuple):
    """Which keys are attended to, given the matches."""

    kind: str
    radius: int
    reach: int

    def most(self, x: Features, topk: int) -> int:
        """Keys of a query, at most."""
        flags, box = KINDS[self.kind], (2 * self.radius + 1) ** 2
        centres = bool(flags & kernels.WINDOW) + bool(flags & kernels.LOCAL)
        centres += 2 * (2 * self.reach + 1) ** 2 * bool(flags & kernels.NEIGHBOURS)
        return min(x.pixels, centres * box + (topk if flags & kernels.TOPK else 1))


def stages(x: Features, chosen: NearKeys, topk: int, values: bool) -> list[Stage]:
    """Count keys, then list and weigh them, and sum the picture over them if so."""
    near = bands(x.height, x.rows, max(1, chosen.reach))

    def count(_: Folder) -> tuple[list[Array], list[TileTask]]:
        return [Array("counts", (len(near),), "int64")], [
            TileTask(f"count/{b.number}", _count, (x, chosen, b), {"counts": b.number})
            for b in near
        ]

    makes = ("indptr", "indices", "weights", "scores", "lse", *(("out",) if values else ()))

    def weigh(folder: Folder) -> tuple[list[Array], list[TileTask]]:
        starts = np.concatenate([[0], np.cumsum(folder.read("counts"))])
        nnz = int(starts[-1])
        arrays = [
            Array("indptr", (x.pixels + 1,), "int64"),
            Array("indices", (nnz,), "int32"),
            Array("weights", (nnz,), "float32"),
            Array("scores", (nnz,), "float32"),
            Array("lse", (x.pixels,), "float64"),
            *[Array("out", (x.height, x.width, x.colours), "float32")] * values,
        ]
        tasks = []
        for b in near:
            first, pixel = int(starts[b.number]), b.first * x.width
            rows = {"indptr": pixel + 1, "lse": pixel}
            rows |= dict.fromkeys(("indices", "weights", "scores"), first)
            rows |= {"out": b.first} if values else {}
            tasks.append(TileTask(f"weigh/{b.number}", _weigh, (x, chosen, b, first, values), rows))
        return arrays, tasks

    field = (MATCHES[0],)
    reads = ("keys", "scale", "image", "counts", *field)
    drops = ("counts", "keys", "scale", "image")
    most = chosen.most(x, topk)
    band = (min(x.rows, x.height) + 2 * max(1, chosen.reach)) * x.width
    listed = band * (8 * topk + 16 + 8 * most)
    weighed = listed + band * (30 * most + 4 * (x.channels + 1) + 24 + 8 * x.colours)
    disk = x.pixels * (12 * most + 16 + 4 * x.colours * values)
    return [
        Stage("count", field, ("counts",), count, Cost(len(near), listed, 8 * len(near))),
        Stage("weigh", reads, makes, weigh,
              Cost(len(near), weighed, disk, most * x.pixels), drops),
    ]  # fmt: skip


def _support(folder: Folder, x: Features, chosen: NearKeys, band: Band) -> Support:
    """Keys of the queries of a band."""
    index = folder.read(MATCHES[0])[band.above : band.below]
    field = Field(index, index, Work(0, 0, 0), (x.height, x.width))
    around = (chosen.reach, True)
    part = (x.height, band.above)
    every = None, None, False
    near = support_of_field(
        OP, field, chosen.kind, chosen.radius, around, every, float("inf"), part
    )
    first, last = (row * x.width for row in (band.inner.start, band.inner.stop))
    indptr = near.indptr[first : last + 1]
    indices = near.indices[indptr[0] : indptr[-1]]
    return Support(indptr - indptr[0], indices, (last - first, x.pixels))


def _count(folder: Folder, x: Features, chosen: NearKeys, band: Band) -> Any:
    keys = len(_support(folder, x, chosen, band).indices)
    return {"counts": np.array([keys])}, 0


def _weigh(
    folder: Folder, x: Features, chosen: NearKeys, band: Band, first: int, values: bool
) -> Any:
    support, keys = _support(folder, x, chosen, band), folder.read("keys")
    q = queries(keys, band.first, band.last)
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
        image = folder.read("image")
        out = SparseMap(*entries) @ image.reshape(x.pixels, x.colours)
        blocks["out"] = out.reshape(-1, x.width, x.colours)
    return blocks, len(entries.weights)
