"""Messages between two processes: a JSON head and arrays as ``.npy``, nothing unpickled."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable

import numpy as np

from nlattn._types import Array, JsonObject
from nlattn.conformance.case import dtype_of
from nlattn.files import npy
from nlattn.files.untrusted import parse_json

_HEAD = 1 << 20  # bytes of a JSON head
_BLOB = 1 << 32  # bytes of an array
_CHUNK = 1 << 20


def pack(head: JsonObject, arrays: dict[str, Array]) -> bytes:
    """A message: length and text of the head, then length and bytes of each array."""
    dtypes = {name: x.dtype.name for name, x in arrays.items()}
    text = json.dumps({**head, "arrays": dtypes}, default=list).encode()
    blobs = [npy_bytes(x) for x in arrays.values()]
    return b"".join(struct.pack(">Q", len(part)) + part for part in (text, *blobs))


def unpack(read: Callable[[int], bytes]) -> tuple[JsonObject, dict[str, Array]]:
    """Head and arrays of the message that ``read(count)`` gives the bytes of.

    EOFError when there is none, ValueError when it is damaged.
    """
    text = _part(read, _HEAD)
    head = parse_json(text, infinite=True)
    if not isinstance(head, dict) or not isinstance(head.get("arrays"), dict):
        raise ValueError("a message without a head")
    arrays = {}
    for name, dtype in head.pop("arrays").items():
        x = parse(_part(read, _BLOB))
        arrays[name] = x.view(dtype_of(dtype)) if dtype == "bfloat16" else x
    return head, arrays


def npy_bytes(x: Array) -> bytes:
    """An array as the bytes of a ``.npy`` file; bfloat16 as uint16."""
    file = io.BytesIO()
    plain = x.view(np.uint16) if x.dtype.name == "bfloat16" else x
    np.lib.format.write_array(file, plain, allow_pickle=False)
    return file.getvalue()


def parse(data: bytes) -> Array:
    """The array in the bytes of a ``.npy`` file, whose header must account for every byte."""
    header = npy.read_header(io.BytesIO(data))
    if header.dtype.kind not in "biuf":
        raise ValueError(f"an array of {header.dtype}, expected numbers")
    npy.check_size(header, len(data) - header.start)
    array: Array = npy.shaped(data[header.start :], header)
    return array.copy()


def _part(read: Callable[[int], bytes], most: int) -> bytes:
    (length,) = struct.unpack(">Q", _exactly(read, 8))
    if length > most:
        raise ValueError(f"a part of {length} bytes")
    return _exactly(read, length)


def _exactly(read: Callable[[int], bytes], count: int) -> bytes:
    parts, left = [], count
    while left:
        part = read(min(left, _CHUNK))  # what a length declares is not allocated before it comes
        if not part:
            raise EOFError("the other side has ended")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
