"""Updates that are lost: ``dk[keys] += parts`` adds one part alone where a key is named twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np

from nlattn._types import Array
from nlattn.conformance.case import Case
from nlattn.conformance.truth.bounds import exact

_EDGES = 2000
"""Pairs of a support above which parts of gradients are not added one by one."""
_BLOCKS = (32, 64, 128, 256)
Gradients = Mapping[str, Array]


@lru_cache(maxsize=8)
def _parts(case: Case) -> list[Gradients]:
    """Gradients by the cotangent of each query alone."""
    dout = np.asarray(case.arrays["dout"], float)
    rows = np.arange(dout.shape[-2])[:, None]
    return [
        exact(replace(case, arrays={**case.arrays, "dout": np.where(rows == i, dout, 0)}))
        for i in range(len(rows))
    ]


def _lost(size: int | None) -> Callable[[Case, Gradients], Gradients]:
    """Of the edges of a support, in blocks of this size, the last of each key is added alone."""

    def make(case: Case, want: Gradients) -> Gradients:
        pointers, keys = (case.arrays[f"support.{x}"] for x in ("indptr", "indices"))
        n = int(case.arrays["support.shape"][-2])
        rows = np.repeat(np.arange(len(pointers) - 1), np.diff(pointers))
        if len(rows) > _EDGES or len(pointers) - 1 != n or want["dk"].ndim > 2:
            raise ValueError
        if "dlse" in case.arrays or len(rows) <= (size or 0):
            raise ValueError
        blocks = np.arange(len(rows)) // (size or len(rows) + 1)
        last = {(b, j): i for b, j, i in zip(blocks, keys, rows, strict=True)}
        made = {name: np.zeros_like(want[name]) for name in ("dk", "dv")}
        for (_, j), i in last.items():
            for name, x in made.items():
                x[j] += _parts(case)[i][name][j]
        return made

    return make


GRADIENTS = (
    ("with the part of the last query alone where several have a key", _lost(None)),
    *(
        (f"with all but the last update lost where a key comes twice among {b} edges", _lost(b))
        for b in _BLOCKS
    ),
)
