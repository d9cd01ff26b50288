"""How the command hears signals, and how it ends by them."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Any, NoReturn

from nlattn import _ending

heard: list[int] = []
"""Signals that ask this process to end."""
_OFTEN = 0.1
"""Seconds between two looks whether a signal was heard."""


def listen() -> dict[int, Any]:
    """Note what asks the process to end; returns the handlers that were there.

    What others listen to, or ignore, is left to them.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    usual = {"SIGINT": signal.default_int_handler, "SIGTERM": signal.SIG_DFL,
             "SIGHUP": signal.SIG_DFL}  # fmt: skip
    heard.clear()
    numbers = {getattr(signal, name): x for name, x in usual.items() if hasattr(signal, name)}
    mine = {n: handler for n, handler in numbers.items() if signal.getsignal(n) is handler}
    for number in mine:
        signal.signal(number, lambda which, _: heard.append(which))
    return mine


def await_end(thread: threading.Thread) -> None:
    """Wait for the thread that works, or for a signal, which ends the process."""
    try:
        while thread.is_alive() and not heard:
            thread.join(_OFTEN)
        if thread.is_alive():
            _end(heard[0])
    except KeyboardInterrupt:  # raised by a handler of others
        _end(signal.SIGINT)


def _end(number: int) -> NoReturn:
    """End the process at once: the compiler or a kernel in the other thread would delay it."""
    _ending.clear()
    with suppress(OSError):  # nobody may hear it
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)  # in place of a line of progress
        if number == signal.SIGINT:
            print("nlattn: interrupted", file=sys.stderr, flush=True)
    if number == signal.SIGINT:
        os._exit(130)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)  # so that whoever waits sees by what it ended
    os._exit(128 + number)
