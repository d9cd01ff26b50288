"""How worker processes start: from one that has imported what tasks need, while others still do."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.context import BaseContext
from multiprocessing.util import get_temp_dir

from nlattn import _ending
from nlattn.files.whole import remove

_NEEDED = ("nlattn.tiled.scram", "nlattn.tiled.nl_means")
_owner = 0
"""The process whose child the server is: one that is forked from it cannot ask whether it lives."""


def prepare() -> BaseContext:
    """The way to start workers; begins to import for them, if that is not under way."""
    global _owner
    if "forkserver" not in multiprocessing.get_all_start_methods() or _owner not in (
        0,
        os.getpid(),
    ):
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver, resource_tracker

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_NEEDED])
    resource_tracker.ensure_running()  # which lets this thread hear Ctrl-C again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    _owner = os.getpid()
    try:
        forkserver.ensure_running()  # it and its workers do not hear what a terminal sends to all
    except ChildProcessError:  # the server of a process from which this one was forked
        _owner = 0
        return multiprocessing.get_context("spawn")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _discard() -> None:
    """Remove the folder of the server's socket, which multiprocessing does at a usual end alone."""
    if _owner == os.getpid():
        remove(get_temp_dir())


_ending.before(_discard)
