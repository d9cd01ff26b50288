"""Who works when: Python threads, each inside compiled code that lets the others run.

Numba's own threads would have everything compiled twice, abort the process when two Python threads
enter them (``workqueue``), and be killed in a forked child (GNU OpenMP). Where compiled code or
tasks call BLAS, it is held to one thread meanwhile: two pools on the same cores spin.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import numba
import numpy as np

from nlattn import _check

R = TypeVar("R")

_lock = threading.Lock()  # who limits BLAS
_here = threading.local()


def set_threads(count: int) -> None:
    """Use `count` threads for what is called from this Python thread; 1 to `max_threads`.

    Results have the same bits for any number. ValueError if there are not as many.
    """
    _here.count = _check.integer("set_threads", "count", count, low=1, high=max_threads())


def threads() -> int:
    """Number of threads for what is called from this Python thread."""
    return getattr(_here, "count", max_threads())


def max_threads() -> int:
    """The most that `set_threads` accepts: the processors, or what ``NUMBA_NUM_THREADS`` says."""
    return int(numba.config.NUMBA_NUM_THREADS)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(
        max(1, max_threads() - 1), "nlattn", initializer=setattr, initargs=(_here, "helps", True)
    )


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _pool.cache_clear()  # its threads stayed behind


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class LaterError(Exception):
    """A helping thread has met code that is not compiled yet.

    It must not compile: Numba imports modules then, and one may wait for an import that waits for
    the call that is being helped.
    """


def stay_away() -> None:
    """Raise `LaterError` on a helping thread."""
    if getattr(_here, "helps", False):
        raise LaterError


class Help:
    """Calls of `turn` on some helping threads."""

    def __init__(self, turn: Callable[[], object], count: int) -> None:
        self._turn, self._calls = turn, list[Future[None]]()
        with suppress(RuntimeError):  # no thread starts while the interpreter shuts down
            for _ in range(0 if numba.config.DISABLE_JIT else count):
                self._calls.append(_pool().submit(self._call))

    def _call(self) -> None:
        with suppress(LaterError):
            self._turn()

    def finish(self) -> None:
        """Wait for calls that have begun, and drop the rest."""
        for call in [call for call in self._calls if not call.cancel()]:
            call.result()
        self._turn = _nothing  # the arrays need not wait until a thread notices


def _nothing() -> None:
    pass


@functools.cache
def _blas() -> Any:
    import scipy.linalg.cython_blas  # noqa: F401  what is behind Numba's np.dot, to be limited
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold BLAS to one thread: the same bits however many it has, and none that waits and spins."""
    with _lock, _blas().limit(limits=1):
        yield


_FEW = 1024
"""Rows that are done before another thread has started."""


def each(task: Callable[[int], R], count: int, rows: int) -> Iterator[R]:
    """Results of ``task(0)`` to ``task(count - 1)``, in order, made on as many threads as kernels.

    For work whose time goes into compiled functions, NumPy and BLAS, which let other threads run
    meanwhile. Tasks call no kernels, and may be begun twice. `rows` are those of all tasks: few are
    done here.
    """
    workers = min(threads(), count) if rows > _FEW else 1
    todo, results, told = deque(range(count)), dict[int, R](), 0

    def work() -> Iterator[None]:
        while todo:
            try:
                number = todo.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                results[number] = _quiet(task, number)
            except LaterError:
                todo.append(number)
                return
            yield

    with one_blas_thread():
        others = Help(lambda: deque(work(), 0), workers - 1)
        try:
            for _ in work():  # this thread works too
                while told in results:
                    yield results.pop(told)
                    told += 1
            others.finish()
            deque(work(), 0)  # what was left to this thread
            while told < count:
                yield results.pop(told)
                told += 1
        finally:
            todo.clear()
            others.finish()


def _quiet(task: Callable[[int], R], number: int) -> R:
    with np.errstate(all="ignore"):
        return task(number)
