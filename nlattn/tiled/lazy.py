"""Arrays of a finished run for Dask and xarray: opened by path where their blocks are needed."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from nlattn._types import Array
from nlattn.tiled.folder import Folder

_BLOCK = 1 << 26  # bytes of a block
_AXES = {
    "matches": ("y", "x", "match"),
    "match_scores": ("y", "x", "match"),
    "lse": ("query",),
    "indptr": ("row_start",),
}


class OnDisk:
    """An array of a folder, by path: what is sent to a worker holds no numbers."""

    def __init__(self, folder: str, name: str):
        self.folder, self.name = folder, name
        x = Folder(folder).read(name)
        self.shape, self.dtype, self.ndim = x.shape, x.dtype, x.ndim

    def __getitem__(self, index: Any) -> Array:
        """Some of it, mapped into memory."""
        return Folder(self.folder).read(self.name)[index]


def as_dask(folder: str | os.PathLike[str], name: str = "out") -> Any:
    """A dask array of an array that a run has left in a folder: ``out``, ``weights``, ...

    Blocks are whole rows of at most 64 MB, read where they are computed.
    """
    import dask.array

    x = OnDisk(os.path.abspath(folder), name)
    row = max(1, int(np.prod(x.shape[1:])) * x.dtype.itemsize)
    chunks = (max(1, _BLOCK // row), *x.shape[1:])
    made: Any = dask.array.from_array(x, chunks=chunks, name=f"{x.folder}/{name}", asarray=False)
    return made


def as_xarray(folder: str | os.PathLike[str], name: str = "out") -> Any:
    """The same with names of its axes: y, x, c of pictures; y, x, match of matches."""
    import xarray

    x = as_dask(folder, name)
    axes = _AXES.get(name, ("y", "x", "c") if x.ndim == 3 else ("edge",))
    return xarray.DataArray(x, dims=axes, name=name)
