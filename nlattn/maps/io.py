"""Attention maps as ``.npz`` files: written whole or not at all, read without trust.

A file is a zip of plain ``.npy`` members: `format`, `kind` and the state of the map. Nothing in
it is unpickled or extracted by name, and nothing is allocated before the sizes it declares have
been added up and compared with those it has.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from nlattn import _check
from nlattn.maps.base import AttentionMap
from nlattn.maps.dense import DenseMap
from nlattn.maps.sparse import SparseMap

FORMAT = "nlattn map 1"
KINDS: dict[str, type[AttentionMap]] = {c.kind: c for c in (DenseMap, SparseMap)}
MEMBERS = 64
TEXT = 256  # longest string in a file, in bytes
OP = "load_map"


def save_map(
    attention_map: AttentionMap, path: str | os.PathLike[str], *, overwrite: bool = False
) -> None:
    """Write a map to `path`, which by custom ends in ``.npz``.

    FileExistsError if there is something at `path`, unless `overwrite`. The file appears at once
    and complete; the same map gives the same bytes.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        raise FileExistsError(f"save_map: {target} exists; pass overwrite=True to replace it")
    members = {"format": FORMAT, "kind": attention_map.kind, **attention_map.state()}
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                for name, value in members.items():
                    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as to:
                        np.lib.format.write_array(to, np.asarray(value), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_map(path: str | os.PathLike[str], *, max_bytes: float = 4e9) -> AttentionMap:
    """Read a map that ``AttentionMap.save`` wrote.

    Parameters
    ----------
    path : path
        The file.
    max_bytes : float
        Most bytes that its arrays may take.

    Returns
    -------
    AttentionMap
        Of the structure that was saved.

    Raises
    ------
    ValueError
        The file is no map, is damaged, or its arrays do not fit each other.
    MemoryError
        It declares more than `max_bytes`.
    OSError
        It cannot be opened.
    """
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                state = _read(archive, max_bytes)
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            NotImplementedError,
            RuntimeError,
            ValueError,
        ) as error:
            _refuse(path, error)
    if state.pop("format", None) != FORMAT:
        _refuse(path, f"its format is not {FORMAT!r}")
    kind = str(state.pop("kind", None))
    if kind not in KINDS:
        _refuse(path, f"it is of kind {kind!r}, expected one of {', '.join(KINDS)}")
    try:
        return KINDS[kind].from_state(state)
    except (KeyError, TypeError, ValueError) as error:
        _refuse(path, error)


class _Member(NamedTuple):
    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    start: int


def _read(archive: zipfile.ZipFile, max_bytes: float) -> dict[str, Any]:
    entries = archive.infolist()
    if len(entries) > MEMBERS or len({entry.filename for entry in entries}) < len(entries):
        raise ValueError(f"it has {len(entries)} members, expected at most {MEMBERS} by one name")
    members = dict(_header(archive, entry) for entry in entries)
    total = sum(member.info.file_size for member in members.values())
    _check.memory(OP, total, max_bytes, f"{len(members)} arrays", "pass a larger max_bytes")
    return {name: _array(archive, member) for name, member in members.items()}


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[str, _Member]:
    """Name and declared layout of a member, which must account for its every byte."""
    match = re.fullmatch(r"([a-z_]{1,32})\.npy", info.filename)
    if match is None:
        raise ValueError(f"member {info.filename[:64]!r} is no array of a map")
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"member {info.filename} has .npy version {version}")
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(file)
        start = file.tell()
    if dtype.kind not in "biufU" or (dtype.kind == "U" and (shape or dtype.itemsize > TEXT)):
        raise ValueError(f"member {info.filename} has dtype {dtype}, expected numbers")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != info.file_size - start:
        raise ValueError(
            f"member {info.filename} declares shape {shape} of {dtype} "
            f"but holds {info.file_size - start} bytes"
        )
    return match[1], _Member(info, shape, dtype, fortran, start)


def _array(archive: zipfile.ZipFile, member: _Member) -> Any:
    with archive.open(member.info) as file:
        file.read(member.start)
        data = file.read()
    flat = np.frombuffer(data, member.dtype)
    array = flat.reshape(member.shape, order="F" if member.fortran else "C")
    return array.item() if member.dtype.kind == "U" else array


def _refuse(path: str | os.PathLike[str], reason: object) -> NoReturn:
    raise ValueError(f"{OP}: {os.fspath(path)} is no readable map: {reason}") from None
