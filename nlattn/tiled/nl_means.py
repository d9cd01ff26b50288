"""Non-local means of a picture beyond memory: bands with what their windows reach, and matches."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nlattn import _check
from nlattn._modes import Aggregate, Candidates, PatchChoice, PatchSearch, SelfWeight
from nlattn._types import Floats, JsonObject
from nlattn.engines.nl_means import PictureMeans, WholePicture, denoise
from nlattn.engines.similar import matching, wanted
from nlattn.ops._nl_means import NLMeansArguments, checked
from nlattn.ops._picture import Picture
from nlattn.tiled import pyramid, search, sources, trees
from nlattn.tiled.bands import Band, bands
from nlattn.tiled.executors import identity
from nlattn.tiled.folder import ArraySpec, Folder
from nlattn.tiled.options import MeansOptions
from nlattn.tiled.plan import carry_out
from nlattn.tiled.points import Points
from nlattn.tiled.run import Executor, Told
from nlattn.tiled.task import Cost, Done, Record, Stage, TileTask

if TYPE_CHECKING:
    from typing import Unpack

OP = "tiled"
_NEAR = "window", "union"
"""Searches that look at the window."""


class Denoising(NamedTuple):
    """All that a run is told."""

    source: sources.Source
    tile: int
    rows: int
    """Of a band."""
    voting: bool
    """Whether all patches that cover a pixel count for it."""
    arguments: NLMeansArguments

    @property
    def bands(self) -> list[Band]:
        """Bands, with the windows of the patches that vote for their pixels."""
        asked = self.arguments
        reach = asked.patch_distance if asked.search in _NEAR else 0
        found = bands(self.source.shape[0], self.rows, reach + 2 * (asked.patch_size // 2))
        # sums over patches go round a ring of rows: bands begin where the whole has its first
        return [b._replace(above=b.above - b.above % asked.patch_size) for b in found]

    def of(self, source: sources.Source, tile: int) -> Denoising:
        """The same of another picture, or with other tiles."""
        return self._replace(source=source, tile=tile, rows=source.band(tile))

    def tiled(self, tile: int) -> Denoising:
        """The same with other tiles."""
        return self.of(self.source, tile)

    def stages(self) -> list[Stage]:
        """A search for matches if they may be anywhere, then the means."""
        height, width, colours = self.source.shape
        asked, near = self.arguments, self.bands
        before, drops = self._searching() if asked.search != "window" else ([], ())

        def begin(_: Folder) -> tuple[list[ArraySpec], list[TileTask]]:
            return [ArraySpec("out", self.source.shape, "float32")], [
                TileTask(f"denoise/{b.number}", _denoise, (self, b), {"out": b.first}) for b in near
            ]

        high = max(b.below - b.above for b in near)
        others = (2 * asked.patch_distance + 1) ** 2 - 1
        keys = 0 if asked.search == "window" and asked.topk is None else wanted(self.call().search)
        nbytes = high * width * (24 * colours + 24 + 64 * keys)
        scores = (others if asked.search in _NEAR else 0) + 2 * keys
        disk = ArraySpec("out", self.source.shape, "float32").nbytes
        cost = Cost(len(near), nbytes, disk, scores * height * width)
        means = Stage("denoise", drops, ("out",), begin, cost, drops)
        return [*before, means, *pyramid.stages("out", self.source.shape)]

    def header(self) -> JsonObject:
        """What a folder must agree on to be continued."""
        return {
            "version": identity(),
            "job": "nl_means",
            "image": sources.digest(self.source),
            "rows": self.rows,
            "voting": self.voting,
            **self.arguments._asdict(),
        }

    def call(self) -> PictureMeans:
        """Checked options, on a picture of no importance."""
        nothing = np.zeros((2, 2, self.source.shape[2]), np.float32)
        return checked("nl_means", nothing, self.arguments)[1]

    def _searching(self) -> tuple[list[Stage], tuple[str, ...]]:
        """Stages of the search, and what of theirs the means read."""
        (height, width, colours), patch = self.source.shape, self.arguments.patch_size
        x = Points((height, width), (height, width), colours, 0, self.rows, patch=patch)
        shape = height + patch - 1, width + patch - 1, colours
        parts = bands(shape[0], self.rows)

        def pad(_: Folder) -> tuple[list[ArraySpec], list[TileTask]]:
            return [ArraySpec("padded", shape, "float32")], [
                TileTask(f"pad/{b.number}", _pad, (self, b), {"padded": b.first}) for b in parts
            ]

        def scale(_: Folder) -> tuple[list[ArraySpec], list[TileTask]]:
            return [ArraySpec("scale", (1,), "float64")], [
                TileTask("scale", _one, (), {"scale": 0})
            ]

        options = matching(self.call().search)
        find = trees if options.candidates == "tree" else search
        disk = ArraySpec("padded", shape, "float32").nbytes
        high = max(b.last - b.first for b in parts) + patch
        stages = [
            Stage(
                "pad", (), ("padded",), pad, Cost(len(parts), 16 * high * shape[1] * colours, disk)
            ),
            Stage("scale", (), ("scale",), scale, Cost(1, 8, 8)),
            *find.stages(x, options),
        ]  # fmt: skip
        return stages, ("padded", "scale", *search.MATCHES)


def _pad(_: Folder, job: Denoising, band: Band) -> Done:
    height, width = job.source.shape[:2]
    margin = job.arguments.patch_size // 2
    down, across = (np.pad(np.arange(n), margin, mode="reflect") for n in (height, width))
    some = down[band.first : band.last]
    rows = sources.rows(job.source, int(some.min()), int(some.max()) + 1)
    return {"padded": rows[some - some.min()][:, across]}, 0


def _one(_: Folder) -> Done:
    return {"scale": np.ones(1)}, 0


def _denoise(folder: Folder, job: Denoising, band: Band) -> Done:
    image, asked = sources.rows(job.source, band.above, band.below), job.arguments
    picture: Picture
    picture, call = checked("nl_means", image, asked)
    if asked.search != "window":
        whole = _check.frozen(folder.read("padded").reshape(-1))
        index = folder.read(search.MATCHES[0])[band.above : band.below]
        matches = index.reshape(-1, index.shape[2]).astype(np.int64)
        call = call._replace(beyond=WholePicture(whole, job.source.shape[0], band.above, matches))
    out = call.fit.empty("H W e")
    denoise(call, 0, job.voting, out[0])
    clean: Floats = picture.restored(out)[band.inner]
    others = (2 * asked.patch_distance + 1) ** 2 - 1 if asked.search in _NEAR else 0
    return {"out": clean}, clean.shape[0] * clean.shape[1] * others


def job(
    image: object,
    *,
    sigma: float,
    h: float | None = None,
    patch_size: int = 5,
    patch_distance: int = 5,
    search: PatchSearch = "window",
    topk: int | None = None,
    select: PatchChoice = "nearest",
    aggregate: Aggregate = "patch",
    self_weight: SelfWeight = "max",
    candidates: Candidates = "random",
    iterations: int | None = None,
    seed: int = 0,
    tile: int = 1024,
) -> Denoising:
    """A checked job."""
    source = sources.source(image)
    tile = _check.integer(OP, "tile", tile, low=1)
    voting = _check.choice("nl_means", "aggregate", aggregate, ("patch", "pixel")) == "patch"
    asked = NLMeansArguments(sigma, h, patch_size, patch_distance, search, topk, select,
        self_weight, candidates, iterations, seed, None, -1, None, True, "raise",
        1e300)  # fmt: skip
    told = Denoising(source, tile, source.band(tile), voting, asked)
    told.call()
    return told


def nl_means(
    image: object,
    out: str | os.PathLike[str],
    *,
    sigma: float,
    executor: Executor | None = None,
    resume: bool = False,
    progress: Told = None,
    max_bytes: float = 4e9,
    **options: Unpack[MeansOptions],
) -> list[Record]:
    """`nl_means` of a picture on disk, to ``out.npy`` of the folder `out`.

    Options: all of `nl_means` that say what is compared and how, and `tile`: tasks are bands of
    whole rows of about `tile` by `tile` pixels. Matches of the whole picture are found by tiles.
    """
    return carry_out(job(image, sigma=sigma, **options), out, executor, resume, progress, max_bytes)
