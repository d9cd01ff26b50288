"""``nlattn vectors``: what it writes, and what it says of results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nlattn.cli import main
from nlattn.conformance.case import Case
from nlattn.conformance.cases import suite, vectors

CHOSEN = ["--operators", "refined_self_attention", "--dtypes", "float64"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cases of a few hundred numbers alone."""
    every = suite.cases

    def cases(*chosen: Any) -> list[Case]:
        return [c for c in every(*chosen) if sum(x.size for x in c.arrays.values()) < 300]

    monkeypatch.setattr(suite, "cases", cases)


def test_a_folder_that_is_there_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "cases", None)
    assert main(["vectors", "write", str(tmp_path)]) == 2
    assert "exists; vectors are written to a new folder" in capsys.readouterr().err


@pytest.mark.usefixtures("small")
def test_results_made_elsewhere_are_judged(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder, results = tmp_path / "vectors", tmp_path / "results"
    assert main(["vectors", "write", str(folder), *CHOSEN]) == 0
    assert "cases in" in capsys.readouterr().out
    certificate = json.loads((folder / "manifest.json").read_text())["certificate"]
    assert certificate["digits"] == 50
    shares = certificate["error over bound"]
    assert set(shares) == {case.name for case, _, _ in vectors.read(folder)}
    assert 0 < max(shares.values()) < 0.5
    assert main(["vectors", "write", str(folder), *CHOSEN]) == 2
    assert "exists; vectors are written to a new folder" in capsys.readouterr().err
    for case, _, _ in vectors.read(folder):
        (results / case.name).mkdir(parents=True)
        for output in case.outputs:
            want = folder / case.name / f"want.{output}.npy"
            shutil.copy(want, results / case.name / f"{output}.npy")
    assert main(["vectors", "check", str(folder), str(results)]) == 0
    assert ", 0 failed" in capsys.readouterr().out
    case = next(case for case, _, _ in vectors.read(folder) if case.kind == "vjp")
    shutil.copy(folder / case.name / "q.npy", results / case.name / "dv.npy")
    (results / "refined_self_attention/forward/float64/primes/out.npy").unlink()
    assert main(["vectors", "check", str(folder), str(results)]) == 1
    said = capsys.readouterr().out
    assert "forward/float64/primes: vectors: there is no out.npy" in said
    assert ", 2 failed" in said


def test_wrong_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["vectors", "check", str(tmp_path)]) == 2
    assert "expected DIR and RESULTS" in capsys.readouterr().err
    assert main(["vectors", "write", str(tmp_path / "x"), "--dtypes", "int8"]) == 2
    assert "--dtypes int8: no vectors of it, expected float64, float32" in capsys.readouterr().err
