"""A tree of hyperplanes, node by node: what halves the keys, and where queries fall."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlattn.engines import tree_search
from nlattn.kernels import scores
from nlattn.kernels.matching import SAME, SHIFT, Plan

GRID, D = (4, 5), 2


def patches(x: Any, grid: tuple[int, int], patch: int) -> Any:
    """Patches (n, patch * patch * d) of a padded grid, one after the other."""
    whole = x.reshape(grid[0] + patch - 1, grid[1] + patch - 1, D)
    return np.array(
        [
            whole[a : a + patch, b : b + patch].ravel()
            for a in range(grid[0])
            for b in range(grid[1])
        ]
    )


def away_squared(rows: Any) -> Any:
    """Squared distances of all pairs."""
    return ((rows[:, None] - rows) ** 2).sum(-1)[np.triu_indices(len(rows), 1)]


def grown(patch: int, kind: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(tree_search, "LEAF", 4)
    rng = np.random.default_rng(patch)
    q, k = rng.standard_normal((2, (GRID[0] + patch - 1) * (GRID[1] + patch - 1) * D))
    plan = Plan(*GRID, *GRID, D, patch, kind, 1.0, SAME | SHIFT, 0, 7, 0)
    squares = tree_search.key_squares(k, plan)
    extra = tree_search.lengthening(squares, squares.max(), plan)
    return q, k, plan, extra, tree_search.grow(k, extra, plan, 3)


@pytest.mark.parametrize("patch", [1, 2, 3])
@pytest.mark.parametrize("kind", [scores.DOT, scores.NEG_L2])
def test_nodes_halve_their_keys_along_a_difference_of_two_patches(
    patch: int, kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, k, _, extra, (order, home, planes, thresholds) = grown(patch, kind, monkeypatch)
    rows = np.hstack([patches(k, GRID, patch), extra[:, None]])
    m, planes = len(rows), planes.reshape(len(thresholds), -1)
    assert len(thresholds) == 8
    for level in range(3):
        for node in range(1 << level):
            first, middle, last = ((2 * node + i) * m >> (level + 1) for i in (0, 1, 2))
            own = order[first:last]
            plane = planes[(1 << level) + node]
            away = abs(rows[own][:, None] - rows[own] - plane).max(-1)
            assert away.min() < 1e-12  # the difference of two of its own keys, far apart
            pairs = np.sqrt(away_squared(rows[own]))
            assert np.sqrt((plane**2).sum()) >= np.median(pairs)
            along = rows @ plane
            threshold = thresholds[(1 << level) + node]
            assert along[order[first:middle]].max() <= threshold + 1e-12
            assert along[order[middle:last]].min() == pytest.approx(threshold)
    leaves = np.array([order[i * m >> 3 : (i + 1) * m >> 3].tolist() for i in range(8)], object)
    for number, leaf in enumerate(leaves):
        assert leaf == sorted(leaf)
        assert (home[leaf] == number).all()


@pytest.mark.parametrize("patch", [1, 2, 3])
@pytest.mark.parametrize("kind", [scores.DOT, scores.ABSDOT, scores.NEG_L2])
def test_queries_fall_on_the_side_of_their_product(
    patch: int, kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, plan, extra, (_, _, planes, thresholds) = grown(patch, kind, monkeypatch)
    reach = tree_search.reaches(q, tree_search.key_squares(k, plan).max(), plan)
    own = tree_search.fall(q, reach, plan, planes, thresholds)
    lengths = np.sqrt((patches(q, GRID, patch) ** 2).sum(1))
    longest = np.sqrt((patches(k, GRID, patch) ** 2).sum(1)).max()
    if kind != scores.NEG_L2:
        np.testing.assert_allclose(reach, longest / lengths)
        assert extra.min() == 0
    found = []
    for sign in (1, -1):
        for row in sign * reach[:, None] * patches(q, GRID, patch):
            node = 1
            while node < len(thresholds):
                plane = planes.reshape(len(thresholds), -1)[node]
                node = 2 * node + int(row @ plane[:-1] >= thresholds[node])
            found.append(node - len(thresholds))
    one, other = np.array(found).reshape(2, -1)
    assert own[0].tolist() == one.tolist()
    if kind == scores.ABSDOT:  # a leaf that is both is tried once
        assert own[1].tolist() == np.where(other == one, -1, other).tolist()


def test_a_query_and_its_opposite_in_one_leaf_count_once() -> None:
    plan = Plan(1, 2, 1, 2, D, 1, scores.ABSDOT, 1.0, SAME | SHIFT, 0, 0, 0)
    q = np.array([0.0, 0, 1, 0])
    planes = np.array([0.0, 0, 0, 1, 0, 0])  # one node, across the first channel
    own = tree_search.fall(q, np.ones(2), plan, planes, np.array([0.0, 0.5]))
    assert own.tolist() == [[0, 1], [-1, 0]]


def test_keys_of_nan_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_search, "LEAF", 8)
    k = np.random.default_rng(0).standard_normal(16 * D)
    k[5 * D] = np.nan
    plan = Plan(4, 4, 4, 4, D, 1, scores.NEG_L2, 1.0, SAME | SHIFT, 0, 0, 0)
    seen = 0
    for number in range(8):  # trees, of which some begin at the key itself
        order, _, planes, _ = tree_search.grow(k, np.zeros(16), plan, number)
        if np.isfinite(planes).all():
            seen += 1
            assert 5 in order[:8]
    assert seen
