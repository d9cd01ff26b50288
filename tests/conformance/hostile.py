"""Backends that are clumsy or hostile, one fault each, for the tests of what must go on."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import numpy as np

from nlattn.conformance.truth.transcription import transcription


def transposed(q: Any, k: Any, v: Any) -> Any:
    out = transcription("attention", {"q": q, "k": k, "v": v}, {})
    return np.swapaxes(out, -1, -2).copy()


def scalar(*_: Any, **__: Any) -> Any:
    return 1.0


def flat(q: Any, k: Any, v: Any) -> Any:
    return transcription("attention", {"q": q, "k": k, "v": v}, {}).ravel()


def short(q: Any, k: Any, v: Any) -> Any:
    return transcription("attention", {"q": q, "k": k, "v": v}, {})[..., :-1, :]


def words(*_: Any, **__: Any) -> Any:
    return "nothing"


def ragged(*_: Any, **__: Any) -> Any:
    return [[1.0], [1.0, 2.0]]


def surrogate(*_: Any, **__: Any) -> Any:
    raise KeyError("\ud800")


class SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def wordless(*_: Any, **__: Any) -> Any:
    raise SilentError


def leaving(*_: Any, **__: Any) -> Any:
    sys.exit(3)


def hanging(*_: Any, **__: Any) -> Any:
    time.sleep(1000)


class Misspelt:
    def capabilities(self) -> dict[str, Any]:
        return {"operators": ["atention"]}

    def run(self, *_: Any) -> None:
        """Nothing."""


class Parent:
    """Leaves a child in a session of its own."""

    name = "parent"

    def run(self, op: str, arrays: Any, options: Any) -> Any:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         start_new_session=True)  # fmt: skip
        return transcription(op, arrays, options)
