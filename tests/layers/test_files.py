"""State dicts from files: `.npz` and `.safetensors`, whole, damaged and hostile."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nlattn.layers import load_weights

RNG = np.random.default_rng(0)
ARRAYS: dict[str, Any] = {
    "nl.g.weight": RNG.standard_normal((3, 6, 1, 1)).astype(np.float32),
    "nl.W.1.running_var": RNG.standard_normal(6),
    "nl.W.1.num_batches_tracked": np.array(7, np.int64),
    "head.bias": RNG.standard_normal(2).astype(np.float16),
    "empty": np.zeros((0, 4), np.float32),
}
CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "bool": "BOOL",
}


def pack(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def parts(arrays: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, x in arrays.items():
        span = [len(data), len(data) + x.nbytes]
        header[name] = {"dtype": CODES[x.dtype.name], "shape": list(x.shape), "data_offsets": span}
        data += x.tobytes()
    return header, data


def saved(folder: Path, kind: str) -> Path:
    path = folder / f"weights.{kind}"
    if kind == "npz":
        np.savez_compressed(path, **ARRAYS)
    else:
        path.write_bytes(pack(*parts(ARRAYS)))
    return path


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_what_was_saved_is_read(kind: str, tmp_path: Path) -> None:
    got = load_weights(saved(tmp_path, kind))
    assert list(got) == list(ARRAYS)
    for name, want in ARRAYS.items():
        assert (got[name].dtype, got[name].shape) == (want.dtype, want.shape)
        np.testing.assert_array_equal(got[name], want)


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_a_part_of_a_network_in_another_dtype(kind: str, tmp_path: Path) -> None:
    got = load_weights(saved(tmp_path, kind), prefix="nl.", dtype=np.float64)
    assert list(got) == ["g.weight", "W.1.running_var", "W.1.num_batches_tracked"]
    assert [x.dtype.name for x in got.values()] == ["float64", "float64", "int64"]
    np.testing.assert_array_equal(got["g.weight"], ARRAYS["nl.g.weight"])
    with pytest.raises(
        ValueError, match=r"^load_weights: prefix='x' starts none .* are 'empty', 'h"
    ):
        load_weights(saved(tmp_path, kind), prefix="x")


def test_bfloat16_comes_as_float32(tmp_path: Path) -> None:
    x = RNG.standard_normal((5, 7)).astype(ml_dtypes.bfloat16)
    (tmp_path / "w.safetensors").write_bytes(pack(*parts({"a": x, "s": x[0, 0]})))
    got = load_weights(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(got["a"], x.astype(np.float32))
    assert got["s"].shape == ()
    assert got["a"].dtype == np.float32


def entry(dtype: Any = "F32", shape: Any = (2,), span: Any = (0, 8)) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": span}}


EIGHT = bytes(8)
BROKEN: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "it declares a header of 0 bytes but holds 0"),
    "a short start": (b"\x01\x02", "it declares a header of 513 bytes but holds 2"),
    "a huge header": (b"\xff" * 8 + EIGHT, "it declares a header of 18446744073709551615 bytes"),
    "no JSON": (pack(b"{", b""), "Expecting property name"),
    "no text": (pack(b"\xff\xfe", b""), "codec can't decode"),
    "deep JSON": (pack(b"[" * 100_000, b""), "its header cannot be read: it is nested too deeply"),
    "a list": (pack([], b""), "its header is no JSON object"),
    "a name twice": (
        pack(b'{"a": 1, "a": 2}', b""),
        "its header cannot be read: it has a name twice",
    ),
    "no entry": (pack({"a": 1}, b""), "a is not described by dtype, shape and data_offsets"),
    "an unknown dtype": (pack(entry("F8_E4M3"), EIGHT), "a has dtype 'F8_E4M3', expected F64"),
    "a dtype that is none": (pack(entry(["F32"]), EIGHT), r"a has dtype \['F32'\], expected F64"),
    "a negative size": (pack(entry(shape=[-2]), EIGHT), r"a has \[-2\] where whole numbers"),
    "half a size": (pack(entry(shape=[2.0]), EIGHT), r"a has \[2.0\] where whole numbers"),
    "a yes": (pack(entry(shape=[True]), EIGHT), r"a has \[True\] where whole numbers"),
    "another size": (pack(entry(shape=[3]), EIGHT), r"a declares shape \[3\] of F32 in bytes"),
    "three offsets": (pack(entry(span=[0, 8, 9]), EIGHT), "a declares shape"),
    "a hole": (
        pack(entry(span=[4, 12]), bytes(12)),
        "a starts at byte 4 of its buffer, expected 0",
    ),
    "bytes left": (pack(entry(), bytes(9)), "it declares 8 bytes of arrays but holds 9"),
    "bytes missing": (pack(entry(), bytes(7)), "it declares 8 bytes of arrays but holds 7"),
    "many axes": (pack(entry(shape=[1] * 40 + [2]), EIGHT), "a declares shape"),
    "an overlap": (
        pack({**entry(), "b": entry()["a"]}, EIGHT),
        "b starts at byte 0 of its buffer, expected 8",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_refused(what: str, tmp_path: Path) -> None:
    content, text = BROKEN[what]
    (tmp_path / "bad.safetensors").write_bytes(content)
    start = r"^load_weights: .*bad\.safetensors holds no readable weights: "
    with pytest.raises(ValueError, match=f"{start}.*{text}"):
        load_weights(tmp_path / "bad.safetensors")


def test_objects_and_strings_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", a=np.array([None]))
    with pytest.raises(ValueError, match=r"holds no readable weights: member a\.npy has dtype obj"):
        load_weights(tmp_path / "bad.npz")
    np.savez(tmp_path / "bad.npz", a=np.array("text"))
    with pytest.raises(ValueError, match="member a is a string, expected numbers"):
        load_weights(tmp_path / "bad.npz")


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_large_files_are_refused_before_they_are_read(kind: str, tmp_path: Path) -> None:
    with pytest.raises(MemoryError, match=r"^load_weights: needs .* above max_bytes=50 B; pass a"):
        load_weights(saved(tmp_path, kind), max_bytes=50)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("model.pt", {}, "model.pt ends in '.pt', expected '.npz' or '.safetensors'; a PyTorch"),
        ("w.npz", {"dtype": np.int32}, "dtype=int32 is unknown here, expected float32 or float64"),
    ],
)
def test_other_requests_are_refused(name: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"^load_weights: .*{re.escape(text)}"):
        load_weights(name, **options)


def test_a_missing_file_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_weights(tmp_path / "none.npz")
