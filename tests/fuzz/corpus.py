"""Files to begin with: made when they are wanted, and those kept because something was found."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from nlattn.conformance.backends import messages
from nlattn.conformance.cases import folders
from nlattn.conformance.cases.suite import cases
from nlattn.maps.io import KINDS
from tests.fuzz.maps import made

KEPT = Path(__file__).parent / "kept"


@functools.cache
def whole(target: str) -> tuple[bytes, ...]:
    """Files that are as they should be."""
    return tuple(_MAKERS[target]())


def kept(target: str) -> list[bytes]:
    """Files that something was found by."""
    return [path.read_bytes() for path in sorted((KEPT / target).glob("*"))]


def seeds(target: str) -> tuple[bytes, ...]:
    """Files for a target to begin with."""
    return (*whole(target), *kept(target))


def _maps() -> list[bytes]:
    saved = sorted((Path(__file__).parents[1] / "data" / "maps").glob("*.npz"))
    return [path.read_bytes() for path in saved if path.stem in KINDS]


def _states() -> list[bytes]:
    rng = np.random.default_rng(0)
    return [bytes([i % len(made()), *rng.bytes(i % 8 * 3)]) for i in range(8 * len(made()))]


def _archive() -> list[bytes]:
    found = []
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, **{"g.weight": np.arange(6.0).reshape(2, 3), "n": np.array(3)})
        found.append(file.getvalue())
    return found


def _safetensors() -> list[bytes]:
    header: dict[str, Any] = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
        "b": {"dtype": "BF16", "shape": [3], "data_offsets": [8, 14]},
    }
    text = json.dumps(header).encode()
    return [len(text).to_bytes(8, "little") + text + bytes(14)]


def _arrays() -> list[bytes]:
    found = []
    for x in (np.arange(6.0).reshape(2, 3), np.array(1, np.int8), np.zeros((0, 4), ">f2")):
        file = io.BytesIO()
        np.save(file, x)
        found.append(file.getvalue())
    return found


def _messages() -> list[bytes]:
    return [messages.pack({"name": "x"}, {"out": np.arange(3.0)}), messages.pack({}, {})]


def _cases() -> list[bytes]:
    one = next(iter(cases("smoke", ("attention",), ("float64",), "*")))
    with TemporaryDirectory() as folder:
        folders.write(Path(folder), one)
        return [(Path(folder) / "case.json").read_bytes()]


def _pictures() -> list[bytes]:
    from PIL import Image

    found = []
    x = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    deep = Image.fromarray(np.arange(16, dtype=np.uint16).reshape(4, 4))
    pictures = {"PNG": Image.fromarray(x), "TIFF": deep, "JPEG": Image.fromarray(x)}
    for format_, image in pictures.items():
        file = io.BytesIO()
        image.save(file, format_)
        found.append(file.getvalue())
    return found


_MAKERS = {
    "map_file": _maps,
    "map_state": _states,
    "weights_npz": _archive,
    "weights_safetensors": _safetensors,
    "array": _arrays,
    "message": _messages,
    "case": _cases,
    "picture": _pictures,
}
