"""Work of every operator, and what can be swept."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import nlattn
from nlattn._types import Work
from nlattn.conformance.table import TABLE
from nlattn.scaling import subject
from nlattn.scaling.scene import Scene
from nlattn.scaling.sweep import grids
from nlattn.scaling.work import number_of, of_result

pytest.importorskip("PIL")


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene((6, 8), channels=4)


@pytest.mark.parametrize("spec", TABLE, ids=lambda spec: spec.name)
def test_every_operator_has_its_work(spec, scene: Scene) -> None:
    one = subject.find(spec.name)
    found = one.count(scene)
    growth = spec.growth
    assert (found is None) == (growth.law is None and not growth.counted)
    if found is not None:
        assert found.how == ("law" if growth.law else "count")
        assert found.law == str(growth.law or growth.follows)
        assert found.work.multiply_adds > 0
        assert found.work.bytes > 0
    assert one.call(scene)() is not None


def test_laws_are_their_text(scene: Scene) -> None:
    n, d, e = 48, 5, 4
    dense = subject.find("attention").count(scene)
    assert dense.work[:3] == (n * n, n * n * (d + e), 4 * (n * n * (d + e) + n * (d + e)))
    assert dense.law == "n m (d + e)"
    cross = subject.find("cross_scale").count(scene)
    assert cross.work.multiply_adds == n * (n // 4) * (d + 4 * e)


def test_counted_work_is_within_its_bound(scene: Scene) -> None:
    q, k = scene.pair
    e, d, n = 4, 5, scene.n
    found = subject.find("scram").count(scene)
    candidates = 1 + 5 * (8 * 4 + 3 + 1)  # log2 of the longer side, 8
    assert n * candidates * d / 4 < found.work.multiply_adds <= n * (candidates * d + 9 * (d + e))
    A = nlattn.scram_map(q, k, scale=scene.scale)
    assert found.work.scores == A.work.scores
    assert found.work.multiply_adds == A.work.multiply_adds + len(A.weights) * e


def test_short_names_find_their_operator() -> None:
    names = {"lev": "lev_attention", "scram": "scram", "efficient": "efficient_attention"}
    names |= {"dense": "attention", "leverage": "leverage_scores", "heavy": "heavy_attention"}
    for short, name in names.items():
        assert subject.find(short).name == name
    with pytest.raises(ValueError, match="'lewis' is several operators, expected one of lewis_w"):
        subject.find("lewis")
    with pytest.raises(ValueError, match="'fast' is no operator, expected one of attention, non"):
        subject.find("fast")


def test_a_function_of_ones_own_gets_what_its_parameters_name(
    tmp_path: Path, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "from nlattn import Work\n"
        "def counted(q, v, n, grid, speed=3):\n"
        "    assert q.shape == (n, 5) and v.shape == (n, 4) and grid == (6, 8)\n"
        "    return q, Work(n, n, n)\n"
        "def silent(image):\n"
        "    return image\n"
        "def odd(weights):\n"
        "    return weights\n"
        "def number(n):\n"
        "    return 3.0 * n\n"
        "three = 3\n"
    )
    path = tmp_path / "mine.py"
    assert subject.find(f"{path}:counted").count(scene).work == Work(48, 48, 48)
    assert subject.find(f"{path}:silent").count(scene) is None
    assert subject.find(f"{path}:silent").call(scene)().shape == (6, 8, 3)
    with pytest.raises(ValueError, match="takes 'weights', expected parameters among q, k, v, "):
        subject.find(f"{path}:odd")
    found = subject.find(f"{path}:number").count(scene)
    assert (found.how, found.work.multiply_adds) == ("number", 144)
    with pytest.raises(ValueError, match=r"mine\.py has no function 'three'"):
        subject.find(f"{path}:three")
    with pytest.raises(ValueError, match=r"gone\.py is no file"):
        subject.find("gone.py:x")
    with pytest.raises(
        ValueError, match="cannot import 'no_such': ModuleNotFoundError: No module named 'no_such'"
    ):
        subject.find("no_such:x")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert subject.find("mine:silent").name == "mine:silent"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("def f(n) return n", r"cannot import '.*': SyntaxError: "),
        ("1 / 0", r"cannot import '.*': ZeroDivisionError: division by zero"),
        ("def f(n): return 1 / 0", r":f raised ZeroDivisionError: division by zero"),
        ("def f(n): return f(n)", r":f raised RecursionError: "),
    ],
)
def test_what_the_code_of_others_raises_is_said_in_a_line(
    code: str, text: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(ValueError, match=f"^scaling: .*{text}"):
        subject.find(f"{tmp_path}/mine.py:f").count(Scene((2, 2), 1, 0))


def test_a_count_beyond_all_floats_is_no_number() -> None:
    assert number_of(10**400) is None


def test_work_is_found_in_results() -> None:
    x = np.ones((2, 3, 2))
    field = nlattn.patchmatch(x, x, iterations=1)
    assert of_result(field) is field.work
    assert of_result((x, field.work)) is field.work
    assert of_result(x) is None


@pytest.mark.parametrize("result", [7, 7.0, np.int64(7), np.float32(7), np.array(7)])
def test_a_number_is_work(result: object) -> None:
    assert number_of(result) == 7


@pytest.mark.parametrize("result", [True, None, "7", np.ones(1), math.nan, 1j])
def test_what_is_no_number_is_no_work(result: object) -> None:
    assert number_of(result) is None


def test_grids_are_geometric() -> None:
    assert grids((4, 8), (16, 32), 3) == [(4, 8), (8, 16), (16, 32)]
    assert grids((4, 4), (4, 4)) == [(4, 4)]
    assert grids((2, 2), (3, 3)) == [(2, 2), (3, 3)]
