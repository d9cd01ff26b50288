"""Cases as files: whole and unaltered, or refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nlattn.conformance.case import Case
from nlattn.conformance.cases import vectors
from tests.conformance.test_folders import attention, sparse

pytestmark = pytest.mark.plain

CASES = [attention(), attention(np.float64, causal=True), sparse()]


def truth(case: Case) -> dict[str, Any]:
    return {name: np.full((2, 3), float(i)) for i, name in enumerate(case.outputs)}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    folder = tmp_path / "vectors"
    folder.mkdir()
    assert vectors.write(folder, CASES, truth, truth, {"seed": 7}) == len(CASES)
    return folder


def test_vectors_come_back_with_truth_and_bounds(written: Path) -> None:
    for (case, want, bound), made in zip(vectors.read(written), CASES, strict=True):
        assert case.name == made.name
        for got in (want, bound):
            assert got.keys() == truth(made).keys()
            for name, x in truth(made).items():
                np.testing.assert_array_equal(got[name], x)
    manifest = json.loads((written / "manifest.json").read_text())
    assert (manifest["format"], manifest["seed"]) == ("nlattn vectors 1", 7)


def test_a_case_to_be_refused_has_no_truth(tmp_path: Path) -> None:
    case = Case("bad", "attention", "forward", "float32", attention().arrays, error="too long")
    vectors.write(tmp_path, [case], truth, truth)
    assert [(c.error, want, bound) for c, want, bound in vectors.read(tmp_path)] == [
        ("too long", {}, {})
    ]


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


SMALL = "attention/forward/float32/small"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "an altered array": (lambda f: alter(f / SMALL / "q.npy"), f"{SMALL}/q.npy is not the file"),
    "an altered truth": (
        lambda f: alter(f / SMALL / "want.out.npy"),
        f"{SMALL}/want.out.npy is not the file",
    ),
    "a missing file": (lambda f: (f / SMALL / "q.npy").unlink(), f"{SMALL} holds other files"),
    "a file too many": (
        lambda f: (f / SMALL / "x.npy").write_text(""),
        f"{SMALL} holds other files",
    ),
    "a case under another name": (
        lambda f: renamed(f, SMALL, "attention/other"),
        f"attention/other holds the case {SMALL}",
    ),
    "a name upwards": (lambda f: renamed(f, SMALL, "../other"), "'../other' is no name of a case"),
    "another format": (
        lambda f: changed(f, {"format": "2"}),
        "manifest.json is not of format 'nlattn vectors 1'",
    ),
    "no cases": (lambda f: changed(f, {"cases": []}), "manifest.json lists no cases"),
    "no files": (lambda f: changed(f, {"cases": {SMALL: 1}}), f"{SMALL} holds other files"),
    "a linked folder": (lambda f: linked(f / SMALL), f"{SMALL} is no plain folder"),
    "a linked file": (
        lambda f: linked(f / SMALL / "q.npy"),
        "q.npy is a link, expected a plain file",
    ),
}


def changed(folder: Path, change: dict[str, Any]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text()) | change
    (folder / "manifest.json").write_text(json.dumps(manifest))


def renamed(folder: Path, old: str, new: str) -> None:
    cases = json.loads((folder / "manifest.json").read_text())["cases"]
    changed(folder, {"cases": {new if name == old else name: x for name, x in cases.items()}})
    shutil.move(folder / old, folder / new)


def linked(path: Path) -> None:
    there = path.parents[4] / "there" if path.suffix else path.parents[4] / "folder"
    shutil.move(path, there)
    os.symlink(there, path)


@pytest.mark.parametrize("what", DAMAGE)
def test_altered_vectors_are_refused(what: str, written: Path) -> None:
    damage, text = DAMAGE[what]
    damage(written)
    with pytest.raises(ValueError, match=f"^vectors: {text}"):
        list(vectors.read(written))


def test_results_are_read_by_case(tmp_path: Path) -> None:
    case = attention()
    with pytest.raises(LookupError, match="no results"):
        vectors.result(tmp_path, case)
    place = tmp_path / case.name
    place.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"^vectors: there is no out\.npy$"):
        vectors.result(tmp_path, case)
    (place / "unsupported").write_text("no such mask\n")
    with pytest.raises(LookupError, match=r"^no such mask$"):
        vectors.result(tmp_path, case)
    (place / "unsupported").unlink()
    np.save(place / "out.npy", np.ones((4, 2), np.float32))
    np.testing.assert_array_equal(vectors.result(tmp_path, case)["out"], 1)
    np.save(place / "out.npy", np.array([None]))
    with pytest.raises(ValueError, match=r"^vectors: out\.npy has dtype object, expected numbers$"):
        vectors.result(tmp_path, case)
