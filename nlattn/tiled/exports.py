"""The picture of a run for other programs: a tiled BigTIFF, or OME-Zarr; whole or not at all."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Array, Ints
from nlattn.files.whole import whole
from nlattn.tiled.folder import Folder
from nlattn.tiled.pyramid import levels

OP = "tiled"
TILE = 256
"""Side of a tile of a TIFF, and of a chunk of zarr."""
SHARD = 1024
"""Side of a file of zarr, which is written once."""
_TIFF, _ZARR = (".tif", ".tiff"), (".zarr",)


class Level(NamedTuple):
    """One size of a picture."""

    values: Any
    """(H, W, C), on the disk."""
    dtype: np.dtype

    def part(self, rows: slice, columns: slice) -> Array:
        """Some of it, as it is written: integers are shares of their range, rounded."""
        x = self.values[rows, columns]
        if self.dtype.kind == "f":
            return np.asarray(x, self.dtype)
        most = np.iinfo(self.dtype).max
        return np.rint(np.clip(x, 0, 1).astype(np.float64) * most).astype(self.dtype)


def check(path: str | os.PathLike[str], *, there: bool = False) -> None:
    """ValueError unless a picture can have this name; FileExistsError if it is taken.

    ModuleNotFoundError where the package is missing that writes it.
    """
    name = Path(path)
    if name.suffix.lower() not in _TIFF + _ZARR:
        text = f"is {name.name!r}, expected a name that ends in {', '.join(_TIFF + _ZARR)}"
        _check.fail(OP, "the picture", text)
    importlib.import_module("zarr" if name.suffix.lower() in _ZARR else "tifffile")
    if not there and name.exists():
        raise FileExistsError(f"{OP}: {name} exists; another name is free")


def picture(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    bits: int = 0,
    name: str = "out",
) -> None:
    """Write the picture that a run has left in a folder, tile by tile, with its smaller copies.

    Parameters
    ----------
    folder : path
        Of a run that is complete.
    path : path
        To write to: ``.tif``, a BigTIFF in tiles, smaller copies as its sub-images; or ``.zarr``,
        OME-Zarr 0.5 (zarr 3) in shards, each of which is written once.
    bits : {0, 8, 16}
        Of a sample; 0 leaves floats as they are.
    name : str
        Of the array: ``out``.
    """
    check(path)
    kinds = {0: "f4", 8: "u1", 16: "u2"}
    if bits not in kinds:
        _check.fail(OP, f"bits={_check.quoted(bits)},", "expected 0, 8 or 16")
    dtype = np.dtype(kinds[bits])
    held = Folder(folder)
    shape = held.read(name).shape
    sizes = [Level(held.read(each), dtype) for each in (name, *levels(name, shape))]
    with whole(path) as draft:
        (_zarr if draft.suffix.lower() in _ZARR else _tiff)(draft, sizes)


def _tiff(path: Path, sizes: list[Level]) -> None:
    import tifffile

    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for number, level in enumerate(sizes):
            colours = level.values.shape[2]
            shape = level.values.shape if colours > 1 else level.values.shape[:2]
            kind = {"subifds": len(sizes) - 1} if number == 0 else {"subfiletype": 1}
            file.write(
                _tiles(level),
                shape=shape,
                dtype=level.dtype,
                tile=(TILE, TILE),
                photometric="rgb" if colours == 3 else "minisblack",
                planarconfig="contig" if colours > 1 else None,
                metadata=None,
                **kind,
            )


def _tiles(level: Level) -> Iterator[Ints]:
    height, width, colours = level.values.shape
    for top in range(0, height, TILE):
        band = level.part(slice(top, top + TILE), slice(None))
        for left in range(0, width, TILE):
            tile = np.zeros((TILE, TILE, colours), level.dtype)
            some = band[:, left : left + TILE]
            tile[: len(some), : some.shape[1]] = some
            yield tile if colours > 1 else tile[..., 0]


def _zarr(path: Path, sizes: list[Level]) -> None:
    import zarr

    group = zarr.open_group(path, mode="w", zarr_format=3)
    axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space"} for n in "yx")]
    sets = []
    for number, level in enumerate(sizes):
        height, width, colours = level.values.shape
        array = group.create_array(
            str(number),
            shape=(colours, height, width),
            chunks=(colours, TILE, TILE),
            shards=(colours, SHARD, SHARD),
            dtype=level.dtype,
            dimension_names=("c", "y", "x"),
        )
        for top in range(0, height, SHARD):
            for left in range(0, width, SHARD):
                here = slice(top, min(top + SHARD, height)), slice(left, min(left + SHARD, width))
                array[(slice(None), *here)] = level.part(*here).transpose(2, 0, 1)
        scale = [{"type": "scale", "scale": [1.0, 2.0**number, 2.0**number]}]
        sets.append({"path": str(number), "coordinateTransformations": scale})
    scales = [{"axes": axes, "datasets": sets, "name": "out"}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": scales}
