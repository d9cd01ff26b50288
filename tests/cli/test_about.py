"""``nlattn list``, ``doctor`` and ``warmup``; versions and help."""

from __future__ import annotations

import json
import subprocess
import sys

import nlattn
from nlattn.cli import main
from nlattn.conformance.table import TABLE
from tests.cli.commands import ENVIRONMENT, run


def test_the_list_is_the_table(capsys):
    code, said, _ = run(capsys, "list")
    assert code == 0
    assert all(spec.name in said and spec.summary in said for spec in TABLE)
    rows = json.loads(run(capsys, "list", "--json")[1])
    assert [row["name"] for row in rows] == [spec.name for spec in TABLE]
    assert run(capsys, "list", "--quiet")[1] == ""


def test_the_doctor_explains_the_machine(capsys):
    code, said, _ = run(capsys, "doctor")
    assert code == 0
    for words in ("numba", "threads", "BLAS", "processor", "cache", "check", "passed"):
        assert words in said
    facts = json.loads(run(capsys, "doctor", "--json")[1])
    assert facts["nlattn"]["value"] == nlattn.__version__
    assert all(fact["means"] for fact in facts.values())
    assert run(capsys, "doctor", "--quiet")[1] == ""


def test_the_doctor_finds_a_machine_that_computes_wrong(capsys, monkeypatch):
    monkeypatch.setattr("nlattn.attention", lambda q, k, v: v[: len(q)] + k[: len(q), :1])
    code, said, _ = run(capsys, "doctor")
    assert code == 1
    assert "results cannot be trusted" in said


def test_warmup_compiles_every_operator(capsys):
    code, said, _ = run(capsys, "warmup")
    assert code == 0
    assert said.startswith(f"{len(TABLE)} operators ready after")
    said = json.loads(run(capsys, "warmup", "--json", "--dtype", "float64")[1])
    assert said["operators"] == len(TABLE)


def test_versions_and_help_end_well(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"nlattn {nlattn.__version__}\n"
    assert main(["demo", "--help"]) == 0


def test_a_reader_may_leave():
    done = subprocess.run(
        f"{sys.executable} -m nlattn list | true", shell=True, capture_output=True, text=True,
        env=ENVIRONMENT,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
