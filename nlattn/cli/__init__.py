"""The command ``nlattn``: what it answers to, and how it ends.

Exit codes: 0 done, 1 a check failed, 2 wrong use or bad input, 3 an environment that does not
serve (a missing package, a full disk), 130 interrupted. What goes wrong is said in one line.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from nlattn.cli.output import MachineError, Output
from nlattn.cli.parser import parse

_EXTRAS = {
    "matplotlib": "cli", "PIL": "cli", "tqdm": "cli", "hypothesis": "test", "ml_dtypes": "test",
    "mpmath": "test",
    "torch": "torch", "jax": "jax", "jaxlib": "jax", "onnx": "onnxruntime",
    "onnxruntime": "onnxruntime",
}  # fmt: skip
"""Which extra of ours brings a module."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        options = parse(argv)
    except SystemExit as end:
        return int(end.code or 0)
    try:
        command = importlib.import_module(f"nlattn.cli.{options.module}")
        return _interruptible(lambda: _run(getattr(command, options.function), options))
    except KeyboardInterrupt:
        Output.discard_all()
        if "nlattn.conformance.backends.process" in sys.modules:
            sys.modules["nlattn.conformance.backends.process"].Process.close_all()
        print("nlattn: interrupted", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(130)  # the compiler or a kernel in the other thread would delay a usual exit


def _interruptible(work: Callable[[], int]) -> int:
    """Do the work in another thread: Ctrl-C is then heard while compiled code runs."""
    outcome: list[Any] = []

    def catch() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=catch, name="nlattn", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return int(outcome[0])


def _run(command: Callable[[Any], int], options: Any) -> int:
    try:
        if options.threads is not None:
            _set_threads(options.threads)
        code = command(options)
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _say(f"{error.filename}: {error.strerror}" if error.filename else str(error), 2)
    except (ValueError, TypeError, MemoryError) as error:
        if options.debug:
            raise
        return _say(str(error) or type(error).__name__, 2)
    finally:
        Output.discard_all()


def _set_threads(count: int) -> None:
    from nlattn.runtime import threads

    most = threads.max_threads()
    if not 1 <= count <= most:
        raise ValueError(f"--threads {count}, expected 1 to {most}, the threads of this machine")
    threads.set_threads(count)


def _say(text: str, code: int) -> int:
    print("nlattn:", " ".join(text.split()), file=sys.stderr, flush=True)
    return code
