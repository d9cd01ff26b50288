"""``exec:PROGRAM``: a backend in any language, called with the folder of one case.

The program reads ``case.json`` and the ``.npy`` files there (`folders` says what they hold) and
writes ``out.npy`` or, of a gradient, ``dq.npy``, ``dk.npy``...: the outputs that case.json names.
It ends with 0, with 77 if it does not support the case, or with 65 if it refuses the input.
What it prints last is its reason.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from nlattn._types import Array, Options
from nlattn.conformance.backends.adapters import Tensor
from nlattn.conformance.backends.backend import Unsupported
from nlattn.conformance.backends.process import MARK
from nlattn.conformance.case import Case
from nlattn.conformance.cases import folders
from nlattn.conformance.table import owner

UNSUPPORTED, REFUSED = 77, 65  # as in automake's tests, and EX_DATAERR of sysexits.h
SECONDS = 30.0
_SAID = 4096  # bytes of its output that are looked at


class Program:
    """A program as a backend; hangs raise TimeoutError, crashes RuntimeError with the signal."""

    def __init__(self, path: str, seconds: float | None = SECONDS):
        found = shutil.which(path) or shutil.which(os.path.abspath(path))
        if found is None:
            raise ValueError(f"exec:{path}: no such program, or it may not be run")
        self.name = f"exec:{path}"
        self._path, self.seconds = os.path.abspath(found), seconds

    def run(self, op: str, arrays: Mapping[str, Array], options: Options) -> Tensor:
        """Results by name, read without trust."""
        name = owner(op)
        kind = "forward" if op == name else op.rsplit("_", 1)[1]
        dtype = next(x.dtype.name for x in arrays.values() if x.dtype.kind not in "iub")
        case = Case("case", name, kind, dtype, arrays, options)  # type: ignore[arg-type]
        prefix = f"nlattn-{os.environ.get(MARK, '')}"  # by which others remove what is left
        with tempfile.TemporaryDirectory(prefix=prefix) as folder:
            folders.write(Path(folder), case)
            self._call(folder)
            return folders.answers(self.name, Path(folder), case)

    def _call(self, folder: str) -> None:
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                [self._path, folder], stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )
            try:
                code = process.wait(self.seconds)
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"{self.name}: no answer in {self.seconds:g} s") from None
            finally:
                process.kill()
                process.wait()
            said.seek(max(0, said.seek(0, os.SEEK_END) - _SAID))
            lines = said.read().decode(errors="replace").split("\n")
        reason = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        if code == UNSUPPORTED:
            raise Unsupported(reason)
        if code == REFUSED:
            raise ValueError(f"{self.name}: {reason}")
        if code < 0:
            raise RuntimeError(f"{self.name}: ended by {signal.Signals(-code).name}; {reason}")
        if code:
            raise RuntimeError(f"{self.name}: exit code {code}; {reason}")
