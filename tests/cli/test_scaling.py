"""The command ``nlattn scaling``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nlattn.cli import main

pytest.importorskip("PIL")

SMALL = ["--sizes", "2x2:8x8", "--points", "5", "--channels", "4"]


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main(["scaling", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_sweep_judges_counted_work(capsys, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call = ["scram", "attention", "efficient", *SMALL, "--count", "--out", out]
    code, said, err = run(capsys, *call)
    assert (code, err) == (0, "")
    assert "5 sizes, 2 x 2 to 8 x 8, judged against n log n" in said
    report = json.loads((out / "scaling.json").read_text())
    subjects = {s["name"]: s for s in report["subjects"]}
    assert [subjects[n]["source"] for n in subjects] == ["count", "law", "law"]
    assert subjects["scram"]["verdict"] != "inconsistent"
    assert subjects["attention"]["verdict"] == "inconsistent"
    assert subjects["efficient_attention"]["verdict"] == "consistent"
    assert [row["n"] for row in subjects["scram"]["sizes"]] == [4, 9, 16, 36, 64]
    assert report["versions"]["numpy"]


def test_a_given_claim_that_fails_is_exit_1(capsys, tmp_path: Path) -> None:
    call = ["attention", *SMALL, "--count", "--out", tmp_path, "--force"]
    assert run(capsys, *call, "--claim", "n")[0] == 1
    code, said, _ = run(capsys, *call, "--claim", "n^2", "--json")
    assert code == 0
    assert json.loads(said)["claim"] == "n^2"


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little to compile, and instead of dense attention what is quick without the JIT."""
    monkeypatch.setattr("nlattn.scaling.sweep._CORNER", (2, 2))
    monkeypatch.setattr("nlattn.cli.scaling._DENSE", "efficient_attention")


@pytest.mark.usefixtures("cheap")
def test_times_memory_and_a_prediction(capsys, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def f(q):\n    return q @ q.T\n")
    sizes = ["--sizes", "2x2:4x5", "--points", "4", "--channels", "2", "--runs", "2"]
    call = ["refined", f"{mine}:f", *sizes, "--predict", "64x64", "--out", tmp_path / "out"]
    code, said, err = run(capsys, *call)
    assert (code, err) == (0, "")
    for words in ("compile", "refined_self_attention at n = 4,096 will take", "not known"):
        assert words in said
    report = json.loads((tmp_path / "out" / "scaling.json").read_text())
    linear, own = report["subjects"]
    assert [len(row["samples"]) for row in linear["sizes"]] == [2] * 4
    assert linear["crossover"] is not None
    assert linear["predicted"]["seconds"]["low"] <= linear["predicted"]["seconds"]["high"]
    assert own["source"] is None
    assert own["judged"] == "time"
    pytest.importorskip("matplotlib")
    assert (tmp_path / "out" / "scaling.png").stat().st_size > 10_000
    code, _, err = run(capsys, *call)
    assert code == 2
    assert "scaling.json exists; --force overwrites it" in err


@pytest.mark.parametrize(
    ("claim", "code"),
    [(["--claim", "n log n"], 1), (["--claim", "n^2"], 0), (["--claim-memory", "n"], 1), ([], 0)],
)
def test_time_and_memory_decide_where_work_is_not_known(
    capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claim: list[str], code: int
) -> None:
    clock = SimpleNamespace(now=0.0)

    def read() -> float:
        clock.now += 2.0**-10
        return clock.now

    monkeypatch.setattr("nlattn.scaling.timing.time", SimpleNamespace(perf_counter=read))
    monkeypatch.setitem(sys.modules, "clock", clock)
    mine = tmp_path / "mine.py"
    mine.write_text(
        "import clock\n"
        "def f(n):\n"
        "    clock.now += n * n / 1024\n"
        "    return str(len(bytearray(64 * n * n)))\n"
    )
    monkeypatch.setattr("nlattn.cli.scaling._DENSE", f"{mine}:f")  # nothing beside it
    call = [f"{mine}:f", "--sizes", "4x4:16x32", "--channels", "2", "--runs", "2", "--force"]
    found, said, _ = run(capsys, *call, *claim, "--out", tmp_path / "out")
    assert found == code
    assert "its work is not known" in said


@pytest.mark.usefixtures("cheap")
def test_quality_is_a_table(capsys, tmp_path: Path) -> None:
    call = ["lev", "--sizes", "2x2:3x3", "--points", "2", "--channels", "2", "--runs", "1"]
    code, said, _ = run(capsys, *call, "--out", tmp_path)
    assert code == 0
    assert "argmax recall" in said
    assert "lev_attention, n = 9" in said


@pytest.mark.usefixtures("cheap")
def test_a_budget_is_kept_and_said(capsys, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("import time\ndef f(n):\n    time.sleep(n / 200)\n")
    sizes = ["--sizes", "2x2:16x16", "--points", "3", "--channels", "2", "--budget", "1.5"]
    code, said, _ = run(capsys, f"{mine}:f", *sizes, "--runs", "1", "--out", tmp_path)
    assert code == 0
    assert "left out for --budget 1.5: " in said
    assert "mine.py:f at n = 256 (first touch)" in said


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["fast"], "scaling: 'fast' is no operator, expected one of attention"),
        (["scram", "--claim", "fast"], "growth: law='fast', expected n^a log^b n such as"),
        (["scram", "--sizes", "9x9:4x4"], "'9x9:4x4' shrinks, expected such as 32x32:512x512"),
        (["scram", "--sizes", "9"], "'9' is no grid, such as 256x256"),
    ],
)
def test_bad_calls_are_refused_in_a_line(capsys, tmp_path: Path, arguments, text: str) -> None:
    code, out, err = run(capsys, *arguments, "--out", tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert text in err


def test_code_that_ends_the_process_has_not_answered(capsys, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("import sys\ndef f(n):\n    sys.exit(0)\n")
    call = [f"{path}:f", "--count", "--sizes", "2x2:4x4", "--out", tmp_path / "o"]
    code, out, err = run(capsys, *call)
    assert (code, out) == (2, "")
    assert err == "nlattn: the code that was given ended the process, with 0\n"
    assert not (tmp_path / "o").exists()
