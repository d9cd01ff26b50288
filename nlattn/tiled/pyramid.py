"""Smaller and smaller pictures, for who looks at large ones: means of two by two pixels."""

from __future__ import annotations

import numpy as np

from nlattn.tiled.bands import bands
from nlattn.tiled.folder import ArraySpec, Folder
from nlattn.tiled.task import Cost, Done, Stage, TileTask

_SMALL = 512  # pixels of a side that need no smaller picture
_PIXELS = 1 << 20  # of a task


def levels(name: str, shape: tuple[int, int, int]) -> dict[str, tuple[int, int, int]]:
    """``{name}_1``, half as high and wide, and so on until it is small."""
    made: dict[str, tuple[int, int, int]] = {}
    while max(shape[:2]) > _SMALL:
        shape = (-(-shape[0] // 2), -(-shape[1] // 2), shape[2])
        made[f"{name}_{len(made) + 1}"] = shape
    return made


def stages(name: str, shape: tuple[int, int, int]) -> list[Stage]:
    """All smaller pictures, each made of the one before."""
    made = levels(name, shape)
    above = [name, *made]
    return [_stage(*names, made[names[1]]) for names in zip(above, made, strict=False)]


def _stage(above: str, name: str, shape: tuple[int, int, int]) -> Stage:
    array = ArraySpec(name, shape, "float32")
    parts = bands(shape[0], max(1, _PIXELS // shape[1]))

    def begin(_: Folder) -> tuple[list[ArraySpec], list[TileTask]]:
        return [array], [
            TileTask(f"{name}/{b.number}", _halve, (above, name, b.first, b.last), {name: b.first})
            for b in parts
        ]

    nbytes = 24 * (parts[0].last - parts[0].first) * shape[1] * shape[2]
    return Stage(name, (above,), (name,), begin, Cost(len(parts), nbytes, array.nbytes))


def _halve(folder: Folder, above: str, name: str, first: int, last: int) -> Done:
    x = folder.read(above)[2 * first : 2 * last]
    pad = [(0, x.shape[0] % 2), (0, x.shape[1] % 2), (0, 0)]
    x = np.pad(x, pad, mode="edge")
    rows = (x[0::2] + x[1::2]) / 2
    return {name: (rows[:, 0::2] + rows[:, 1::2]) / 2}, 0
