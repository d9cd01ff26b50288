"""Matches that are as good as can be if their numbers, or what was asked, are read otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from nlattn._types import Array
from nlattn.conformance.case import Case

Gaps = Callable[[Case, Array], Array]
"""How much worse than the best key of each query the best that was found is."""
PART = 0.1
"""The share of the regret that may be left."""


class Readings:
    """Regret of matches on several pictures, as they are and read otherwise."""

    def __init__(self, gaps: Gaps) -> None:
        self._gaps = gaps
        self._regret: dict[str, list[float]] = {}

    def look(self, case: Case, index: Array) -> None:
        """Count one picture, where a reading makes a difference."""
        m = int(np.prod(case.arrays["k"].shape[:2]))
        for name, other, read in _readings(case, index):
            mine = self._mean(case, np.clip(index, 0, m - 1))
            theirs = self._mean(other, read) if ((read >= 0) & (read < m)).all() else np.inf
            both = self._regret.setdefault(name, [0.0, 0.0])
            both[0] += mine
            both[1] += theirs

    def _mean(self, case: Case, index: Array) -> float:
        found = self._gaps(case, index)
        return float(found[np.isfinite(found)].mean()) + float((~np.isfinite(found)).mean())

    def said(self) -> str:
        """The reading that leaves little of the regret, in a sentence; empty if none does."""
        least = min(self._regret, key=lambda x: self._regret[x][1], default="")
        if not least:
            return ""
        mine, theirs = self._regret[least]
        return f"your matches are good {least}" if theirs < PART * mine else ""


def _readings(case: Case, index: Array) -> Iterator[tuple[str, Case, Array]]:
    """Words, and what was asked and answered, read otherwise."""
    h, w = case.arrays["k"].shape[:2]
    yield "if keys are numbered column by column", case, index % h * w + index // h
    yield "if keys are numbered from 1", case, index - 1
    for name in ("patch", "score"):
        if name in case.options:
            left = {n: x for n, x in case.options.items() if n != name}
            yield f"as if {name} were not given", replace(case, options=left), index
    if "key_mask" in case.arrays:
        arrays = {n: x for n, x in case.arrays.items() if n != "key_mask"}
        yield "as if key_mask were not given", replace(case, arrays=arrays), index
