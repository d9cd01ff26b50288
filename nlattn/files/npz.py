"""Arrays of ``.npz`` files, read without trust, and written whole or not at all.

A file is a zip of plain ``.npy`` members. Nothing in it is unpickled or extracted by name, and
nothing is allocated before the sizes it declares have been added up and compared with those it has.
"""

from __future__ import annotations

import errno
import os
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Array, Arrays
from nlattn.files import npy
from nlattn.files.untrusted import one_line
from nlattn.files.whole import whole

TEXT = 256  # longest string in a file, in bytes
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""What NumPy writes; of others, `zipfile` unpacks more than it is asked for."""
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    KeyError,
    IndexError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
)


class _Member(NamedTuple):
    info: zipfile.ZipInfo
    header: npy.Header


def read(
    op: str, file: IO[bytes], *, pattern: str, what: str, members: int, max_bytes: float
) -> dict[str, Any]:
    """Arrays of a file by name; a single string as a str.

    A member is called `pattern` and ``.npy``; `what` says of one that is not what it should have
    been, "array of a map". ValueError says what is wrong with the file, MemoryError if it declares
    more than `max_bytes`.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            names = {entry.filename for entry in entries}
            if len(entries) > members or len(names) < len(entries):
                raise ValueError(
                    f"it has {len(entries)} members, expected at most {members} by one name"
                )
            found = dict(_header(archive, entry, pattern, what) for entry in entries)
            total = sum(member.info.file_size for member in found.values())
            _check.memory(op, total, max_bytes, f"{len(found)} arrays", "pass a larger max_bytes")
            return {name: _array(archive, member) for name, member in found.items()}
    except _DAMAGE as error:
        raise ValueError(one_line(error)) from None
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # a place before the start of the file
            raise
        raise ValueError(one_line(error)) from None


def _header(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, pattern: str, what: str
) -> tuple[str, _Member]:
    """Name and declared layout of a member, which must account for its every byte."""
    match = re.fullmatch(rf"({pattern})\.npy", info.filename)
    if match is None:
        raise ValueError(f"member {_check.quoted(info.filename)} is no {what}")
    try:
        if info.compress_type not in _PACKED:
            raise ValueError("is packed in another way than stored or deflated")
        with archive.open(info) as file:
            header = npy.read_header(file)
        dtype, shape = header.dtype, header.shape
        if dtype.kind not in "biufU" or (dtype.kind == "U" and (shape or dtype.itemsize > TEXT)):
            raise ValueError(f"has dtype {dtype}, expected numbers")
        npy.check_size(header, info.file_size - header.start)
    except ValueError as error:
        raise ValueError(f"member {info.filename[:64]} {error}") from None
    return match[1], _Member(info, header)


def _array(archive: zipfile.ZipFile, member: _Member) -> Array:
    with archive.open(member.info) as file:
        file.read(member.header.start)
        data = file.read(member.header.nbytes)  # so many and no more: a member may unpack to any
        npy.check_size(member.header, len(data))
        array = npy.shaped(data, member.header)
    return array.item() if array.dtype.kind == "U" else array


def write(op: str, path: str | os.PathLike[str], members: Arrays, *, overwrite: bool) -> None:
    """Write arrays by name to `path`; FileExistsError if it is there, unless `overwrite`.

    The file appears at once and complete; the same arrays give the same bytes.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        raise FileExistsError(f"{op}: {target} exists; pass overwrite=True to replace it")
    with whole(target) as draft, open(draft, "xb") as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name, value in members.items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as to:
                    np.lib.format.write_array(to, np.asarray(value), allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
