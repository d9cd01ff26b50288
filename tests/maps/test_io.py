"""Saved maps come back bit for bit; anything else is refused in one line, before it costs much."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nlattn
from nlattn.maps.io import load_map
from nlattn.maps.state import common

RNG = np.random.default_rng(0)
Q, K = RNG.standard_normal((6, 3)), RNG.standard_normal((4, 3))


def sparse(dtype: Any = np.float64) -> Any:
    support = nlattn.support_from_index([[0, 3], [-1, -1], [1, 2], [2, 2], [0, 1], [3, 0]], 4)
    return nlattn.sparse_attention_map(Q.astype(dtype), K.astype(dtype), support)


def dense(dtype: Any = np.float64) -> Any:
    mask = RNG.random((6, 4)) < 0.7
    return nlattn.attention_map(Q.astype(dtype), K.astype(dtype), mask=mask, softcap=3.0)


SAVED = Path(__file__).parent.parent / "data" / "maps"


@pytest.mark.parametrize("name", sorted({path.stem for path in SAVED.glob("*.npz")} - {"weights"}))
def test_maps_that_an_earlier_version_saved_still_load(name: str) -> None:
    """One file of each structure, and what ``to_dense`` gave when they were written."""
    with np.load(SAVED / "weights.npz", allow_pickle=False) as weights:
        expected = weights[name]
    A = load_map(SAVED / f"{name}.npz")
    assert A.kind in name
    np.testing.assert_allclose(A.to_dense(), expected, rtol=1e-6, atol=0)  # exp of one spacing


def test_the_same_map_gives_the_same_bytes(tmp_path: Path) -> None:
    sparse().save(tmp_path / "a.npz")
    sparse().save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert str(file["kind"]) == "sparse"


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "map.npz"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="exists; pass overwrite=True to replace it"):
        sparse().save(path)
    assert path.read_text() == "mine"
    sparse().save(path, overwrite=True)
    assert load_map(path).shape == (6, 4)


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        sparse().save(tmp_path / "map.npz")
    assert list(tmp_path.iterdir()) == []


def members(A: Any) -> dict[str, Any]:
    return {"format": "nlattn map 1", "kind": A.kind, **A.state()}


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array), allow_pickle=True)
    return buffer.getvalue()


def write(path: Path, parts: dict[str, Any]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in parts.items():
            data = value if isinstance(value, bytes) else npy(value)
            archive.writestr(name if "." in name else f"{name}.npy", data)


def header(shape: str, dtype: str = "<f8", version: bytes = b"\x01\x00") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    text = text.ljust(117) + "\n"
    size = len(text).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + size + text.encode()


STATE = sparse().state()
BROKEN = {
    "no kind": ({"kind": "round"}, "it is of kind 'round', expected one of .*dense, .*sparse"),
    "another format": ({"format": "nlattn map 9"}, "its format is not 'nlattn map 1'"),
    "a missing array": ({"weights": None}, "it lacks weights"),
    "an array too many": ({"extra": np.zeros(1)}, "it has extra, which no such map has"),
    "a short array": ({"weights": STATE["weights"][1:]}, r"weights is float64 \(8,\), expected"),
    "another dtype": ({"weights": STATE["weights"].astype(int)}, r"weights is int64"),
    "mixed dtypes": (
        {"weights": STATE["weights"].astype(np.float32)},
        "weights are float32 and scores float64",
    ),
    "a key out of range": (
        {"indices": STATE["indices"] + np.int32(1)},
        "support row 0 holds key 4, expected 0 to 3",
    ),
    "falling pointers": (
        {"indptr": np.array([0, 2, 2, 1, 5, 7, 9])},
        "support.indptr falls at row 2",
    ),
    "a grid that does not fit": ({"query_grid": np.array([2, 2])}, "query_grid is"),
    "a grid of nothing": ({"query_grid": np.array([0, 6])}, r"query_grid is \(0, 6\), expected"),
    "objects": ({"weights": np.array([None])}, "member weights.npy has dtype object"),
    "strings": ({"weights": np.array(["a", "b"])}, "member weights.npy has dtype <U1"),
    "a long string": ({"kind": "x" * 999}, "member kind.npy has dtype <U999"),
    "a record": (
        {"weights": np.zeros(1, [("a", "f8")])},
        "member weights.npy has an unreadable header",
    ),
    "a huge header": ({"weights": header("(10000000000,)")}, r"declares shape \(10000000000,\)"),
    "a negative size": ({"weights": header("(-1,)") + bytes(8)}, r"declares shape \(-1,\)"),
    "an unknown version": ({"weights": header("(1,)", version=b"\x03\x00")}, "version"),
    "no header": ({"weights": b"hello"}, "member weights.npy is no .npy array"),
    "a folder": ({"../weights.npy": np.zeros(1)}, r"member '../weights.npy' is no array of a map"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_map_is_refused(what: str, tmp_path: Path) -> None:
    changes, text = BROKEN[what]
    parts = {**members(sparse()), **changes}
    write(tmp_path / "bad.npz", {k: v for k, v in parts.items() if v is not None})
    with pytest.raises(ValueError, match=rf"^load_map: .*bad\.npz is no readable map: .*{text}"):
        load_map(tmp_path / "bad.npz")


@pytest.mark.parametrize("content", [b"", b"PK", b"\x93NUMPY\x01\x00", bytes(1000)])
def test_what_is_no_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"load_map: .*bad\.npz is no readable map: "):
        load_map(tmp_path / "bad.npz")


def test_too_many_members_are_refused(tmp_path: Path) -> None:
    names = [f"{a}{b}" for a in "abcdefgh" for b in "abcdefghi"]
    write(tmp_path / "bad.npz", dict.fromkeys(names, np.zeros(0)))
    with pytest.raises(ValueError, match="it has 72 members, expected at most 64 by one name"):
        load_map(tmp_path / "bad.npz")


def test_a_truncated_or_altered_file_is_refused(tmp_path: Path) -> None:
    sparse().save(tmp_path / "map.npz")
    whole = (tmp_path / "map.npz").read_bytes()
    for cut in range(0, len(whole), 97):
        (tmp_path / "cut.npz").write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="is no readable map"):
            load_map(tmp_path / "cut.npz")
    at = whole.index(sparse().weights.tobytes())
    altered = whole[:at] + b"\xff" + whole[at + 1 :]
    (tmp_path / "altered.npz").write_bytes(altered)
    with pytest.raises(ValueError, match="Bad CRC-32"):
        load_map(tmp_path / "altered.npz")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    parts = {**members(sparse()), "weights": np.zeros(10**6)}
    write(tmp_path / "bomb.npz", parts)
    assert (tmp_path / "bomb.npz").stat().st_size < 10**5
    text = r"load_map: needs 8 MB \(.* arrays\), above max_bytes=1 MB; pass a larger max_bytes"
    with pytest.raises(MemoryError, match=text):
        load_map(tmp_path / "bomb.npz", max_bytes=1e6)


def test_maps_and_fields_say_what_they_are() -> None:
    A = sparse()
    assert repr(A).startswith("<SparseMap of 6 queries, 4 keys, float64, ")
    assert "SparseMap of 6 queries" in A._repr_html_()
    grid = RNG.standard_normal((4, 5, 3))
    field = nlattn.patchmatch(grid, grid[:3], topk=2)
    assert repr(field) == "Field(4 x 5 queries, 2 of the 3 x 5 keys each, float64)"
    found = nlattn.compare(A, A, RNG.standard_normal((4, 2)))
    assert repr(found).startswith("Quality(5 of 6 queries: recall 1, mass 1 of at most 1 in ")
    assert found.mass_above == (1, 1, 1, 1)
    assert "<th>recall</th><td>1 (1 to 1)</td>" in found._repr_html_()


def test_a_missing_file_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_map(tmp_path / "none.npz")


def test_arrays_in_fortran_order_and_other_byte_orders_are_read(tmp_path: Path) -> None:
    A = dense()
    parts = members(A)
    parts["q"], parts["lse"] = np.asfortranarray(parts["q"]), parts["lse"].astype(">f8")
    write(tmp_path / "map.npz", parts)
    np.testing.assert_array_equal(load_map(tmp_path / "map.npz").to_dense(), A.to_dense())


def test_work_is_optional_in_part() -> None:
    A = sparse()
    A.work = A.work._replace(per_query=None, changed=np.array([3, 1]))
    state = common(A)
    assert "work_per_query" not in state
    assert state["work_changed"].tolist() == [3, 1]
    B = type(A).from_state(A.state())
    assert B.work.per_query is None
    assert B.work.changed.tolist() == [3, 1]


CELLS = {
    "two dtypes": (
        {"k": np.zeros((2, 2, 1), np.float32)},
        r"q is float64 \(2, 3, 1\) and k float32",
    ),
    "halves": (
        {"q": np.ones((2, 3, 1), np.float16), "k": np.ones((2, 2, 1), np.float16)},
        "float16",
    ),
    "nothing": ({"q": np.zeros((0, 3, 1))}, r"q is float64 \(0, 3, 1\)"),
    "a scale of 0": ({"options": np.array([0, 1, 0, 0, 0])}, "its options are outside their sets"),
    "patches of 0": ({"options": np.array([2, 0, 0, 0, 0])}, "its options are outside their sets"),
    "even patches": ({"options": np.array([2, 2, 0, 0, 0])}, "its options are outside their sets"),
    "no such overlap": ({"options": np.array([2, 1, 3, 0, 0])}, "options are outside their sets"),
    "a floor of 0": ({"factors": np.array([1.0, 0, 1])}, "its options are outside their sets"),
    "a divisor of 0": ({"factors": np.array([1.0, 1, 0])}, "its options are outside their sets"),
    "no number": ({"factors": np.array([np.nan, 1, 1])}, "its options are outside their sets"),
    "other queries": ({"query_grid": np.array([6, 4])}, r"its grids are \(\(6, 4\), \(4, 4\)\)"),
    "other keys": ({"key_grid": np.array([2, 8])}, r"its grids are \(\(4, 6\), \(2, 8\)\)"),
}


@pytest.mark.parametrize("what", CELLS)
def test_a_broken_map_of_cells_is_refused(what: str, tmp_path: Path) -> None:
    q, k = np.arange(1.0, 7).reshape(2, 3, 1), np.arange(1.0, 5).reshape(2, 2, 1)
    parts = members(nlattn.cross_scale_attention_map(q, k, scale=2, patch=1))
    changes, text = CELLS[what]
    write(tmp_path / "map.npz", parts)
    assert load_map(tmp_path / "map.npz").shape == (24, 16)
    write(tmp_path / "bad.npz", {**parts, **changes})
    with pytest.raises(ValueError, match=rf"^load_map: .*bad\.npz is no readable map: .*{text}"):
        load_map(tmp_path / "bad.npz")
