"""Sweeps of small functions: order, budget, memory; and the picture."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from nlattn._types import Work
from nlattn.conformance.table import find as row
from nlattn.scaling import report, subject
from nlattn.scaling.scene import Scene
from nlattn.scaling.subject import Own
from nlattn.scaling.sweep import Sweep, grids, peak_bytes

pytest.importorskip("PIL")


def counted(n: int) -> tuple[np.ndarray, Work]:
    return np.zeros(100 * n), Work(n, 3 * n, 4 * n)


def slow(n: int) -> None:
    time.sleep(n / 2000)


def scenes(count: int = 5) -> list[Scene]:
    return [Scene(grid, channels=4) for grid in grids((2, 4), (16, 32), count)]


def test_a_sweep_fills_every_size() -> None:
    said: list[str] = []
    sweep = Sweep([Own("counted", counted)], scenes(), runs=3, seed=1, say=said.append)
    sweep.compile()
    sweep.count()
    sweep.time()
    sweep.measure()
    curve = sweep.curves["counted"]
    sizes = [scene.n for scene in scenes()]
    assert sorted(curve.work) == sorted(curve.seconds) == sorted(curve.peak) == sizes
    assert all(len(x) == 3 for x in curve.seconds.values())
    assert curve.work[sizes[0]] == Work(8, 24, 32)
    assert curve.peak[sizes[-1]] == pytest.approx(800 * sizes[-1], rel=0.05)
    assert curve.quality == {}
    assert sweep.left_out == []
    visits = [text.split("n = ")[1].split(":")[0] for text in said if "run 1" in text]
    assert sorted(visits, key=int) != visits
    found = report.subject(curve, "n")
    assert found["verdict"] == "consistent"
    assert found["memory"]["predicted"] == pytest.approx(found["memory"]["measured"], rel=0.05)


def test_a_budget_leaves_out_what_would_take_too_long() -> None:
    sweep = Sweep([Own("slow", slow)], scenes(), runs=2, budget=0.5)
    start = time.monotonic()
    sweep.compile()
    sweep.count()
    sweep.time()
    sweep.measure()
    assert time.monotonic() - start < 2
    assert {n for _, n, _ in sweep.left_out} >= {512}
    assert 512 not in sweep.curves["slow"].seconds
    assert 8 in sweep.curves["slow"].first


def test_long_dense_attention_is_timed_on_some_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nlattn.scaling.sweep._LONG", 1e-9)
    one = subject.find("attention")
    sweep = Sweep([one], [Scene((4, 4), channels=3), Scene((17, 16), channels=3)], runs=1)
    sweep.count()
    sweep.time()
    sweep.measure()
    curve = sweep.curves["attention"]
    assert curve.queries == {272: 256}
    assert sorted(curve.peak) == [16]
    assert len(curve.seconds[272]) == 1


@pytest.mark.parametrize("name", ["scram", "lev", "favor", "patchmatch"])
def test_what_approximates_is_compared_with_dense_attention(name: str) -> None:
    found = subject.find(name).quality(Scene((5, 6), channels=3))
    assert found is not None
    assert found["rows"] == 30
    assert 0 <= found["recall"].value <= 1
    assert (found["error"] is None) == (name == "patchmatch")


def test_what_approximates_nothing_is_not_compared() -> None:
    assert subject.find("efficient").quality(Scene((3, 3), channels=2)) is None


def test_a_backend_takes_an_operators_place() -> None:
    scene = Scene((4, 5), channels=3)
    ours, theirs = subject.find("attention"), subject.find("attention@nlattn")
    assert theirs.name == "attention@nlattn"
    assert np.array_equal(ours.call(scene)(), theirs.call(scene)())
    assert theirs.call(scene, 7)().shape == (7, 3)
    assert theirs.count(scene) == ours.count(scene)
    assert theirs.quality(scene) is None
    sparse = subject.find("sparse@nlattn")
    assert sparse.count(scene) is None
    assert sparse.call(scene)().shape == (20, 3)
    assert not row("scram").exact


def test_memory_of_a_call_is_what_it_adds() -> None:
    kept = np.zeros(1 << 20)
    assert peak_bytes(lambda: kept + 1) == pytest.approx(8 << 20, rel=0.01)


def test_the_picture_shows_every_subject() -> None:
    pytest.importorskip("matplotlib")
    from nlattn.scaling import figure

    sizes = [2**i for i in range(4, 10)]
    curve = report.Curve("counted", "law", "3 n")
    for n in sizes:
        curve.work[n] = Work(0, 3 * n, n)
        curve.seconds[n] = [n * 1e-6 * (1.6 if n > 100 else 1), n * 1.01e-6]
    curve.queries[512] = 256
    silent = report.subject(report.Curve("silent"), "n")
    given: dict[str, Any] = {"claim": "n", "subjects": [report.subject(curve, "n"), silent]}
    drawn = figure.draw(given)
    assert len(drawn.axes) == 2
    assert "counted: consistent (law)" in [t.get_text() for t in drawn.axes[0].get_legend().texts]
    given["subjects"] = [silent]
    assert len(figure.draw(given).axes) == 1
