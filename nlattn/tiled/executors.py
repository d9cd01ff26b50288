"""Who does the tasks: this process, processes of this machine, or a Dask cluster.

Workers open files by path: the folder and the picture must be where all of them can read.
"""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from nlattn import __version__, _check
from nlattn.runtime.threads import max_threads, set_threads
from nlattn.tiled import start
from nlattn.tiled.task import Record, TileTask, perform

_DEATHS = 3  # times that workers may die before a run is given up
OP = "tiled"


class WorkersLostError(RuntimeError):
    """Those who did the tasks are gone; what they had done is recorded."""


@functools.cache
def identity() -> str:
    """Version of this package, and what its files hold: equal where bits are equal."""
    digest, root = hashlib.sha256(), Path(__file__).parents[1]
    for name in ("_check", "engines", "files", "kernels", "maps", "runtime", "tiled"):
        for path in sorted((root / name).glob("*.py")):
            digest.update(path.read_bytes())
    return f"{__version__} ({digest.hexdigest()[:12]})"


class ThisProcess:
    """One task after the other, each on all threads."""

    workers = 1

    def perform(self, path: str, tasks: Sequence[TileTask]) -> Iterator[Record]:
        """Records of tasks, in order."""
        for task in tasks:
            yield perform(path, task)

    def close(self) -> None:
        """Nothing to end."""


class Processes:
    """Worker processes of this machine, which share its threads; they end with this process."""

    def __init__(self, workers: int):
        self.workers = _check.integer(OP, "processes", workers, low=1)
        self._pool: ProcessPoolExecutor | None = None
        self._end: Connection | None = None
        """What is sent here ends the workers of the pool, in the middle of their tasks."""
        self._busy = False
        start.prepare()

    def perform(self, path: str, tasks: Sequence[TileTask]) -> Iterator[Record]:
        """Records of tasks as they are done; a task whose worker dies is given to another."""
        left, deaths = {task.name: task for task in tasks}, 0
        self._busy = True  # and so it stays if this is left before the end
        while left:
            pool = self._started()
            futures = [pool.submit(perform, path, task) for task in left.values()]
            try:
                for future in as_completed(futures):
                    record = future.result()
                    del left[record.task]
                    yield record
            except BrokenProcessPool:
                self._pool, deaths = None, deaths + 1
                if deaths == _DEATHS:
                    text = (
                        "worker processes died: for lack of memory, then a smaller tile needs less"
                    )
                    more = "or they run a script whose calls lack if __name__ == '__main__':"
                    raise WorkersLostError(f"{OP}: {deaths} {text}; {more}") from None
            finally:
                for future in futures:
                    future.cancel()
        self._busy = False

    def close(self) -> None:
        """End the workers; of tasks that were left, none is finished first."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        if self._busy and self._end is not None:
            self._end.send_bytes(b"end")
        pool.shutdown(cancel_futures=True)

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            each, context = max(1, max_threads() // self.workers), start.prepare()
            ended, self._end = context.Pipe(duplex=False)
            self._pool = ProcessPoolExecutor(self.workers, context, _begin, (each, ended))
        return self._pool


def _begin(threads: int, ended: Connection) -> None:
    """Take a share of the threads; end when the process that asked ends, or says so.

    A Ctrl-C is for that process alone, though a terminal sends it to all.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_threads(min(threads, max_threads()))
    parent = multiprocessing.parent_process()

    def watch() -> None:
        wait([ended, *([] if parent is None else [parent.sentinel])])
        os._exit(1)

    threading.Thread(target=watch, name="nlattn parent", daemon=True).start()


class Dask:
    """Workers of a Dask cluster: a ``distributed.Client``, or the address of a scheduler."""

    def __init__(self, client: Any):
        import distributed

        self._own = isinstance(client, str)
        self._client = distributed.Client(client, timeout="20s") if self._own else client
        try:
            found = self._client.run(_own_identity)
            self.workers = sum(self._client.nthreads().values())
            if not found:
                _check.fail(OP, "dask", "has no workers")
            for worker, other in found.items():
                if other != identity():
                    text = f"of {worker} runs nlattn {other}, expected {identity()} as here"
                    _check.fail(OP, "the worker", text)
        except BaseException:
            self.close()
            raise

    def perform(self, path: str, tasks: Sequence[TileTask]) -> Iterator[Record]:
        """Records of tasks as they are done; Dask gives those of a lost worker to another."""
        import distributed

        futures = [
            self._client.submit(_perform_as, identity(), path, task, pure=False, key=None)
            for task in tasks
        ]
        try:
            for future in distributed.as_completed(futures):
                yield future.result()
        except (distributed.CancelledError, distributed.KilledWorker) as error:
            text = f"the cluster lost its tasks ({type(error).__name__}); resume=True goes on"
            raise WorkersLostError(f"{OP}: {text}") from None
        finally:
            with suppress(Exception):  # the scheduler may be gone
                self._client.cancel(futures)

    def close(self) -> None:
        """Leave the cluster."""
        if self._own:
            self._client.close()


def _own_identity() -> str:
    return identity()


def _perform_as(expected: str, path: str, task: TileTask) -> Record:
    """Do a task, unless this worker, which may have joined later, would do it otherwise."""
    if identity() != expected:
        _check.fail(OP, "a worker", f"runs nlattn {identity()}, expected {expected}")
    set_threads(1)
    return perform(path, task)
