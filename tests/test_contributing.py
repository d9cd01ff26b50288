"""docs/contributing.md, followed step by step in a copy of the project: what it says is so."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
TOY = ROOT / "tests/toy"
NAMES = ("soft_mean", "soft_mean_map", "soft_mean_vjp")
STEPS = {
    "oracle": 1, "tests of the oracle": 2, "op": 4, "tests of the op": 5, "row": 6, "name": 7,
    "name for types": 7, "page": 8, "line of README": 8, "reference": 8,
}  # fmt: skip
"""Of which step of the page each thing is."""


def steps() -> dict[int, tuple[str, list[str]]]:
    """The page's table: files, and the tests that fail without them."""
    page = (ROOT / "docs/contributing.md").read_text()
    rows = re.findall(r"^\| (\d) \| (.*?) \| (.*?) \|$", page.split("## A new map")[0], re.M)
    return {int(n): (what, re.findall(r"`(test_\w+)`", tests)) for n, what, tests in rows}


def insert(path: Path, before: str, text: str) -> None:
    whole = path.read_text()
    assert whole.count(before) >= 1
    path.write_text(whole.replace(before, text + before, 1))


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A copy of the project with the toy, made as the page says, and what its tests say."""
    copy = tmp_path_factory.mktemp("project")
    junk = shutil.ignore_patterns("__pycache__", "data", "toy", "*.jpg", "*.png", "kept")
    for name in ("nlattn", "tests", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=junk)
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, copy / name)
    for name in ("nlattn", "tests", "docs"):  # steps 1 to 5, and the page of 8
        shutil.copytree(TOY / name, copy / name, dirs_exist_ok=True)
    table = copy / "nlattn/conformance/table/dense.py"  # step 6
    table.write_text(table.read_text().rstrip()[:-1] + (TOY / "row.txt").read_text() + ")\n")
    init = copy / "nlattn/__init__.py"  # step 7
    for name in NAMES:
        seen = f"    from nlattn.ops.soft import {name} as {name}\n"
        insert(init, "    from nlattn.quality", seen)
    insert(init, '    "quality": (', f'    "ops.soft": {NAMES},\n')
    what = "softmax over all keys, once more"
    line = f"| [`soft_mean`](docs/algorithms/soft.md) | {what} | `n m (d + e)` | paper |\n"
    insert(copy / "README.md", "| [`nonlocal_mean`]", line)  # step 8
    tests = {thing: steps()[step][1] for thing, step in STEPS.items()}
    done = subprocess.run(
        [sys.executable, str(TOY / "follow.py"), json.dumps(tests)],
        env={**os.environ, "PYTHONPATH": str(copy), "NUMBA_DISABLE_JIT": "1"},
        cwd=copy, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_page_says_which_file_each_step_makes() -> None:
    assert {*STEPS.values()} | {3} == {*steps()}
    for step, path in {1: "oracle/soft", 2: "oracle/test_soft", 4: "ops/soft"}.items():
        assert path in steps()[step][0]


def test_who_follows_the_page_is_done(followed: dict[str, Any]) -> None:
    assert followed["complete"] == []
    assert followed["kit"]["own tests"] == 0


@pytest.mark.parametrize(
    ("thing", "sentence"),
    [
        ("oracle", "soft_mean lacks nlattn/oracle/soft.py"),
        ("tests of the oracle", "soft_mean lacks tests/oracle/test_soft.py"),
        ("op", "soft_mean lacks nlattn/ops/soft.py"),
        ("tests of the op", "soft_mean lacks tests/ops/test_soft.py"),
        ("row", "nlattn/oracle/soft.py: no row of the table has its stem"),
        ("name", "nlattn/__init__.py lacks soft_mean"),
        ("name for types", "one list of nlattn/__init__.py alone has "),
        ("page", "soft_mean lacks docs/algorithms/soft.md"),
        ("line of README", "README.md has no line of soft_mean"),
        ("reference", "docs/references.md lacks vaswani2017, the source of soft_mean"),
    ],
)
def test_a_step_left_out_is_named(followed: dict[str, Any], thing: str, sentence: str) -> None:
    assert any(said.startswith(sentence) for said in followed["left out"][thing]), followed


def test_the_kit_has_as_much_for_it_as_for_its_like(followed: dict[str, Any]) -> None:
    toy, like = followed["kit"]["toy"], followed["kit"]["like"]
    assert toy["variants"] >= 50
    for name in ("variants", "behaviours", "laws"):
        assert toy[name] >= like[name]
    for name in ("recipes", "pairs", "cases", "gradients"):  # it has one option, the like three
        assert toy[name] >= like[name] / 2
    assert followed["kit"]["cost"] == "soft_mean"


def test_the_kit_tells_right_from_wrong(followed: dict[str, Any]) -> None:
    assert {*followed["kit"]["right"]} == {"pass"}
    wrong = followed["kit"]["wrong"]["fail"]
    assert any("scale" in diagnosis for diagnosis in wrong), wrong
