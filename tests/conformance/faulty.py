"""Backends that fail in every way, for the tests of the runner."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import numpy as np

from nlattn.conformance.truth.transcription import transcription

SHOWN = "print goes where it does no harm"


class Backend:
    """Right, but for what the shape of q asks for."""

    name = "faulty"

    def capabilities(self) -> dict[str, Any]:
        return {"operators": ["attention"]}

    def run(self, op: str, arrays: dict[str, Any], options: dict[str, Any]) -> Any:
        print(SHOWN)
        trouble = arrays["q"].shape[0]
        if trouble == 101:
            os.abort()
        if trouble == 102:
            time.sleep(1000)
        if trouble == 103:
            raise ValueError("I do not want to")
        if trouble == 104:
            sys.exit(4)
        if trouble == 105:
            self.held = [np.ones(5_000_000) for _ in range(10)]
            time.sleep(1000)
        return transcription(op, arrays, options)


class Broken:
    def __init__(self) -> None:
        raise RuntimeError("no licence")


def vjp_only(q: Any, k: Any, v: Any, dout: Any) -> Any:
    return transcription("attention_vjp", {"q": q, "k": k, "v": v, "dout": dout}, {})
