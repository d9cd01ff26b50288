"""``.npy`` files, read without trust: nothing is unpickled or evaluated, or allocated unasked."""

from __future__ import annotations

import math
import os
import re
import stat
import struct
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from nlattn import _check

HEADER = 1024  # bytes; NumPy writes 118 for one array of plain numbers
_LENGTHS = {(1, 0): "<H", (2, 0): "<I"}
_ENTRY = r"""(['"])(descr|fortran_order|shape)\1\s*:\s*(['"][^'"]*['"]|True|False|\([\d,\s-]*\))"""


class Header(NamedTuple):
    """The declared layout of an array, and the bytes that stand before its first number."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    start: int

    @property
    def nbytes(self) -> int:
        """Bytes that the numbers take, in exact arithmetic."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: IO[bytes]) -> Header:
    """Layout declared at the start of a stream; ValueError if it is not one of plain numbers."""
    magic = file.read(8)
    if magic[:6] != b"\x93NUMPY" or len(magic) < 8:
        raise ValueError("is no .npy array")
    version = (magic[6], magic[7])
    if version not in _LENGTHS:
        raise ValueError(f"has .npy version {version}, expected (1, 0) or (2, 0)")
    prefix = file.read(struct.calcsize(_LENGTHS[version]))
    length = int.from_bytes(prefix, "little")
    if length > HEADER:
        raise ValueError(f"has a header of {length} bytes, expected at most {HEADER}")
    text = file.read(length)
    if len(text) < length:
        raise ValueError("ends within its header")
    shape, dtype, fortran = _parsed(text.decode("latin1"))
    return Header(shape, dtype, fortran, 8 + len(prefix) + length)


def _parsed(text: str) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Shape, dtype and order, from the text of a header."""
    found = re.findall(_ENTRY, text)
    entries = {name: value for _, name, value in found}
    rest = re.sub(_ENTRY, "", text).strip()
    if len(found) != 3 or len(entries) != 3 or re.fullmatch(r"\{\s*,\s*,\s*,?\s*\}", rest) is None:
        raise ValueError(f"has an unreadable header {text.strip()[:64]!r}")
    shape, descr = entries["shape"], entries["descr"][1:-1]
    sizes = [
        int(size) for size in shape[1:-1].split(",") if re.fullmatch(r"\s*-?\d{1,20}\s*", size)
    ]
    if len(sizes) != len([size for size in shape[1:-1].split(",") if size.strip()]):
        raise ValueError(f"declares shape {shape[:64]}")
    if not re.fullmatch(r"[<>=|]?[A-Za-z?]\d{0,9}", descr):
        raise ValueError(f"has dtype {descr[:64]}, expected numbers")
    try:
        dtype = np.dtype(descr)
    except TypeError:
        raise ValueError(f"has dtype {descr}, expected numbers") from None
    return tuple(sizes), dtype, entries["fortran_order"] == "True"


def check_size(header: Header, held: int) -> None:
    """ValueError unless the declared shape accounts for every byte `held` after the header."""
    if min(header.shape, default=0) < 0 or len(header.shape) > 32 or header.nbytes != held:
        raise ValueError(f"declares shape {header.shape} of {header.dtype} but holds {held} bytes")


def shaped(data: bytes, header: Header) -> Any:
    """The array whose numbers are `data`."""
    flat = np.frombuffer(data, header.dtype)
    return flat.reshape(header.shape, order="F" if header.fortran else "C")


def load(op: str, path: str | os.PathLike[str], *, kinds: str, max_bytes: float) -> Any:
    """One array of a file of its own, which is no link.

    `kinds` are the dtype kinds that may be, "fiu". ValueError says what is wrong with the file,
    MemoryError if it declares more than `max_bytes`, OSError if it cannot be opened.
    """
    name = Path(path).name
    with open_plain(op, path) as file:
        try:
            header = read_header(file)
            if header.dtype.kind not in kinds:
                raise ValueError(f"has dtype {header.dtype}, expected numbers")
            check_size(header, os.fstat(file.fileno()).st_size - header.start)
        except ValueError as error:
            raise ValueError(f"{op}: {name} {error}") from None
        _check.memory(op, header.nbytes, max_bytes, name, "pass a larger max_bytes")
        return shaped(file.read(header.nbytes), header)


def open_plain(op: str, path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a file to be read; ValueError if it is a link, a folder, a pipe or a device."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise ValueError(f"{op}: {Path(path).name} is no plain file")
    return open(path, "rb", opener=_unfollowed)


def _unfollowed(path: str, flags: int) -> int:
    """Open what was looked at: no link, and no pipe to wait for, that has taken its place."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
