"""Queries, keys and values of a run: files of the folder that a picture became, or arrays given."""

from __future__ import annotations

import math
import os
from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import FilePath, Floats
from nlattn.files import npy
from nlattn.tiled.bands import Band, bands, rows_of
from nlattn.tiled.folder import Folder

OP = "tiled"


class Points(NamedTuple):
    """What is attended from and to, on grids."""

    query_grid: tuple[int, int]
    key_grid: tuple[int, int]
    d: int
    """Channels of queries and keys."""
    e: int
    """Channels of values; 0 for none."""
    rows: int
    """Of a band of queries."""
    dtype: str = "float32"
    paths: tuple[str, str, str] | None = None
    """Of arrays that were given; else queries are keys whose last channel is 1."""
    patch: int = 0
    """If not 0, queries and keys are patches so wide of the picture ``padded``."""

    @property
    def n(self) -> int:
        """Queries."""
        return math.prod(self.query_grid)

    @property
    def m(self) -> int:
        """Keys."""
        return math.prod(self.key_grid)

    @property
    def files(self) -> tuple[str, ...]:
        """Arrays of the folder that are read, and needed no longer when the map is there."""
        if self.patch:
            return "scale", "padded"
        return ("scale",) if self.paths else ("scale", "keys", "image")

    def bands(self, halo: int = 0) -> list[Band]:
        """Bands of queries."""
        return bands(self.query_grid[0], self.rows, halo)

    def tiled(self, tile: int) -> Points:
        """Arrays that were given, by other tiles."""
        q, k, v = self.paths or ("", "", "")
        return given(q, k, v or None, tile=tile)

    def keys(self, folder: Folder) -> Floats:
        """(Hk, Wk, d), where they lie; of patches with what surrounds them."""
        if self.patch:
            return folder.read("padded")
        return mapped(self.paths[1]) if self.paths else folder.read("keys")

    def values(self, folder: Folder) -> Floats:
        """(Hk, Wk, e), where they lie."""
        return mapped(self.paths[2]) if self.paths else folder.read("image")

    def queries(self, folder: Folder, first: int, last: int) -> Floats:
        """(last - first, Wq, d) of some rows; of patches with what surrounds them."""
        if self.patch:
            return np.asarray(folder.read("padded")[first : last + self.patch - 1])
        if self.paths:
            return np.asarray(mapped(self.paths[0])[first:last])
        return looking(folder.read("keys"), first, last)


def looking(keys: Floats, first: int, last: int) -> Floats:
    """Queries of some rows of keys."""
    q = np.array(keys[first:last])
    q[..., -1] = 1
    return q


def given(
    q: FilePath, k: FilePath | None = None, v: FilePath | None = None, *, tile: int
) -> Points:
    """Arrays in ``.npy`` files, (Hq, Wq, d), (Hk, Wk, d) and (Hk, Wk, e); keys are queries if None.

    ValueError and TypeError say what does not fit; numbers are looked at when the run begins.
    """
    tile = _check.integer(OP, "tile", tile, low=1)
    paths = [os.path.abspath(q), os.path.abspath(q if k is None else k)]
    paths.append("" if v is None else os.path.abspath(v))
    arrays = {name: mapped(path) for name, path in zip("qkv", paths, strict=True) if path}
    for name, x in arrays.items():
        if x.dtype not in (np.float32, np.float64) or not x.dtype.isnative:
            _check.fail_type(OP, name, f"holds {x.dtype}, expected float32 or float64")
        if x.ndim != 3 or 0 in x.shape or not x.flags.c_contiguous:
            _check.fail(
                OP, name, f"has shape {x.shape}, expected (H, W, channels) row by row, none of it 0"
            )
    _check.one_dtype(OP, {name: x.dtype for name, x in arrays.items()})
    (Hq, Wq, d), (Hk, Wk, dk) = (arrays[name].shape for name in "qk")
    if d != dk:
        _check.fail(OP, "k", f"has {dk} channels, expected {d} from q")
    if "v" in arrays and arrays["v"].shape[:2] != (Hk, Wk):
        text = f"has shape {arrays['v'].shape}, expected ({Hk}, {Wk}, e) from k"
        _check.fail(OP, "v", text)
    e = arrays["v"].shape[2] if "v" in arrays else 0
    rows = min(rows_of(tile, Wq), Hq)
    kind = np.dtype(arrays["q"].dtype).name
    return Points((Hq, Wq), (Hk, Wk), d, e, rows, kind, (paths[0], paths[1], paths[2]))


def mapped(path: str) -> Floats:
    """The array of a ``.npy`` file, where it lies."""
    return npy.mapped(OP, path, kinds="f").view(np.ndarray)
