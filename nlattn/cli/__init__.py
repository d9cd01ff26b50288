"""The command ``nlattn``.

Exit codes: 0 done, 1 a check failed, 2 wrong use or bad input, 3 an environment that does not
serve (a missing package, a full disk, too little memory), 130 interrupted. What goes wrong is said
in one line. SIGTERM and SIGHUP end it as they end any program, after its drafts are removed.

Little is imported before signals are heard: `run` and all it needs come where the work is done.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Sequence

from nlattn.cli import signals


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    The work is done in another thread: signals are then heard while compiled code runs, and while
    modules are imported.
    """
    before = signals.listen()
    outcome: list[int | BaseException] = []

    def catch() -> None:
        try:
            from nlattn.cli.run import run

            outcome.append(run(argv))
        except BaseException as error:
            outcome.append(error)

    try:
        _open_streams()
        thread = threading.Thread(target=catch, name="nlattn", daemon=True)
        thread.start()
        signals.await_end(thread)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _open_streams() -> None:
    """Standard streams that are there, whoever closed them, and that can say any name."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nothing = os.open(os.devnull, os.O_RDWR)
            if nothing != number:
                os.dup2(nothing, number)
            setattr(sys, name, open(number, "w" if number else "r"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
