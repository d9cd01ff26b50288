"""Where in a result wrong elements are: which heads, rows or channels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nlattn._types import Array
from nlattn.conformance.case import Case


def place(wrong: Array, names: Sequence[str]) -> tuple[str, int]:
    """Where along one axis, of these names, all wrong elements are, and at how many places.

    Empty and 0 if they are spread over most of all.
    """
    for axis in range(wrong.ndim):
        others = tuple(a for a in range(wrong.ndim) if a != axis)
        bad = np.flatnonzero(wrong.any(others))
        size = wrong.shape[axis]
        if not 0 < len(bad) < size:
            continue
        last = np.array_equal(bad, np.arange(bad[0], size))
        if len(bad) > size / 2 and not (last and (bad[0] % 8 == 0 or names[axis] == "head")):
            continue
        if last:
            return f"from {names[axis]} {bad[0]} on", len(bad)
        if np.array_equal(bad, np.arange(bad[-1] + 1)):
            return f"up to {names[axis]} {bad[-1]}", len(bad)
        few = f"{', '.join(map(str, bad[:6]))}{'...' * (len(bad) > 6)}"
        return f"at {names[axis]} {few}", len(bad)
    return "", 0


_AXES = {
    "n": "row", "m": "key", "h": "head", "s": "sequence", "t": "learned query", "kh": "row of taps",
    "kw": "column of taps", "count": "page", "parts": "set", "f": "phase",
}  # fmt: skip
"""What lies along axes of arrays; of grids rows and columns, else channels."""


def axes(case: Case, x: Array, name: str = "") -> list[str]:
    """What lies along each axis of a result: heads, rows, channels."""
    spec, first = case.spec, case.results[0]
    own = name if case.kind == "forward" else name[1:]
    if case.kind == "vjp":
        letters = spec.arrays.get(own, "").split()
    else:  # beside the first result one number for each row
        letters = spec.out.split() if own in ("", first) else spec.out.split()[:-1]
    if name == "dsinks":
        letters = []
    elif name in ("dbias", "dweight"):
        letters = ["n", "m"][-x.ndim :]
    if spec.cases.result == "set":
        letters = ["m"]
    words = [_axis(letter) for letter in letters][-x.ndim :]
    before = x.ndim - len(words)
    lead = ["head"] if before == 1 else [*["batch"] * (before - 1), "head"]
    return [*(lead if before > 0 else []), *words]


def _axis(letter: str) -> str:
    if letter[0] in "HW":
        return "row of the grid" if letter[0] == "H" else "column of the grid"
    return _AXES.get(letter, "channel")
