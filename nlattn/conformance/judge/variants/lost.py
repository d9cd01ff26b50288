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


def _of_last_sequence(case: Case, want: Gradients) -> Gradients:
    """For each page the gradient of the last of the sequences that share it, not their sum."""
    table = case.arrays["table"]
    dout = case.arrays["dout"]
    names = [name for name in want if name.endswith("_pages")]
    if table.ndim != 2 or len(table) != len(dout) or len(table) < 2 or not names:
        raise ValueError
    made = {name: want[name].copy() for name in names}
    for b in range(len(table)):  # later ones write over what earlier ones left
        alone = {n: _only(np.asarray(case.arrays[n], float), b) for n in case.directions}
        part = exact(replace(case, arrays={**case.arrays, **alone}))
        for name, x in made.items():
            own = table[b][table[b] >= 0]
            x[own] = part[name][own]
    return made


def _only(x: Array, b: int) -> Array:
    """The same in one sequence, 0 in others."""
    own = (np.arange(len(x)) == b).reshape(-1, *[1] * (x.ndim - 1))
    return np.where(own, x, 0)


def _at_first_places(case: Case, want: Gradients) -> Gradients:
    """Gradients of chosen keys, which are not moved to where these keys are."""
    index = np.asarray(case.arrays["index"])
    if index.ndim != 1:
        raise ValueError
    made = {}
    for name in ("dk", "dv"):
        made[name] = np.zeros_like(want[name])
        made[name][..., : len(index), :] = want[name][..., index, :]
    return made


def _without_the_border(width: int | None) -> Callable[[Case, Gradients], Gradients]:
    """Gradients of keys and values as from queries inside the grid alone.

    The border is of some places, or, of None, where windows are moved inside.
    """

    def make(case: Case, want: Gradients) -> Gradients:
        if "neighbours" in case.spec.wrong:
            window = np.asarray(case.options["window"])
        elif case.spec.out.startswith("H"):
            window = np.broadcast_to(3, 2)
        else:
            raise ValueError
        if width is None and "neighbours" not in case.spec.wrong:
            raise ValueError
        arrays = dict(case.arrays)
        for name in case.directions:
            x = np.array(arrays[name], float)
            first = x.ndim - len(window) - (name == case.directions[0])
            for axis, w in enumerate(window, first):
                ends = max(int(w) // 2, 1) if width is None else width
                if x.shape[axis] > 2 * ends:
                    np.moveaxis(x, axis, 0)[:ends] = 0
                    np.moveaxis(x, axis, 0)[-ends:] = 0
            arrays[name] = x
        made = exact(replace(case, arrays=arrays))
        return {name: made[name] for name in ("dk", "dv") if name in want}

    return make


GRADIENTS = (
    ("with dk and dv without queries on the border of the grid", _without_the_border(1)),
    (
        "with dk and dv without queries near the border, whose window is moved",
        _without_the_border(None),
    ),
    ("with the part of the last sequence alone where several share a page", _of_last_sequence),
    ("with gradients of chosen keys at the first places, not at their own", _at_first_places),
    ("with the part of the last query alone where several have a key", _lost(None)),
    *(
        (f"with all but the last update lost where a key comes twice among {b} edges", _lost(b))
        for b in _BLOCKS
    ),
)
