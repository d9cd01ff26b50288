"""SCRAM of arrays beyond memory: queries, keys and values in files of their own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nlattn import _check
from nlattn._modes import Candidates, Propagate, SupportKind
from nlattn._types import JsonObject
from nlattn.engines.patchmatch import SearchOptions
from nlattn.tiled import scram, sources, sparse
from nlattn.tiled.executors import identity
from nlattn.tiled.folder import ArraySpec, Folder
from nlattn.tiled.options import ArraysOptions
from nlattn.tiled.plan import carry_out
from nlattn.tiled.points import Points, given, mapped
from nlattn.tiled.run import Executor, Told
from nlattn.tiled.task import Cost, Done, Record, Stage, TileTask

if TYPE_CHECKING:
    from typing import Unpack

OP = "tiled"
_LOOKED = 1 << 26  # bytes that are looked at in one task


class ArraysJob(NamedTuple):
    """All that a run is told."""

    tile: int
    points: Points
    scale: float
    search: SearchOptions
    selection: sparse.NearKeys

    def stages(self) -> list[Stage]:
        """What is done, in order."""
        x = self.points
        made = scram.attention(x, self.search, self.selection, x.e > 0)
        return [*looking(x, self.scale), *made]

    def header(self) -> JsonObject:
        """What a folder must agree on to be continued."""
        return {
            "version": identity(),
            "job": "scram of arrays",
            **digests(self.points),
            "rows": self.points.rows,
            "scale": self.scale,
            "search": self.search._asdict(),
            "selection": self.selection._asdict(),
        }

    def note(self, records: Sequence[Record]) -> JsonObject:
        """What a map is, beside its arrays."""
        return scram.note(self.points, records)

    def tiled(self, tile: int) -> ArraysJob:
        """The same with other tiles."""
        return self._replace(tile=tile, points=self.points.tiled(tile))


def digests(x: Points) -> dict[str, str]:
    """SHA-256 of the files of arrays that were given."""
    named = zip("qkv", x.paths or (), strict=False)
    return {name: sources.digest_of(p) for name, p in named if p}


def looking(x: Points, scale: float) -> list[Stage]:
    """Refuse numbers that are not finite, and note the factor of scores."""
    parts = []
    for name, path in zip("qkv", x.paths or (), strict=False):
        if path:
            rows = mapped(path)
            high, step = len(rows), max(1, _LOOKED // max(1, rows[:1].nbytes))
            parts += [(name, path, top, min(top + step, high)) for top in range(0, high, step)]

    def look(_: Folder) -> tuple[list[ArraySpec], list[TileTask]]:
        return [ArraySpec("looked", (len(parts),), "int64")], [
            TileTask(f"look/{i}", _look, part, {"looked": i}) for i, part in enumerate(parts)
        ]

    def note(_: Folder) -> tuple[list[ArraySpec], list[TileTask]]:
        return [ArraySpec("scale", (1,), "float64")], [
            TileTask("scale", _note, (scale,), {"scale": 0})
        ]

    cost = Cost(len(parts), _LOOKED, 8 * len(parts))
    return [
        Stage("look", (), ("looked",), look, cost),
        Stage("scale", ("looked",), ("scale",), note, Cost(1, 8, 8), ("looked",)),
    ]


def _look(_: Folder, name: str, path: str, first: int, last: int) -> Done:
    bad = ~np.isfinite(mapped(path)[first:last])
    if bad.any():
        where = [int(i) for i in np.argwhere(bad)[0]]
        where[0] += first
        _check.fail(OP, f"{name}{where}", "is not finite, expected finite values")
    return {"looked": np.array([last - first])}, 0


def _note(_: Folder, scale: float) -> Done:
    return {"scale": np.array([scale])}, 0


def job(
    q: str | os.PathLike[str],
    k: str | os.PathLike[str] | None = None,
    v: str | os.PathLike[str] | None = None,
    *,
    tile: int = 1024,
    scale: float | None = None,
    candidates: Candidates = "random",
    iterations: int | None = None,
    trees: int = 4,
    topk: int = 1,
    propagate: Propagate = "both",
    kind: SupportKind = "window",
    window: int = 3,
    reach: int = 1,
    seed: int = 0,
) -> ArraysJob:
    """A checked job."""
    x = given(q, k, v, tile=tile)
    factor = x.d**-0.5 if scale is None else _check.number(OP, "scale", scale)
    how = candidates, iterations, trees, topk, propagate
    options, selection = scram.searched(x.key_grid, seed, *how, kind, window, reach)
    return ArraysJob(tile, x, factor, options._replace(factor=factor), selection)


def scram_arrays(
    q: str | os.PathLike[str],
    k: str | os.PathLike[str] | None,
    v: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    executor: Executor | None = None,
    resume: bool = False,
    progress: Told = None,
    max_bytes: float = 4e9,
    **options: Unpack[ArraysOptions],
) -> list[Record]:
    """`scram_map` of arrays on disk, and ``A @ v``.

    Parameters
    ----------
    q, k, v : paths of ``.npy``, (Hq, Wq, d), (Hk, Wk, d), (Hk, Wk, e), float32 or float64
        Read where they lie; keys are the queries if `k` is None, no ``out.npy`` if `v` is None.
    out : path
        Folder for the map, the matches, and ``out.npy``, (Hq, Wq, e).
    executor, resume, progress, max_bytes
        As for `nlattn.tiled.scram.scram`.
    **options
        `tile`; `scale`, `candidates`, `iterations`, `topk`, `propagate`, `trees`, `seed`, `kind`,
        `window` as for `scram_map`; `reach` as for `scram_support`.

    Returns
    -------
    list of Record
        What was done. The files have the same bytes for any tile and executor.
    """
    return carry_out(job(q, k, v, **options), out, executor, resume, progress, max_bytes)
