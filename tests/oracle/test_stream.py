"""The oracle of the stream: a set worked by hand, and the offline set in every order."""

from __future__ import annotations

import numpy as np
import pytest

from nlattn.oracle.leverage import leverage_scores
from nlattn.oracle.stream import empty, leverage_stream, merge, update


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_one_channel_by_hand() -> None:
    """Shares of the sum of squares: 1, then 1/5 and 4/5, then 1/14, 4/14 and 9/14."""
    state = empty(1)
    for number, held in ((1.0, [0]), (2.0, [1]), (3.0, [1, 2])):
        state = update(state, np.array([[number]]), 0.25)
        assert state.index.tolist() == held
    assert update(state, np.array([[10.0]]), 0.25).index.tolist() == [3]


@pytest.mark.parametrize("block", [1, 7, 50, 200])
def test_it_ends_with_the_offline_set(block: int) -> None:
    k = normal(200, 4) * np.random.default_rng(1).pareto(2, (200, 1))
    want = np.flatnonzero(leverage_scores(k) >= 0.05)
    state = leverage_stream(np.split(k, range(block, 200, block)), 4, 0.05)
    assert state.index.tolist() == want.tolist()
    assert 2 < len(want) <= 4 / 0.05


def test_keys_of_less_than_full_rank() -> None:
    k = normal(60, 2) @ normal(2, 4, seed=1)
    want = np.flatnonzero(leverage_scores(k) >= 0.08)
    assert leverage_stream(np.split(k, 10), 4, 0.08).index.tolist() == want.tolist()
    assert leverage_stream([np.zeros((3, 4))], 4, 0.5).index.tolist() == []


def test_parts_merge_in_any_order() -> None:
    k = normal(90, 3) * np.random.default_rng(1).pareto(2, (90, 1))
    want = np.flatnonzero(leverage_scores(k) >= 0.06)
    parts = []
    for i in range(3):
        part = update(empty(3), k[30 * i : 30 * i + 30], 0.06)
        parts.append(part._replace(index=part.index + 30 * i))
    for a, b, c in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        whole = merge(merge(parts[a], parts[b], 0.06), parts[c], 0.06)
        assert whole.index.tolist() == want.tolist()
