"""Wrong use, missing files and packages, interrupts: one line, an exit code, and nothing left."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nlattn import images
from nlattn.cli import main
from tests.cli.commands import ENVIRONMENT, SMALL, refused

pytest.importorskip("PIL")
pytest.importorskip("matplotlib")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["map"], "give an IMAGE or --q FILE.npy"),
        (["map", "x.png", "--v", "v.npy"], "--k and --v go with --q"),
        (["demo", "--rows", "0"], "'0' is no whole number from 1 up"),
        (["demo", "--seed", "x"], "'x' is no whole number from 0 up"),
        (["demo", "--query", "3"], "'3' is not ROW,COL, such as 120,88"),
        (["demo", "--query", "3,-1"], "'3,-1' is not ROW,COL"),
        (["demo", "--threads", "100000"], "--threads 100000, expected 1 to"),
        (["demo", "--size", "8", "--patch", "4"], "--patch 4 is even, expected an odd width"),
        (["demo", "--size", "8", "--query", "9,0"], "--query 9,0 lies outside the 8 x 8 grid"),
        (["demo", "--method", "magic"], "invalid choice: 'magic'"),
        (["demo", "--rows", "9" * 30], "is more than 9223372036854775807"),
        (["scaling", "lev", "--points", "1001"], "'1001' is more than 1000"),
        (["scaling", "lev", "--runs", "9999999"], "'9999999' is more than 1000"),
        (["scaling", "lev", "--sizes", f"8x8:{10**20}x8"], "is no grid, such as 256x256"),
        (["scaling", "lev", "--predict", f"{10**20}x{10**20}"], "is no grid, such as 256x256"),
        (["demo", "--out", ""], "there is an empty word after --out, expected a value"),
        (["demo", "--out="], "there is an empty word after --out"),
        (["map", " "], "there is an empty word after map"),
        (["validate", "numpy", "--operators", ","], "',' names nothing"),
        (["map", "a\nb", "x"], "unrecognized arguments: x"),
        (["map", "x", "a\nb"], "unrecognized arguments: a b"),
        (["map", "x.png", "--method", "lev", "--mass", ".5"], "--mass goes with --method scram"),
        (["map", "x.png", "--tile", "8", "--mass", ".5"], "--mass does not go with --tile"),
        (["map", "x.png", "--only-shown"], "--only-shown goes with --method dense or nonlocal"),
        (["map", "x.png", "--weight", "w"], "--weight goes with --method nonlocal"),
        (["validate", "--diff", "a", "b", "--json"], "--json does not go with --diff"),
        (["vectors", "write", "v", "r"], "RESULTS go with vectors check"),
        (["vectors", "check", "v"], "expected DIR and RESULTS"),
        (["vectors", "check", "v", "r", "--tier", "standard"], "--tier does not go with vectors"),
        (["vectors", "check", "v", "r", "--no-certificate"], "--no-certificate does not go"),
        (["validate", "numpy", "--json", "r", "--html", "./r"], "name one file twice"),
        (["validate", "b.py:B", "--json", "."], ". is a folder, expected a name for a file"),
        (["demo", "--size", "8", "--out", "x" * 300], "File name too long"),
    ],
)
def test_wrong_use_is_refused_in_a_line(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file or directory"),
        (b"", "is not a readable .npy file"),
        (b"\x93NUMPY\x01\x00garbage", "is not a readable .npy file"),
        (np.array([None]), "has dtype object, expected numbers"),
        (np.ones((2, 2), int), "has dtype int64, expected float32"),
        (np.ones(3), "has shape (3,), expected (n, d) or (H, W, d)"),
        (np.ones((3, 0, 2)), "has shape (3, 0, 2)"),
        ({"q": np.ones(3)}, "is no .npy array"),
    ],
)
def test_arrays_that_cannot_serve_are_refused(capsys, tmp_path: Path, content, words: str):
    path = tmp_path / "q.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(tmp_path / "q", **content)
        (tmp_path / "q.npz").rename(path)
    elif content is not None:
        np.save(path, content)
    said = refused(capsys, "map", "--q", path, "--out", tmp_path / "o")
    assert words in said
    assert str(path) in said or "dtype" in words
    assert not (tmp_path / "o").exists()


def test_values_that_do_not_fit_are_refused(capsys, tmp_path: Path, arrays):
    said = refused(capsys, "map", "--q", arrays["q"], "--v", arrays["v"], "--out", tmp_path / "o")
    assert said == ("nlattn: map: v has shape (4, 7, 2), expected (Hk, Wk, e) with Hk=6 from k")


@pytest.mark.parametrize("content", [None, "no image"])
def test_pictures_that_cannot_be_read_are_refused(capsys, tmp_path: Path, content: str | None):
    path = tmp_path / "x.png"
    if content:
        path.write_text(content)
    said = refused(capsys, "map", path, "--out", tmp_path / "o")
    assert str(path) in said
    assert not (tmp_path / "o").exists()


def test_an_array_is_no_picture_without_tiles(capsys, tmp_path: Path):
    np.save(path := tmp_path / "x.npy", np.zeros((4, 4, 3), np.uint8))
    said = refused(capsys, "map", path, "--out", tmp_path / "o")
    assert said.endswith("x.npy holds an array, expected an image; --tile reads it")
    with pytest.raises(ValueError, match=r"x\.npy holds an array, .*; np\.load reads it$"):
        images.load(path)


def test_a_place_for_reports_is_looked_at_before_the_work(capsys, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backend = Path("mine.py")
    backend.write_text("raise SystemExit('it was begun')")
    said = refused(capsys, "validate", "mine.py", "--html", "no/r.html")
    assert "no/r.html cannot be written: there is no folder" in said
    said = refused(capsys, "validate", "mine.py:B", "--json", "mine.py", "--force")
    assert said.endswith("mine.py is read, and would be overwritten; another name is free")
    assert "File name too long" in refused(capsys, "validate", "numpy", "--junit", "x" * 300)


def test_a_place_that_cannot_be_written_is_the_environments_fault(capsys, tmp_path: Path):
    (tmp_path / "file").touch()
    said = refused(capsys, "demo", "--size", 8, "--out", tmp_path / "file" / "x", code=3)
    assert f"cannot write to {tmp_path}/file/x: Not a directory" in said
    said = refused(capsys, "demo", "--size", 8, "--out", tmp_path / "file")
    assert "is a file, expected a folder" in said


def test_a_full_disk_leaves_nothing_behind(capsys, tmp_path: Path, monkeypatch, picture: Path):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("nlattn.maps.base.AttentionMap.save", full)
    out = tmp_path / "a" / "b"
    said = refused(capsys, "map", picture, *SMALL, "--out", out, code=3)
    assert said == f"nlattn: cannot write to {out}: No space left on device"
    assert not (tmp_path / "a").exists()


@pytest.mark.jit
def test_a_file_too_large_leaves_nothing_behind(tmp_path: Path):
    code = (
        "import resource, sys\n"
        "from nlattn.cli import attend, main\n"
        "write = attend._write\n"
        "def limited(*arguments):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "    write(*arguments)\n"
        "attend._write = limited\n"
        f"sys.exit(main(['demo', '--size', '24', '--out', {str(tmp_path / 'out')!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 3, done.stderr
    assert done.stderr.strip().splitlines()[-1].endswith("File too large")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
@pytest.mark.parametrize("delay", [0.0, 1.0, 2.5])
@pytest.mark.jit
def test_ctrl_c_does_not_wait_for_the_search_and_leaves_nothing(tmp_path: Path, delay: float):
    process = subprocess.Popen(
        [sys.executable, "-m", "nlattn", "demo", "--iterations", "9000", "--out", tmp_path / "out"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(delay)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)  # the search would take minutes
    assert (process.returncode, out, err) == (130, "", "nlattn: interrupted\n")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_its_remedy(capsys, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    said = refused(capsys, "demo", "--out", tmp_path / "o", code=3)
    assert said == "nlattn: PIL is not installed; python -m pip install 'nlattn[cli]' brings it"
    assert not (tmp_path / "o").exists()


def test_a_bug_is_not_called_wrong_use(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "numbers_of_nothing", None)
    monkeypatch.setattr("nlattn.images.photograph", lambda: __import__("numbers_of_nothing"))
    with pytest.raises(ModuleNotFoundError, match="numbers_of_nothing"):
        main(["demo", "--out", str(tmp_path / "o")])
    assert not (tmp_path / "o").exists()


def test_debug_shows_where_an_error_comes_from(tmp_path: Path):
    with pytest.raises(ValueError, match="patch=4 is even"):
        main(["demo", "--size", "8", "--patch", "4", "--debug", "--out", str(tmp_path / "o")])


def test_what_is_logged_is_told_on_request(capsys, monkeypatch):
    def work(_):
        logging.getLogger("nlattn.runtime").info("first call")
        return 0

    monkeypatch.setattr("nlattn.cli.about.list_", work)
    for more, told in ((["--verbose"], "nlattn: first call\n"), ([], "")):
        assert main(["list", *more]) == 0
        assert capsys.readouterr().err == told
