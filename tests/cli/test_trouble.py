"""The command in trouble: closed streams, full disks, signals, two runs at once, odd names."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nlattn.cli import main
from nlattn.cli.output import MachineError, Output
from nlattn.cli.words import of_command
from tests.cli.commands import ENVIRONMENT

pytest.importorskip("PIL")
pytest.importorskip("matplotlib")
from PIL import Image

SMALL = ["--iterations", "2", "--patch", "3", "--channels", "4", "--query", "0,0"]
posix = pytest.mark.skipif(os.name != "posix", reason="of POSIX systems")


def shell(line: str, folder: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        f"{sys.executable} -m nlattn {line}", shell=True, capture_output=True, text=True,
        env=ENVIRONMENT, cwd=folder,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@posix
@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("list >&-", 0),
        ("list <&- >&- 2>&-", 0),
        ("--version >&-", 0),
        ("map nowhere.png 2>&-", 2),
        ("map nowhere.png >&- 2>&-", 2),
        ("list >/dev/full", 3),
        ("--version >/dev/full", 3),
        ("map nowhere.png 2>/dev/full", 2),
    ],
)
def test_closed_and_full_streams(line: str, code: int, tmp_path: Path):
    if "/dev/full" in line and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    got, _, err = shell(line, tmp_path)
    assert got == code
    assert "Traceback" not in err
    assert err.count("\n") <= 1


@posix
@pytest.mark.jit
def test_a_map_does_not_need_to_be_heard(tmp_path: Path):
    Image.fromarray(np.uint8([[[9, 8, 7]] * 6] * 5)).save(tmp_path / "x.png")
    line = f"map x.png {' '.join(SMALL)} --out o 2>&- >&-"
    assert shell(line, tmp_path)[0] == 0
    assert (tmp_path / "o" / "report.json").exists()


@posix
@pytest.mark.jit
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_it_leaves_no_draft(tmp_path: Path, number: int):
    process = subprocess.Popen(
        [sys.executable, "-m", "nlattn", "demo", "--iterations", "9000", "--out", tmp_path / "o"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (-number, "", "")
    assert not list(tmp_path.iterdir())


NAMES = ["$a_$.png", "a\nb.png", "^_{}.png", "\udcff\udcfe.png", "日本.png", "%s{0}.png", "-x.png"]


@posix
@pytest.mark.parametrize("name", NAMES)
def test_a_picture_may_have_any_name(name: str, tmp_path: Path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        Image.fromarray(np.uint8([[[9, 8, 7]] * 6] * 5)).save(tmp_path / "x.png")
        os.rename(tmp_path / "x.png", tmp_path / name)
    except (OSError, UnicodeError):
        pytest.skip("the file system has no such names")
    call = ["map", "--method", "dense", "--patch", "3", "--channels", "4", "--query", "0,0"]
    assert main([*call, "--out", "o", "--", name]) == 0
    said = capfd.readouterr()
    assert said.err == ""
    assert said.out.count("\n") < 16
    assert (tmp_path / "o" / "overlay.png").exists()
    assert main(["map", "--out", "p", "--", f"no{name}"]) == 2
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("shape", [(1, 100), (100, 1), (1, 1)])
def test_figures_of_narrow_pictures_are_bounded(shape: tuple[int, int], tmp_path: Path):
    x = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    Image.fromarray(x).save(tmp_path / "x.png")
    call = ["map", str(tmp_path / "x.png"), "--method", "dense", "--patch", "3", "--channels", "4"]
    assert main([*call, "--out", str(tmp_path / "o"), "--only-shown", "--quiet"]) == 0
    with Image.open(tmp_path / "o" / "overlay.png") as picture:
        assert max(picture.size) < 6000
        assert min(picture.size) > 300


def test_two_runs_into_one_folder_lose_nothing(tmp_path: Path):
    first, second = (Output(tmp_path / "new", ["x"], force=False) for _ in range(2))
    for i, output in enumerate((first, second)):
        output.write("x", lambda path, i=i: path.write_text(str(i)))
    second.commit()
    with pytest.raises(ValueError, match="new was written by another run meanwhile; --out names"):
        first.commit()
    first.discard()
    assert (tmp_path / "new" / "x").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


@posix
@pytest.mark.parametrize("force", [False, True])
def test_a_folder_is_written_by_one_run_at_a_time(force: bool, tmp_path: Path):
    first = Output(tmp_path, ["x"], force=force)
    with pytest.raises(ValueError, match=r"another run writes to .*; --out names another folder"):
        Output(tmp_path, ["y"], force=force)
    first.write("x", lambda path: path.write_text("first"))
    first.commit()
    Output(tmp_path, ["y"], force=force).discard()
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_what_came_meanwhile_is_not_replaced(tmp_path: Path):
    output = Output(tmp_path, ["x", "y"], force=False)
    for name in "xy":
        output.write(name, lambda path: path.write_text("mine"))
    (tmp_path / "y").write_text("theirs")
    with pytest.raises(ValueError, match="was written to by another run meanwhile"):
        output.commit()
    output.discard()
    assert [p.name for p in tmp_path.iterdir()] == ["y"]
    assert (tmp_path / "y").read_text() == "theirs"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), 3),
        (MemoryError("attention: needs 9 TB (x), above max_bytes=4 GB; use rows() or topk()"), 3),
        (OSError(errno.ENOSPC, "No space left on device"), 3),
        (OSError(errno.EROFS, "Read-only file system", "x"), 3),
        (OSError(errno.ENOENT, "No such file", "x"), 2),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 2),
        (MachineError("cannot write"), 3),
        (ValueError("a\nb"), 2),
    ],
)
def test_every_error_has_its_exit_code(error: Exception, code: int, capsys, monkeypatch):
    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr("nlattn.cli.about.list_", fail)
    assert main(["list"]) == code
    said = capsys.readouterr().err
    assert said.startswith("nlattn: ")
    assert said.count("\n") == 1


@posix
@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": ' + "9" * 10**6 + "}", None])
def test_reports_to_compare_are_read_without_trust(content, capsys, tmp_path: Path):
    path = tmp_path / "old.json"
    if content is None:
        os.mkfifo(path)
    else:
        path.write_text(content)
    assert main(["validate", "--diff", str(path), str(path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert len(said) < 500


@pytest.mark.parametrize("line", [["validate", "numpy"], ["vectors", "write", "v"]])
def test_an_unknown_operator_is_wrong_use(line: list[str], capsys, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*line, "--operators", "nonsense"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("nlattn: --operators: 'nonsense' is no operator; there are attention")
    assert not list(tmp_path.iterdir())


WORDS = {
    "load: x.gif cannot be read: it has 3 pages or frames, expected one; name one of 0 to 2 as the "
    "page": "load: x.gif cannot be read: it has 3 pages or frames, expected one; --page 0 to "
    "--page 2 name one",
    "map: --q[0, 1] is nan, expected finite values; nonfinite='propagate' lets them pass": (
        "map: --q[0, 1] is nan, expected finite values"
    ),
    "map: --q has dtype int64, expected float32; convert it with --q.astype(np.float32)": (
        "map: --q has dtype int64, expected float32; save it as float32"
    ),
    "lev: needs 9 TB (x), above max_bytes=4 GB; use rows() or topk()": (
        "lev: needs 9 TB (x), above the 4 GB that a command takes"
    ),
    "patch_features: patch=4 is even, expected an odd width": "--patch 4 is even, expected an odd "
    "width",
    "nl_means: patch_size=4 is even": "--patch 4 is even",
    "attention: scale=1e39, expected less": "--scale 1e39, expected less",
    "x: y has shape (3,)\nexpected (n, d)": "x: y has shape (3,) expected (n, d)",
}


@pytest.mark.parametrize("text", WORDS)
def test_errors_speak_of_what_a_command_has(text: str):
    assert of_command(text) == WORDS[text]
