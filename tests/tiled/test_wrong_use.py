"""What a run is told that cannot be: said before anything is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nlattn.cli import main
from nlattn.tiled.executors import Processes
from nlattn.tiled.plan import plan
from nlattn.tiled.scram import ScramJob, scram


@pytest.fixture
def image(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", np.zeros((8, 8, 3), np.float32))
    return tmp_path / "x.npy"


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"executor": 2}, TypeError, r"executor is a int, expected one such as Processes\(2\)"),
        ({"executor": ""}, TypeError, "executor is a str, expected one such as"),
        ({"executor": Processes}, TypeError, "executor is the class Processes, expected one"),
        ({"progress": 1}, TypeError, "progress is a int, expected a function of a stage"),
        ({"resume": 1}, TypeError, "resume=1 is no bool"),
        ({"out": None}, TypeError, "out is a NoneType, expected the name of a file or folder"),
        ({"out": b"x"}, TypeError, "out is a bytes, expected the name"),
        ({"out": ""}, ValueError, "out='' is no name, expected that of a file or folder"),
        ({"out": "a\0b"}, ValueError, r"out='a\\x00b' is no name"),
    ],
)
def test_arguments_of_a_run(image: Path, options: Any, error: Any, text: str) -> None:
    given = {"out": image.parent / "out", "patch": 3, "channels": 3, **options}
    with pytest.raises(error, match=f"^tiled: {text}"):
        scram(image, **given)
    assert [p.name for p in image.parent.iterdir()] == ["x.npy"]


@pytest.mark.parametrize("job", [None, 3, ScramJob])
def test_what_is_no_job_has_no_plan(job: Any) -> None:
    with pytest.raises(TypeError, match=r"^tiled: job is a \w+, expected what a job\(\) returns"):
        plan(job)


def test_a_picture_has_its_place_before_the_work(
    image: Path, capsys: Any, monkeypatch: Any
) -> None:
    pytest.importorskip("tifffile")
    monkeypatch.chdir(image.parent)
    words = ["map", "x.npy", "--patch", "3", "--channels", "3", "--tile", "8", "--out", "o"]
    assert main([*words, "--picture", "no/x.tif"]) == 2
    assert "--picture no/x.tif cannot be written: there is no folder" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    assert main([*words, "--picture", "x.tif"]) == 3
    assert "tifffile is not installed" in capsys.readouterr().err
    assert not Path("o").exists()
