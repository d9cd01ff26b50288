"""Certified attention beyond one process, of arrays or of a picture to itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from nlattn import _check
from nlattn._modes import SoftmaxOrGaussian
from nlattn._types import FilePath, JsonObject
from nlattn.engines.scores import weighing
from nlattn.kernels import scores
from nlattn.tiled import arrays, features, panels, pyramid, scram, sources
from nlattn.tiled.executors import identity
from nlattn.tiled.options import PictureOptions
from nlattn.tiled.panels import CertifiedOptions
from nlattn.tiled.plan import carry_out
from nlattn.tiled.points import Points, given
from nlattn.tiled.run import Executor, Told
from nlattn.tiled.task import Record, Stage

if TYPE_CHECKING:
    from typing import Unpack

OP = "tiled"


class CertifiedJob(NamedTuple):
    """All that a run on arrays is told."""

    tile: int
    points: Points
    scale: float
    options: CertifiedOptions

    def stages(self) -> list[Stage]:
        """What is done, in order."""
        x = self.points
        return [*arrays.looking(x, self.scale), *panels.stages(x, self.options, scored=x.m)]

    def header(self) -> JsonObject:
        """What a folder must agree on to be continued."""
        told = {"scale": self.scale, "tolerance": self.options.tolerance}
        job = {"version": identity(), "job": "certified attention", **arrays.digests(self.points)}
        return {**job, **told, "kind": self.options.kind, "group": self.options.group}

    def note(self, records: Sequence[Record]) -> JsonObject:
        """What was done."""
        grids = {"query_grid": [*self.points.query_grid], "key_grid": [*self.points.key_grid]}
        return {"kind": "certified", **grids, "scores": sum(record.scores for record in records)}

    def tiled(self, tile: int) -> CertifiedJob:
        """The same with other tiles."""
        options = self.options._replace(group=tile * tile)
        return self._replace(tile=tile, points=self.points.tiled(tile), options=options)


class CertifiedPictureJob(NamedTuple):
    """All that a run on a picture is told: `features` as for SCRAM."""

    features: scram.ScramJob
    options: CertifiedOptions

    @property
    def source(self) -> sources.Source:
        """Its picture."""
        return self.features.source

    @property
    def tile(self) -> int:
        """Side of a tile."""
        return self.features.tile

    def stages(self) -> list[Stage]:
        """What is done, in order."""
        x = self.features.features
        return [
            *features.stages(x, self.source),
            *panels.stages(x.points, self.options, scored=x.pixels),
            *pyramid.stages("out", self.source.shape),
        ]

    def header(self) -> JsonObject:
        """What a folder must agree on to be continued."""
        told = {"features": self.features.features._asdict(), **self.options._asdict()}
        job = {"version": identity(), "job": "certified attention of a picture"}
        return {**job, "image": sources.digest(self.source), **told}

    def note(self, records: Sequence[Record]) -> JsonObject:
        """What was done."""
        grid = [*self.source.shape[:2]]
        scores = sum(record.scores for record in records)
        return {"kind": "certified", "query_grid": grid, "key_grid": grid, "scores": scores}

    def tiled(self, tile: int) -> CertifiedPictureJob:
        """The same with other tiles."""
        return self.of(self.source, tile)

    def of(self, source: sources.Source, tile: int) -> CertifiedPictureJob:
        """The same of another picture, or with other tiles."""
        options = self.options._replace(group=tile * tile)
        return CertifiedPictureJob(self.features.of(source, tile), options)


def picture_job(
    image: object, *, tolerance: float = 1e-3, **options: Unpack[PictureOptions]
) -> CertifiedPictureJob:
    """A checked job on a picture; options of its features as for SCRAM."""
    told = scram.job(image, **options)
    return CertifiedPictureJob(told, checked(tolerance, scores.DOT, told.tile))


def job(
    q: FilePath,
    k: FilePath | None,
    v: FilePath | None,
    *,
    tile: int = 1024,
    tolerance: float = 1e-3,
    weight: SoftmaxOrGaussian = "softmax",
    scale: float | None = None,
    bandwidth: float = 1.0,
) -> CertifiedJob:
    """A checked job."""
    x = given(q, k, v, tile=tile)
    if not x.e:
        _check.fail(OP, "v", "is missing, expected values: certified attention sums them")
    kind, factor = weighing(OP, weight, x.d, scale, bandwidth)
    return CertifiedJob(tile, x, factor, checked(tolerance, kind, tile))


def checked(tolerance: float, kind: int, tile: int) -> CertifiedOptions:
    """Options whose tolerance is a share."""
    return CertifiedOptions(_check.share(OP, "tolerance", tolerance), kind, tile * tile)


def certified_attention(
    q: str | os.PathLike[str],
    k: str | os.PathLike[str] | None,
    v: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    executor: Executor | None = None,
    resume: bool = False,
    progress: Told = None,
    max_bytes: float = 4e9,
    tile: int = 1024,
    tolerance: float = 1e-3,
    weight: SoftmaxOrGaussian = "softmax",
    scale: float | None = None,
    bandwidth: float = 1.0,
) -> list[Record]:
    """`certified_attention` of arrays on disk: ``out``, ``lse`` and ``missed`` of the folder `out`.

    Parameters
    ----------
    q, k, v : paths of ``.npy``, (Hq, Wq, d), (Hk, Wk, d), (Hk, Wk, e), float32 or float64
        Read where they lie; keys are the queries if `k` is None.
    out : path
        Folder of the results; their bits are those of the operator, for any tile and executor.
    executor, resume, progress, max_bytes
        As for `nlattn.tiled.scram.scram`. One task surveys all queries and keys: some 30 bytes a
        channel of each.
    tile : int
        Tasks have about ``tile * tile`` queries.
    tolerance, weight, scale, bandwidth
        As for `nlattn.certified_attention`.
    """
    told = job(q, k, v, tile=tile, tolerance=tolerance, weight=weight, scale=scale,
        bandwidth=bandwidth)  # fmt: skip
    return carry_out(told, out, executor, resume, progress, max_bytes)
