"""Command lines, run in this process."""

from __future__ import annotations

import os
from pathlib import Path

import nlattn
from nlattn.cli import main

SMALL = ["--iterations", "2", "--patch", "3", "--channels", "4"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(nlattn.__file__).parents[1])}


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def refused(capsys, *arguments: object, code: int = 2) -> str:
    """The one line with which a command line is refused."""
    got, out, err = run(capsys, *arguments)
    assert (got, out) == (code, "")
    assert err.count("\n") == 1, err
    assert err.startswith("nlattn")
    return err.strip()
