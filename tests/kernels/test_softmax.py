"""Kernels of dense attention on poisoned results: every element is written, none twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlattn import _check
from nlattn.engines.dense import dot_scores
from nlattn.kernels import softmax
from nlattn.kernels.gemm import width
from nlattn.kernels.panel import KEYS, TILE, Scores, groups
from nlattn.oracle import dense as oracle
from nlattn.runtime import jit


def problem(q: Any, k: Any) -> Scores:
    return dot_scores(_check.frozen(q[None]), _check.frozen(k[None]), 1.0)


def test_groups_cover_the_tasks_once() -> None:
    for tasks, cost in ((0, 5), (1, 0), (100, 10**9), (1000, 10**8), (33, 10**12)):
        spans = list(groups(tasks, cost))
        assert [i for span in spans for i in span] == list(range(tasks))


@pytest.mark.jit
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "m"), [(TILE + 3, KEYS + 5), (1, 2 * KEYS), (2 * TILE, 1)])
def test_tiles_meet_at_their_edges(n: int, m: int, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((size, 5)).astype(dtype) for size in (n, m, m))
    want, lse_want = oracle.attention(q, k, v, scale=1.0, return_lse=True)
    out, norm = np.full((1, n, 5), np.nan, dtype), np.full((2, 1, n), np.nan, dtype)
    tiles = -(-n // TILE)
    for tile in reversed(range(tiles)):
        softmax.attend(range(tile, tile + 1), problem(q, k), _check.frozen(v[None]), out, norm)
    bound = 200 * np.finfo(dtype).eps
    np.testing.assert_allclose(out[0], want, atol=bound)
    np.testing.assert_allclose(norm[0, 0] + np.log(norm[1, 0]), lse_want, atol=10 * bound)

    value, index = np.full((n, 1), np.nan, dtype), np.full((n, 1), -7)
    softmax.topk(-(-n // width(q)), problem(q, k), value, index)
    np.testing.assert_array_equal(index[:, 0], (q @ k.T).argmax(1))
    out = np.full((m, 5), np.nan, dtype)
    softmax.adjoint(-(-m // KEYS), problem(q, k), _check.frozen(norm), _check.frozen(q), out)
    weights = oracle.attention_stages(q, k, v, scale=1.0).weights
    np.testing.assert_allclose(out, weights.T @ q, atol=20 * bound * max(1, n / m))


@jit.function
def insert(value: np.ndarray, index: np.ndarray, new: float, key: int) -> None:
    softmax.insert(value, index, new, key)


def test_an_insertion_keeps_equals_in_order() -> None:
    value, index = np.full(3, -np.inf), np.full(3, -1)
    for key, new in enumerate([1.0, 2.0, 2.0, 1.0, 3.0]):
        if new > value[-1]:
            insert(value, index, new, key)
    np.testing.assert_array_equal(value, [3, 2, 2])
    np.testing.assert_array_equal(index, [4, 1, 2])
