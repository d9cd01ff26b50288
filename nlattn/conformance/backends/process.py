"""A backend in a process of its own, with limits of time and memory, started again when it dies."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import IO, Any, ClassVar, Literal

import numpy as np

import nlattn
from nlattn import _ending
from nlattn._types import Options
from nlattn.conformance.backends.capabilities import Capabilities
from nlattn.conformance.backends.messages import pack, unpack
from nlattn.conformance.backends.perform import Reply
from nlattn.conformance.case import Case
from nlattn.conformance.cases.arrays import layout_of

HANGS = 3
"""Calls in a row that may not end before the rest is given up."""
LOADING = 120.0
"""Seconds that a backend may take to be loaded, at least."""
MARK, PARENT = "NLATTN_WORKER", "NLATTN_PARENT"
_WORKER = (
    "import sys; sys.path[:1] == [''] and sys.path.pop(0)\n"
    "from nlattn.conformance.backends import worker; worker.main()"
)
"""A process of ours: files of the working folder do not stand for modules of Python's."""
_HEAD = [f.name for f in fields(Case) if f.name != "arrays"]


End = Literal["crash", "timeout"]


class Died(Exception):  # noqa: N818
    """The process ended before it answered; `status` is "crash" or "timeout"."""

    def __init__(self, status: End, text: str):
        super().__init__(text)
        self.status = status


class Process:
    """Answers cases; `name` and `capabilities` are the backend's own words.

    Parameters
    ----------
    spec, op : str
        As for `backend.load`.
    timeout : float
        Seconds for one call; loading has two minutes at least, and the first call of a function,
        dtype and shape ten times as long where the backend says that it compiles.
    memory : float
        Bytes that the process may hold, where the system tells (Linux).
    words : mapping
        Capabilities that count in place of the backend's own.
    """

    _all: ClassVar[weakref.WeakSet[Process]] = weakref.WeakSet()
    _over: ClassVar[bool] = False
    """Whether this process is about to end, and starts no others."""

    def __init__(
        self, spec: str, op: str | None = None, *, timeout: float = 120.0, memory: float = 8e9,
        words: Options | None = None,
    ):  # fmt: skip
        self._command = [sys.executable, "-c", _WORKER, spec]
        self._command += [op] if op else []
        self.timeout, self.memory, self._words = timeout, memory, dict(words or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] = io.BytesIO()
        Process._all.add(self)
        self.name, self.capabilities = "", Capabilities()
        self._hung, self._compiled, self._token = 0, set[Any](), uuid.uuid4().hex
        try:
            self._start()
        except Died as end:
            raise ValueError(f"{spec} ended while it was loaded: {end}") from None

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, case: Case) -> Reply:
        """The backend's answer; `Died` if there is none."""
        if self._hung >= HANGS:
            raise Died("timeout", f"not asked: {HANGS} calls in a row did not end")
        if self._process is None:
            try:
                self._start()
            except ValueError as error:
                raise Died("crash", f"cannot be loaded again: {error}") from None
        head = {name: getattr(case, name) for name in _HEAD}
        head["options"] = dict(case.options)
        layouts = {name: layout_of(x) for name, x in case.arrays.items()}
        message = pack({"case": head, "layouts": layouts}, dict(case.arrays))
        kind = (case.function, case.dtype, *(np.shape(x) for x in case.arrays.values()))
        first = self.capabilities.compiles and kind not in self._compiled
        try:
            said, outputs = self._exchange(message, self.timeout * (10 if first else 1))
        except Died as end:
            _stay_if_over()
            self._hung = self._hung + 1 if end.status == "timeout" else 0
            raise
        self._hung = 0
        self._compiled.add(kind)
        flaws = tuple(map(str, said["flaws"]))
        unsupported, raised, ran = (str(said[name]) for name in ("unsupported", "raised", "ran"))
        return Reply(outputs, unsupported, raised, flaws, ran)

    def close(self) -> None:
        """End the process, and what it has started."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        process.wait()
        end_marked(self._token)
        for folder in Path(tempfile.gettempdir()).glob(f"nlattn-{self._token}*"):
            shutil.rmtree(folder, ignore_errors=True)
        for stream in (process.stdin, process.stdout, self._errors):
            with suppress(OSError):
                stream.close()  # type: ignore[union-attr]

    @classmethod
    def close_all(cls, *, for_good: bool = False) -> None:
        """End every process; `for_good` has none started any more."""
        cls._over |= for_good
        for process in list(cls._all):
            process.close()

    def _start(self) -> None:
        _stay_if_over()
        root = str(Path(nlattn.__file__).parents[1])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            env={**os.environ, "PYTHONPATH": path, MARK: self._token, PARENT: str(os.getpid())},
            start_new_session=True,
        )  # fmt: skip
        said, _ = self._exchange(b"", max(self.timeout, LOADING))
        if "refused" in said:
            self.close()
            if said["kind"] == "missing":
                raise ModuleNotFoundError(said["refused"], name=said["module"])
            raise ValueError(said["refused"])
        self.name = str(said["name"])
        try:
            self.capabilities = Capabilities.of(said["capabilities"] | self._words)
        except ValueError:
            self.close()
            raise

    def _exchange(self, message: bytes, seconds: float) -> Any:
        """Send a message and wait for one, in a thread: a silent process must not hold this one."""
        process, answer = self._process, list[Any]()
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        to, read = process.stdin, process.stdout.read

        def talk() -> None:
            try:
                to.write(message)
                to.flush()
                answer.append(unpack(read))
            except Exception as error:
                answer.append(error)

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        why = self._wait(thread.join, thread.is_alive, process.pid, seconds)
        if why is None and not isinstance(answer[0], Exception):
            return answer[0]
        if why is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
        status, text = why or ("crash", self._last_words(process.poll(), answer[0]))
        self.close()
        raise Died(status, text)

    def _wait(
        self, join: Callable[[float], None], alive: Callable[[], bool], pid: int, seconds: float
    ) -> tuple[End, str] | None:
        start, pause, held = time.monotonic(), 0.001, 0
        while True:
            join(pause)
            if not alive():
                return None
            pause = min(2 * pause, 0.05)
            now = time.monotonic() - start
            if now > seconds:
                return "timeout", f"no answer within {seconds:g} s"
            others = sum(map(resident, marked(self._token))) if now > 0.5 else 0
            held = max(resident(pid), others)
            if held > self.memory:
                return "crash", f"held {held / 1e9:.1f} GB, above {self.memory / 1e9:g} GB"

    def _last_words(self, code: int | None, error: Exception) -> str:
        if code is None:
            return f"its answer cannot be read: {error}"
        self._errors.seek(max(0, self._errors.seek(0, 2) - 4096))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"{how}: {lines[-1][:200]}" if lines else how


def _stay_if_over() -> None:
    """Wait for the end of this process where it has begun: nothing more is to be said."""
    if Process._over:
        threading.Event().wait()


def marked(token: str) -> Iterator[int]:
    """Processes that were started with a mark in their environment, and their children (Linux)."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"{MARK}={token}".encode() in path.read_bytes():
                yield int(path.parent.name)


def end_marked(token: str) -> None:
    """End them; also those that left the group of their parents."""
    for pid in marked(token):
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def resident(pid: int) -> int:
    """Bytes of memory that a process holds; 0 where the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


_ending.before(lambda: Process.close_all(for_good=True))
