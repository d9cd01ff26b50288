"""Supports written as sets: pictures worked by hand; attention on a support that is given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nlattn.oracle import dense, sparse
from nlattn.oracle.scram import mapped, scram, scram_support, scram_vjp, step


def field(index: Any, key_grid: tuple[int, int]) -> Any:
    index = np.array(index)
    return SimpleNamespace(index=index[..., None] if index.ndim == 2 else index, key_grid=key_grid)


def keys(support: Any, row: int) -> list[int]:
    return support[1][support[0][row] : support[0][row + 1]].tolist()


def test_a_window_is_clipped_at_the_border() -> None:
    # keys 0..11 on a 3 x 4 grid; the matches are a corner, the middle, nothing
    support = scram_support(field([[0, 6, -1]], (3, 4)), window=3)
    assert support[2] == (3, 12)
    assert keys(support, 0) == [0, 1, 4, 5]
    assert keys(support, 1) == [1, 2, 3, 5, 6, 7, 9, 10, 11]
    assert keys(support, 2) == []


def test_a_window_of_one_is_the_match() -> None:
    support = scram_support(field([[3, 1], [0, 2]], (2, 2)), window=1)
    assert support[1].tolist() == [3, 1, 0, 2]


def test_matches_moved_over_the_edge_are_dropped() -> None:
    # 1 x 3 on 1 x 8, steps of 3: a match 2 moved left would be -1, a match 5 moved right 8
    left, right = field([[6, 2, 7]], (1, 8)), field([[6, 5, 1]], (1, 8))
    assert keys(scram_support(left, kind="neighbours", window=3), 0) == [1, 2, 3, 5, 6, 7]
    assert keys(scram_support(right, kind="neighbours", window=3), 2) == [0, 1, 2, 4, 5, 6]


def test_neighbours_bring_their_matches_moved_and_unmoved() -> None:
    # 1 x 3 on 1 x 8: neighbours of query 1 match 0 and 7; moved back they say 1 and 6
    one = field([[0, 4, 7]], (1, 8))
    assert keys(scram_support(one, kind="neighbours", window=1, shift=False), 1) == [0, 4, 7]
    # the steps are scaled by 8 / 3, rounded to 3: 0 + 3 and 7 - 3
    assert step(1, 3, 8) == 3
    assert keys(scram_support(one, kind="neighbours", window=1), 1) == [0, 3, 4, 7]
    assert keys(scram_support(one, kind="neighbours", window=1, reach=0), 1) == [4]
    assert keys(scram_support(field([[-1, 4, -1]], (1, 8)), kind="neighbours", window=1), 0) == [
        1,
        4,
    ]


def test_local_is_around_the_own_place_and_keeps_the_match() -> None:
    assert [mapped(x, 3, 8) for x in range(3)] == [1, 4, 6]
    assert keys(scram_support(field([[7, 7, 7]], (1, 8)), kind="local"), 0) == [0, 1, 2, 7]


def test_topk_and_union() -> None:
    three = field([[[5, 1, 1]]], (2, 3))
    assert keys(scram_support(three, kind="topk"), 0) == [1, 5]
    assert keys(scram_support(three, kind="union", window=1), 0) == [1, 4, 5]
    assert keys(scram_support(three, kind=("topk", "local"), window=1), 0) == [1, 4, 5]


def test_masks_remove_keys() -> None:
    all_ = field([[4] * 3] * 3, (3, 3))
    support = scram_support(all_, causal=True)
    assert [keys(support, p) for p in (0, 4, 8)] == [[0], [0, 1, 2, 3, 4], list(range(9))]
    key_mask = np.arange(9).reshape(3, 3) % 2 == 0
    assert keys(scram_support(all_, key_mask=key_mask), 0) == [0, 2, 4, 6, 8]
    mask = np.zeros((2, 3, 3, 3, 3), bool)
    mask[1, 0, 0, 2, 2] = True
    support = scram_support(all_, mask=mask)
    assert support[2] == (2, 9, 9)
    assert (keys(support, 9), len(support[1])) == ([8], 1)


def test_scram_is_attention_on_its_support() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal(shape) for shape in ((2, 3, 4), (3, 4, 4), (3, 4, 2)))
    index = rng.integers(0, 12, (2, 3, 1))
    support = scram_support(field(index, (3, 4)))
    flat = q.reshape(6, 4), k.reshape(12, 4), v.reshape(12, 2)
    out, lse = scram(q, k, v, field=field(index, (3, 4)), return_lse=True)
    want, want_lse = sparse.sparse_attention(*flat, support, return_lse=True)
    np.testing.assert_array_equal(out, want.reshape(2, 3, 2))
    np.testing.assert_array_equal(lse, want_lse.reshape(2, 3))
    np.testing.assert_array_equal(out, scram(q, k, v, support=support))
    dlse = rng.standard_normal((2, 3))
    got = scram_vjp(q, k, v, out, dlse=dlse, support=support, weight="softmax")
    want = sparse.sparse_attention_vjp(*flat, support, want, dlse=dlse.ravel())
    for a, b, x in zip(got, want, (q, k, v), strict=True):
        np.testing.assert_array_equal(a, b.reshape(x.shape))


def test_a_window_over_everything_is_dense_attention() -> None:
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((3, 3, 2)) for _ in range(3))
    out = scram(q, k, v, window=5, seed=1)
    want = dense.attention(*(x.reshape(9, 2) for x in (q, k, v)))
    np.testing.assert_allclose(out.reshape(9, 2), want, rtol=1e-13)


@pytest.mark.parametrize("weight", ["gaussian", "abspow", "dot"])
def test_the_search_uses_the_score_of_the_weight(weight: str) -> None:
    rng = np.random.default_rng(2)
    q = rng.standard_normal((3, 3, 2))
    if weight == "gaussian":  # every query is its own nearest key
        np.testing.assert_array_equal(scram(q, q, q, weight=weight, window=1, iterations=8), q)
    else:
        assert scram(q, q, q, weight=weight, window=3).shape == q.shape


def test_a_search_finds_queries_among_more_keys() -> None:
    k = np.random.default_rng(3).standard_normal((4, 4, 2))
    out = scram(k[:3, :3], k, k, weight="gaussian", bandwidth=1e-9, window=1, iterations=8)
    np.testing.assert_array_equal(out, k[:3, :3])


def test_heads_share_a_mask() -> None:
    rng = np.random.default_rng(4)
    q, k, v = (rng.standard_normal((2, 3, 3, 2)) for _ in range(3))
    mask = rng.random((3, 3, 3, 3)) < 0.7
    mask[..., 1, 1] = True
    out = scram(q, k, v, window=5, mask=mask)
    want = dense.attention(*(x.reshape(2, 9, 2) for x in (q, k, v)), mask=mask.reshape(9, 9))
    np.testing.assert_allclose(out.reshape(2, 9, 2), want, rtol=1e-13)
