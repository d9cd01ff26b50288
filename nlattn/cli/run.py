"""One command from its words to its exit code: what goes wrong is said in one line."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
import threading
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from nlattn.cli import signals
from nlattn.cli.output import MachineError, Output
from nlattn.cli.parser import parse
from nlattn.cli.words import of_command

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


def run(argv: Sequence[str] | None) -> int:
    """Parse the words of a command, do it, and say what went wrong; returns the exit code."""
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
    if signals.heard and threading.current_thread() is not threading.main_thread():
        return code  # of drafts that were taken from it
    with suppress(OSError):  # nobody may hear it
        print("nlattn:", of_command(text), file=sys.stderr, flush=True)
    return code
