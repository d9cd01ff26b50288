"""A session of pytest whose tests run in forks, which have what it has collected once."""

from __future__ import annotations

import gc
import importlib
import os
import resource
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import coverage
import pytest


class Forks:
    """A plugin of pytest: has `work` done with the tests collected, and runs none by itself."""

    def __init__(self, file: Path, module: str, work: Callable[[Forks], None]) -> None:
        self.file, self.module = str(file), module
        self.work, self.found = work, dict[int, list[str]]()
        self.at_import: set[int] = set()
        self.seconds = 0.0
        self.importing = coverage.Coverage(None, include=[self.file], config_file=False)
        self.importing.start()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        importlib.import_module(self.module)  # where tests do so only as they run
        self.importing.stop()
        self.at_import = set(self.importing.get_data().lines(self.file) or ())
        self.items = {item.nodeid: item for item in session.items}
        self.work(self)
        return True

    def record(self) -> bool:
        """Learn which tests run each line, the quickest first; whether all pass as it is."""
        with tempfile.TemporaryDirectory() as folder:
            data, times = Path(folder) / "coverage", Path(folder) / "times"

            def watched() -> bool:
                seen = coverage.Coverage(data, include=[self.file], config_file=False)
                seen.start()
                with times.open("w") as out:
                    for name in self.items:
                        seen.switch_context(name)
                        start = time.process_time()
                        if not self._passes([name]):
                            return False
                        out.write(f"{time.process_time() - start}\t{name}\n")
                seen.stop()
                seen.save()
                return True

            if not self._forked(watched, 3600):
                return False
            pairs = [line.split("\t", 1) for line in times.read_text().splitlines()]
            seconds = {name: float(t) for t, name in pairs}
            read = coverage.CoverageData(data)
            read.read()
            lines = read.contexts_by_lineno(self.file)
        order = sorted(seconds, key=seconds.__getitem__)
        self.found = {n: [x for x in order if x in {*names}] for n, names in lines.items()}
        self.seconds = sum(seconds.values())
        return True

    def survives(self, plain: str, changed: str, line: int) -> bool | None:
        """Whether the tests of a line pass with other code; None if it cannot be put in place."""
        if line in self.at_import:
            return None
        pairs = self._pairs(plain, changed)
        if pairs is None:
            return None

        def tests() -> bool:
            for function, code in pairs:
                function.__code__ = code
            return self._passes(self.found.get(line, []))

        return self._forked(tests, int(20 + 10 * self.seconds))

    def _pairs(self, plain: str, changed: str) -> list[tuple[FunctionType, CodeType]] | None:
        """Functions there are, and the code of each in the changed source."""
        old, new = (list(codes(compile(text, self.file, "exec"))) for text in (plain, changed))
        if len(old) != len(new):
            return None
        known = {(x.co_name, x.co_firstlineno): y for x, y in zip(old, new, strict=True)}
        pairs = []
        for function in gc.get_objects():
            code = getattr(function, "__code__", None) if type(function) is FunctionType else None
            if code is None or code.co_filename != self.file:
                continue
            other = known.get((code.co_name, code.co_firstlineno))
            if other is None or len(other.co_freevars) != len(code.co_freevars):
                return None
            pairs.append((function, other))
        return pairs

    def _passes(self, names: list[str]) -> bool:
        for name in names:
            item = self.items[name]
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            if item.session.testsfailed:
                return False
        return True

    def _forked(self, job: Callable[[], bool], seconds: int) -> bool:
        """What `job` says in a fork; False if it dies or does not end."""
        child = os.fork()
        if not child:
            passed = False
            try:
                os.setpgid(0, 0)
                resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(3600)
                passed = job()
            finally:
                os._exit(not passed)
        try:
            _, status = os.waitpid(child, 0)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # and what it has started
        return status == 0


def codes(code: CodeType) -> Any:
    """Code of all functions in some code, in the order of the source."""
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner
            yield from codes(inner)
