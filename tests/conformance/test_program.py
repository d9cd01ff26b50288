"""``exec:``: a program in another language, and all the ways in which one goes wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nlattn.conformance.backends.adapters.program import Program
from nlattn.conformance.backends.backend import Unsupported, load
from nlattn.oracle.dense import attention as oracle
from tests.conformance.test_folders import attention

ROOT = Path(__file__).parents[2]
NAME = "attention"


def script(folder: Path, text: str) -> Path:
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def ask(program: Path, seconds: float = 20, **options: Any) -> Any:
    case = attention(**options)
    return Program(str(program), seconds).run(NAME, case.arrays, case.options)


def test_a_program_reads_its_case_and_writes_its_answer(tmp_path: Path) -> None:
    np.save(tmp_path / "answer.npy", np.arange(8, dtype=np.float32).reshape(4, 2))
    program = script(
        tmp_path, f"grep -q causal $1/case.json && cp {tmp_path}/answer.npy $1/out.npy"
    )
    np.testing.assert_array_equal(ask(program, causal=True)["out"].ravel(), np.arange(8))
    backend = load(f"exec:{program}")
    assert backend.name == f"exec:{program}"


WRONG: dict[str, tuple[str, type[Exception], str]] = {
    "unsupported": ("echo; echo no masks; exit 77", Unsupported, "^no masks$"),
    "unsupported in silence": ("exit 77", Unsupported, "^it said nothing$"),
    "refused": ("echo shapes do not fit >&2; exit 65", ValueError, "program: shapes do not fit$"),
    "failed": ("echo out of luck; exit 3", RuntimeError, "program: exit code 3; out of luck$"),
    "crashed": ("kill -SEGV $$", RuntimeError, "ended by SIGSEGV; it said nothing$"),
    "aborted": ("kill -ABRT $$", RuntimeError, "ended by SIGABRT; it said nothing$"),
    "hung": ("exec sleep 60", TimeoutError, "program: no answer in 0.3 s$"),
    "nothing": ("exit 0", ValueError, r"program: there is no out\.npy$"),
    "rubbish": ("echo hello > $1/out.npy", ValueError, r"program: out\.npy is no \.npy array$"),
    "a link": (
        "ln -s q.npy $1/out.npy",
        ValueError,
        r"program: out\.npy is a link, expected a plain file$",
    ),
    "half a file": ("head -c 130 $1/q.npy > $1/out.npy", ValueError, r"out\.npy declares shape"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_program_that_goes_wrong_is_told_apart(what: str, tmp_path: Path) -> None:
    text, error, message = WRONG[what]
    with pytest.raises(error, match=message):
        ask(script(tmp_path, text), 0.3 if what == "hung" else 20)


def test_what_cannot_be_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    for name in ("none", "notes.txt"):
        with pytest.raises(ValueError, match=rf"^exec:{tmp_path}/{name}: no such program, or"):
            load(f"exec:{tmp_path}/{name}")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: Any) -> Path:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    path: Path = tmp_path_factory.mktemp("cpp") / "attention"
    source = ROOT / "docs/examples/attention.cpp"
    subprocess.run([compiler, "-O2", "-Wall", "-Werror", "-o", path, source], check=True)
    return path


def test_the_example_in_cpp_computes_attention(compiled: Path) -> None:
    for _ in range(3):
        case = attention()
        got = Program(str(compiled)).run(NAME, case.arrays, {})["out"]
        want = oracle(**{name: x.astype(float) for name, x in case.arrays.items()})
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_the_example_in_cpp_says_what_it_does_not_do(compiled: Path) -> None:
    with pytest.raises(Unsupported, match=r"^no options$"):
        ask(compiled, causal=True)
    case = attention(np.float64)
    with pytest.raises(Unsupported, match=r"^float32 only$"):
        Program(str(compiled)).run(NAME, case.arrays, {})
    arrays = dict(attention().arrays)
    with pytest.raises(ValueError, match="shapes do not fit"):
        Program(str(compiled)).run(NAME, {**arrays, "v": arrays["v"][1:]}, {})
    with pytest.raises(ValueError, match="expected finite values"):
        Program(str(compiled)).run(NAME, {**arrays, "v": arrays["v"] * np.float32(np.nan)}, {})
