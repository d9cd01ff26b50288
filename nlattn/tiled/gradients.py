"""Gradients of a map on disk: of queries by bands of them, of keys and values by bands of keys.

A band of queries sorts its edges by the band of their key. A band of keys then takes its part from
each band of queries in turn: its edges come in the order of the transposed support.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import FilePath, JsonObject, Support
from nlattn.engines.sparse import Edges, WeightFunction, key_sums
from nlattn.maps.on_disk import open_map
from nlattn.tiled import arrays, sources
from nlattn.tiled.bands import Band, bands, rows_of
from nlattn.tiled.executors import identity
from nlattn.tiled.folder import ArraySpec, Folder
from nlattn.tiled.plan import carry_out
from nlattn.tiled.points import Points, given, mapped
from nlattn.tiled.run import Executor, Told
from nlattn.tiled.task import Cost, Done, Record, Stage, TileTask

OP = "tiled"
_EDGES = ("edge_keys", "edge_queries", "edge_slopes", "edge_weights")


class GradientsJob(NamedTuple):
    """All that a run is told."""

    tile: int
    points: Points
    map: str
    """Folder of the map."""
    dout: str
    nnz: int
    scale: float

    @property
    def key_bands(self) -> list[Band]:
        """Bands of keys."""
        high, wide = self.points.key_grid
        return bands(high, min(rows_of(self.tile, wide), high))

    def stages(self) -> list[Stage]:
        """Cotangents of scores with the gradients of queries, then those of keys and values."""
        x, nnz = self.points, self.nnz
        near, tiles, size = x.bands(), self.key_bands, np.dtype(x.dtype).itemsize

        def slope(_: Folder) -> tuple[list[ArraySpec], list[TileTask]]:
            indptr = Folder(self.map).read("indptr")
            made = [ArraySpec("dq", (*x.query_grid, x.d), x.dtype)]
            kinds = "int32", "int32", x.dtype, x.dtype
            made += [ArraySpec(n, (nnz,), kind) for n, kind in zip(_EDGES, kinds, strict=True)]
            made += [ArraySpec("edge_starts", (len(near), len(tiles) + 1), "int64")]
            tasks = []
            for b in near:
                starts = dict.fromkeys(_EDGES, int(indptr[b.first * x.query_grid[1]]))
                starts |= {"dq": b.first, "edge_starts": b.number}
                tasks.append(TileTask(f"slopes/{b.number}", _slope, (self, b), starts))
            return made, tasks

        def gather(_: Folder) -> tuple[list[ArraySpec], list[TileTask]]:
            made = [ArraySpec("dk", (*x.key_grid, x.d), x.dtype)]
            made += [ArraySpec("dv", (*x.key_grid, x.e), x.dtype)]
            starts = [{"dk": b.first, "dv": b.first} for b in tiles]
            named = zip(tiles, starts, strict=True)
            return made, [TileTask(f"keys/{b.number}", _gather, (self, b), at) for b, at in named]

        own = (*_EDGES, "edge_starts")
        rows, keys = (max(b.last - b.first for b in some) for some in (near, tiles))
        each = nnz / max(1, x.n) * 2 * rows * x.query_grid[1]  # rows may have twice the mean
        heard = nnz / max(1, x.m) * 4 * keys * x.key_grid[1]  # keys are not alike
        queries, numbers = rows * x.query_grid[1], keys * x.key_grid[1]
        return [
            *arrays.looking(x, self.scale)[:1],
            Stage("slopes", ("looked",), ("dq", *own), slope,
                  Cost(len(near), int(each * (40 + 4 * size) + queries * size * (2 * x.d + x.e)),
                       nnz * (8 + 2 * size) + x.n * x.d * size, nnz), ("looked",)),
            Stage("keys", own, ("dk", "dv"), gather,
                  Cost(len(tiles), int(heard * (32 + 4 * size) + numbers * size * (x.d + x.e)),
                       x.m * (x.d + x.e) * size, 2 * nnz), own),
        ]  # fmt: skip

    def header(self) -> JsonObject:
        """What a folder must agree on to be continued."""
        files = {"dout": self.dout}
        files |= {name: f"{self.map}/{name}.npy" for name in ("indptr", "indices")}
        named = {n: sources.digest_of(p) for n, p in files.items()}
        told = {"version": identity(), "job": "gradients", "scale": self.scale, "tile": self.tile}
        return {**told, **arrays.digests(self.points), **named}

    def tiled(self, tile: int) -> GradientsJob:
        """The same with other tiles."""
        return self._replace(tile=tile, points=self.points.tiled(tile))


def _slope(folder: Folder, job: GradientsJob, band: Band) -> Done:
    x, held, wide = job.points, Folder(job.map), job.points.query_grid[1]
    indptr = held.read("indptr")[band.first * wide : band.last * wide + 1]
    indices = held.read("indices")[indptr[0] : indptr[-1]]
    support = Support(indptr - indptr[0], indices, ((band.last - band.first) * wide, x.m))
    named = {
        "q": (x.queries(folder, band.first, band.last), "Hq Wq d"),
        "k": (x.keys(folder), "Hk Wk d"),
        "v": (x.values(folder), "Hk Wk e"),
        "dout": (mapped(job.dout)[band.first : band.last], "Hq Wq e"),
    }
    fit = _check.fit(OP, named, nonfinite="propagate")
    weights = WeightFunction.checked(fit, scale=job.scale)
    edges = Edges(fit, support)
    P, dscores = edges.slopes(weights, False)
    dq = edges.query_sums(weights, dscores).reshape(-1, wide, x.d)
    ends = np.array([b.last for b in job.key_bands]) * x.key_grid[1]
    tile = np.searchsorted(ends, indices, side="right")
    order = np.argsort(tile, kind="stable")
    sizes = np.diff(indptr)
    queries = band.first * wide + np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    starts = np.concatenate([[0], np.cumsum(np.bincount(tile, minlength=len(ends)))])
    blocks = indices[order], queries[order], dscores[order], P[order]
    made = dict(zip(_EDGES, blocks, strict=True))
    return {"dq": dq, "edge_starts": (starts + indptr[0])[None], **made}, len(indices)


def _gather(folder: Folder, job: GradientsJob, band: Band) -> Done:
    x, starts = job.points, folder.read("edge_starts")
    some = [slice(row[band.number], row[band.number + 1]) for row in starts]
    keys, queries, dscores, P = (
        np.concatenate([folder.read(name)[part] for part in some]) for name in _EDGES
    )
    first, count = band.first * x.key_grid[1], (band.last - band.first) * x.key_grid[1]
    order = np.argsort(keys, kind="stable")
    indptr = np.searchsorted(keys[order], np.arange(first, first + count + 1))
    queries = queries[order]
    q = x.queries(folder, 0, x.query_grid[0]).reshape(x.n, x.d)
    dout = _check.frozen(mapped(job.dout).reshape(x.n, x.e))
    dk = key_sums(dscores[order], indptr, queries, _check.frozen(q), job.scale)
    dv = key_sums(P[order], indptr, queries, dout, 1.0)
    grid = band.last - band.first, x.key_grid[1]
    return {"dk": dk.reshape(*grid, x.d), "dv": dv.reshape(*grid, x.e)}, 2 * len(keys)


def job(
    folder: str | os.PathLike[str],
    q: FilePath,
    k: FilePath | None,
    v: FilePath | None,
    dout: str | os.PathLike[str],
    *,
    tile: int = 1024,
    scale: float | None = None,
) -> GradientsJob:
    """A checked job."""
    x, A = given(q, k, v, tile=tile), open_map(folder)
    if not x.e:
        _check.fail(OP, "v", "is missing, expected the values of the map")
    if (A.query_grid, A.key_grid) != (x.query_grid, x.key_grid):
        text = f"is of {A.query_grid} queries and {A.key_grid} keys, expected {x.query_grid}"
        _check.fail(OP, "the map", f"{text} and {x.key_grid} of q and k")
    path = os.path.abspath(dout)
    found, shape = mapped(path), (*x.query_grid, x.e)
    if found.shape != shape or found.dtype != x.dtype:
        _check.fail(OP, "dout", f"is {found.dtype} {found.shape}, expected {x.dtype} {shape}")
    factor = x.d**-0.5 if scale is None else _check.number(OP, "scale", scale)
    return GradientsJob(tile, x, os.path.abspath(folder), path, len(A.support.indices), factor)


def scram_vjp(
    folder: str | os.PathLike[str],
    q: str | os.PathLike[str],
    k: str | os.PathLike[str] | None,
    v: str | os.PathLike[str],
    dout: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    executor: Executor | None = None,
    resume: bool = False,
    progress: Told = None,
    max_bytes: float = 4e9,
    tile: int = 1024,
    scale: float | None = None,
) -> list[Record]:
    """`scram_vjp` on the support of a map on disk: ``dq``, ``dk`` and ``dv`` of the folder `out`.

    Parameters
    ----------
    folder : path
        Where `scram_arrays` left the map of `q` and `k`.
    q, k, v, dout : paths of ``.npy``
        As there, and (Hq, Wq, e). Where `k` is None, ``dk`` is the part that keys have in it.
    out : path
        Folder of the gradients; their bits are those of the operator, for any tile and executor.
    executor, resume, progress, max_bytes
        As for `nlattn.tiled.scram.scram`.
    tile, scale : int, float, optional
        Tasks have about ``tile * tile`` queries or keys; that of the map.
    """
    told = job(folder, q, k, v, dout, tile=tile, scale=scale)
    return carry_out(told, out, executor, resume, progress, max_bytes)
