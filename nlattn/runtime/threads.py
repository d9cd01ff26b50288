"""Who works when: this thread and helping ones, each inside code that lets the others run.

Where NumPy, SciPy or compiled code call BLAS, it is held to one thread meanwhile, for the same bits
however many it has: two pools on the same cores would wait for each other, spinning.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

import numba
import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  what is behind Numba's np.dot, to be limited
from threadpoolctl import ThreadpoolController

from nlattn import _check
from nlattn.runtime import helpers

P = ParamSpec("P")
R = TypeVar("R")

_count = ContextVar("nlattn.threads", default=0)


def set_threads(count: int) -> None:
    """Use `count` threads for what is called from this Python thread; 1 to `max_threads`.

    Results have the same bits for any number. ValueError if there are not as many.

    Examples
    --------
    >>> nlattn.set_threads(1)
    """
    _count.set(_check.integer("set_threads", "count", count, low=1, high=max_threads()))


def threads() -> int:
    """Number of threads for what is called from this Python thread.

    Examples
    --------
    >>> nlattn.set_threads(1)
    >>> nlattn.threads()
    1
    """
    return _count.get() or max_threads()


def max_threads() -> int:
    """The most that `set_threads` accepts: the processors, or what ``NUMBA_NUM_THREADS`` says.

    Examples
    --------
    >>> nlattn.set_threads(nlattn.max_threads())
    """
    return int(numba.config.NUMBA_NUM_THREADS)


class _Limit:
    """BLAS held to one thread while there are users, all of them helping threads."""

    def __init__(self) -> None:
        self.lock, self.users, self.before = threading.RLock(), 0, list[int]()

    def enter(self) -> None:
        with self.lock:
            libraries = _blas()
            if not self.users:
                self.before = [library.get_num_threads() for library in libraries]
            self.users += 1
            _set_all([1] * len(libraries))  # each thread: some libraries have limits per thread

    def leave(self) -> None:
        with self.lock:
            self.users -= 1
            if not self.users:
                _set_all(self.before)


def _set_all(counts: list[int]) -> None:
    """Set the number of threads of every BLAS, which no thread is to keep for itself."""
    for library, count in zip(_blas(), counts, strict=True):
        free = getattr(library, "clear_controlling_thread", lambda **_: None)
        free(force=True)
        library.set_num_threads(count)
        free(force=True)


@functools.cache
def _blas() -> list[Any]:
    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


_limit = _Limit()


def _before_fork() -> None:
    _limit.lock.acquire()


def _in_parent() -> None:
    with suppress(RuntimeError):  # a Ctrl-C ended the waiting for it
        _limit.lock.release()


def _in_child() -> None:
    global _limit
    if _limit.users:  # they stayed behind
        _set_all(_limit.before)
    _limit = _Limit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)


_held = threading.local()


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    limit = _limit
    if getattr(_held, "by", None) is limit:  # this thread has it already
        yield
        return
    limit.enter()
    _held.by = limit
    try:
        yield
    finally:
        _held.by = None
        limit.leave()


def serial_blas(function: Callable[P, R]) -> Callable[P, R]:
    """Have a function run with BLAS held to one thread: the same bits however many it has.

    On a helping thread, which no Ctrl-C keeps from restoring what was.
    """

    def limited(*args: P.args, **kwargs: P.kwargs) -> R:
        with _one_blas_thread():
            return function(*args, **kwargs)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return helpers.undisturbed(limited, *args, **kwargs)

    return call


_FEW = 1024
"""Rows that are done before another thread has started."""


def few_at_once(rows: int, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """``function(...)``, which calls `each`: of few rows all of it on one helping thread.

    So several calls of `each` wait for a thread once.
    """
    call = serial_blas(function) if rows <= _FEW else function
    return call(*args, **kwargs)


def each(task: Callable[[int], R], count: int, rows: int) -> Iterator[R]:
    """Results of ``task(0)`` to ``task(count - 1)``, in order, made on as many threads as kernels.

    For work whose time goes into compiled functions, NumPy and BLAS, which let other threads run
    meanwhile. `rows` are those of all tasks: few are done by one thread.
    """
    if rows <= _FEW and getattr(_held, "by", None) is _limit:  # in `few_at_once`
        with np.errstate(all="ignore"):
            done = [task(number) for number in range(count)]
        yield from done
        return
    workers = 1 if rows <= _FEW or numba.config.DISABLE_JIT else min(threads(), count)
    todo, made = deque(range(count)), SimpleQueue[tuple[int, Any, BaseException | None]]()
    ready: dict[int, R] = {}

    def make(number: int) -> tuple[int, Any, BaseException | None]:
        try:
            return number, task(number), None
        except BaseException as error:
            return number, None, error

    def work() -> None:
        last = None
        with _one_blas_thread(), np.errstate(all="ignore"), suppress(IndexError):
            while todo:
                number = todo.popleft()  # IndexError: another thread was faster
                if last is not None:
                    made.put(last)
                last = make(number)
        if last is not None:
            made.put(last)  # who gets it finds BLAS as it was

    if helpers.helps() or not (count and helpers._crew.ask(work, workers)):
        work()
    crew = helpers._crew
    try:
        for number in range(count):
            while number not in ready:
                which, result, error = helpers.wait(made, crew)
                if error is not None:
                    raise error
                ready[which] = result
            yield ready.pop(number)
    finally:
        todo.clear()
