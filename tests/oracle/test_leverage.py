"""The oracle of leverage scores: numbers worked by hand, invariants, three ways to one number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlattn.oracle.leverage import (
    countsketch_matrix,
    equilibrated,
    hadamard_matrix,
    leverage_scores,
    sketched_leverage_scores,
)

METHODS = ["qr", "svd", "gram"]
PLANE = np.arange(1.0, 13).reshape(4, 3)


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("method", METHODS)
def test_rank_two_of_three_by_hand(method: str) -> None:
    """Rows of an arithmetic progression span a plane: .7, .3, .3, .7, as a straight line's fit."""
    scores, rank = leverage_scores(PLANE, method=method, return_rank=True)
    assert rank == 2
    np.testing.assert_allclose(scores, [0.7, 0.3, 0.3, 0.7], rtol=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_one_channel_by_hand(method: str) -> None:
    """With one channel a key's score is its share of the sum of squares."""
    scores = leverage_scores(np.array([[1.0], [-2], [0], [3]]), method=method)
    np.testing.assert_allclose(scores, np.array([1, 4, 0, 9]) / 14, rtol=1e-15)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_and_little(method: str) -> None:
    zero, rank = leverage_scores(np.zeros((3, 2)), method=method, return_rank=True)
    assert rank == 0
    np.testing.assert_array_equal(zero, 0)
    assert leverage_scores(np.zeros((0, 2)), method=method).shape == (0,)
    few, rank = leverage_scores(normal(2, 4), method=method, return_rank=True)
    assert rank == 2
    np.testing.assert_allclose(few, 1, rtol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_it_is_the_projection_onto_the_columns(method: str) -> None:
    k = normal(2, 9, 3)
    got = leverage_scores(k, method=method)
    want = [np.diag(x @ np.linalg.pinv(x)) for x in k]
    np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_rank_deficient_keys_sum_to_their_rank(method: str) -> None:
    k = normal(40, 6) @ normal(6, 10, seed=1)
    scores, rank = leverage_scores(k, method=method, return_rank=True)
    assert rank == 6
    np.testing.assert_allclose(scores.sum(), 6, rtol=1e-7 if method == "gram" else 1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_any_invertible_mixture_of_channels_has_the_same_scores(method: str) -> None:
    k = normal(20, 4)
    got = leverage_scores(k @ normal(4, 4, seed=1), method=method)
    np.testing.assert_allclose(got, leverage_scores(k, method=method), rtol=1e-9)


def test_scaling_by_powers_of_two_changes_no_bit() -> None:
    k = normal(20, 4)
    for power in (-1000, -30, 30, 1000):
        np.testing.assert_array_equal(leverage_scores(k * 2.0**power), leverage_scores(k))
    assert np.abs(equilibrated(np.array([[1e-310, 0], [2e-310, 0]]))).max() > 1e-16


def test_removing_a_key_of_score_one_lowers_the_rank() -> None:
    k = np.concatenate([normal(9, 3), np.zeros((9, 1))], 1)
    k[4] = [1, 2, 3, 4]
    scores = leverage_scores(k)
    np.testing.assert_allclose(scores[4], 1, rtol=1e-14)
    assert leverage_scores(np.delete(k, 4, 0), return_rank=True)[1] == 3
    assert (np.delete(scores, 4) < 0.99).all()


def test_copies_share_a_score() -> None:
    k = normal(9, 3)
    tau = leverage_scores(k)[2]
    copied = leverage_scores(np.concatenate([k, k[[2, 2]]]))
    np.testing.assert_allclose(copied[[2, 9, 10]], tau / (1 + 2 * tau), rtol=1e-13)


def test_a_new_key_lowers_all_others() -> None:
    k, new = normal(9, 3), normal(1, 3, seed=1)
    before, after = leverage_scores(k), leverage_scores(np.concatenate([k, new]))
    l = float((new @ np.linalg.inv(k.T @ k) @ new.T)[0, 0])
    np.testing.assert_allclose(after[-1], l / (1 + l), rtol=1e-13)
    assert (after[:-1] < before).all()


@pytest.mark.parametrize("kappa", [1e2, 1e6, 1e8])
def test_longdouble_ways_agree_where_float64_ones_do_not(kappa: float) -> None:
    u, v = np.linalg.qr(normal(50, 6))[0], np.linalg.qr(normal(6, 6, seed=1))[0]
    k = ((u * np.geomspace(1, 1 / kappa, 6)) @ v).astype(np.longdouble)
    qr, svd, gram = (leverage_scores(k, method=method) for method in METHODS)
    assert qr.dtype == svd.dtype == gram.dtype == np.longdouble
    np.testing.assert_allclose(qr, svd, rtol=0, atol=6e-20 * 6 * kappa)
    np.testing.assert_allclose(gram, svd, rtol=0, atol=6e-20 * 6 * kappa**2)


@pytest.mark.parametrize("method", METHODS)
def test_it_is_analytic(method: str) -> None:
    """The complex step agrees with ``d tau_j = 2 (1 - P_jj) (K^+ ...)``, here a difference."""
    k, direction, step = normal(8, 3), normal(8, 3, seed=1), 1e-6
    slope = leverage_scores(k + 1e-30j * direction, method=method).imag / 1e-30
    ahead, behind = (leverage_scores(k + s * direction, method=method) for s in (step, -step))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), atol=1e-8)


def test_sketches_are_what_they_say() -> None:
    S = countsketch_matrix(30, 7, seed=0)
    np.testing.assert_array_equal(np.abs(S).sum(0), 1)
    assert (S < 0).any()
    H = hadamard_matrix(8, 8, seed=0)
    np.testing.assert_allclose(H @ H.T, np.eye(8), atol=1e-15)
    np.testing.assert_allclose(np.abs(hadamard_matrix(6, 4, seed=1)), 0.5)


def test_a_sketch_that_keeps_all_gives_the_scores() -> None:
    k = normal(20, 3)
    want = leverage_scores(k)
    np.testing.assert_allclose(sketched_leverage_scores(k, np.eye(20)), want, rtol=1e-13)
    turned = hadamard_matrix(20, 32, seed=2)
    np.testing.assert_allclose(sketched_leverage_scores(k, turned), want, rtol=1e-13)
    np.testing.assert_allclose(sketched_leverage_scores(k, turned, np.eye(3) * 3**0.5), want)


def test_a_coarse_rank_keeps_the_largest_singular_vectors() -> None:
    K = np.random.default_rng(0).standard_normal((17, 5))
    K[:, -1] = K[:, 0] + K[:, -1] / 16
    U, sizes, _ = np.linalg.svd(equilibrated(K), full_matrices=False)
    want = (U[:, sizes > 0.1 * sizes[0]] ** 2).sum(1)
    assert len(sizes[sizes > 0.1 * sizes[0]]) == 4
    got = leverage_scores(K, method="svd", rcond=0.1)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-14)
