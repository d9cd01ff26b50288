"""Do the tests notice? Small changes of one file, each run against the tests that mirror it.

    python -m tests.mutation nlattn/kernels/heavy.py --count 30 --seed 0

A mutant changes one operator, comparison or constant, drops one statement or exchanges two
arguments. It is written into a copy of the project and tested there without the JIT, by those tests
that run its line, the quickest first. What no test notices is printed as a diff; the exit status is
1 if that is more than a tenth.
"""

from __future__ import annotations

import argparse
import ast
import copy
import difflib
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
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


class Recorder:
    """A plugin of pytest: which tests run which lines of a file, and how long they take."""

    def __init__(self, path: Path, data: Path) -> None:
        import coverage

        self.seconds: Counter[str] = Counter()
        self.coverage = coverage.Coverage(data, include=[str(path)], config_file=False)
        self.coverage.start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.coverage.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        self.coverage.stop()
        self.coverage.save()


class Copy:
    """A copy of the project, in which tests run in forks of this process."""

    def __init__(self, folder: Path, path: Path) -> None:
        self.place, self.path = folder / "project", path
        shutil.copytree(ROOT, self.place, ignore=shutil.ignore_patterns(".git", "__pycache__"))
        os.environ |= {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(self.place), "CI": "1"}
        import hypothesis  # noqa: F401  what every fork needs is imported once
        import numba  # noqa: F401
        import pytest  # noqa: F401
        import scipy.linalg
        import scipy.sparse.linalg  # noqa: F401

    def write(self, source: str) -> None:
        """Have the file say this."""
        (self.place / self.path).write_text(source)
        shutil.rmtree((self.place / self.path).parent / "__pycache__", ignore_errors=True)

    def test(self, tests: list[str], limit: float, plugin: Callable[[], Any] | None = None) -> bool:
        """Whether all tests pass, in time."""
        child = os.fork()
        if not child:
            self._run(tests, limit, plugin)
        try:
            _, status = os.waitpid(child, 0)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # and what it has started
        return status == 0

    def _run(self, tests: list[str], limit: float, plugin: Callable[[], Any] | None) -> None:
        os.setpgid(0, 0)
        os.chdir(self.place)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nowhere, stream)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(limit))
        for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "nlattn")]:
            del sys.modules[name]
        sys.path[:] = [str(self.place), *(x for x in sys.path if Path(x).resolve() != ROOT)]
        sys.dont_write_bytecode = plugin is None
        import pytest

        code = 3
        try:
            made = [] if plugin is None else [plugin()]
            quiet = ["-q", "-x", "-p", "no:cacheprovider", "-W", "ignore:Module already imported"]
            code = int(pytest.main([*quiet, *tests], made))
        finally:
            os._exit(code)

    def record(self, tests: list[str], limit: float) -> dict[int, list[str]] | None:
        """Tests that run each line, the quickest first; None if they fail as it is."""
        import coverage

        data, times = self.place.parent / "coverage", self.place.parent / "times"

        class Kept(Recorder):
            def pytest_sessionfinish(self) -> None:
                super().pytest_sessionfinish()
                times.write_text("".join(f"{t}\t{name}\n" for name, t in self.seconds.items()))

        if not self.test(tests, limit, lambda: Kept(self.place / self.path, data)):
            return None
        pairs = [line.split("\t", 1) for line in times.read_text().splitlines()]
        seconds = {name: float(t) for t, name in pairs}
        found = coverage.CoverageData(data)
        found.read()
        contexts = found.contexts_by_lineno(str(self.place / self.path))
        order = sorted(seconds, key=seconds.__getitem__)
        return {  # what runs at import is run by all
            line: [x for x in order if "" in names or x in names]
            for line, names in contexts.items()
        }


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
    tree = ast.parse(plain)
    chance = random.Random(given.seed)
    every = list(changes(tree))
    chosen = chance.sample(every, min(given.count, len(every)))
    with tempfile.TemporaryDirectory() as folder:
        project = Copy(Path(folder), given.path)
        project.write(plain)
        found = project.record(tests, 10 * given.limit)
        if found is None:
            print("the tests fail without a change:", *tests)
            return 2
        alive = 0
        for number, kind in chosen:
            source, line = mutant(tree, number, kind, chance)
            project.write(source)
            if line in found and not project.test(found[line], given.limit):
                continue
            alive += 1
            print("no test runs this:" * (line not in found))
            lines = difflib.unified_diff(
                plain.splitlines(), source.splitlines(), "as it is", f"survives: {kind}", "", "", 1
            )
            print("\n".join(lines), flush=True)
    print(f"{len(chosen) - alive} of {len(chosen)} mutants of {given.path} noticed", flush=True)
    return int(alive > len(chosen) / 10)


if __name__ == "__main__":
    sys.exit(main())
