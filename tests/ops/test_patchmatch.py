"""PatchMatch: equal to its oracle, counted exactly, and honest about what it misses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

import nlattn
from nlattn import patchmatch
from nlattn.oracle import patchmatch as oracle
from tests.helpers import for_any_threads
from tests.oracle.test_patchmatch import GOLDEN, integer_features

Grid = tuple[int, int]


def check(q: np.ndarray, k: np.ndarray, **options: object) -> None:
    """Same matches, scores, counts and changes as the oracle's, in both float types."""
    want = oracle.patchmatch(q, k, **options)
    for dtype in (np.float32, np.float64):
        got = patchmatch(q.astype(dtype), k.astype(dtype), **options)
        np.testing.assert_array_equal(got.index, want.index)
        np.testing.assert_array_equal(got.score, want.score)
        np.testing.assert_array_equal(got.work.per_query, want.tested)
        assert got.work.changed.tolist() == want.changed
        assert got.work.scores == want.tested.sum()


@pytest.mark.parametrize("case", [case for case in GOLDEN if case[0] == "buffered"], ids=str)
def test_golden_cases(case: tuple) -> None:
    method, grid_q, grid_k, iterations = case
    matches, total, tested, changed, _ = GOLDEN[case]
    q, k = integer_features(101, *grid_q), integer_features(102, *grid_k)
    got = patchmatch(
        q, k, iterations=iterations, jumps=(2, 1), scale=1, seed=7, identity=False, method=method
    )
    assert " ".join(map(str, got.index.ravel())) == matches
    assert got.score.sum() == total
    assert got.work.per_query.sum() == tested
    assert got.work.changed.tolist() == [changed]
    assert got.key_grid == grid_k


grids = st.tuples(st.integers(1, 6), st.integers(1, 6))


@given(
    grid_q=grids,
    grid_k=grids,
    seed=st.sampled_from([0, 7, 2**64 - 1]),
    topk=st.integers(1, 4),
    propagate=st.sampled_from(["same", "shift", "both"]),
    score=st.sampled_from(["dot", "neg_l2", "absdot"]),
    patch=st.sampled_from([1, 3]),
    jumps=st.sampled_from([(8, 4, 2, 1), (1,), (2, 1)]),
    iterations=st.integers(0, 2),
    mask=st.sampled_from(["none", "keys", "pairs", "causal", "all", "nothing"]),
    identity=st.booleans(),
)
def test_equals_the_oracle_on_integers(
    grid_q: Grid, grid_k: Grid, seed: int, mask: str, **options: object
) -> None:
    q, k = integer_features(1, *grid_q), integer_features(2, *grid_k)
    rng = np.random.default_rng(3)
    masks: dict[str, object] = {}
    if mask in ("keys", "all"):
        masks["key_mask"] = rng.random(grid_k) < 0.6
    if mask in ("pairs", "all"):
        masks["mask"] = rng.random((*grid_q, *grid_k)) < 0.4
    if mask == "nothing":
        masks["key_mask"] = np.zeros(grid_k, bool)
    masks["causal"] = mask in ("causal", "all")
    check(q, k, seed=seed, scale=1, **masks, **options)


@pytest.mark.parametrize("topk", [1, 5])
@pytest.mark.parametrize("score", ["dot", "cosine", "neg_l2", "absdot"])
def test_exact_search(score: str, topk: int) -> None:
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((5, 6, 4)), rng.standard_normal((7, 5, 4))
    q[0, 0] = 0
    got = patchmatch(q, k, method="exact", topk=topk, score=score, bandwidth=0.7)
    S = oracle.scores(q.reshape(30, 4), k.reshape(35, 4), score=score, bandwidth=0.7)
    order = np.argsort(-S, axis=1, kind="stable")[:, :topk]
    np.testing.assert_array_equal(got.index.reshape(30, topk), order)
    want = np.take_along_axis(S, order, 1)
    np.testing.assert_allclose(got.score.reshape(30, topk), want, rtol=1e-14, atol=1e-15)
    assert got.work.scores == 30 * 35
    assert (got.work.per_query == 35).all()


def test_one_match_in_a_list_is_one_match_alone() -> None:
    rng = np.random.default_rng(1)
    q, k = rng.standard_normal((2, 9, 8, 5))
    one = patchmatch(q, k, topk=1, iterations=0)
    two = patchmatch(q, k, topk=2, iterations=0, identity=False)
    assert one.index.shape == (9, 8, 1)
    assert two.index.shape == (9, 8, 2)
    assert (two.index[..., 1] == -1).all()
    assert (two.score[..., 1] == -np.inf).all()


def expected_tested(H: int, W: int, T: int, jumps: tuple[int, ...]) -> float:
    """Mean candidates of a query without mask: ``same``, equal grids, no own place."""
    draws = int(np.floor(np.log2(max(H, W)))) + 1
    near = sum(2 * max(0, 1 - j / H) + 2 * max(0, 1 - j / W) for j in jumps)
    return 1 + T * (near + draws)


@pytest.mark.jit
@pytest.mark.parametrize("side", [32, 40, 64, 128])
def test_counted_work_follows_the_law(side: int) -> None:
    q, k = np.random.default_rng(side).standard_normal((2, side, side, 2)).astype(np.float32)
    options = {"identity": False, "iterations": 4}
    same = patchmatch(q, k, propagate="same", **options)
    assert same.work.per_query.mean() == expected_tested(side, side, 4, (8, 4, 2, 1))
    both = patchmatch(q, k, propagate="both", iterations=5, identity=False)
    assert both.work.per_query.max() <= 1 + 5 * (32 + int(np.log2(side)) + 1)
    if side == 40:
        assert same.work.per_query.mean() == 83


def test_scores_never_fall() -> None:
    rng = np.random.default_rng(2)
    q, k = rng.standard_normal((2, 9, 9, 3))
    runs = [patchmatch(q, k, iterations=t).score for t in range(4)]
    for before, after in itertools.pairwise(runs):
        assert (after >= before).all()


def test_no_iteration_leaves_the_random_start() -> None:
    q, k = np.random.default_rng(3).standard_normal((2, 5, 7, 3))
    got = patchmatch(q, k, iterations=0, seed=5, identity=False)
    assert (got.work.per_query == 1).all()
    for p in range(35):
        row = oracle.bounded(oracle.key(5, 0, 0, p, 0), 5)
        assert got.index.ravel()[p] == row * 7 + oracle.bounded(oracle.key(5, 0, 0, p, 1), 7)


def test_equal_keys_go_to_the_lowest() -> None:
    q, k = np.ones((4, 4, 2)), np.ones((3, 3, 2))
    assert (patchmatch(q, k, method="exact").index == 0).all()
    found = patchmatch(q, k, iterations=8)
    assert (found.index == 0).mean() > 0.9
    assert (found.score == found.score.max()).all()


def test_early_stop_counts_quiet_iterations() -> None:
    q, k = np.random.default_rng(4).standard_normal((2, 6, 6, 2))
    full = patchmatch(q, k, iterations=30)
    stopped = patchmatch(q, k, iterations=30, stop_count=0, patience=2)
    changed = stopped.work.changed.tolist()
    assert changed[-2:] == [0, 0]
    assert changed == full.work.changed[: len(changed)].tolist()
    assert len(changed) < 30


def test_slices_are_searched_alone() -> None:
    rng = np.random.default_rng(5)
    q, k = rng.standard_normal((2, 3, 5, 4, 2)), rng.standard_normal((3, 4, 6, 2))
    whole = patchmatch(q, k, seed=9)
    for b in range(2):
        for h in range(3):
            alone = patchmatch(q[b, h], k[h], seed=9, first_slice=3 * b + h)
            np.testing.assert_array_equal(whole.index[b, h], alone.index)
            np.testing.assert_array_equal(whole.score[b, h], alone.score)


@pytest.mark.jit
def test_matches_are_the_same_for_any_number_of_threads() -> None:
    q, k = np.random.default_rng(6).standard_normal((2, 2, 70, 45, 6)).astype(np.float32)
    for_any_threads(lambda: [patchmatch(q, k, topk=topk).index for topk in (1, 3)])


def test_masked_keys_are_never_matched() -> None:
    rng = np.random.default_rng(7)
    q, k = rng.standard_normal((2, 6, 5, 2)), rng.standard_normal((4, 7, 2))
    key_mask = rng.random((4, 7)) < 0.3
    mask = rng.random((2, 6, 5, 4, 7)) < 0.2
    mask[0, 2] = False
    got = patchmatch(q, k, key_mask=key_mask, mask=mask, topk=3)
    for at in np.ndindex(2, 6, 5):
        valid = (key_mask & mask[at]).ravel()
        found = got.index[at][got.index[at] >= 0]
        assert valid[found].all()
        assert (len(found) == 0) == (not valid.any())
    assert (got.score[got.index < 0] == -np.inf).all()
    assert (got.index[0, 2] == -1).all()


def test_nan_is_never_matched() -> None:
    rng = np.random.default_rng(8)
    q, k = rng.standard_normal((2, 6, 6, 3))
    k[::2] = np.nan
    got = patchmatch(q, k, nonfinite="propagate", iterations=8, topk=1)
    assert not np.isnan(got.score).any()
    rows = got.index[..., 0] // 6
    assert (rows % 2 == 1).all()


def test_progress_is_told() -> None:
    q, k = np.ones((2, 3, 3, 1))
    told: list[tuple[int, int]] = []
    patchmatch(q, k, iterations=2, jumps=(2, 1), progress=lambda *at: told.append(at))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"topk": 65}, ValueError, "patchmatch: topk=65, expected at most 64"),
        ({"iterations": -1}, ValueError, "patchmatch: iterations=-1, expected at least 0"),
        ({"jumps": (4, 0)}, ValueError, "patchmatch: jumps=0, expected at least 1"),
        (
            {"patch": 2},
            ValueError,
            "patchmatch: patch=2 is even, expected an odd width so that its centre is a pixel",
        ),
        (
            {"score": "l2"},
            ValueError,
            "patchmatch: score='l2', expected 'dot', 'cosine', 'neg_l2' or 'absdot'",
        ),
        ({"bandwidth": 0}, ValueError, "patchmatch: bandwidth=0.0, expected a positive number"),
        ({"seed": -1}, ValueError, "patchmatch: seed=-1, expected at least 0"),
        ({"causal": 1}, TypeError, "patchmatch: causal=1 is no bool"),
        (
            {"key_mask": np.ones((3, 3))},
            TypeError,
            "patchmatch: key_mask has dtype float64, expected bool, True where a key may be used; "
            "key_mask != 0 if it is 1 there, key_mask == 0 if it is 0 there and -inf elsewhere",
        ),
        (
            {"key_mask": np.ones((3, 4), bool)},
            ValueError,
            "patchmatch: key_mask has shape (3, 4), expected (..., Hk Wk) = (3, 3)",
        ),
        (
            {"key_mask": np.ones((2, 3, 3), bool)},
            ValueError,
            "patchmatch: key_mask has leading axes (2,), expected axes that broadcast to ()",
        ),
        (
            {"max_bytes": 100},
            MemoryError,
            "patchmatch: needs 432 B (1 matches of 9 queries), above max_bytes=100 B; tile q",
        ),
    ],
)
def test_bad_options(options: dict, error: type[Exception], text: str) -> None:
    q, k = np.ones((2, 3, 3, 1))
    with pytest.raises(error) as caught:
        patchmatch(q, k, **options)
    assert str(caught.value) == text


def test_absurd_sizes_are_refused_before_anything_is_allocated() -> None:
    huge = np.lib.stride_tricks.as_strided(np.zeros(1), (1 << 16, 1 << 16, 1), (0, 0, 0))
    with pytest.raises(MemoryError, match=r"needs 8\.59 GB \(a contiguous copy of q\)"):
        patchmatch(huge[: 1 << 15, : 1 << 15], np.ones((2, 2, 1)), nonfinite="propagate")


# Reference recalls of docs/algorithms/patchmatch.md, section "How good": five seeds' means lay
# inside these bands in two independent implementations.


def smooth(rng: np.random.Generator, blur: float) -> np.ndarray:
    x = rng.standard_normal((40, 40, 16))
    x = np.stack([gaussian_filter(x[..., c], blur, mode="nearest") for c in range(16)], -1)
    return x / x.std((0, 1))


def fields(name: str, seed: int) -> tuple[np.ndarray, np.ndarray, dict]:
    rng = np.random.default_rng(seed)
    if name == "iid":
        return (*rng.standard_normal((2, 40, 40, 16)), {"scale": 1})
    x = smooth(rng, 3 if name == "smooth3" else 1)
    if name == "copy":
        q = np.roll(x, (7, -11), (0, 1)) + 0.6 * rng.standard_normal(x.shape)
        return q, x, {"score": "neg_l2", "bandwidth": 2**0.5}
    wq, wk = (rng.standard_normal((16, 16)) / 4 for _ in range(2))
    return x @ wq, x @ wk, {"scale": 1}


def recall(name: str, propagate: str, seeds: int = 5) -> float:
    hits = []
    for seed in range(seeds):
        q, k, options = fields(name, seed)
        best = patchmatch(q, k, method="exact", **options)
        got = patchmatch(
            q, k, iterations=4, propagate=propagate, identity=False, seed=seed, **options
        )
        hits.append((got.score == best.score).mean())
    return float(np.mean(hits))


@pytest.mark.jit
@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("smooth3", 0.92, 1), ("smooth1", 0.52, 1), ("copy", 0.90, 1), ("iid", 0.05, 0.11)],
)
def test_recall_lies_in_its_band(name: str, low: float, high: float) -> None:
    assert low <= recall(name, "both") <= high


@pytest.mark.jit
def test_which_propagation_suits_which_field() -> None:
    assert recall("smooth3", "same", 2) > recall("smooth3", "shift", 2)
    assert recall("copy", "shift", 2) > recall("copy", "same", 2)


@pytest.mark.jit
def test_hub_keys_are_found_by_same_but_not_by_shift() -> None:
    rng = np.random.default_rng(0)
    q = np.abs(rng.standard_normal((40, 40, 16)))
    k = rng.standard_normal((40, 40, 16))
    k[11, 23] = 140 / 4
    best = patchmatch(q, k, method="exact", scale=1)
    assert (best.index == 11 * 40 + 23).all()

    def found(propagate: str) -> float:
        got = patchmatch(q, k, iterations=4, scale=1, propagate=propagate, identity=False)
        return float((got.index == best.index).mean())

    assert found("same") == found("both") == 1
    assert found("shift") < 0.2


def test_public_name() -> None:
    assert nlattn.patchmatch is patchmatch
