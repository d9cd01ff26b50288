"""A backend's process: its crash, hang and hunger are verdicts, and the next call works."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nlattn.conformance.backends import worker
from nlattn.conformance.backends.messages import pack, unpack
from nlattn.conformance.backends.process import Died, Process, resident
from nlattn.conformance.case import Case
from nlattn.conformance.runner import run

NAMED = {"attention_vjp": ["dout", "k", "q", "v"]}
ABLE = {"operators": ["attention_vjp"], "gradients": True}
FAULTY = str(Path(__file__).with_name("faulty.py"))


def case(n: int = 3) -> Case:
    rng = np.random.default_rng(n)
    arrays = {
        name: rng.standard_normal((size, 2)) for name, size in zip("qkv", (n, 4, 4), strict=True)
    }
    return Case(f"attention/forward/float64/n{n}", "attention", "forward", "float64", arrays)


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    with Process(FAULTY, timeout=30, memory=3e8) as subject:
        yield subject


def test_trouble_is_a_verdict_and_the_run_goes_on(process: Process) -> None:
    assert process.name == "faulty"
    process.timeout = 30
    verdicts = list(run(process, [case(), case(101), case(103), case(104), case()]))
    assert [v.status for v in verdicts] == ["pass", "crash", "unsupported", "crash", "pass"]
    assert verdicts[1].detail.startswith("killed by SIGABRT")
    assert verdicts[2].detail.startswith("refuses: ValueError: I do not want to (faulty.py:")
    assert verdicts[3].detail.startswith("exit code 4: print goes where")


def test_a_hang_ends(process: Process) -> None:
    process.ask(case())
    process.timeout = 0.5
    with pytest.raises(Died, match=r"no answer within 0\.5 s") as end:
        process.ask(case(102))
    assert end.value.status == "timeout"
    process.timeout = 30


@pytest.mark.skipif(sys.platform != "linux", reason="memory is told by Linux")
def test_hunger_ends(process: Process) -> None:
    with pytest.raises(Died, match=r"held 0\.\d GB, above 0\.3 GB"):
        process.ask(case(105))
    assert resident(0) == 0


@pytest.mark.parametrize(
    ("spec", "error", "text"),
    [
        (f"{FAULTY}:Broken", ValueError, "RuntimeError: no licence"),
        (f"{FAULTY}:Nobody", ValueError, "faulty holds no Nobody"),
    ],
)
def test_what_cannot_be_loaded_is_said(spec: str, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        Process(spec, timeout=60)
    Process.close_all()


def served(spec: str, op: str | None, *messages: bytes) -> list[Any]:
    """Answers of a worker in this process."""
    out = io.BytesIO()
    worker.serve(spec, op, io.BytesIO(b"".join(messages)).read, out.write)
    out.seek(0)
    answers = []
    while True:
        try:
            answers.append(unpack(out.read))
        except EOFError:
            return answers


def test_a_worker_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    one = replace(case(), arrays={**case().arrays, "dout": np.ones((3, 2))}, kind="vjp")
    head = {"case": {n: getattr(one, n) for n in ("name", "op", "kind", "dtype")}}
    head["layouts"] = dict.fromkeys(one.arrays, "C")
    hello, (said, outputs) = served(
        f"{FAULTY}:vjp_only", "attention_vjp", pack(head, dict(one.arrays))
    )
    assert hello[0] == {"name": "vjp_only", "capabilities": {**ABLE, "options": NAMED}}
    assert said == {"unsupported": "", "raised": "", "flaws": [], "ran": ""}
    assert list(outputs) == ["dq", "dk", "dv"]
    monkeypatch.setitem(sys.modules, "torch", None)
    ((said, _),) = served("package_that_is_not.there:X", None)
    assert said["kind"] == "wrong"


def test_files_of_the_working_folder_do_not_stand_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("types", "random", "queue", "struct", "logging", "inspect", "worker"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('this is another')")
    (tmp_path / "mine.py").write_text("class Backend:\n    name = 'mine'\n    run = print\n")
    monkeypatch.chdir(tmp_path)
    for spec, name in (("numpy", "numpy"), ("mine:Backend", "mine"), ("mine.py", "mine")):
        with Process(spec) as subject:
            assert subject.name == name


def test_nothing_is_said_while_everything_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks waits for the end, which follows; else a report of crashes could come before it."""
    monkeypatch.setattr(Process, "_over", False)
    said = list[object]()

    def ask() -> None:
        try:
            said.append(subject.ask(case()))
        except Died as end:
            said.append(end)

    with Process("numpy") as subject:
        Process.close_all(for_good=True)
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(0.5)
        assert asking.is_alive()
        assert said == []
