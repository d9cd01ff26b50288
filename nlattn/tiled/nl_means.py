"""Non-local means of a picture beyond memory: bands with what their windows reach."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np

from nlattn import _check
from nlattn.ops.nl_means import nl_means as whole
from nlattn.tiled import pyramid, sources
from nlattn.tiled.bands import Band, bands
from nlattn.tiled.executors import identity
from nlattn.tiled.folder import Array, Folder
from nlattn.tiled.plan import check
from nlattn.tiled.run import Executor, Told, run
from nlattn.tiled.task import Cost, Record, Stage, TileTask

OP = "tiled"


class Denoising(NamedTuple):
    """All that a run is told."""

    source: sources.Source
    tile: int
    rows: int
    """Of a band."""
    options: dict[str, Any]

    @property
    def bands(self) -> list[Band]:
        """Bands, with the windows of the patches that vote for their pixels."""
        patch = self.options["patch_size"]
        halo = self.options["patch_distance"] + 2 * (patch // 2)
        found = bands(self.source.shape[0], self.rows, halo)
        # sums over patches go round a ring of rows: bands begin where the whole has its first
        return [b._replace(above=b.above - b.above % patch) for b in found]

    def of(self, source: sources.Source, tile: int) -> Denoising:
        """The same of another picture, or with other tiles."""
        return self._replace(source=source, tile=tile, rows=source.band(tile))

    def tiled(self, tile: int) -> Denoising:
        """The same with other tiles."""
        return self.of(self.source, tile)

    def stages(self) -> list[Stage]:
        """One stage: no band needs another's result."""

        def begin(_: Folder) -> tuple[list[Array], list[TileTask]]:
            return [Array("out", self.source.shape, "float32")], [
                TileTask(f"denoise/{b.number}", _denoise, (self, b), {"out": b.first})
                for b in self.bands
            ]

        high = max(b.below - b.above for b in self.bands)
        _, width, colours = self.source.shape
        nbytes = high * width * (24 * colours + 24)
        others = (2 * self.options["patch_distance"] + 1) ** 2 - 1
        disk = Array("out", self.source.shape, "float32").nbytes
        cost = Cost(len(self.bands), nbytes, disk, others * self.source.shape[0] * width)
        first = Stage("denoise", (), ("out",), begin, cost)
        return [first, *pyramid.stages("out", self.source.shape)]

    def header(self) -> dict[str, Any]:
        """What a folder must agree on to be continued."""
        return {
            "version": identity(),
            "job": "nl_means",
            "image": sources.digest(self.source),
            "rows": self.rows,
            **self.options,
        }


def _denoise(_: Folder, job: Denoising, band: Band) -> Any:
    image = sources.rows(job.source, band.above, band.below)
    out = whole(image, **job.options)[band.inner]
    others = (2 * job.options["patch_distance"] + 1) ** 2 - 1
    return {"out": out}, out.shape[0] * out.shape[1] * others


def job(
    image: Any,
    *,
    sigma: float,
    h: float | None = None,
    patch_size: int = 5,
    patch_distance: int = 5,
    aggregate: str = "patch",
    tile: int = 1024,
) -> Denoising:
    """A checked job."""
    source = sources.source(image)
    tile = _check.integer(OP, "tile", tile, low=1)
    options: dict[str, Any] = {"sigma": sigma, "h": h, "aggregate": aggregate}
    options |= {"patch_size": patch_size, "patch_distance": patch_distance}
    whole(np.zeros((2, 2, source.shape[2]), np.float32), **options)
    return Denoising(source, tile, source.band(tile), options)


def nl_means(
    image: Any,
    out: str | os.PathLike[str],
    *,
    executor: Executor | None = None,
    resume: bool = False,
    progress: Told = None,
    max_bytes: float = 4e9,
    **options: Any,
) -> list[Record]:
    """`nl_means` of a picture on disk by its window, to ``out.npy`` of the folder `out`.

    Options: `sigma`, `h`, `patch_size`, `patch_distance`, `aggregate` as there, and `tile`: tasks
    are bands of whole rows of about `tile` by `tile` pixels.
    """
    told = job(image, **options)
    check(told, executor.workers if executor else 1, max_bytes)
    how = {"executor": executor, "resume": resume, "progress": progress}
    return run(out, told.stages(), told.header(), **how)  # type: ignore[arg-type]
