"""Run in a copy of the project that has the toy operator: what is said of it, step by step.

Prints one JSON: for each step of docs/contributing.md, what its tests say when what it makes is
left out; and what the kit has for the operator, beside what it has for its like.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

import nlattn
from nlattn.conformance import runner
from nlattn.conformance.backends.adapters.numpy import Backend
from nlattn.conformance.cases import suite
from nlattn.conformance.cases.recipes import recipes
from nlattn.conformance.judge.variants import of as variants_of
from nlattn.conformance.table import JUDGED, TABLE, OpSpec, find
from nlattn.scaling.subject import find as subject
from tests import test_docs, test_structure

TOY = find("soft_mean")
LIKE = find("lev_attention")
ROOT = Path(nlattn.__file__).parents[1]


@contextmanager
def without_file(path: str) -> Iterator[None]:
    """Leave out a file."""
    file, aside = ROOT / path, ROOT / "aside"
    file.rename(aside)
    try:
        yield
    finally:
        aside.rename(file)


@contextmanager
def without_line(path: str, begin: str) -> Iterator[None]:
    """Leave out the lines of a file that begin so."""
    file = ROOT / path
    text = file.read_text()
    file.write_text("".join(x for x in text.splitlines(True) if not x.strip().startswith(begin)))
    try:
        yield
    finally:
        file.write_text(text)


@contextmanager
def without_row() -> Iterator[None]:
    """Leave out the row."""
    rows, judged = (tuple(x for x in every if x is not TOY) for every in (TABLE, JUDGED))
    with (
        patch.object(test_structure, "TABLE", rows),
        patch.object(test_structure, "JUDGED", judged),
    ):
        yield


@contextmanager
def without_name() -> Iterator[None]:
    """Leave out a name where names are resolved."""
    vars(nlattn).pop("soft_mean", None)
    rest = {name: home for name, home in nlattn._ORIGIN.items() if name != "soft_mean"}
    names = [name for name in nlattn.__all__ if name != "soft_mean"]
    with patch.object(nlattn, "_ORIGIN", rest), patch.object(nlattn, "__all__", names):
        yield


LEFT_OUT = {
    "oracle": without_file("nlattn/oracle/soft.py"),
    "tests of the oracle": without_file("tests/oracle/test_soft.py"),
    "op": without_file("nlattn/ops/soft.py"),
    "tests of the op": without_file("tests/ops/test_soft.py"),
    "row": without_row(),
    "name": without_name(),
    "name for types": without_line("nlattn/__init__.py", "from nlattn.ops.soft import soft_mean "),
    "page": without_file("docs/algorithms/soft.md"),
    "line of README": without_line("README.md", "| [`soft_mean`]"),
    "reference": without_line("docs/references.md", "| vaswani2017 |"),
}


def said(names: list[str]) -> list[str]:
    """What those of some tests say that fail."""
    found = []
    for name in names:
        test = getattr(test_structure, name, None) or getattr(test_docs, name)
        try:
            given = {"spec": TOY, "path": ROOT / "nlattn/oracle/soft.py"}
            test(*(given[x] for x in test.__code__.co_varnames[: test.__code__.co_argcount]))
        except (AssertionError, OSError) as error:
            found.append(str(error).splitlines()[0])
    return found


def counts(spec: OpSpec) -> dict[str, int]:
    """What the kit has for an operator."""
    own = [v for v in variants_of(spec.name) if {*v.families} & {*spec.wrong} & {*TOY.wrong}]
    labels = [recipe.label for recipe in recipes(spec)]
    cases = list(suite.cases("smoke", (spec.name,), ("float32",)))
    return {
        "variants": len(own), "recipes": len(labels), "pairs": sum("+" in x for x in labels),
        "cases": len(cases), "gradients": sum(case.kind == "vjp" for case in cases),
        "behaviours": len(spec.behaviour), "laws": bool(spec.growth.law or spec.growth.counted),
    }  # fmt: skip


class Wrong:
    """A backend that forgets the scale."""

    name = "wrong"

    def soft_mean(self, q, k, v, *, scale=None):  # noqa: ARG002
        s = q @ np.swapaxes(k, -1, -2)
        p = np.exp(s - s.max(-1, keepdims=True))
        return p / p.sum(-1, keepdims=True) @ v


def verdicts(backend: object) -> dict[str, list[str]]:
    """Diagnoses of a backend's cases, by status."""
    found: dict[str, list[str]] = {}
    some = list(suite.cases("smoke", ("soft_mean",), ("float64",)))
    for case in some[:: len(some) // 12]:
        verdict = runner.attempt(runner.Here(backend), case)[0]
        found.setdefault(verdict.status, []).append(verdict.diagnosis)
    return found


def main() -> None:
    """Print the JSON."""
    tests = json.loads(sys.argv[1])
    whole = sorted({name for names in tests.values() for name in names})
    complete, left_out = said(whole), {}
    for step, leave in LEFT_OUT.items():
        with leave:
            left_out[step] = said(tests[step])
    files = ["tests/oracle/test_soft.py", "tests/ops/test_soft.py"]
    own = pytest.main(["-q", "-p", "no:cacheprovider", *files])
    kit = {"toy": counts(TOY), "like": counts(LIKE), "own tests": int(own)}
    kit |= {
        "right": verdicts(Backend()),
        "wrong": verdicts(Wrong()),
        "cost": subject("soft_mean").name,
    }
    print(json.dumps({"complete": complete, "left out": left_out, "kit": kit}))


if __name__ == "__main__":
    main()
