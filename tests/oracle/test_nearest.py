"""The oracle of nearest keys: numbers by hand, ties, and what may not be taken."""

from __future__ import annotations

import numpy as np
import pytest

from nlattn.oracle import nearest as oracle
from nlattn.oracle import patchmatch

Q = np.array([[1.0, 0], [0, 2]])
K = np.array([[1.0, 1], [3, 0], [0, -1], [1, 1]])


def test_numbers_worked_by_hand() -> None:
    found = oracle.nearest_keys(Q, K, topk=3, scale=1.0)
    assert found.index.tolist() == [[1, 0, 3], [0, 3, 1]]
    assert found.score.tolist() == [[3, 1, 1], [2, 2, 0]]
    near = oracle.nearest_keys(Q, K, score="neg_l2", bandwidth=2.0)
    assert near.index.tolist() == [[0], [0]]
    assert near.score.tolist() == [[-0.25], [-0.5]]
    turned = oracle.nearest_keys(Q, K, score="cosine", topk=2)
    assert turned.index.tolist() == [[1, 0], [0, 3]]


def test_forbidden_keys_are_never_taken() -> None:
    mask = np.array([[True, False, True, False], [False] * 4])
    found = oracle.nearest_keys(Q, K, topk=5, scale=1.0, mask=mask)
    assert found.index.tolist() == [[0, 2, -1, -1, -1], [-1] * 5]
    assert found.score[0].tolist() == [1, 0, -np.inf, -np.inf, -np.inf]
    assert oracle.nearest_keys(Q, K, scale=1.0, causal=True).index.tolist() == [[0], [0]]
    assert oracle.nearest_keys(Q, K[:0]).index.tolist() == [[-1], [-1]]


@pytest.mark.parametrize("score", ["dot", "cosine", "neg_l2", "absdot"])
def test_it_is_the_exact_search_of_patchmatch(score: str) -> None:
    q, k = np.random.default_rng(0).integers(-2, 3, (2, 4, 5, 3)).astype(float)
    want = patchmatch.patchmatch(q, k, topk=6, method="exact", score=score)
    got = oracle.nearest_keys(q.reshape(20, 3), k.reshape(20, 3), topk=6, score=score)
    np.testing.assert_array_equal(got.index, want.index.reshape(20, 6))
    np.testing.assert_array_equal(got.score, want.score.reshape(20, 6))
