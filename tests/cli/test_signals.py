"""Signals at bad moments: heard at once, said in a line, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.cli.commands import ENVIRONMENT

pytestmark = [
    pytest.mark.jit,
    pytest.mark.skipif(os.name != "posix", reason="sends signals"),
]
TILES = ["--patch", "3", "--channels", "4", "--candidates", "random", "--tile", "64"]


def begin(folder: Path, *words: str) -> subprocess.Popen[str]:
    """A command in a folder of its own, with its temporary files beside."""
    (folder / "tmp").mkdir(parents=True)
    (folder / "here").mkdir()
    x = np.random.default_rng(0).integers(0, 256, (400, 420, 3), np.uint8)
    np.save(folder / "here" / "x.npy", x)
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from nlattn.cli import main; sys.exit(main(sys.argv[1:]))"
    )  # a shell may have it ignored
    return subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=folder / "here", text=True,
        env={**ENVIRONMENT, "TMPDIR": str(folder / "tmp")}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def await_(there: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not [*there.glob(pattern)] and time.monotonic() < end and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None


def left(folder: Path) -> list[str]:
    return sorted(p.name for place in ("here", "tmp") for p in (folder / place).iterdir())


def test_more_signals_change_nothing(tmp_path: Path) -> None:
    process = begin(tmp_path, "demo", "--iterations", "9000", "--out", "o")
    await_(tmp_path / "here", ".nlattn-*", process)
    time.sleep(1)
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        os.killpg(process.pid, number)
        time.sleep(0.002)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "nlattn: interrupted\n")
    assert left(tmp_path) == ["x.npy"]


def test_temporary_folders_are_removed(tmp_path: Path) -> None:
    process = begin(tmp_path, "plan", "x.npy", "--iterations", "90")
    await_(tmp_path / "tmp", "*/*", process)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20) == ("", "nlattn: interrupted\n")
    assert left(tmp_path) == ["x.npy"]


def test_workers_leave_it_to_the_process_that_asked(tmp_path: Path) -> None:
    """A terminal sends a Ctrl-C to all of them."""
    words = ["map", "x.npy", *TILES, "--iterations", "40", "--processes", "2", "--out", "o"]
    process = begin(tmp_path, *words)
    await_(tmp_path / "here", "o/index_*.npy", process)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "nlattn: interrupted\n")
    assert left(tmp_path) == ["o", "x.npy"]


def test_little_is_imported_before_signals_are_heard() -> None:
    code = "import sys, nlattn.cli; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, text=True, check=True, stdout=subprocess.PIPE
    )
    late = {"argparse", "numpy", "shutil", "subprocess", "tempfile"}
    assert not late & {*run.stdout.split()}


def test_a_program_that_is_judged_leaves_no_folder(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nsleep 1000\n")
    program.chmod(0o755)
    process = begin(tmp_path, "validate", f"exec:{program}", "--op", "attention")
    await_(tmp_path / "tmp", "nlattn-*/case.json", process)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == -signal.SIGTERM
    assert left(tmp_path) == ["x.npy"]
