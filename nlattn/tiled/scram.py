"""SCRAM of a picture beyond memory: features, search, support, weights, values."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nlattn import _check
from nlattn._modes import Candidates, Propagate, SupportKind
from nlattn._types import JsonObject
from nlattn.engines.matches import KINDS
from nlattn.engines.patchmatch import CANDIDATES, JUMPS, PROPAGATE, SearchOptions
from nlattn.tiled import features, pyramid, search, sources, sparse, trees
from nlattn.tiled.executors import identity
from nlattn.tiled.features import Features
from nlattn.tiled.options import PictureOptions
from nlattn.tiled.plan import carry_out
from nlattn.tiled.points import Points
from nlattn.tiled.run import Executor, Told
from nlattn.tiled.task import Record, Stage

if TYPE_CHECKING:
    from typing import Unpack

OP = "tiled"


class ScramJob(NamedTuple):
    """All that a run is told."""

    source: sources.Source
    tile: int
    features: Features
    search: SearchOptions
    selection: sparse.NearKeys
    values: bool

    def stages(self) -> list[Stage]:
        """What is done, in order."""
        return [
            *features.stages(self.features, self.source),
            *attention(self.features.points, self.search, self.selection, self.values),
            *(pyramid.stages("out", self.source.shape) if self.values else ()),
        ]

    def header(self) -> JsonObject:
        """What a folder must agree on to be continued."""
        return {
            "version": identity(),
            "job": "scram",
            "image": sources.digest(self.source),
            "features": self.features._asdict(),
            "search": self.search._asdict(),
            "selection": self.selection._asdict(),
            "values": self.values,
        }

    def note(self, records: Sequence[Record]) -> JsonObject:
        """What a map is, beside its arrays."""
        return note(self.features.points, records)

    def tiled(self, tile: int) -> ScramJob:
        """The same with other tiles."""
        return self.of(self.source, tile)

    def of(self, source: sources.Source, tile: int) -> ScramJob:
        """The same of another picture, or with other tiles."""
        height, width, _ = source.shape
        told = self.features._replace(height=height, width=width, rows=source.band(tile))
        return self._replace(source=source, tile=tile, features=told)


def attention(
    x: Points, options: SearchOptions, selection: sparse.NearKeys, values: bool
) -> list[Stage]:
    """From queries and keys to the map, and the mean of values if so."""
    find = trees if options.candidates == "tree" else search
    return [*find.stages(x, options), *sparse.stages(x, selection, options.topk, values)]


def note(x: Points, records: Sequence[Record]) -> JsonObject:
    """What a map is, beside its arrays."""
    counted = "begin", "search", "leaves", "weigh"
    scores = sum(r.scores for r in records if r.task.startswith(counted))
    nnz = sum(r.scores for r in records if r.task.startswith("weigh"))
    size = np.dtype(x.dtype).itemsize
    nbytes = 2 * size * scores * x.d + (4 + 2 * size) * nnz + (size * x.d + 16) * x.n
    grids = {"query_grid": [*x.query_grid], "key_grid": [*x.key_grid]}
    return {"kind": "sparse", **grids, "work": [scores, scores * x.d, nbytes]}


def searched(
    grid: tuple[int, int],
    seed: int,
    candidates: Candidates,
    iterations: int | None,
    trees: int,
    topk: int,
    propagate: Propagate,
    kind: SupportKind,
    window: int,
    reach: int,
) -> tuple[SearchOptions, sparse.NearKeys]:
    """Checked options of the search on a grid of keys, and of the support."""
    options = SearchOptions(
        topk=_check.integer(OP, "topk", topk, low=1, high=64),
        candidates=_check.choice(OP, "candidates", candidates, CANDIDATES),
        iterations=None
        if iterations is None
        else _check.integer(OP, "iterations", iterations, low=0),
        trees=_check.integer(OP, "trees", trees, low=1, high=64),
        propagate=_check.choice(OP, "propagate", propagate, tuple(PROPAGATE)),
        jumps=JUMPS,
        seed=_check.integer(OP, "seed", seed, low=0, high=2**63 - 1),
    )
    radius = _check.odd(OP, "window", window, "the best key is its centre") // 2
    return options, sparse.NearKeys(
        _check.choice(OP, "kind", kind, tuple(KINDS)),
        min(radius, max(grid) - 1),
        _check.integer(OP, "reach", reach, low=0),
    )


def job(
    image: object,
    *,
    tile: int = 1024,
    patch: int = 7,
    channels: int = 32,
    gain: float = 1.5,
    scale: float | None = None,
    keys: float = 16.0,
    candidates: Candidates = "random",
    iterations: int | None = None,
    trees: int = 4,
    topk: int = 1,
    propagate: Propagate = "both",
    kind: SupportKind = "neighbours",
    window: int = 1,
    reach: int = 1,
    seed: int = 0,
    values: bool = True,
) -> ScramJob:
    """A checked job."""
    source = sources.source(image)
    height, width, colours = source.shape
    tile = _check.integer(OP, "tile", tile, low=1)
    size = _check.odd(OP, "patch", patch, "its centre is a pixel") ** 2 * colours
    told = Features(
        *(height, width, colours, source.band(tile)),
        patch,
        _check.integer(OP, "channels", channels, low=1, high=size),
        _check.number(OP, "gain", gain, positive=True),
        None if scale is None else _check.number(OP, "scale", scale),
        _check.number(OP, "keys", keys, positive=True),
        _check.integer(OP, "seed", seed, low=0, high=2**63 - 1),
    )
    grid, how = (height, width), (candidates, iterations, trees, topk, propagate)
    options, selection = searched(grid, told.seed, *how, kind, window, reach)
    return ScramJob(source, tile, told, options, selection, _check.flag(OP, "values", values))


def scram(
    image: object,
    out: str | os.PathLike[str],
    *,
    executor: Executor | None = None,
    resume: bool = False,
    progress: Told = None,
    max_bytes: float = 4e9,
    **options: Unpack[PictureOptions],
) -> list[Record]:
    """Attention of a picture on disk to itself, as `scram_map` of its patch features.

    Parameters
    ----------
    image : path, dask array, or xarray.DataArray of one
        ``.npy``, TIFF, zarr or OME-Zarr, read by rows; or a picture that is read as a whole.
    out : path
        Folder for the map, the matches, and ``out.npy``, the picture's values averaged.
    executor : Executor, optional
        This process, or `Processes`, `Dask`.
    resume : bool
        Continue what an earlier run of the same options left undone.
    progress : callable, optional
        Called with a stage, and how many of its tasks are done, and all.
    max_bytes : float
        Most bytes that all workers may hold, beside files that are mapped.
    **options
        `tile`: tasks are bands of whole rows of about `tile` by `tile` pixels. `patch`,
        `channels`, `gain`, `scale`, `keys` as for `images`; `candidates`, `iterations`, `topk`,
        `propagate`, `trees`, `seed` as for `patchmatch`; `kind`, `window`, `reach` as for
        `scram_support`; `values`, whether there is an ``out.npy``.

    Returns
    -------
    list of Record
        What was done, and what it took. The files have the same bytes for any tile and executor.
    """
    return carry_out(job(image, **options), out, executor, resume, progress, max_bytes)
