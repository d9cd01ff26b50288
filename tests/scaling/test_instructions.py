"""Instructions: read, where the system lets them; else None, and everything goes on."""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nlattn.cli import main
from nlattn.runtime import threads
from nlattn.scaling import instructions


def test_a_longer_loop_has_more_of_them() -> None:
    short, long = (instructions.of_call(lambda n=n: sum(range(n))) for n in (10**4, 10**6))
    if short is None or long is None:
        pytest.skip("this system does not let instructions be read")
    assert 30 < long / short < 100  # the call itself takes some


class Counter:
    """Stands for the system: a file that holds what has been counted, one more each time."""

    def __init__(self, path: Path, allowed: bool):
        self.path, self.allowed, self.asked, self.flags = path, allowed, [], 0

    def syscall(self, number: int, event: Any, *rest: int) -> int:
        self.asked, self.flags = [number, *rest], int.from_bytes(bytes(event)[40:48], "little")
        if not self.allowed:
            return -1
        self.path.write_bytes(b"".join(n.to_bytes(8, "little") for n in (1000, 5000)))
        return os.open(self.path, os.O_RDONLY)


@pytest.mark.parametrize("allowed", [True, False])
def test_what_the_system_is_asked_and_what_it_counts(
    allowed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = Counter(tmp_path / "counter", allowed)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: counter)
    monkeypatch.setattr(instructions.sys, "platform", "linux")
    monkeypatch.setattr(instructions.platform, "machine", lambda: "x86_64")
    seen: list[int] = []
    before = threads.threads()
    files = os.listdir("/proc/self/fd") if Path("/proc/self/fd").exists() else []
    found = instructions.of_call(lambda: seen.append(threads.threads()))
    assert found == (4000 if allowed else None)
    assert seen == ([1] if allowed else [])
    assert threads.threads() == before
    assert counter.asked == [298, 0, -1, -1, 0]
    assert counter.flags == 0b1100010  # inherited by threads; neither kernel nor hypervisor
    if files:
        assert len(os.listdir("/proc/self/fd")) == len(files)


def test_elsewhere_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions, "sys", SimpleNamespace(platform="darwin"))
    assert instructions.of_call(lambda: pytest.fail("called")) is None


@pytest.mark.parametrize("read", [None, 7_000_000])
def test_the_command_shows_them_or_says_that_it_does_not(
    read: int | None, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("PIL")
    monkeypatch.setattr("nlattn.scaling.sweep._CORNER", (2, 2))
    monkeypatch.setattr("nlattn.cli.scaling._DENSE", "efficient_attention")
    monkeypatch.setattr(instructions, "of_call", lambda _: read)
    (tmp_path / "mine.py").write_text("def f(n):\n    return n\n")
    sizes = ["--sizes", "2x2:8x8", "--points", "4", "--channels", "2", "--runs", "1"]
    out = tmp_path / "out"
    main(["scaling", f"{tmp_path / 'mine.py'}:f", *sizes, "--out", str(out)])
    said = capsys.readouterr().out
    line = next(x for x in said.splitlines() if "f, instructions" in x)
    assert ("not measured" in line) == (read is None)
    found = json.loads((out / "scaling.json").read_text())["subjects"][0]["instructions"]
    assert (found and found["measured"]) == read
