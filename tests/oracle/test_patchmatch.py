"""The oracle of PatchMatch against numbers worked out elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from nlattn.oracle import patchmatch as oracle


def integer_features(tag: int, H: int, W: int, d: int = 3) -> np.ndarray:
    """Integers in [-8, 8], by the same hash as the search: exact in any floating type."""
    values = [
        oracle.bounded(oracle.key(7, tag, 0, p, c), 17) - 8 for p in range(H * W) for c in range(d)
    ]
    return np.array(values, float).reshape(H, W, d)


GOLDEN = {
    # method, query grid, key grid, iterations: matches, sum of scores, tested, changed, optimal
    ("buffered", (6, 6), (6, 6), 1): (
        "1 8 3 21 26 3 7 23 3 25 26 21 29 11 25 15 20 28 5 25 24 21 13 28 13 31 26 3 3 1 19 9 18 "
        "22 21 21",
        2391,
        531,
        34,
        14,
    ),
    ("buffered", (4, 6), (3, 5), 1): (
        "1 1 3 8 0 9 4 13 3 13 0 13 13 13 9 14 13 13 6 11 5 5 13 13",
        1418,
        317,
        22,
        17,
    ),
    ("scanline", (6, 6), (6, 6), 2): (
        "8 8 3 13 26 31 16 13 3 13 26 21 29 13 25 22 35 28 19 25 24 28 29 28 13 3 27 3 3 31 19 9 1 "
        "1 2 31",
        2402,
        475,
        None,
        None,
    ),
}


@pytest.mark.parametrize("case", GOLDEN, ids=str)
def test_golden_cases(case: tuple) -> None:
    method, grid_q, grid_k, iterations = case
    want, total, tested, changed, optimal = GOLDEN[case]
    q, k = integer_features(101, *grid_q), integer_features(102, *grid_k)
    options = {"scale": 1, "seed": 7, "identity": False}
    got = oracle.patchmatch(q, k, method=method, iterations=iterations, jumps=(2, 1), **options)
    assert " ".join(map(str, got.index.ravel())) == want
    assert got.score.sum() == total
    assert got.tested.sum() == tested
    if changed is not None:
        assert got.changed == [changed]
        best = oracle.patchmatch(q, k, method="exact", **options)
        assert (got.score == best.score).sum() == optimal


def test_known_random_numbers() -> None:
    stream = [oracle.mix(1234567 + i * 0x9E3779B97F4A7C15 & (1 << 64) - 1) for i in (1, 2, 3)]
    assert stream == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert oracle.key(12345, 3, 2, 1599, 7) == 0x543003D7CD9D1E83
    assert oracle.key(0, 0, 0, 0, 1) == 0xA5D3758B95B92366


def test_scores_by_hand() -> None:
    q, k = np.array([[3.0, 4.0]]), np.array([[0.0, 5.0], [-3.0, -4.0], [0.0, 0.0]])
    np.testing.assert_allclose(oracle.scores(q, k, scale=0.5), [[10, -12.5, 0]])
    np.testing.assert_allclose(oracle.scores(q, k), [[20 / 2**0.5, -25 / 2**0.5, 0]])
    np.testing.assert_allclose(oracle.scores(q, k, score="cosine"), [[0.8, -1, 0]])
    np.testing.assert_allclose(oracle.scores(q, k, score="absdot", scale=1), [[20, 25, 0]])
    np.testing.assert_allclose(
        oracle.scores(q, k, score="neg_l2", bandwidth=2), [[-2.5, -25, -6.25]]
    )


def test_patch_scores_are_sums_of_scores_of_reflected_pixels() -> None:
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 3, 4, 2))
    got = oracle.patchmatch(q, k, patch=3, scale=1.0, method="exact", topk=12)
    want = np.full((12, 12), 0.0)
    for i in range(12):
        for j in range(12):
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    pixel = [
                        tuple(
                            size - 1 - abs(size - 1 - abs(at)) if size > 1 else 0
                            for at, size in (((p // 4) + dy, 3), ((p % 4) + dx, 4))
                        )
                        for p in (i, j)
                    ]
                    want[i, j] += q[pixel[0]] @ k[pixel[1]]
    np.testing.assert_allclose(got.score.reshape(12, 12), -np.sort(-want, axis=1), rtol=1e-12)
