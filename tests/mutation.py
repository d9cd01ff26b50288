"""Do the tests notice? Small changes of one file, each run against the tests that mirror it.

    python -m tests.mutation nlattn/kernels/heavy.py --count 30 --seed 0

A mutant changes one operator, comparison or constant, drops one statement or exchanges two
arguments. It takes the place of the code in a copy of the project and is tested without the JIT, by
those tests that run its line, the quickest first. Code that writes instructions (``--jit``) is
compiled anew for each, and meets all tests. What no test notices is printed as a diff; the exit
status is 1 if that is more than a tenth.
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
from typing import Any

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
    for node in ast.walk(tree):  # zip(strict=True) is a check of ours alone
        if isinstance(node, ast.keyword) and node.arg == "strict":
            quiet.add(id(node.value))
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
            if not ast.unparse(node.func).rpartition(".")[2].startswith(("min", "max")):
                yield number, "arguments"
        elif isinstance(node, (ast.FunctionDef, ast.For, ast.If)):
            dropped = [x for x in node.body if isinstance(x, (ast.Assign, ast.AugAssign))]
            if len(node.body) > 1 and dropped:
                yield number, "statement"


def mutant(tree: ast.Module, number: int, kind: str, chance: random.Random) -> tuple[str, int]:
    """The source with one change, and the line of it."""
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
        node = chance.choice([x for x in body if isinstance(x, (ast.Assign, ast.AugAssign))])
        body.remove(node)
    return ast.unparse(changed) + "\n", node.lineno  # type: ignore[attr-defined]


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


class Trial:
    """Mutants of one file, tried in a copy of the project."""

    def __init__(self, place: Path, path: Path, chosen: list[tuple[int, str]], seed: int) -> None:
        self.place, self.path, self.chosen, self.chance = place, path, chosen, random.Random(seed)
        self.tree = ast.parse((ROOT / path).read_text())
        self.plain = ast.unparse(self.tree) + "\n"
        self.tree = ast.parse(self.plain)
        self.alive = self.failed = 0
        self.out = os.fdopen(os.dup(1), "w")

    def run(self, tests: list[str], limit: float) -> None:
        """Try all of them, by the tests of one session."""
        self.tests, self.limit = tests, limit
        os.environ |= {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(self.place), "CI": "1"}
        os.chdir(self.place)
        self.write(self.plain)
        for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
            del sys.modules[name]
        sys.path[:] = [str(self.place), *(x for x in sys.path if Path(x).resolve() != ROOT)]
        import pytest

        from tests.forks import Forks

        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        options = ["-q", "-s", "-p", "no:cacheprovider", *tests]
        module = ".".join(self.path.with_suffix("").parts).removesuffix(".__init__")
        forks = Forks(self.place / self.path, module, self.each)
        if pytest.main(options, [forks]) or self.failed:
            print("the tests fail without a change:", *tests, file=self.out, flush=True)
            self.failed = 1

    def compiled(self, tests: list[str], limit: float) -> None:
        """Try all of them compiled, each in a process of its own."""
        self.tests, self.limit = tests, limit
        os.environ |= {"PYTHONPATH": str(self.place), "CI": "1"}
        os.environ["NUMBA_CACHE_DIR"] = str(self.place / "cache")
        if not self.survives(self.plain):
            print("the tests fail without a change:", *tests, file=self.out, flush=True)
            self.failed = 1
            return
        for number, kind in self.chosen:
            source, _ = mutant(self.tree, number, kind, self.chance)
            if self.survives(source):
                self.tell(source, kind, reached=True)

    def tell(self, source: str, kind: str, *, reached: bool) -> None:
        """Print what no test has noticed."""
        self.alive += 1
        lines = difflib.unified_diff(
            self.plain.splitlines(), source.splitlines(),
            "as it is", f"survives: {kind}", "", "", 1,
        )  # fmt: skip
        first = "" if reached else "no test runs this:"
        print(first, *lines, sep="\n", file=self.out, flush=True)

    def each(self, forks: Any) -> None:
        """Try each mutant in a fork, or, where its line runs at import, in a process of its own."""
        if not forks.record():
            self.failed = 1
            return
        for number, kind in self.chosen:
            source, line = mutant(self.tree, number, kind, self.chance)
            survives = forks.survives(self.plain, source, line)
            if survives is None:
                survives = self.survives(source)
            if survives:
                reached = line in forks.found or line in forks.at_import
                self.tell(source, kind, reached=reached)

    def write(self, source: str) -> None:
        """Have the file say this."""
        (self.place / self.path).write_text(source)
        for folder in ((self.place / self.path).parent / "__pycache__", self.place / "cache"):
            shutil.rmtree(folder, ignore_errors=True)

    def survives(self, source: str) -> bool:
        """Whether all tests pass, in time, with this source."""
        self.write(source)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            *self.tests,
        ]
        try:
            done = subprocess.run(
                command, cwd=self.place, capture_output=True, timeout=self.limit, check=False
            )
        except subprocess.TimeoutExpired:
            return False
        finally:
            self.write(self.plain)
        return done.returncode == 0


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("path", type=Path, help="a file of the package, from the project's root")
    parser.add_argument("--count", type=int, default=30, help="mutants to try")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=600, help="seconds for tests of an import")
    parser.add_argument("--tests", nargs="*", help="tests to run, in place of those of its name")
    parser.add_argument("--jit", action="store_true", help="compile: each mutant runs all tests")
    given = parser.parse_args()
    every = list(changes(ast.parse(ast.unparse(ast.parse((ROOT / given.path).read_text())))))
    chosen = random.Random(given.seed).sample(every, min(given.count, len(every)))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "project"
        shutil.copytree(ROOT, place, ignore=shutil.ignore_patterns(".git", "__pycache__"))
        trial = Trial(place, given.path, chosen, given.seed)
        run = trial.compiled if given.jit else trial.run
        run(given.tests or mirrors(given.path), given.limit)
    if trial.failed:
        return 2
    noticed = len(chosen) - trial.alive
    print(f"{noticed} of {len(chosen)} mutants of {given.path} noticed", file=trial.out, flush=True)
    return int(trial.alive > len(chosen) / 10)


if __name__ == "__main__":
    sys.exit(main())
