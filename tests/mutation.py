"""Do the tests notice? Small changes of one file, each run against the tests that mirror it.

    python -m tests.mutation nlattn/kernels/heavy.py --count 30 --seed 0

A mutant changes one operator, comparison or constant, drops one statement or exchanges two
arguments. It is written into a copy of the project and tested there without the JIT. What no test
notices is printed as a diff; the exit status is 1 if that is more than a tenth.
"""

from __future__ import annotations

import argparse
import ast
import copy
import difflib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
OTHER: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.And: ast.Or, ast.Or: ast.And, ast.USub: ast.UAdd,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip


def changes(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Place in the walk and kind of every change that there is, but of types and words."""
    quiet = {
        id(inner)
        for node in ast.walk(tree)
        for part in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if part is not None
        for inner in ast.walk(part)
    }
    for number, node in enumerate(ast.walk(tree)):
        if id(node) in quiet:
            continue
        if isinstance(node, (ast.BinOp, ast.AugAssign, ast.BoolOp, ast.UnaryOp)):
            if type(node.op) in OTHER:
                yield number, "operator"
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in OTHER:
            yield number, "comparison"
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
            yield number, "constant"
        elif isinstance(node, ast.Call) and len(node.args) > 1:
            yield number, "arguments"
        elif isinstance(node, (ast.FunctionDef, ast.For, ast.If)):
            dropped = [x for x in node.body if isinstance(x, (ast.Assign, ast.AugAssign))]
            if len(node.body) > 1 and dropped:
                yield number, "statement"


def mutant(tree: ast.Module, number: int, kind: str, chance: random.Random) -> str:
    """The source with one change."""
    changed = copy.deepcopy(tree)
    node = list(ast.walk(changed))[number]
    if kind == "operator":
        node.op = OTHER[type(node.op)]()  # type: ignore[attr-defined]
    elif kind == "comparison":
        node.ops[0] = OTHER[type(node.ops[0])]()  # type: ignore[attr-defined]
    elif kind == "constant":
        value = node.value  # type: ignore[attr-defined]
        node.value = not value if isinstance(value, bool) else value + 1  # type: ignore[attr-defined]
    elif kind == "arguments":
        arguments = node.args  # type: ignore[attr-defined]
        arguments[0], arguments[1] = arguments[1], arguments[0]
    else:
        body = node.body  # type: ignore[attr-defined]
        body.remove(chance.choice([x for x in body if isinstance(x, (ast.Assign, ast.AugAssign))]))
    return ast.unparse(changed) + "\n"


def mirrors(path: Path) -> list[str]:
    """Tests of a file: those of its own name, and those that name its module."""
    module = ".".join(path.with_suffix("").parts)
    found = []
    for test in sorted((ROOT / "tests").rglob("test_*.py")):
        text = test.read_text()
        named = module in text or f"from {module.rpartition('.')[0]} import {path.stem}" in text
        if path.stem.lstrip("_") in test.stem or named:
            found.append(str(test.relative_to(ROOT)))
    return found


def survives(place: Path, path: Path, source: str, tests: list[str], limit: float) -> bool:
    """Whether all tests pass, in time, with this source."""
    (place / path).write_text(source)
    shutil.rmtree(place / path.parent / "__pycache__", ignore_errors=True)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(place), "CI": "1"}
    try:
        done = subprocess.run(
            command, cwd=place, env=environment, capture_output=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("path", type=Path, help="a file of the package, from the project's root")
    parser.add_argument("--count", type=int, default=30, help="mutants to try")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=300, help="seconds for a mutant's tests")
    parser.add_argument("--tests", nargs="*", help="tests to run, in place of those of its name")
    given = parser.parse_args()
    tree = ast.parse((ROOT / given.path).read_text())
    plain, tests = ast.unparse(tree) + "\n", given.tests or mirrors(given.path)
    chance = random.Random(given.seed)
    every = list(changes(tree))
    chosen = chance.sample(every, min(given.count, len(every)))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "project"
        shutil.copytree(ROOT, place, ignore=shutil.ignore_patterns(".git", "__pycache__"))
        if not survives(place, given.path, plain, tests, given.limit):
            print("the tests fail without a change:", *tests)
            return 2
        alive = 0
        for number, kind in chosen:
            source = mutant(tree, number, kind, chance)
            if not survives(place, given.path, source, tests, given.limit):
                continue
            alive += 1
            lines = difflib.unified_diff(
                plain.splitlines(), source.splitlines(), "as it is", f"survives: {kind}", "", "", 1
            )
            print("\n".join(lines), flush=True)
    print(f"{len(chosen) - alive} of {len(chosen)} mutants of {given.path} noticed")
    return int(alive > len(chosen) / 10)


if __name__ == "__main__":
    sys.exit(main())
