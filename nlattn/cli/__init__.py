"""The command ``nlattn``: what it answers to, and how it ends.

Exit codes: 0 done, 1 a check failed, 2 wrong use or bad input, 3 an environment that does not
serve (a missing package, a full disk, too little memory), 130 interrupted. What goes wrong is said
in one line. SIGTERM and SIGHUP end it as they end any program, after its drafts are removed.
"""

from __future__ import annotations

import errno
import importlib
import io
import logging
import os
import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from nlattn.cli.output import MachineError, Output, say
from nlattn.cli.parser import parse
from nlattn.cli.words import of_command
from nlattn.files import whole

_EXTRAS = {
    "matplotlib": "cli", "PIL": "cli", "tqdm": "cli", "hypothesis": "test", "ml_dtypes": "test",
    "mpmath": "test",
    "torch": "torch", "jax": "jax", "jaxlib": "jax", "onnx": "onnxruntime",
    "onnxruntime": "onnxruntime", "distributed": "dask", "tifffile": "tiff", "zarr": "zarr",
}  # fmt: skip
"""Which extra of ours brings a module."""


_ENVIRONMENT = {
    getattr(errno, name)
    for name in (
        "ENOSPC", "EDQUOT", "EROFS", "EIO", "ENOMEM", "EMFILE", "ENFILE", "EFBIG", "EBADF"
    )
    if hasattr(errno, name)
}  # fmt: skip
"""What is wrong with a machine, not with a name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    The work is done in another thread: signals are then heard while compiled code runs, and while
    modules are imported.
    """
    _open_streams()
    outcome: list[int | BaseException] = []

    def catch() -> None:
        try:
            outcome.append(_run(argv))
        except BaseException as error:
            outcome.append(error)

    before = _listen()
    try:
        thread = threading.Thread(target=catch, name="nlattn", daemon=True)
        thread.start()
        while thread.is_alive() and not _heard:
            thread.join(_OFTEN)
        if thread.is_alive():
            _end(_heard[0])
    except KeyboardInterrupt:  # raised by a handler of others
        _end(signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


_OFTEN = 0.1
"""Seconds between two looks whether a signal was heard."""
_heard: list[int] = []
"""Signals that ask this process to end."""


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


def _listen() -> dict[int, Any]:
    """Note what asks the process to end; returns the handlers that were there.

    What others listen to, or ignore, is left to them.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    usual = {"SIGINT": signal.default_int_handler, "SIGTERM": signal.SIG_DFL,
             "SIGHUP": signal.SIG_DFL}  # fmt: skip
    _heard.clear()
    numbers = {getattr(signal, name): x for name, x in usual.items() if hasattr(signal, name)}
    mine = {n: handler for n, handler in numbers.items() if signal.getsignal(n) is handler}
    for number in mine:
        signal.signal(number, lambda which, _: _heard.append(which))
    return mine


def _end(number: int) -> NoReturn:
    """End the process at once: the compiler or a kernel in the other thread would delay it."""
    _clear()
    if sys.stderr.isatty():
        say("")
    if number == signal.SIGINT:
        _say("interrupted", 130)
        os._exit(130)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)  # so that whoever waits sees by what it ended
    os._exit(128 + number)


def _clear() -> None:
    """Remove drafts and end processes."""
    Output.discard_all()
    whole.discard_all()
    if "nlattn.conformance.backends.process" in sys.modules:
        sys.modules["nlattn.conformance.backends.process"].Process.close_all(for_good=True)


def _flushed() -> bool:
    """Whether what was printed has arrived; what has not is thrown away."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


@contextmanager
def _told(wanted: bool) -> Iterator[None]:
    """Write to standard error what the package logs meanwhile."""
    log, written = logging.getLogger("nlattn"), logging.StreamHandler()
    written.setFormatter(logging.Formatter("nlattn: %(message)s"))
    before = log.level
    if wanted:
        log.addHandler(written)
        log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(written)
        log.setLevel(before)


def _run(argv: Sequence[str] | None) -> int:
    try:
        options = parse(argv)
    except SystemExit as end:
        return int(end.code or 0) if _flushed() else 3
    except OSError as error:  # help that could not be written
        _flushed()
        return _say(str(error), 3)
    with _told(options.verbose):
        return _ended(options)


def _ended(options: Namespace) -> int:
    """The command's exit code, or that of what ended it."""
    try:
        command = importlib.import_module(f"nlattn.cli.{options.module}")
        if options.threads is not None:
            _set_threads(options.threads)
        code: int = getattr(command, options.function)(options)
        sys.stdout.flush()
        return code
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        return _say(
            f"{error.name} is not installed; python -m pip install 'nlattn[{extra}]' brings it", 3
        )
    except MachineError as error:
        return _say(str(error), 3)
    except BrokenPipeError:  # the reader of our output has left
        _flushed()
        return 0
    except OSError as error:
        _flushed()
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return _say(text, 3 if error.errno in _ENVIRONMENT else 2)
    except MemoryError as error:
        if options.debug:
            raise
        return _say(str(error) or "there is not enough memory", 3)
    except (ValueError, TypeError) as error:
        if options.debug:
            raise
        return _say(str(error) or type(error).__name__, 2)
    except SystemExit as end:  # of code of others, which is no answer
        return _say(f"the code that was given ended the process, with {end.code!r}", 2)
    finally:
        Output.discard_all()


def _set_threads(count: int) -> None:
    from nlattn.runtime import threads

    most = threads.max_threads()
    if not 1 <= count <= most:
        raise ValueError(f"--threads {count}, expected 1 to {most}, the threads of this machine")
    threads.set_threads(count)


def _say(text: str, code: int) -> int:
    if _heard and threading.current_thread() is not threading.main_thread():
        return code  # of drafts that were taken from it
    with suppress(OSError):  # nobody may hear it
        print("nlattn:", of_command(text), file=sys.stderr, flush=True)
    return code
