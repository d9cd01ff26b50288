"""The process in which a backend runs, with its name and perhaps that of an operator.

It reads calls from standard input and answers on what was standard output; what the backend
prints goes to standard error.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from nlattn.conformance.backends import backend as backends
from nlattn.conformance.backends.messages import pack, unpack
from nlattn.conformance.backends.perform import perform
from nlattn.conformance.backends.process import PARENT
from nlattn.conformance.case import Case


def serve(
    spec: str, op: str | None, read: Callable[[int], bytes], write: Callable[[bytes], Any]
) -> None:
    """Load a backend, say so, and answer calls until there are no more."""
    try:
        backend = backends.load(spec, op)
        if isinstance(getattr(backend, "seconds", None), float):
            backend.seconds = None  # a program: whoever watches this process has a limit
        name = str(getattr(backend, "name", type(backend).__name__))
        write(pack({"name": name, "capabilities": backends.told(backend)}, {}))
    except BaseException as error:
        text = f"{error}" or type(error).__name__
        kind = "missing" if isinstance(error, ModuleNotFoundError) else "wrong"
        if not isinstance(error, (ValueError, ModuleNotFoundError)):
            text = f"{spec}: {type(error).__name__}: {text}"
        write(pack({"refused": text, "kind": kind, "module": getattr(error, "name", None)}, {}))
        return
    while True:
        try:
            head, arrays = unpack(read)
        except EOFError:
            return
        case = Case(arrays=arrays, **head["case"])
        reply = perform(backend, case, head["layouts"])
        said = {name: x for name, x in reply._asdict().items() if name != "outputs"}
        write(pack(said, reply.outputs))


def follow(parent: int) -> None:
    """Have this process end with its parent, however that ends (Linux)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(0)


def main() -> None:
    """Serve on the standard streams; end when the process that asks does."""
    follow(int(os.environ.get(PARENT, os.getppid())))
    calls, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)

    def write(message: bytes) -> None:
        answers.write(message)
        answers.flush()

    spec, *op = sys.argv[1:]
    serve(spec, op[0] if op else None, calls.read, write)
