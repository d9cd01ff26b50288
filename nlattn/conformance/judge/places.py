"""Keys that a search never finds, though they are the best of many queries."""

from __future__ import annotations

from math import comb

import numpy as np

from nlattn._types import Array

LEAST = 20
"""Queries without which nothing is said of a place."""
CHANCE = 1e-9
"""Of blaming a search that finds keys of a place half as often as those of all others."""


class Places:
    """How often the best keys of a row, a column, or a half of the grid of keys were found."""

    def __init__(self) -> None:
        self._seen: dict[str, list[int]] = {}

    def look(self, best: Array, found: Array, grid: tuple[int, ...]) -> None:
        """Count one picture: the best key of every query, and whether it was found."""
        for name, keys in _places(*grid).items():
            here = keys.ravel()[best]
            counts = [int(x.sum()) for x in (here, here & found, ~here, ~here & found)]
            before = self._seen.get(name, [0, 0, 0, 0])
            self._seen[name] = [a + b for a, b in zip(before, counts, strict=True)]

    def never(self) -> str:
        """Places whose keys are found too rarely, in words; of several the most blamed."""
        least, said = CHANCE, ""
        for name, (here, hits, there, others) in self._seen.items():
            if here < LEAST or not others:
                continue
            chance = _at_most(hits, here, others / there / 2)
            if chance < least:
                least = chance
                said = (
                    f"keys of {name} are found by {hits} of {here} queries whose best they are, "
                    f"others by {others / there:.0%}"
                )
        return said


def _places(H: int, W: int) -> dict[str, Array]:
    y, x = np.mgrid[:H, :W]
    return {
        "the first row": y == 0,
        "the last row": y == H - 1,
        "the first column": x == 0,
        "the last column": x == W - 1,
        "the upper half": y < H // 2,
        "the lower half": y >= H // 2,
        "the left half": x < W // 2,
        "the right half": x >= W // 2,
        "even rows": y % 2 == 0,
        "odd rows": y % 2 == 1,
        "even columns": x % 2 == 0,
        "odd columns": x % 2 == 1,
    }


def _at_most(hits: int, of: int, share: float) -> float:
    """Chance of no more hits, of this share each."""
    return float(
        sum(comb(of, i) * share**i * (1 - share) ** (of - i) for i in range(hits + 1))
        if of < 1000
        else np.exp(-2 * of * max(share - hits / of, 0.0) ** 2)
    )
