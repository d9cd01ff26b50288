"""SCRAM of a picture beyond memory: features, search, support, weights, values."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from nlattn import _check
from nlattn.engines.matches import KINDS
from nlattn.engines.patchmatch import JUMPS, PROPAGATE, SearchOptions
from nlattn.tiled import features, search, sources, sparse
from nlattn.tiled.executors import identity
from nlattn.tiled.features import Features
from nlattn.tiled.run import Executor, Told, run
from nlattn.tiled.task import Record, Stage

OP = "tiled.scram"


class Job(NamedTuple):
    """All that a run is told."""

    source: sources.Source
    features: Features
    search: SearchOptions
    selection: sparse.NearKeys
    values: bool

    def stages(self) -> list[Stage]:
        """What is done, in order."""
        return [
            *features.stages(self.features, self.source),
            *search.stages(self.features, self.search),
            *sparse.stages(self.features, self.selection, self.values),
        ]

    def header(self) -> dict[str, Any]:
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


def job(
    image: str | os.PathLike[str],
    *,
    tile: int = 1024,
    patch: int = 7,
    channels: int = 32,
    gain: float = 1.5,
    scale: float | None = None,
    keys: float = 16.0,
    iterations: int = 5,
    topk: int = 1,
    propagate: str = "both",
    kind: str = "neighbours",
    window: int = 1,
    reach: int = 1,
    seed: int = 0,
    values: bool = True,
) -> Job:
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
    options = SearchOptions(
        topk=_check.integer(OP, "topk", topk, low=1, high=64),
        iterations=_check.integer(OP, "iterations", iterations, low=0),
        propagate=_check.choice(OP, "propagate", propagate, tuple(PROPAGATE)),
        jumps=JUMPS,
        seed=told.seed,
    )
    radius = _check.odd(OP, "window", window, "the best key is its centre") // 2
    selection = sparse.NearKeys(
        _check.choice(OP, "kind", kind, tuple(KINDS)),
        min(radius, max(height, width) - 1),
        _check.integer(OP, "reach", reach, low=0),
    )
    return Job(source, told, options, selection, _check.flag(OP, "values", values))


def scram(
    image: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    executor: Executor | None = None,
    resume: bool = False,
    progress: Told = None,
    **options: Any,
) -> list[Record]:
    """Attention of a picture to itself, written to the folder `out`."""
    wanted = job(image, **options)
    return run(
        Path(out),
        wanted.stages(),
        wanted.header(),
        executor=executor,
        resume=resume,
        progress=progress,
    )
