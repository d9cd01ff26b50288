"""Arrays of a run: ``.npy`` files in one folder, made at their full size, written part by part."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from nlattn._types import Array, Options
from nlattn.files import npy

_CHUNK = 1 << 24  # bytes that are hashed at a time


class ArraySpec(NamedTuple):
    """An array to be made."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers, in exact arithmetic."""
        total = np.dtype(self.dtype).itemsize
        for size in self.shape:
            total *= size
        return total


class Written(NamedTuple):
    """Rows of an array, and what they hold."""

    array: str
    first: int
    last: int
    digest: str


class Folder:
    """A folder of arrays, opened by whoever works on them: by path, read where they lie."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    def file(self, name: str) -> Path:
        """Where an array is."""
        return self.path / f"{name}.npy"

    def make(self, array: ArraySpec) -> None:
        """A file of zeros, its room on the disk taken: a disk too small says so here."""
        draft = self.path / f".{array.name}.tmp"
        try:
            with _named(draft), open(draft, "wb") as file:
                header = {
                    "descr": np.lib.format.dtype_to_descr(np.dtype(array.dtype)),
                    "fortran_order": False,
                    "shape": array.shape,
                }
                np.lib.format.write_array_header_1_0(file, header)
                size = file.tell() + array.nbytes
                _reserve(file, size)
            os.replace(draft, self.file(array.name))
        except BaseException:
            draft.unlink(missing_ok=True)
            raise

    def read(self, name: str) -> Array:
        """An array, mapped into memory, read-only."""
        return npy.mapped("tiled", self.file(name), kinds="iufb").view(np.ndarray)

    def write(self, name: str, first: int, block: ArrayLike) -> Written:
        """Rows of an array from `first` on, on the disk when this returns."""
        path = self.file(name)
        with _named(path), open(path, "r+b") as file:
            header = npy.read_header(file)
            block = np.ascontiguousarray(block, header.dtype)
            if block.shape[1:] != header.shape[1:] or first + len(block) > header.shape[0]:
                raise ValueError(f"tiled: {path.name} {header.shape} has no rows {block.shape}")
            row = header.nbytes // max(header.shape[0], 1)
            data = block.reshape(-1).view(np.uint8).data
            at, done = header.start + first * row, 0
            while done < len(data):
                done += os.pwrite(file.fileno(), data[done:], at + done)
            os.fdatasync(file.fileno()) if hasattr(os, "fdatasync") else os.fsync(file.fileno())
        return Written(name, first, first + len(block), hashlib.sha256(data).hexdigest())

    def holds(self, part: Written) -> bool:
        """Whether the rows of a part are what they were when it was written."""
        path, digest = self.file(part.array), hashlib.sha256()
        try:
            with open(path, "rb") as file:
                header = npy.read_header(file)
                row = header.nbytes // max(header.shape[0], 1)
                left = (part.last - part.first) * row
                file.seek(header.start + part.first * row)
                while left:
                    data = file.read(min(left, _CHUNK))
                    if not data:
                        return False
                    digest.update(data)
                    left -= len(data)
        except (OSError, ValueError):
            return False
        return digest.hexdigest() == part.digest

    def mend(self, name: str) -> None:
        """Give a file its declared size again; one whose start is unreadable is removed."""
        try:
            with open(self.file(name), "r+b") as file:
                header = npy.read_header(file)
                _reserve(file, header.start + header.nbytes)
        except (OSError, ValueError):
            self.remove(name)

    def note(self, name: str, values: Options) -> None:
        """A small file of JSON, whole or not at all."""
        draft = self.path / f".{name}.tmp"
        with open(draft, "w") as file:
            file.write(json.dumps(values, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, self.path / name)

    def remove(self, name: str) -> None:
        """Forget an array."""
        self.file(name).unlink(missing_ok=True)


def _reserve(file: IO[bytes], size: int) -> None:
    """Make a file so large, its room on the disk taken."""
    file.flush()
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    os.ftruncate(file.fileno(), size)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say of which file an error is."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or os.fspath(path)
        raise
