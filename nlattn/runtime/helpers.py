"""Helping threads, which no Ctrl-C reaches; and no lock that anybody could await for good.

Python raises KeyboardInterrupt in the main thread, between any two steps of its code: a lock taken
there may stay locked, and what is half done stays so. Whatever must be done as a whole (imports,
compiling, limiting BLAS) is therefore done on a helping thread (`undisturbed`). Its caller waits,
and may cease to. Locks are taken on helping threads alone. Help is asked for through queues written
in C, which can be left at any moment, and used again by a signal handler meanwhile.

A child of a fork has helping threads of its own. A fork waits until nothing is half imported or
half compiled.
"""

from __future__ import annotations

import _thread
import atexit
import logging  # noqa: F401  before `_before` is registered: of hooks the last runs first
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from queue import Empty, SimpleQueue
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
Action = Callable[[], None]

_MOST = max(2, os.cpu_count() or 1)
_here = threading.local()
_whole = threading.RLock()
"""Held on helping threads while something is imported or compiled, and by `fork`."""


class _Crew:
    """The helping threads of a process."""

    def __init__(self) -> None:
        self.jobs: SimpleQueue[Action | None] = SimpleQueue()
        self.lock = threading.Lock()
        self.size = self.busy = 0
        self.resting = False

    def serve(self) -> None:
        """What a helping thread does."""
        with self.lock:
            if self.size >= _MOST:
                return
            self.size += 1
        _here.helps = True
        sys.settrace(threading.gettrace())  # as threads of `threading` do, for debuggers
        while (job := self.jobs.get()) is not None:
            with self.lock:
                self.busy += 1
            job()
            del job
            with self.lock:
                self.busy -= 1
        with self.lock:
            self.size -= 1

    def ask(self, job: Action, count: int) -> bool:
        """Have `job` called `count` times; False if there is nobody to do it."""
        if self.resting:
            return False
        started = self.size
        with suppress(RuntimeError):  # no thread starts where there are too many, or at the end
            for _ in range(self.size, min(self.busy + count, _MOST)):
                _thread.start_new_thread(self.serve, ())
                started += 1
        for _ in range(count if started else 0):
            self.jobs.put(job)
        return started > 0

    def rest(self) -> None:
        """End all threads; what they are doing is finished first."""
        self.resting = True
        for _ in range(_MOST):
            self.jobs.put(None)
        while self.size:
            time.sleep(0.001)


_crew = _Crew()
atexit.register(lambda: _crew.rest())


def helps() -> bool:
    """Whether this is a helping thread."""
    return getattr(_here, "helps", False)


def hears() -> bool:
    """Whether this is the thread in which Python raises KeyboardInterrupt."""
    return threading.get_ident() == threading.main_thread().ident


class LaterError(Exception):
    """Raised by `work` that cannot be shared yet, on the threads that came to help."""


def joined() -> bool:
    """Whether this is a helping thread that came to share the work of another."""
    return getattr(_here, "joined", False)


def here(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """``function(...)``."""
    return function(*args, **kwargs)


def undisturbed(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """``function(...)``, done as a whole: a Ctrl-C ends the waiting for it alone."""
    if helps():
        return function(*args, **kwargs)
    context, reply = copy_context(), SimpleQueue[tuple[Any, BaseException | None]]()

    def job() -> None:
        try:
            reply.put((context.run(function, *args, **kwargs), None))
        except BaseException as error:
            reply.put((None, error))

    crew = _crew
    if not crew.ask(job, 1):
        return function(*args, **kwargs)
    value, error = wait(reply, crew)
    if error is not None:
        try:
            raise error
        finally:
            del error  # it holds this frame
    return value


def wait(queue: SimpleQueue[R], crew: _Crew | None = None) -> R:
    """What a helping thread puts into a queue; RuntimeError if it stayed behind at a fork."""
    while True:
        try:
            return queue.get(timeout=1.0)
        except Empty:
            if crew is not None and crew is not _crew:
                text = "nlattn: the process was forked in the middle of a call, by a signal handler"
                raise RuntimeError(f"{text}; its other threads stayed behind: call again") from None


def together(work: Action, count: int) -> None:
    """Call `work` here and on up to `count` helping threads, and return when all have returned."""
    places, done, crew = deque([work] * count), SimpleQueue[BaseException | None](), _crew

    def job() -> None:
        try:
            mine = places.pop()
        except IndexError:  # too late: the work is done
            return
        error, _here.joined = None, True
        try:
            mine()
        except LaterError:
            pass
        except BaseException as raised:
            error = raised
        _here.joined = False
        del mine
        done.put(error)

    if count and not crew.ask(job, count):
        places.clear()
        count = 0
    try:
        work()
        for _ in range(count):
            with suppress(IndexError):
                places.pop()
                count -= 1
        errors = [wait(done, crew) for _ in range(count)]
    finally:
        places.clear()  # also when this thread was interrupted
    for error in filter(None, errors):
        raise error


def whole(function: Callable[P, R]) -> Callable[P, R]:
    """A function that no fork and no other `whole` function cuts in two; for `undisturbed`."""

    def locked(*args: P.args, **kwargs: P.kwargs) -> R:
        if getattr(_here, "whole", False):
            return function(*args, **kwargs)
        for _ in range(100):  # a fork comes first: who takes a lock again at once would keep it
            if not _forking:
                break
            time.sleep(0.001)
        with _whole:
            _here.whole = True
            try:
                return function(*args, **kwargs)
            finally:
                _here.whole = False

    return locked


class remembered(Generic[R]):  # noqa: N801  used as a decorator
    """A property that is computed once; unlike `functools.cached_property` of Python 3.11, no lock.

    A child of a fork would wait for the thread that computed it. Threads that compute it at once
    get one value.
    """

    def __init__(self, function: Callable[[Any], R]) -> None:
        self.function, self.__doc__ = function, function.__doc__

    def __get__(self, instance: Any, owner: type) -> R:
        value: R = instance.__dict__.setdefault(self.function.__name__, self.function(instance))
        return value


_forking: list[None] = []
"""One entry for each fork that waits."""


def _before() -> None:
    """Wait for what is half done, which may log: a fork takes the lock of loggers after this."""
    try:
        _forking.append(None)
        _whole.acquire()
    finally:
        with suppress(IndexError):
            _forking.pop()


def _in_parent() -> None:
    with suppress(RuntimeError):  # a Ctrl-C ended the waiting for it
        _whole.release()


def _in_child() -> None:
    global _crew, _whole
    _crew, _whole, _here.helps = _Crew(), threading.RLock(), False
    _here.whole = False
    _forking.clear()  # who waited to fork stayed behind


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
