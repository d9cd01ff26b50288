"""Files written whole or not at all, tables, progress, and what a run took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nlattn.cli.output import Output, StageClock, peak_memory, table, to_json
from tests.cli.commands import ENVIRONMENT

pytest.importorskip("PIL")
pytest.importorskip("matplotlib")


def test_what_cannot_be_said_in_json_is_null():
    class Odd:
        def __str__(self) -> str:
            return "odd"

    report = {1: float("inf"), "a": np.float32(2), "b": (np.arange(2), Odd(), None, True)}
    assert json.loads(to_json(report)) == {"1": None, "a": 2, "b": [[0, 1], "odd", None, True]}


def test_columns_line_up():
    assert table([("a", "bb", ""), ("aaa", "b", "x")]) == "a    bb\naaa  b   x"


def test_peak_memory_is_this_process():
    peak = peak_memory()
    assert peak is None or peak > 1e7


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="asks the system what a process held")
@pytest.mark.jit
def test_the_memory_reported_is_what_the_run_has_held(tmp_path: Path):
    """Pictures and page included: drawing them takes tens of megabytes.

    A small process starts the command: a child counts as its own what its parent held at the start.
    """
    between = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-m", "nlattn", "demo", "--size", "32", "--quiet"]
    said = subprocess.run(
        [sys.executable, "-c", between, *command, "--out", tmp_path / "out"],
        capture_output=True, text=True, env=ENVIRONMENT, check=True,
    ).stdout  # fmt: skip
    held = int(said) * (1 if sys.platform == "darwin" else 1024)
    reported = json.loads((tmp_path / "out" / "report.json").read_text())["peak_bytes"]
    assert held - 8e6 < reported <= held + 1e6  # what is left is the report itself


def test_a_terminal_sees_what_is_running(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with StageClock(quiet=False) as stages:
        with stages("search"):
            pass
        assert list(stages.progress(range(2))) == [0, 1]
    assert "search ..." in capsys.readouterr().err
    assert stages.seconds["search"] >= 0


def test_a_terminal_sees_how_long_the_rest_will_take(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    clock = iter([10.0, 12.0, 12.1, 13.0, 14.0, 15.0])
    monkeypatch.setattr("nlattn.cli.output.time.perf_counter", lambda: next(clock))
    stages = StageClock(quiet=False)
    with stages("search"):
        stages.part(2, 8)
        stages.part(3, 8)  # too soon after the last
        stages.part(4, 8)
        stages.part(8, 8)
    said = capsys.readouterr().err
    assert "search: 2 of 8 parts, 6.0 s left" in said
    assert "3 of 8" not in said
    assert "search: 4 of 8 parts, 3.0 s left" in said
    assert "8 of 8" not in said


def test_a_discarded_output_takes_its_folders_along(tmp_path: Path):
    output = Output(tmp_path / "a" / "b" / "c", ["x"], force=False)
    output.write("x", lambda path: path.write_text("half"))
    Output.discard_all()
    assert not list(tmp_path.iterdir())
