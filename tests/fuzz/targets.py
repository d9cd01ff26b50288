"""What is fuzzed: each target takes the bytes of a file, or of a choice of damages.

A reader answers, or refuses in one short line by ValueError, TypeError or MemoryError; it holds no
more than some times what it was allowed. `run` checks both.
"""

from __future__ import annotations

import io
import tracemalloc
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import nlattn
from nlattn.conformance.backends import messages
from nlattn.conformance.cases import folders
from nlattn.files import npy
from nlattn.layers import load_weights
from nlattn.maps.io import KINDS, load_map
from tests.fuzz import maps

ALLOWED = 1e6  # bytes
HELD = 1e8  # bytes that the compiler may take, or whatever is imported or parsed


def run(target: str, data: bytes, folder: Path) -> str:
    """What a target says of `data`; AssertionError if it breaks a rule."""
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NaN in the arrays of a file
            TARGETS[target](data, folder)
        said = "read"
    except (ValueError, TypeError, MemoryError) as error:
        said = str(error)
        assert said, "an error without a word"
        assert len(said) < 700, f"{len(said)} characters of error"
        assert said.isprintable(), f"not one line: {said!r}"
        assert "Unable to allocate" not in said, said
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < HELD + ALLOWED + 256 * len(data), f"{peak / 1e6:.0f} MB for {len(data)} bytes"
    return said


def _written(data: bytes, folder: Path, name: str) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def map_file(data: bytes, folder: Path) -> None:
    """A saved map."""
    use(load_map(_written(data, folder, "x.npz"), max_bytes=ALLOWED))


def map_state(data: bytes, _: Path) -> None:
    """A map from arrays that were changed as the bytes say."""
    kind, state = maps.damaged(data)
    use(KINDS[kind].from_state(state, ALLOWED))


def use(A: Any) -> None:
    """Everything a loaded map is asked for."""
    n, m = A.shape
    if n * m > 10_000:
        return
    rows = A.rows(np.arange(n))
    assert rows.shape == (n, m)
    assert (A @ np.ones((m, 2), A.dtype)).shape == (n, 2)
    assert (A.T @ np.ones((n, 2), A.dtype)).shape == (m, 2)
    keys = A.topk(min(2, m))[1]
    assert keys.min(initial=0) >= -1
    assert keys.max(initial=-1) < m


def weights_npz(data: bytes, folder: Path) -> None:
    """A state dict, as NumPy writes it."""
    load_weights(_written(data, folder, "x.npz"), max_bytes=ALLOWED)


def weights_safetensors(data: bytes, folder: Path) -> None:
    """A state dict, as safetensors writes it."""
    load_weights(_written(data, folder, "x.safetensors"), max_bytes=ALLOWED)


def array(data: bytes, folder: Path) -> None:
    """One array, read and mapped."""
    path = _written(data, folder, "x.npy")
    x = npy.load("read", path, kinds="biufcSUV", max_bytes=ALLOWED)
    y = npy.mapped("read", path, kinds="biufcSUV")
    assert (x.shape, x.dtype) == (y.shape, y.dtype)


def message(data: bytes, _: Path) -> None:
    """What another process sends."""
    with suppress(EOFError):
        messages.unpack(io.BytesIO(data).read)


def case(data: bytes, folder: Path) -> None:
    """The description of a case."""
    path = _written(data, folder, "case.json")
    with suppress(FileNotFoundError):  # an array that it names
        folders.read("vectors", path.parent)


def picture(data: bytes, folder: Path) -> None:
    """A picture."""
    nlattn.images.load(_written(data, folder, "x.png"), max_pixels=10_000)


TARGETS: dict[str, Callable[[bytes, Path], None]] = {
    "map_file": map_file,
    "map_state": map_state,
    "weights_npz": weights_npz,
    "weights_safetensors": weights_safetensors,
    "array": array,
    "message": message,
    "case": case,
    "picture": picture,
}
