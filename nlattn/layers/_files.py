"""Weights from files: ``.npz`` and ``.safetensors``, read without trust and without a framework."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import IO, NoReturn

import numpy as np
from numpy.typing import DTypeLike

from nlattn import _check
from nlattn._types import Array, JsonObject
from nlattn.files import npz
from nlattn.files.untrusted import one_line, open_regular, parse_json

OP = "load_weights"
MEMBERS = 100_000
HEADER_BYTES = 100_000_000  # as the format's own reader allows
_PARSED = 16  # bytes that a byte of the header becomes, at most
_NAME = r"[^\x00\\]{1,512}"
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


def load_weights(
    path: str | os.PathLike[str],
    *,
    prefix: str = "",
    dtype: DTypeLike | None = None,
    max_bytes: float = 4e9,
) -> dict[str, Array]:
    """Read a state dict: ``{name: array}``.

    Parameters
    ----------
    path : path
        A ``.npz`` file (``np.savez(path, **arrays)``) or a ``.safetensors`` file.
    prefix : str
        Keep the names that start with it, and cut it off: ``"encoder.nl."``.
    dtype : dtype, optional
        float32 or float64, to which all floating arrays are converted.
    max_bytes : float
        Most bytes that the file's arrays may take.

    Returns
    -------
    dict of str to array
        bfloat16 comes as float32, which holds it exactly.

    Raises
    ------
    ValueError
        The file is of another kind, damaged, or has no name that starts with `prefix`.
    MemoryError
        It declares more than `max_bytes`.
    OSError
        It cannot be opened.

    Notes
    -----
    Nothing is unpickled; declared sizes are compared with the file's before arrays are read.

    Examples
    --------
    >>> np.savez("weights.npz", **{"encoder.nl.gamma": np.ones(1)})
    >>> nlattn.layers.load_weights("weights.npz", prefix="encoder.nl.")
    {'gamma': array([1.])}
    """
    if dtype is not None:
        _check.wide_dtype(OP, dtype)
    kind = Path(path).suffix
    if kind not in (".npz", ".safetensors"):
        _check.fail(
            OP,
            os.fspath(path),
            f"ends in {kind!r}, expected '.npz' or '.safetensors'; a PyTorch file is a pickle: "
            "np.savez(path, **{k: v.numpy() for k, v in module.state_dict().items()})",
        )
    with open_regular(OP, path, links=True) as file:
        try:
            arrays = _npz_arrays(file, max_bytes) if kind == ".npz" else _tensors(file, max_bytes)
        except ValueError as error:
            _refuse(path, error)
    kept = {name[len(prefix) :]: x for name, x in arrays.items() if name.startswith(prefix)}
    if prefix and not kept:
        some = ", ".join(map(_check.quoted, sorted(arrays)[:3]))
        text = f"starts none of the names in {os.fspath(path)}, of which the first are {some}"
        _check.fail(OP, f"prefix={_check.quoted(prefix)}", text)
    if dtype is None:
        return kept
    return {name: x.astype(dtype) if x.dtype.kind == "f" else x for name, x in kept.items()}


def _npz_arrays(file: IO[bytes], max_bytes: float) -> dict[str, Array]:
    found = npz.read(OP, file, pattern=_NAME, what="array", members=MEMBERS, max_bytes=max_bytes)
    for name, x in found.items():
        if isinstance(x, str):
            raise ValueError(f"member {name} is a string, expected numbers")
    return found


def _tensors(file: IO[bytes], max_bytes: float) -> dict[str, Array]:
    """Arrays of a ``.safetensors`` file: header length, JSON header, one buffer without holes."""
    size = os.fstat(file.fileno()).st_size
    start = 8 + int.from_bytes(file.read(8), "little")
    if size < 8 or start > size or start > HEADER_BYTES:
        raise ValueError(f"it declares a header of {start - 8} bytes but holds {size}")
    held = _PARSED * (start - 8)
    _check.memory(OP, held, max_bytes, "its header", "pass a larger max_bytes")
    try:
        header = parse_json(file.read(start - 8))
    except ValueError as error:
        raise ValueError(f"its header cannot be read: {error}") from None
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    header.pop("__metadata__", None)
    spans = sorted((*_span(name, entry), name) for name, entry in header.items())
    _check.memory(OP, size - start, max_bytes, f"{len(spans)} arrays", "pass a larger max_bytes")
    end = 0
    for first, last, name in spans:
        if first != end:
            place = f"byte {first} of its buffer, expected {end}"
            raise ValueError(f"{name[:64]} starts at {place}")
        end = last
    if end != size - start:
        raise ValueError(f"it declares {end} bytes of arrays but holds {size - start}")
    data = file.read(size - start)
    if len(data) < size - start:
        raise ValueError("it became shorter while it was read")
    arrays = {name: _array(header[name], data[first:last]) for first, last, name in spans}
    return {name: arrays[name] for name in header}


def _span(name: str, entry: object) -> tuple[int, int]:
    """First and last byte of an array, which its shape must account for."""
    of = name[:64]
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{of} is not described by dtype, shape and data_offsets")
    shape, offsets, kind = entry["shape"], entry["data_offsets"], entry["dtype"]
    if kind not in list(_DTYPES):
        raise ValueError(f"{of} has dtype {_check.quoted(kind)}, expected {', '.join(_DTYPES)}")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(x) is int and x >= 0 for x in numbers):
            given = _check.quoted(numbers)
            raise ValueError(f"{of} has {given} where whole numbers are expected")
    few = len(shape) <= 32 and len(offsets) == 2 and math.prod(x for x in shape if x) < 1 << 60
    needed = math.prod(shape) * np.dtype(_DTYPES[kind]).itemsize if few else -1
    if needed < 0 or offsets[1] - offsets[0] != needed:
        declared = f"{_check.quoted(shape)} of {kind} in bytes {_check.quoted(offsets)}"
        raise ValueError(f"{of} declares shape {declared}")
    return offsets[0], offsets[1]


def _array(entry: JsonObject, data: bytes) -> Array:
    x: Array = np.frombuffer(data, _DTYPES[entry["dtype"]]).reshape(entry["shape"])
    if entry["dtype"] == "BF16":  # the upper half of a float32
        x = (x.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])
    return x.copy()


def _refuse(path: str | os.PathLike[str], reason: object) -> NoReturn:
    raise ValueError(
        f"{OP}: {os.fspath(path)} holds no readable weights: {one_line(reason)}"
    ) from None
