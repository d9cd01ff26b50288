"""``.npy`` files, read without trust: nothing is unpickled or evaluated, or allocated unasked."""

from __future__ import annotations

import math
import os
import re
import struct
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Array
from nlattn.files.untrusted import one_line, open_regular

HEADER = 1024  # bytes; NumPy writes 118 for one array of plain numbers
_LENGTHS = {(1, 0): "<H", (2, 0): "<I"}
_ENTRY = r"""(['"])(descr|fortran_order|shape)\1\s*:\s*(['"][^'"]*['"]|True|False|\([\d,\s-]*\))"""


class Header(NamedTuple):
    """The declared layout of an array, and the bytes that stand before its first number."""

    shape: tuple[int, ...]
    dtype: np.dtype
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


def _parsed(text: str) -> tuple[tuple[int, ...], np.dtype, bool]:
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
        raise ValueError(f"declares shape {one_line(shape[:64])}")
    if not re.fullmatch(r"[<>=|]?[A-Za-z?]\d{0,9}", descr):
        raise ValueError(f"has dtype {one_line(descr[:64])}, expected numbers")
    try:
        dtype = np.dtype(descr)
    except TypeError:
        raise ValueError(f"has dtype {descr}, expected numbers") from None
    return tuple(sizes), dtype, entries["fortran_order"] == "True"


def check_size(header: Header, held: int) -> None:
    """ValueError unless the declared shape accounts for every byte `held` after the header."""
    shape, item = header.shape, header.dtype.itemsize
    whole = min(shape, default=0) >= 0 and len(shape) <= 32 and item > 0
    if not whole or header.nbytes != held or _extent(shape) * item >= 1 << 63:
        declared = _check.quoted(shape)
        raise ValueError(f"declares shape {declared} of {header.dtype} but holds {held} bytes")


def _extent(shape: tuple[int, ...]) -> int:
    """Product of the sizes that are not 0: what NumPy counts of an empty array, too."""
    return math.prod(size for size in shape if size)


def shaped(data: bytes, header: Header) -> Array:
    """The array whose numbers are `data`."""
    flat = np.frombuffer(data, header.dtype)
    return flat.reshape(header.shape, order="F" if header.fortran else "C")


def load(op: str, path: str | os.PathLike[str], *, kinds: str, max_bytes: float) -> Array:
    """One array of a file of its own, which is no link.

    `kinds` are the dtype kinds that may be, "fiu". ValueError says what is wrong with the file,
    MemoryError if it declares more than `max_bytes`, OSError if it cannot be opened.
    """
    name = Path(path).name
    with open_regular(op, path) as file:
        try:
            header = _checked_header(file, kinds)
            _check.memory(op, header.nbytes, max_bytes, name, "pass a larger max_bytes")
            data = file.read(header.nbytes)
            check_size(header, len(data))
        except ValueError as error:
            raise ValueError(f"{op}: {name} {one_line(error)}") from None
        return shaped(data, header)


def mapped(op: str, path: str | os.PathLike[str], *, kinds: str) -> Array:
    """One array of a file, mapped into memory, read-only; ValueError says what is wrong with it."""
    with open_regular(op, path, links=True) as file:
        try:
            header = _checked_header(file, kinds)
        except ValueError as error:
            raise ValueError(f"{op}: {Path(path).name} {one_line(error)}") from None
        order: Literal["F", "C"] = "F" if header.fortran else "C"
        if not header.nbytes:
            return np.empty(header.shape, header.dtype, order)
        return np.memmap(file, header.dtype, "r", header.start, header.shape, order)


def _checked_header(file: IO[bytes], kinds: str) -> Header:
    """Header of a whole file, which must account for its every byte."""
    header = read_header(file)
    if header.dtype.kind not in kinds:
        raise ValueError(f"has dtype {header.dtype}, expected numbers")
    check_size(header, os.fstat(file.fileno()).st_size - header.start)
    return header
