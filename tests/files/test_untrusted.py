"""Files of others: sizes are believed only when they are there, and nothing is waited for."""

from __future__ import annotations

import io
import os
import socket
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nlattn
from nlattn.conformance.backends.messages import unpack
from nlattn.files import npy
from nlattn.files.untrusted import parse_json
from nlattn.layers import load_weights
from nlattn.maps.io import load_map
from tests.fuzz.targets import run

MAPS = Path(__file__).parents[1] / "data" / "maps"
LOADERS = {
    "load_map": (load_map, "x.npz"),
    "load_weights": (load_weights, "x.safetensors"),
    "load": (nlattn.images.load, "x.png"),
    "read": (lambda path: npy.mapped("read", path, kinds="f"), "x.npy"),
}


@pytest.mark.parametrize("op", LOADERS)
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder"])
def test_what_is_no_plain_file_is_refused_without_waiting(
    op: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    load, name = LOADERS[op]
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        monkeypatch.chdir(tmp_path)  # the name of a socket is short
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(name)
    with pytest.raises(ValueError, match=rf"^{op}: x\.\w+ is a {kind}, expected a plain file$"):
        load(path)


def test_a_link_to_a_file_is_followed(tmp_path: Path):
    (tmp_path / "x.npz").symlink_to(MAPS / "dense.npz")
    assert load_map(tmp_path / "x.npz").kind == "dense"


def changed(kind: str, folder: Path, **changes: Any) -> Path:
    """A saved map, some of its arrays replaced."""
    with np.load(MAPS / f"{kind}.npz") as file:
        arrays = {**file, **changes}
    np.savez_compressed(folder / "x.npz", **arrays)
    return folder / "x.npz"


def test_the_options_of_a_cross_scale_map_allocate_nothing(tmp_path: Path):
    with np.load(MAPS / "cross_scale.npz") as file:
        options, q, k = file["options"], file["q"], file["k"]
    huge = options.copy()
    huge[0] = 8000
    with pytest.raises(ValueError, match="its grids are "):
        load_map(changed("cross_scale", tmp_path, options=huge), max_bytes=1e6)
    grids = {
        "query_grid": 8000 * np.array(q.shape[:2]),
        "key_grid": 8000 * np.array(k.shape[:2]),
    }
    with pytest.raises(ValueError, match="lse is float64 "):
        load_map(changed("cross_scale", tmp_path, options=huge, **grids), max_bytes=1e6)
    wide = options.copy()
    wide[1] = 2**40 + 1
    with pytest.raises(MemoryError, match=r"load_map: needs .* \(rows of weights\), above max_by"):
        load_map(changed("cross_scale", tmp_path, options=wide), max_bytes=1e6)


def test_a_vector_of_the_map_must_fit(tmp_path: Path):
    grid = {"key_grid": np.array([2**31 - 1])}
    with pytest.raises(MemoryError, match=r"load_map: needs .*a vector of the .* map"):
        load_map(changed("sparse", tmp_path, **grid), max_bytes=1e6)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
@pytest.mark.parametrize("index", [[5, -128], [5, 5], [7, 5], [-1, 5], [0, 127]])
def test_selected_keys_rise_within_the_keys(dtype: Any, index: list[int], tmp_path: Path):
    low = np.iinfo(dtype).min
    keys = np.array([low + 3 if i == -128 else i for i in index]).astype(dtype)
    with np.load(MAPS / "selected.npz") as file:
        held, m = len(file["index"]), int(file["key_grid"].prod())
    assert m <= 100
    keys = np.concatenate([keys, np.arange(101, 101 + held - 2, dtype=dtype)])
    with pytest.raises(ValueError, match="index holds no ascending keys from 0 to "):
        load_map(changed("selected", tmp_path, index=keys))


def zipped(method: int, member: bytes, declared: int | None = None) -> bytes:
    """An archive of one member, whose size may be declared otherwise."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("a.npy", member)
    data = bytearray(file.getvalue())
    if declared is not None:
        crc = zlib.crc32(member[:declared])
        for at in (14, data.index(b"PK\x01\x02") + 16):
            data[at : at + 4] = struct.pack("<I", crc)
            data[at + 8 : at + 12] = struct.pack("<I", declared)
    return bytes(data)


def array(shape: str, held: int) -> bytes:
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + bytes(held)


def test_a_member_is_unpacked_as_far_as_it_declares(tmp_path: Path):
    bomb = zipped(zipfile.ZIP_DEFLATED, array("(2,)", 300_000_000), declared=128 + 16)
    assert len(bomb) < 400_000
    assert "read" in run("weights_npz", bomb, tmp_path)  # 300 MB would break its rule


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packings_that_cannot_be_bounded_are_refused(method: int, tmp_path: Path):
    (tmp_path / "x.npz").write_bytes(zipped(method, array("(2,)", 16)))
    with pytest.raises(ValueError, match=r"a\.npy is packed in another way than stored or defl"):
        load_weights(tmp_path / "x.npz")


HEADERS = {
    "digits": b"9" * 1_000_000,
    "a fraction": b"0." + b"1" * 1_000_000,
    "long shapes": b'{"a": {"dtype": "F32", "shape": ['
    + b"9" * 18
    + b", 9" * 99_999
    + b'], "data_offsets": [0, 8]}}',
    "a long name": b'{"' + b"a\\n" * 99_999 + b'": 1}',
    "a long dtype": b'{"a": {"dtype": "' + b"F" * 99_999 + b'", "shape": [], "data_offsets": [0]}}',
    "an endless number": b'{"a": 1e' + b"9" * 99_999 + b"}",
}


@pytest.mark.parametrize("what", HEADERS)
def test_what_errors_quote_is_short(what: str, tmp_path: Path):
    text = HEADERS[what]
    said = run("weights_safetensors", len(text).to_bytes(8, "little") + text, tmp_path)
    assert said.startswith("load_weights: ")
    assert len(said) < 400


def test_a_chunk_is_not_read_beyond_the_end(tmp_path: Path):
    picture = (MAPS.parent / "pictures" / "2x30.png").read_bytes()
    long = picture.replace(b"IDAT", b"IDAT", 1)
    at = long.index(b"IDAT") - 4
    said = run("picture", long[:at] + b"\xff\xff\xff\xf0" + long[at + 4 :], tmp_path)
    assert "x.png cannot be read: " in said


def test_shapes_of_nothing_are_bounded_too(tmp_path: Path):
    for shape in ("(4611686018427387904, 0, 8)", "(0, 9223372036854775807, 9)"):
        said = run("array", array(shape, 0), tmp_path)
        assert "declares shape" in said
    data = array("(4,)", 0).replace(b"<f8", b"|V0")
    assert "declares shape" in run("array", data, tmp_path)


def test_a_message_is_not_allocated_before_it_comes():
    asked = []
    head = b'{"arrays": {"a": "float64"}}'
    stream = io.BytesIO(len(head).to_bytes(8, "big") + head + (1 << 32).to_bytes(8, "big"))

    def counted(count: int) -> bytes:
        asked.append(count)
        return stream.read(count)

    with pytest.raises(EOFError):
        unpack(counted)
    assert max(asked) <= 1 << 20


def test_json_of_others_has_short_numbers_and_names_once():
    assert parse_json(b'{"a": [1, -2.5, 1e300, 18446744073709551615]}')["a"][3] == 2**64 - 1
    assert parse_json(b"[Infinity]", infinite=True) == [float("inf")]
    for text, said in (
        (b"[Infinity]", "Infinity is no number"),
        (b'{"a": 1, "a": 2}', "it has a name twice"),
        (b"[" * 10_000, "it is nested too deeply"),
    ):
        with pytest.raises(ValueError, match=said):
            parse_json(text)
