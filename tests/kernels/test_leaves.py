"""Leaves that are proposed to a query: those of matches nearby, moved inside the grid of keys."""

from __future__ import annotations

import numpy as np

from nlattn.kernels import leaves
from nlattn.kernels.matching import SAME, SHIFT, Plan


def proposed(index: list[int], propagate: int) -> list[set[int]]:
    """Leaves for each query of a 2 x 2 grid, every key being a leaf of its own."""
    plan = Plan(2, 2, 2, 2, 1, 1, 0, 1.0, propagate, 0, 0, 0)
    tried = np.full((4, leaves.SLOTS), -1)
    slots = np.full((4, leaves.SLOTS), -7)
    matches = np.array(index, np.int32)[:, None]
    leaves.propose(1, matches, np.arange(4), plan, tried, slots)
    assert all(len(row[row >= 0]) == len(set(row[row >= 0])) for row in slots)
    return [{int(x) for x in row if x >= 0} for row in slots]


def test_matches_of_neighbours_as_they_are() -> None:
    assert proposed([3, 0, 0, -1], SAME) == [{3, 0}, {0, 3}, {0, 3}, set()]


def test_matches_of_neighbours_moved_inside_the_grid() -> None:
    # query 0: to its right 1 matches 3, moved back 2; below 2 matches 2, moved back 0
    assert proposed([1, 3, 2, 0], SHIFT)[0] == {1, 2, 0}
    # query 3: to its left 2 matches 2, moved 3; above 1 matches 3, moved below the grid
    assert proposed([1, 3, 2, 0], SHIFT)[3] == {0, 3}
    # query 0: both neighbours match key 0, which has nothing to its left, nor above
    assert proposed([3, 0, 0, 3], SHIFT)[0] == {3}
    # query 3: both neighbours match key 3, which has nothing to its right, nor below
    assert proposed([0, 3, 3, 0], SHIFT)[3] == {0}
