"""Leverage scores of keys beyond memory: parts are folded by themselves, and merged in order."""

from __future__ import annotations

import os
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from nlattn import _check
from nlattn._types import Floats, JsonObject
from nlattn.engines import leverage as engine
from nlattn.tiled import sources
from nlattn.tiled.executors import identity
from nlattn.tiled.folder import ArraySpec, Folder
from nlattn.tiled.plan import carry_out
from nlattn.tiled.points import mapped
from nlattn.tiled.run import Executor, Told
from nlattn.tiled.task import Cost, Done, Record, Stage, TileTask

OP = "tiled"
Method: TypeAlias = Literal["qr", "svd"]


class LeverageJob(NamedTuple):
    """All that a run is told."""

    path: str
    n: int
    d: int
    tile: int
    method: str
    rcond: float | None

    @property
    def bands(self) -> list[tuple[int, int]]:
        """First and last keys of the tasks that look at some."""
        step = self.tile * self.tile
        return [(first, min(first + step, self.n)) for first in range(0, self.n, step)]

    def stages(self) -> list[Stage]:
        """Largest magnitudes, the triangle of every part, the factor of all, and the scores."""
        d, parts = self.d, engine.part_count(self.n, self.d)
        state = 8 * d * d
        keys = min(self.n, self.tile * self.tile)

        def measure(_: Folder) -> tuple[list[ArraySpec], list[TileTask]]:
            return [ArraySpec("peaks", (len(self.bands), d), "float64")], [
                TileTask(f"peaks/{i}", _measure, (self, *ends), {"peaks": i})
                for i, ends in enumerate(self.bands)
            ]

        def fold(_: Folder) -> tuple[list[ArraySpec], list[TileTask]]:
            return [ArraySpec("triangles", (parts, d, d), "float64")], [
                TileTask(f"fold/{part}", _fold, (self, part), {"triangles": part})
                for part in range(parts)
            ]

        def factor(_: Folder) -> tuple[list[ArraySpec], list[TileTask]]:
            made = [
                ArraySpec("scale", (d,), "float64"),
                ArraySpec("order", (d,), "int64"),
                ArraySpec("inverse", (d, d), "float64"),
                ArraySpec("rank", (1,), "int64"),
            ]
            starts = dict.fromkeys(("scale", "order", "inverse", "rank"), 0)
            return made, [TileTask("factor", _factor, (self,), starts)]

        def score(_: Folder) -> tuple[list[ArraySpec], list[TileTask]]:
            return [ArraySpec("leverage", (self.n,), "float64")], [
                TileTask(f"scores/{i}", _score, (self, *ends), {"leverage": ends[0]})
                for i, ends in enumerate(self.bands)
            ]

        bands, folding = len(self.bands), self.n * d
        made = ("scale", "order", "inverse", "rank")
        return [
            Stage("peaks", (), ("peaks",), measure,
                  Cost(bands, 12 * keys * d, 8 * d * bands, folding)),
            Stage("fold", ("peaks",), ("triangles",), fold,
                  Cost(parts, (parts + 4) * state, parts * state, folding * d)),
            Stage("factor", ("triangles", "peaks"), made, factor,
                  Cost(1, 4 * (parts + 2) * state, 2 * state), ("triangles", "peaks")),
            Stage("scores", made, ("leverage",), score,
                  Cost(bands, 16 * keys + 4 * state, 8 * self.n, folding * d),
                  ("scale", "order", "inverse")),
        ]  # fmt: skip

    def header(self) -> JsonObject:
        """What a folder must agree on to be continued."""
        image = sources.digest_of(self.path)
        job = {"version": identity(), "job": "leverage", "k": image, "tile": self.tile}
        return {**job, "method": self.method, "rcond": self.rcond}

    def tiled(self, tile: int) -> LeverageJob:
        """The same with other tiles."""
        return self._replace(tile=tile)


def keys_of(path: str) -> Floats:
    """Keys where they lie."""
    return _check.frozen(mapped(path))


def _measure(_: Folder, job: LeverageJob, first: int, last: int) -> Done:
    keys = keys_of(job.path)[first:last]
    bad = ~np.isfinite(keys)
    if bad.any():
        row, channel = (int(i) for i in np.argwhere(bad)[0])
        _check.fail(OP, f"k[{first + row}, {channel}]", "is not finite, expected finite values")
    return {"peaks": np.abs(keys).max(0, initial=0)[None]}, 0


def _scale(folder: Folder) -> Floats:
    return engine.power_scales(folder.read("peaks").max(0))


def _fold(folder: Folder, job: LeverageJob, part: int) -> Done:
    scale = _check.frozen(_scale(folder)[None])
    state = engine.part_triangle(keys_of(job.path)[None], scale, part)
    return {"triangles": state[None]}, 0


def _factor(folder: Folder, job: LeverageJob) -> Done:
    d, scale = job.d, _scale(folder)
    cut = max(job.n, d) * engine.UNIT if job.rcond is None else job.rcond
    states = folder.read("triangles").reshape(-1, d)
    found = engine.of_triangle(states, scale, cut, job.method)
    inverse = np.zeros((d, d))
    inverse[:, : found.rank] = found.inverse
    rank = np.array([found.rank])
    return {"scale": scale, "order": found.order, "inverse": inverse, "rank": rank}, 0


def _score(folder: Folder, job: LeverageJob, first: int, last: int) -> Done:
    rank, inverse = int(folder.read("rank")[0]), np.array(folder.read("inverse"))
    scale, order = (np.array(folder.read(name)) for name in ("scale", "order"))
    factor = engine.Factor(scale, order, inverse[:, :rank], inverse[:0], rank, 1.0)
    scores = engine.scores(keys_of(job.path)[None, first:last], [factor])[0]
    return {"leverage": np.clip(scores, 0, 1)}, last - first


def job(
    k: str | os.PathLike[str],
    *,
    tile: int = 1024,
    method: Method = "qr",
    rcond: float | None = None,
) -> LeverageJob:
    """A checked job."""
    path = os.path.abspath(k)
    x = mapped(path)
    if x.dtype not in (np.float32, np.float64) or not x.dtype.isnative:
        _check.fail_type(OP, "k", f"holds {x.dtype}, expected float32 or float64")
    if x.ndim != 2 or 0 in x.shape or not x.flags.c_contiguous:
        _check.fail(OP, "k", f"has shape {x.shape}, expected (n, d) row by row")
    if rcond is not None and not 0 <= _check.number(OP, "rcond", rcond) < 1:
        _check.fail(OP, f"rcond={rcond},", "expected from 0 to less than 1")
    side = _check.integer(OP, "tile", tile, low=1)
    return LeverageJob(
        path,
        x.shape[0],
        x.shape[1],
        side,
        _check.choice(OP, "method", method, get_args(Method)),
        rcond,
    )


def leverage_scores(
    k: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    executor: Executor | None = None,
    resume: bool = False,
    progress: Told = None,
    max_bytes: float = 4e9,
    tile: int = 1024,
    method: Method = "qr",
    rcond: float | None = None,
) -> list[Record]:
    """`leverage_scores` of keys on disk, to ``leverage.npy`` (n,) and ``rank.npy`` of `out`.

    Parameters
    ----------
    k : path of ``.npy``, (n, d), float32 or float64
        Keys, read where they lie.
    out : path
        Folder of the results; their bits are those of the operator, for any tile and executor.
    executor, resume, progress, max_bytes
        As for `nlattn.tiled.scram.scram`.
    tile : int
        Tasks have ``tile * tile`` keys.
    method, rcond : {"qr", "svd"}, float, optional
        As there.
    """
    told = job(k, tile=tile, method=method, rcond=rcond)
    return carry_out(told, out, executor, resume, progress, max_bytes)
