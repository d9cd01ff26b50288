"""The search by trees: exact where one leaf holds all keys, lawful and nearly exact elsewhere."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlattn import images, nl_means, patchmatch, psal, scram
from nlattn.engines import tree_search
from tests.helpers import for_any_threads

Grid = tuple[int, int]
grids = st.tuples(st.integers(1, 7), st.integers(1, 7))


def features(seed: int, grid: Grid, dtype: Any = np.float64) -> np.ndarray:
    """Small integers, whose products are exact in any order, with ties among them."""
    return np.random.default_rng(seed).integers(-3, 4, (*grid, 3)).astype(dtype)


def masks(kind: str, grid_q: Grid, grid_k: Grid) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    keys, pairs = rng.random(grid_k) < 0.6, rng.random((*grid_q, *grid_k)) < 0.4
    return {
        "none": {},
        "keys": {"key_mask": keys},
        "pairs": {"mask": pairs},
        "causal": {"causal": True},
        "nothing": {"key_mask": np.zeros(grid_k, bool)},
    }[kind]


@given(
    grid_q=grids,
    grid_k=grids,
    score=st.sampled_from(["dot", "neg_l2", "absdot"]),
    topk=st.integers(1, 3),
    patch=st.sampled_from([1, 3]),
    scale=st.sampled_from([1.0, -2.0]),
    kind=st.sampled_from(["none", "keys", "pairs", "causal", "nothing"]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_one_leaf_of_all_keys_is_the_exact_search(
    grid_q: Grid, grid_k: Grid, kind: str, dtype: Any, **options: Any
) -> None:
    q, k = features(1, grid_q, dtype), features(2, grid_k, dtype)
    options |= masks(kind, grid_q, grid_k)
    got = patchmatch(q, k, candidates="tree", trees=1, iterations=0, **options)
    want = patchmatch(q, k, method="exact", **options)
    np.testing.assert_array_equal(got.index, want.index)
    np.testing.assert_array_equal(got.score, want.score)


def test_cosine_and_bandwidth() -> None:
    q, k = np.random.default_rng(0).standard_normal((2, 6, 7, 4))
    for options in ({"score": "cosine"}, {"score": "neg_l2", "bandwidth": 0.3}):
        got = patchmatch(q, k, candidates="tree", **options)
        want = patchmatch(q, k, method="exact", **options)
        np.testing.assert_array_equal(got.index, want.index)
        np.testing.assert_array_equal(got.score, want.score)


@pytest.fixture
def small_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_search, "LEAF", 8)


@pytest.mark.parametrize("m", [1, 7, 8, 9, 64, 65, 100])
@pytest.mark.usefixtures("small_leaves")
def test_leaves_hold_every_key_once(m: int) -> None:
    k = np.random.default_rng(0).standard_normal((1, m, 3))
    halvings = tree_search.levels(m)
    assert -(-m >> halvings) <= 8 or m <= 8
    assert halvings == 0 or -(-m // 2 ** (halvings - 1)) > 8
    got = patchmatch(k, k, candidates="tree", trees=2, iterations=1)
    assert ((got.index >= 0) & (got.index < m)).all()


@pytest.mark.parametrize("score", ["dot", "neg_l2", "absdot", "cosine"])
@pytest.mark.parametrize("patch", [1, 3])
@pytest.mark.usefixtures("small_leaves")
def test_stored_scores_are_the_scores(score: str, patch: int) -> None:
    q, k = np.random.default_rng(1).standard_normal((2, 4, 5, 3))
    options: dict[str, Any] = {"score": score, "patch": patch}
    got = patchmatch(q, k, candidates="tree", trees=2, topk=3, **options)
    whole = patchmatch(q, k, method="exact", topk=20, **options)
    for place in np.ndindex(4, 5):
        scores = dict(zip(whole.index[place], whole.score[place], strict=True))
        assert [scores[key] for key in got.index[place]] == list(got.score[place])
    assert (np.diff(got.score, axis=-1) <= 0).all()


@pytest.mark.usefixtures("small_leaves")
def test_masks_hold_in_every_leaf() -> None:
    q, k = np.random.default_rng(2).standard_normal((2, 8, 9, 3))
    rng = np.random.default_rng(3)
    mask = rng.random((8, 9, 8, 9)) < 0.3
    mask[2, 3] = False
    got = patchmatch(q, k, candidates="tree", mask=mask, topk=2)
    for y, x in np.ndindex(8, 9):
        found = got.index[y, x]
        assert mask[y, x].reshape(-1)[found[found >= 0]].all()
    assert (got.index[2, 3] == -1).all()
    causal = patchmatch(q, k, candidates="tree", causal=True).index[..., 0].reshape(-1)
    assert (causal <= np.arange(72)).all()


@pytest.mark.usefixtures("small_leaves")
def test_slices_of_a_batch_are_searches_of_their_own() -> None:
    q, k = np.random.default_rng(4).standard_normal((2, 3, 4, 5, 4))
    together = patchmatch(q, k[1], candidates="tree", trees=2)
    for b in range(3):
        alone = patchmatch(q[b], k[1], candidates="tree", trees=2)
        np.testing.assert_array_equal(together.index[b], alone.index)
        np.testing.assert_array_equal(together.work.per_query[b], alone.work.per_query)


@pytest.mark.usefixtures("small_leaves")
def test_more_rounds_find_no_less_and_work_is_bounded() -> None:
    q, k = np.random.default_rng(5).standard_normal((2, 8, 8, 4))
    last = np.full((8, 8), -np.inf)
    for iterations in range(3):
        got = patchmatch(q, k, candidates="tree", trees=2, iterations=iterations)
        assert (got.score[..., 0] >= last).all()
        assert got.work.per_query.max() <= 2 + 8 * 2 * (1 + 9 * iterations)
        assert len(got.work.changed) == iterations
        last = got.score[..., 0]


@pytest.mark.usefixtures("small_leaves")
def test_it_stops_when_nothing_changes() -> None:
    k = np.random.default_rng(6).standard_normal((8, 8, 4))
    got = patchmatch(k, k, candidates="tree", score="neg_l2", iterations=9, stop_count=0)
    assert len(got.work.changed) < 9
    np.testing.assert_array_equal(got.index[..., 0], np.arange(64).reshape(8, 8))


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
@pytest.mark.usefixtures("small_leaves")
def test_equal_keys_and_nan_do_not_hang(value: float) -> None:
    q = np.random.default_rng(7).standard_normal((5, 8, 2))
    k = np.full((9, 7, 2), value)
    got = patchmatch(q, k, candidates="tree", nonfinite="propagate", identity=False)
    assert ((got.index >= 0) & (got.index < 63)).all()


@pytest.mark.jit
def test_threads_do_not_show() -> None:
    q, k = np.random.default_rng(9).standard_normal((2, 40, 40, 4))
    for_any_threads(lambda: patchmatch(q, k, candidates="tree", trees=2, topk=2)[:2])


@pytest.mark.parametrize("function", [scram, psal, nl_means])
def test_others_pass_it_on(function: Any) -> None:
    x = np.random.default_rng(10).standard_normal((5, 4, 2))
    if function is nl_means:
        options: dict[str, Any] = {"sigma": 0.5, "search": "patchmatch", "patch_size": 3, "topk": 3}
        arrays = [x]
    else:
        options, arrays = {"topk": 2}, [x, x, x]
    got = function(*arrays, candidates="tree", **options)
    assert got.shape == x.shape
    with pytest.raises(ValueError, match="candidates='leaf', expected 'random' or 'tree'"):
        function(*arrays, candidates="leaf", **options)


def test_progress_counts_trees() -> None:
    seen: list[tuple[int, int]] = []
    k = np.random.default_rng(8).standard_normal((4, 4, 2))
    patchmatch(
        k, k, candidates="tree", trees=2, iterations=1, progress=lambda a, b: seen.append((a, b))
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_it_has_no_jumps() -> None:
    k = np.ones((2, 2, 1))
    text = "patchmatch: jumps belongs to candidates='random'; trees ask the next neighbours"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        patchmatch(k, k, candidates="tree", jumps=(1,))
    with pytest.raises(ValueError, match="candidates='trees', expected 'random' or 'tree'"):
        patchmatch(k, k, candidates="trees")


@pytest.mark.jit
def test_it_finds_what_random_candidates_miss() -> None:
    """A photograph against its shifted noisy copy: random search finds some 0.7 of it."""
    image = images.photograph().reshape(64, 8, 64, 8, 3).mean((1, 3))
    k = images.patch_features(image)
    noise = np.random.default_rng(0).standard_normal(k.shape).astype(k.dtype)
    q = np.roll(k, (7, 11), (0, 1)) + np.float32(0.02) * noise
    best = patchmatch(q, k, method="exact").score
    share = (patchmatch(q, k, candidates="tree").score == best).mean()
    assert share > 0.95
