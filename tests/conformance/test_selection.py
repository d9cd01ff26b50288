"""Tables of chosen keys: the set, the order and ties are told apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nlattn
from nlattn.conformance import judge_selection

SCORES = np.array([[3.0, 1.0, 2.0, 2.0, -np.inf]])


@pytest.mark.parametrize(
    ("index", "verdict", "detail"),
    [
        ([0, 2], (True, True, True), ""),
        ([0, 3], (True, True, False), "query [0] holds other keys of the same score"),
        ([2, 0], (True, False, True), "query [0] has key 0 too late"),
        ([0, 1], (False, False, False), "query [0] keeps key 1 and leaves out key 2"),
        ([0, 0], (False, False, False), "query [0] has 1 different keys, expected 2"),
        ([0, -1], (False, False, False), "query [0] has 1 different keys, expected 2"),
        ([0, 4], (False, False, False), "query [0] has key 4, which it may not see"),
        ([0, 9], (False, False, False), "query [0] has key 9, which it may not see"),
    ],
)
def test_what_is_wrong_is_told_apart(index: Any, verdict: Any, detail: str) -> None:
    found = judge_selection(SCORES, np.array([index]))
    assert found[:3] == verdict
    assert found.detail.startswith(detail)
    assert bool(found.detail) == bool(detail)


def test_scores_that_rounding_cannot_tell_apart() -> None:
    """A key within both bounds of another may stand for it, one beyond may not."""
    table = np.array([[0, 1]])
    assert judge_selection(SCORES, table, bound=0.6).right
    assert not judge_selection(SCORES, table, bound=0.4).right
    assert judge_selection(SCORES, np.array([[2, 0]]), bound=0.6).ordered
    assert not judge_selection(SCORES, np.array([[2, 0]]), bound=0.4).ordered
    bound = np.array([[0, 0, 1.1, 1.1, 0]])
    assert judge_selection(SCORES, table, bound=bound)[:2] == (True, True)


def test_our_own_choice_is_right_ordered_and_lowest() -> None:
    rng = np.random.default_rng(0)
    scores = np.maximum(rng.standard_normal((2, 9, 12)), 0)
    for options in ({}, {"causal": True, "causal_offset": 1}):
        table = nlattn.topk_keys(scores, 5, **options)
        assert judge_selection(scores, table, **options) == (True, True, True, "")
    shapes = "has shape (1, 9, 5), for scores (2, 9, 12)"
    assert judge_selection(scores, table[:1]) == (False, False, False, shapes)
