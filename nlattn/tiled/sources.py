"""Pictures larger than memory, read by rows: as float32, of integers as shares of their range."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nlattn import _check, images
from nlattn._types import Floats
from nlattn.files import npy

OP = "tiled"


class Source(NamedTuple):
    """A picture that can be opened anywhere."""

    kind: str
    """"npy" or "picture"."""
    path: str
    shape: tuple[int, int, int]

    @property
    def by_rows(self) -> bool:
        """Whether some rows can be read without the others."""
        return self.kind != "picture"


def source(path: str | os.PathLike[str]) -> Source:
    """The picture of a file; ValueError says what is wrong with it."""
    name = os.fspath(Path(path).resolve())
    kind = "npy" if name.endswith(".npy") else "picture"
    return Source(kind, name, _shape(_array(kind, name).shape, name))


def rows(source: Source, first: int, last: int) -> Floats:
    """Some rows, (rows, W, C) float32."""
    array = _array(source.kind, source.path)
    some = np.asarray(array[first:last])
    if some.dtype.kind in "ui":
        some = some.astype(np.float32) / np.float32(np.iinfo(some.dtype).max)
    if not np.isfinite(some).all():
        _check.fail(OP, source.path, "holds NaN or infinities")
    return some.astype(np.float32, copy=False).reshape(last - first, *source.shape[1:])


def _array(kind: str, path: str) -> Any:
    if kind == "npy":
        return npy.mapped(OP, path, kinds="fu").view(np.ndarray)
    return images.load(path)


def _shape(shape: tuple[int, ...], name: str) -> tuple[int, int, int]:
    if len(shape) == 2:
        shape = (*shape, 1)
    if len(shape) != 3 or 0 in shape:
        _check.fail(OP, Path(name).name, f"has shape {shape}, expected (H, W) or (H, W, C)")
    return shape
