"""``nlattn map --tile``, ``denoise --tile`` and ``nlattn plan``."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nlattn
from nlattn.cli import main
from nlattn.cli.tiled import _Progress
from nlattn.cli.words import span
from nlattn.tiled import folder, scram
from tests.cli.commands import run

SMALL = ["--candidates", "random", "--patch", "3", "--channels", "3", "--iterations", "1"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    np.save(tmp_path / "image.npy", np.random.default_rng(0).random((12, 10, 3), np.float32))
    return tmp_path / "image.npy"


def test_a_map_and_a_clean_picture(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "map"
    code, text, _ = run(capsys, "map", image, "--tile", 64, "--out", out, *SMALL)
    assert code == 0
    assert text.startswith("12 x 10: ")
    assert json.loads((out / "map.json").read_text())["query_grid"] == [12, 10]
    code, text, _ = run(
        capsys, "map", image, "--tile", 64, "--out", out, *SMALL, "--resume", "--json"
    )
    assert code == 0
    assert json.loads(text)["size"] == [12, 10]

    clean = tmp_path / "clean"
    assert run(capsys, "denoise", image, "--sigma", 0.1, "--tile", 9, "--out", clean)[0] == 0
    expected = nlattn.nl_means(np.load(image), sigma=0.1)
    assert (np.load(clean / "out.npy") == expected).all()


def test_what_cannot_be_is_said_in_a_line(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for arguments, code, text in (
        (["--memory", "1MB"], 3, "no tile is small enough"),
        (["--channels", "99"], 2, "--channels 99, expected at most 27"),
        (["--method", "dense"], 2, "--tile needs --method scram or certified"),
        (["--page", "1"], 2, "--page does not go with --tile"),
        (["--method", "certified", "--query", "1,1"], 2, "certified attention keeps no map"),
        (["--force"], 2, "remove the folder, or say --resume"),
        (["--memory", "much"], 2, "'much' is no size, such as 4GB"),
        (["--dask", "tcp://127.0.0.1:9", "--processes", "2"], 2, "not allowed with argument"),
    ):
        got, _, err = run(capsys, "map", image, "--tile", 8, "--out", out, *SMALL, *arguments)
        assert (got, err.count("\n")) == (code, 1), err
        assert text in err
    for arguments, text in (
        (["map", image, "--resume"], "--picture and --resume go with --tile"),
        (["denoise", image, "--sigma", 1, "--tile", 8, "--page", 0], "--page does not go with"),
    ):
        got, _, err = run(capsys, *arguments)
        assert got == 2
        assert text in err
    assert not out.exists()


def test_a_plan_says_what_a_run_will_take(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, "plan", image, *SMALL, "--json")
    plan = json.loads(text)
    assert code == 0
    assert plan["scores"] >= 120 * 64
    assert plan["stages"]["keys"]["disk"] == 12 * 10 * 4 * 4
    code, text, _ = run(capsys, "plan", image, *SMALL)
    assert code == 0
    assert "search 04" in text
    assert "16 workers of one thread" in text


def test_progress_says_how_long_it_takes(
    image: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    bar = _Progress(scram.job(image, patch=3, channels=3), quiet=False)
    bar("image", 0, 1)
    bar("image", 1, 1)
    bar("search 20", 1, 1)
    bar.clear()
    said = capsys.readouterr().err
    assert "image: 0 of 1 tasks\r" in said
    assert "search 20: 1 of 1 tasks, " in said
    assert [span(s) for s in (3, 600, 9000)] == ["3.0 s", "10 min", "2.5 h"]


@pytest.mark.jit
def test_a_run_killed_and_then_interrupted_is_finished(image: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    code = (
        "import os, signal, sys, nlattn.cli.tiled as t\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell may ignore it
        "before = t._Progress.__call__\n"
        "number, at = int(sys.argv.pop(1)), sys.argv.pop(1)\n"
        "def call(self, stage, done, total):\n"
        "    if stage == at: os.kill(os.getpid(), number); signal.pause()\n"
        "    before(self, stage, done, total)\n"
        "t._Progress.__call__ = call\n"
        "from nlattn.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["map", str(image), "--tile", "8", *SMALL, "--out"]
    environment = {**os.environ, "PYTHONPATH": str(Path(nlattn.__file__).parents[1])}
    for number, stage, done, said in (
        (signal.SIGKILL, "search 01", "begin/0", (-signal.SIGKILL, "")),
        (signal.SIGINT, "search 02", "search 01/0", (130, "nlattn: interrupted")),
    ):
        begun = [sys.executable, "-c", code, str(int(number)), stage, *arguments, str(out)]
        process = subprocess.run(
            [*begun, "--resume"], capture_output=True, text=True, env=environment, timeout=240
        )
        assert (process.returncode, process.stderr.strip()) == said
        assert f'"{done}"' in (out / "manifest.jsonl").read_text()
    assert main([*arguments, str(out), "--resume", "--quiet"]) == 0
    assert main([*arguments, str(whole), "--quiet"]) == 0
    assert sorted(os.listdir(out)) == sorted(os.listdir(whole))
    for path in whole.glob("*.npy"):
        assert path.read_bytes() == (out / path.name).read_bytes()


@pytest.mark.parametrize("size", [200, 1200, 2200, 4500])
def test_a_full_disk_ends_a_run_that_goes_on_elsewhere(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    resource = pytest.importorskip("resource")
    out, whole = tmp_path / "out", tmp_path / "whole"
    arguments = ["map", image, "--tile", 8, *SMALL, "--out"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        code, _, err = run(capsys, *arguments, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 3
    assert "File too large" in err
    assert run(capsys, *arguments, out, "--resume")[0] == 0
    assert run(capsys, *arguments, whole)[0] == 0
    assert sorted(os.listdir(out)) == sorted(os.listdir(whole))
    for path in whole.glob("*.npy"):
        assert path.read_bytes() == (out / path.name).read_bytes()


def test_a_disk_without_room_says_how_to_go_on(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folder, "_reserve", full)
    code, _, err = run(capsys, "map", image, "--tile", 64, "--out", tmp_path / "map", *SMALL)
    assert code == 3
    assert err.endswith(
        ": No space left on device; --resume goes on where it stopped, once there is room\n"
    )
