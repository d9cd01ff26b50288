"""Stages from a picture to the keys of its pixels: components of patches, and what goes with them.

Queries are keys with a last channel of 1, so there is no file of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from nlattn import images
from nlattn._types import Floats
from nlattn.engines import components
from nlattn.tiled import sources
from nlattn.tiled.bands import Band, bands
from nlattn.tiled.folder import ArraySpec, Folder
from nlattn.tiled.points import Points
from nlattn.tiled.task import Cost, Done, Stage, TileTask

ROWS = 64
"""Queries whose scores say what the scale is."""
PARTS = 32
"""Tasks that compare them with all keys, at most."""


class Features(NamedTuple):
    """What patches become."""

    height: int
    width: int
    colours: int
    rows: int
    """Of a band."""
    patch: int = 7
    channels: int = 32
    gain: float = 1.5
    scale: float | None = None
    """Factor on scores; found if None."""
    keys: float = 16.0
    """That the median query spreads over, if `scale` is None."""
    seed: int = 0

    @property
    def size(self) -> int:
        """Numbers of a patch."""
        return self.patch * self.patch * self.colours

    @property
    def pixels(self) -> int:
        """Pixels of the picture."""
        return self.height * self.width

    @property
    def points(self) -> Points:
        """What patches become, for the stages that follow."""
        grid = self.height, self.width
        return Points(grid, grid, self.channels + 1, self.colours, self.rows)

    @property
    def groups(self) -> list[range]:
        """Rows of the groups that sums go by."""
        return components.groups(self.height, self.width)

    @property
    def bands(self) -> list[Band]:
        """Bands of the picture."""
        return bands(self.height, self.rows)


def stages(x: Features, source: sources.Source) -> list[Stage]:
    """From the picture to its keys and the scale."""
    shape, G, d = (x.height, x.width), len(x.groups), x.channels + 1
    picture = [ArraySpec("image", (*shape, x.colours), "float32")]
    keys = [ArraySpec("keys", (*shape, d), "float32")]
    sums = [ArraySpec("sums", (G, x.colours), "float64")]
    products = [ArraySpec("moments", (G, 1 + x.size, x.size), "float64")]
    axes = [ArraySpec("axes", (x.size + 1, x.channels), "float32")]
    lengths, scale = (
        [ArraySpec("lengths", (G, 1), "float64")],
        [ArraySpec("scale", (1,), "float64")],
    )
    band = x.rows * x.width
    group = len(x.groups[0]) * x.width
    block = min(group, components.block_rows(x.width) * x.width)
    square = 8 * (x.size + 1) * x.size
    projected = block * (16 * x.size + 8 * x.colours + 4 * x.channels)
    rows = min(ROWS, x.pixels)
    scored = 4 * rows * (2 * components.KEYS + 4 * _count(x))
    part = components.KEYS * -(-x.pixels // (components.KEYS * PARTS))
    parts = [range(a, min(a + part, x.pixels)) for a in range(0, x.pixels, part)]
    if x.scale is not None:
        parts = []
    near = [ArraySpec("near", (len(parts), rows, _count(x)), "float32")]
    return [
        _stage("image", x, (), picture, _copy, x.bands, 16 * band * x.colours, more=(source,)),
        _stage("sums", x, ("image",), sums, _sum, x.groups, 12 * block * x.colours),
        _stage("moments", x, ("image", "sums"), products, _moments, x.groups,
               block * (8 * x.size + 12 * x.colours) + 3 * square),
        _stage("axes", x, ("moments",), axes, _axes, [], 8 * square, drops=("moments",)),
        _stage("lengths", x, ("image", "sums", "axes"), lengths, _lengths, x.groups,
               projected + 4 * group * x.channels),
        _stage("keys", x, ("image", "sums", "axes", "lengths"), keys, _keys, x.bands,
               projected + 8 * band * d),
        *([_stage("near", x, ("keys",), near, _near, parts, scored, rows * x.pixels)]
          if parts else []),
        _stage("scale", x, ("near",) if parts else (), scale, _scale, [], 20 * rows * _count(x),
               drops=("sums", "axes", "lengths", *(("near",) if parts else ()))),
    ]  # fmt: skip


def _stage(
    name: str,
    x: Features,
    reads: tuple[str, ...],
    makes: list[ArraySpec],
    function: Callable[..., Done],
    parts: Sequence[Band] | Sequence[range],
    nbytes: int,
    scores: int = 0,
    *,
    more: tuple[object, ...] = (),
    drops: tuple[str, ...] = (),
) -> Stage:
    """Tasks of some parts, bands or groups of rows, or of all if there are none."""
    own = tuple(array.name for array in makes)

    def begin(_: Folder) -> tuple[list[ArraySpec], list[TileTask]]:
        tasks = []
        for number, part in enumerate(parts):
            first = part.first if isinstance(part, Band) else number
            starts = dict.fromkeys(own, first)
            tasks.append(TileTask(f"{name}/{number}", function, (x, part, *more), starts))
        return makes, tasks or [TileTask(name, function, (x,), dict.fromkeys(own, 0))]

    cost = Cost(max(1, len(parts)), nbytes, sum(a.nbytes for a in makes), scores)
    return Stage(name, reads, own, begin, cost, drops)


def _copy(_: Folder, __: Features, band: Band, source: sources.Source) -> Done:
    return {"image": sources.rows(source, band.first, band.last)}, 0


def _sum(folder: Folder, _: Features, rows: range) -> Done:
    return {"sums": components.channel_sums(folder.read("image"), rows)[None]}, 0


def _centre(folder: Folder, x: Features) -> Floats:
    return components.centre(folder.read("sums"), x.pixels, np.float32)


def _moments(folder: Folder, x: Features, rows: range) -> Done:
    image = folder.read("image")
    return {"moments": components.moments(image, _centre(folder, x), rows, x.patch)[None]}, 0


def _axes(folder: Folder, x: Features) -> Done:
    return {"axes": components.axes(folder.read("moments"), x.pixels, x.channels, np.float32)}, 0


def _project(folder: Folder, x: Features, rows: range) -> Floats:
    out = np.empty((len(rows), x.width, x.channels), np.float32)
    image, axes = folder.read("image"), folder.read("axes")
    components.project(image, _centre(folder, x), axes, rows, x.patch, out)
    return out


def _lengths(folder: Folder, x: Features, rows: range) -> Done:
    features = _project(folder, x, rows)
    return {"lengths": components.sum_of_squares(features, range(len(rows)))[None]}, 0


def _keys(folder: Folder, x: Features, band: Band) -> Done:
    f = _project(folder, x, range(band.first, band.last))
    offset = components.offset(f, folder.read("lengths"), x.pixels, x.gain)
    return {"keys": np.concatenate([f, offset], -1)}, 0


def _near(folder: Folder, x: Features, part: range) -> Done:
    """The largest scores of some queries with a part of the keys."""
    keys = folder.read("keys").reshape(x.pixels, x.channels + 1)
    some = np.array(keys[images.sample(x.pixels, ROWS, x.seed)])
    some[:, -1] = 1
    top = np.full((1, len(some), _count(x)), -np.inf, np.float32)
    found = components.largest_scores(some, keys[part.start : part.stop], top.shape[2])
    top[0, :, : found.shape[1]] = found
    return {"near": top}, len(some) * len(part)


def _scale(folder: Folder, x: Features) -> Done:
    if x.scale is not None:
        return {"scale": np.array([x.scale])}, 0
    top: Floats
    top, *others = folder.read("near")
    for near in others:
        both, few = np.concatenate([top, near], axis=1), near.shape[1]
        top = np.partition(both, few, axis=1)[:, few:]
    scores = np.sort(top, axis=1)[:, ::-1].astype(np.float64)
    return {"scale": np.array([images.fitting_scale(scores, x.keys)])}, 0


def _count(x: Features) -> int:
    return images.nearest_enough(x.pixels, x.keys)
