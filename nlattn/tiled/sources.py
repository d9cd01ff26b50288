"""Pictures larger than memory, read by rows: as float32, of integers as shares of their range."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from nlattn import _check, images
from nlattn._types import Array, Floats
from nlattn.files import npy, picture
from nlattn.files.untrusted import open_regular
from nlattn.tiled.bands import rows_of

OP = "tiled"
_CHUNK = 1 << 24
_DIGESTED = 1024  # side of what is computed at a time to be digested
_GREY, _RGB, _YCBCR = 1, 2, 6


class Source(NamedTuple):
    """A picture that can be opened wherever its path is."""

    kind: str
    """"npy", "tiff", "zarr", "dask", or "picture", which is read as a whole."""
    path: str
    shape: tuple[int, int, int]
    order: str = "yxc"
    """Axes of a zarr array; others have length 1."""
    inner: str = ""
    """Name of the array in a zarr group."""
    array: Any = None
    """A dask array, whose blocks are computed where they are needed."""
    bits: int = 0
    """8 or 16 of a sample; 0 of floats and wider integers."""

    @property
    def by_rows(self) -> bool:
        """Whether some rows can be read without the others."""
        return self.kind != "picture"

    def band(self, tile: int) -> int:
        """Rows of a band of about `tile` by `tile` pixels."""
        height, width, _ = self.shape
        return min(rows_of(tile, width), height) if self.by_rows else height


def source(path: object) -> Source:
    """The picture of a file or a zarr folder, or of a dask array or what xarray has around one.

    ValueError says what is wrong with it.
    """
    if not isinstance(path, (str, os.PathLike)):
        return _dask(path if isinstance(path, np.ndarray) else getattr(path, "data", path))
    name = os.fspath(Path(path).resolve())
    if Path(path).is_dir():
        return _zarr(name)
    if name.endswith(".npy"):
        found = npy.mapped(OP, name, kinds="fu")
        return Source("npy", name, _shape(found.shape, name), bits=_bits(found.dtype))
    if name.lower().endswith((".tif", ".tiff")):
        return _tiff(name)
    read = picture.read(OP, name, max_pixels=images.MAX_PIXELS)
    return Source("picture", name, _shape(read.pixels.shape, name), bits=read.bits)


def rows(source: Source, first: int, last: int) -> Floats:
    """Some rows, (rows, W, C) float32."""
    read = {"npy": _npy_rows, "tiff": _tiff_rows, "zarr": _zarr_rows, "picture": _picture_rows}
    read["dask"] = _dask_rows
    some = read[source.kind](source, first, last)
    if some.dtype.kind == "u":
        some = some.astype(np.float32) / np.float32(np.iinfo(some.dtype).max)
    if not np.isfinite(some).all():
        _check.fail(OP, Path(source.path).name, "holds NaN or infinities")
    with np.errstate(over="ignore"):
        values: Floats = some.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        _check.fail(OP, Path(source.path).name, "holds numbers that float32 does not")
    return values.reshape(last - first, *source.shape[1:])


def digest(source: Source) -> str:
    """SHA-256 of what a picture is read from."""
    if source.kind != "dask":
        return digest_of(source.path)
    total, (height, width, _) = hashlib.sha256(), source.shape
    step = rows_of(_DIGESTED, width)
    for first in range(0, height, step):
        total.update(rows(source, first, min(first + step, height)).tobytes())
    return total.hexdigest()


def digest_of(name: str) -> str:
    """SHA-256 of a file, or of the files of a folder and their names."""
    total, path = hashlib.sha256(), Path(name)
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            total.update(file.relative_to(path).as_posix().encode())
            with open(file, "rb") as data:
                while chunk := data.read(_CHUNK):
                    total.update(chunk)
    return total.hexdigest()


def _bits(dtype: DTypeLike) -> int:
    kind = np.dtype(dtype)
    return 8 * kind.itemsize if kind.kind == "u" and kind.itemsize <= 2 else 0


def _shape(shape: tuple[int, ...], name: str) -> tuple[int, int, int]:
    whole = (*shape, 1) if len(shape) == 2 else shape
    if len(whole) != 3 or 0 in whole:
        _check.fail(
            OP, Path(name).name, f"has shape {shape}, expected (H, W) or (H, W, C), none of it 0"
        )
    return whole[0], whole[1], whole[2]


def _npy_rows(source: Source, first: int, last: int) -> Array:
    return np.asarray(npy.mapped(OP, source.path, kinds="fu")[first:last])


def _picture_rows(source: Source, first: int, last: int) -> Array:
    return images.load(source.path)[first:last]


def _dask(array: Any) -> Source:
    if not hasattr(array, "__dask_graph__"):
        text = "a path, or a dask array; np.save writes an array in memory to a .npy"
        _check.fail_type(OP, "image", f"is a {type(array).__name__}, expected {text}")
    if np.dtype(array.dtype).kind not in "fu":
        _check.fail(OP, "image", f"holds {array.dtype}, expected unsigned or floating numbers")
    shape = _shape(tuple(int(size) for size in array.shape), "image")
    return Source("dask", "image", shape, array=array, bits=_bits(array.dtype))


def _dask_rows(source: Source, first: int, last: int) -> Array:
    return np.asarray(source.array[first:last].compute(scheduler="synchronous"))


def _tiff(name: str) -> Source:
    with _opened(name) as file:
        page, short = file.pages[0], Path(name).name
        if len(file.series) != 1 or len(file.series[0].pages) != 1:
            _check.fail(OP, short, f"has {len(file.pages)} pages, expected one picture")
        if page.planarconfig == 2 and page.samplesperpixel > 1:
            _check.fail(OP, short, "stores channels apart, expected them side by side")
        if page.photometric not in (_GREY, _RGB, _YCBCR) or page.extrasamples:
            _check.fail(OP, short, "is neither grey nor RGB without opacity")
        if np.dtype(page.dtype).kind not in "fu":
            _check.fail(OP, short, f"holds {page.dtype}, expected unsigned or floating numbers")
        if page.bitspersample not in (8, 16, 32, 64):
            _check.fail(OP, short, f"holds {page.bitspersample}-bit pixels, expected 8, 16 or more")
        turned = page.tags.get("Orientation")
        if turned is not None and turned.value != 1:
            _check.fail(OP, short, "is stored turned or mirrored, expected upright rows")
        return Source("tiff", name, _shape(page.shape, name), bits=_bits(page.dtype))


@contextmanager
def _opened(name: str) -> Iterator[Any]:
    """A TIFF that has a page; ValueError if it is none, or no plain file."""
    import tifffile

    with open_regular(OP, name, links=True) as stream:
        try:
            file = tifffile.TiffFile(stream)
            file.pages[0]
        except Exception as error:  # of damaged headers it raises whatever comes
            _check.fail(OP, Path(name).name, f"is no readable TIFF: {str(error)[:200]}")
        with file:
            yield file


def _tiff_rows(source: Source, first: int, last: int) -> Array:
    """Rows from the strips or tiles that hold some of them."""
    with _opened(source.path) as file:
        page, (_, width, channels) = file.pages[0], source.shape
        out = np.zeros((last - first, width, channels), page.dtype)
        for index in _segments(page, first, last):
            file.filehandle.seek(page.dataoffsets[index])
            data = file.filehandle.read(page.databytecounts[index])
            try:
                block, place, _ = page.decode(data, index, jpegtables=page.jpegtables)
            except Exception as error:  # damaged data, or a codec that is not installed
                text = f"cannot be decoded: {str(error)[:200]}"
                _check.fail(OP, Path(source.path).name, text)
            if block is None:  # left out of the file: zeros
                continue
            block = block.reshape(*block.shape[-3:-1], channels)
            top, left = place[-3], place[-2]
            begin = max(first - top, 0)
            block = block[begin : last - top, : width - left]  # tiles reach over the edge
            begin += top - first
            out[begin : begin + len(block), left : left + block.shape[1]] = block
        return out


def _segments(page: Any, first: int, last: int) -> Iterator[int]:
    """Numbers of the strips or tiles that hold some of the rows."""
    high, across = (page.tilelength, -(-page.imagewidth // page.tilewidth)) if page.is_tiled else (
        page.rowsperstrip, 1
    )  # fmt: skip
    for row in range(first // high, -(-last // high)):
        yield from range(row * across, (row + 1) * across)


def _zarr(name: str) -> Source:
    """An array, or the first level of an OME-Zarr picture."""
    import zarr

    try:
        found = zarr.open(name, mode="r")
    except Exception as error:  # a store of others raises whatever it likes
        _check.fail(OP, Path(name).name, f"is no zarr array or group: {error}")
    order, inner = "", ""
    if isinstance(found, zarr.Group):
        attributes = dict(found.attrs)
        scales = attributes.get("ome", attributes).get("multiscales")
        if not scales:
            _check.fail(OP, Path(name).name, "is a group without multiscales; name one array of it")
        inner = scales[0]["datasets"][0]["path"]
        axes = scales[0].get("axes", ())
        order = "".join(axis["name"] if isinstance(axis, dict) else axis for axis in axes)
        found = found[inner]
    shape = found.shape
    order = order or {2: "yx", 3: "yxc"}.get(len(shape), "")
    if len(order) != len(shape) or not {"y", "x"} <= {*order}:
        _check.fail(
            OP, Path(name).name, f"has shape {shape}, expected (H, W) or (H, W, C), none of it 0"
        )
    sizes = dict(zip(order, shape, strict=True))
    if any(size > 1 for axis, size in sizes.items() if axis not in "yxc"):
        _check.fail(OP, Path(name).name, f"has axes {order} of {shape}, expected one picture")
    if np.dtype(found.dtype).kind not in "fu":
        _check.fail(OP, Path(name).name, f"holds {found.dtype}, expected unsigned or floating")
    whole = _shape((sizes["y"], sizes["x"], sizes.get("c", 1)), name)
    return Source("zarr", name, whole, order, inner, bits=_bits(found.dtype))


def _zarr_rows(source: Source, first: int, last: int) -> Array:
    import zarr

    found = zarr.open(source.path, mode="r")
    array: Any = found[source.inner] if source.inner else found
    kept = {"y": slice(first, last), "x": slice(None), "c": slice(None)}
    some = np.asarray(array[tuple(kept.get(axis, 0) for axis in source.order)])
    left = [axis for axis in source.order if axis in "yxc"]
    return some.transpose([left.index(axis) for axis in "yxc" if axis in left])
