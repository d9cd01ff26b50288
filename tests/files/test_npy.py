"""Arrays of plain files: what NumPy wrote is read back; all else is refused in one line."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nlattn.files import npy


def written(array: Any, version: tuple[int, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array), version)
    return buffer.getvalue()


def load(folder: Path, content: bytes, *, kinds: str = "biuf", max_bytes: float = 1e6) -> Any:
    path = folder / "x.npy"
    path.write_bytes(content)
    return npy.load("read", path, kinds=kinds, max_bytes=max_bytes)


def header(text: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    size = len(text).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + size + text.encode("latin1") + data


KINDS = st.sampled_from(["<f8", "<f4", ">f2", "<i4", "|u1", "|b1"])


@settings(deadline=None, max_examples=60)
@given(x=KINDS.flatmap(lambda d: arrays.arrays(d, arrays.array_shapes(min_dims=0, min_side=0))))
def test_what_numpy_wrote_is_read_back(x: Any, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("npy")
    for version in ((1, 0), (2, 0)):
        for array in (x, x.copy(order="F")):
            got = load(folder, written(array, version))
            assert (got.shape, got.dtype) == (x.shape, x.dtype)
            assert got.tobytes() == x.tobytes()


def read_or_refuse(content: bytes) -> npy.Header | None:
    """The header of an array, None if it was refused in one line."""
    try:
        found = npy.read_header(io.BytesIO(content))
        npy.check_size(found, len(content) - found.start)
    except ValueError as error:
        return None if "\n" not in str(error) else pytest.fail(str(error))
    return found


GOOD = written(np.arange(6.0).reshape(2, 3))


@settings(deadline=None, max_examples=400)
@given(st.data())
def test_no_damage_is_worse_than_a_refusal(data: st.DataObject) -> None:
    content = bytearray(GOOD[: data.draw(st.integers(0, len(GOOD)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    found = read_or_refuse(bytes(content))
    assert found is None or found.nbytes == len(content) - found.start


@settings(deadline=None, max_examples=200)
@given(st.text("{}()[]'\",: descrfotan_oshape<8f4TueFals0123-", max_size=90))
def test_no_header_is_worse_than_a_refusal(text: str) -> None:
    found = read_or_refuse(header(text))
    assert found is None or found.start == 10 + len(text)


def entries(shape: str, descr: str = "'<f8'", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


REFUSED = {
    "nothing": (b"", "is no .npy array"),
    "an archive": (b"PK\x03\x04" + bytes(90), "is no .npy array"),
    "version 3": (header(entries("()"), bytes(8), b"\x03\x00"), r"has .npy version \(3, 0\)"),
    "a cut header": (GOOD[:40], "ends within its header"),
    "a header bomb": (
        b"\x93NUMPY\x02\x00" + (1 << 31).to_bytes(4, "little") + bytes(99),
        "has a header of 2147483648 bytes, expected at most 1024",
    ),
    "a cut array": (GOOD[:-1], r"declares shape \(2, 3\) of float64 but holds 47 bytes"),
    "bytes too many": (GOOD + b"x", r"declares shape \(2, 3\) of float64 but holds 49 bytes"),
    "an absurd shape": (header(entries("(10000000000, 10000000000)")), "declares shape"),
    "overflowing sizes": (header(entries("(4294967296, 4294967296)"), b""), "declares shape"),
    "endless digits": (header(entries("(" + "9" * 40 + ",)")), r"declares shape \(999"),
    "a negative size": (header(entries("(-1, -1)"), bytes(8)), r"declares shape \(-1, -1\)"),
    "many axes": (header(entries("(" + "1," * 33 + ")"), bytes(8)), "declares shape"),
    "objects": (header(entries("(1,)", "'|O'"), bytes(8)), "has dtype object, expected numbers"),
    "strings": (header(entries("(1,)", "'<U2'"), bytes(8)), "has dtype <U2, expected numbers"),
    "a record": (
        header(entries("(1,)", "[('a', '<f8')]"), bytes(8)),
        "has an unreadable header \"{'descr': ",
    ),
    "no such dtype": (header(entries("(1,)", "'<f3'"), bytes(3)), "has dtype <f3"),
    "a datetime": (header(entries("(1,)", "'<M8[s]'"), bytes(8)), r"has dtype <M8\[s\]"),
    "code": (header("__import__('os').abort()"), "has an unreadable header"),
    "an entry twice": (header(entries("(1,)") + "'shape': (2,)"), "has an unreadable header"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_array_of_numbers_is_refused(what: str, tmp_path: Path) -> None:
    content, text = REFUSED[what]
    with pytest.raises(ValueError, match=rf"^read: x\.npy {text}"):
        load(tmp_path, content)


def test_only_what_was_asked_for_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^read: x\.npy has dtype float64, expected numbers$"):
        load(tmp_path, GOOD, kinds="iu")
    text = r"^read: needs 48 B \(x\.npy\), above max_bytes=10 B; pass a larger max_bytes$"
    with pytest.raises(MemoryError, match=text):
        load(tmp_path, GOOD, max_bytes=10)


def test_neither_links_nor_pipes_nor_folders_are_opened(tmp_path: Path) -> None:
    (tmp_path / "there.npy").write_bytes(GOOD)
    os.symlink(tmp_path / "there.npy", tmp_path / "link.npy")
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "folder.npy").mkdir()
    for name in ("link", "pipe", "folder"):
        text = rf"^read: {name}\.npy is a {name}, expected a plain file$"
        with pytest.raises(ValueError, match=text):
            npy.load("read", tmp_path / f"{name}.npy", kinds="f", max_bytes=1e6)
    with pytest.raises(FileNotFoundError):
        npy.load("read", tmp_path / "none.npy", kinds="f", max_bytes=1e6)
