"""The indexer's oracle: numbers by hand, ties, gradients by the complex step."""

from __future__ import annotations

from typing import Any

import numpy as np

from nlattn.oracle import indexer as oracle


def test_scores_by_hand() -> None:
    """Products 2 and -1 with the first key, 0 and 1 with the second; the negative one is cut."""
    q, k = np.array([[[2.0, 0.0], [-1.0, 1.0]]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    w = np.array([[3.0, 5.0]])
    np.testing.assert_array_equal(oracle.index_scores(q, k, w), [[6.0, 5.0]])
    dq, dk, dw = oracle.index_scores_vjp(q, k, w, np.array([[1.0, 10.0]]))
    np.testing.assert_array_equal(dq, [[[3, 0], [0, 50]]])
    np.testing.assert_array_equal(dk, [[6, 0], [-50, 50]])
    np.testing.assert_array_equal(dw, [[2, 10]])


def test_the_best_keys_by_hand() -> None:
    scores = np.array([[1.0, 3.0, 3.0, 0.0], [5.0, -np.inf, 0.0, 0.0]])
    np.testing.assert_array_equal(oracle.topk_keys(scores, 2), [[1, 2], [0, 2]])
    np.testing.assert_array_equal(oracle.topk_keys(scores, 5)[1], [0, 2, 3, -1, -1])
    np.testing.assert_array_equal(oracle.topk_keys(scores, 2, causal=True), [[0, -1], [0, -1]])


def test_loss_by_hand() -> None:
    scores, weights = np.log([[1.0, 3.0]]), np.array([[0.5, 0.5]])
    want = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    np.testing.assert_allclose(oracle.index_loss(scores, weights), [want])
    got = oracle.index_loss_vjp(scores, weights, np.array([2.0]))
    np.testing.assert_allclose(got, [[-0.5, 0.5]])
    same = oracle.index_loss(scores, np.array([[0.25, 0.75]]))
    np.testing.assert_allclose(same, 0, atol=1e-16)


def test_gradients_agree_with_the_complex_step() -> None:
    rng = np.random.default_rng(0)
    shapes = {"q": (2, 3, 2, 4), "k": (2, 5, 4), "w": (2, 3, 2)}
    arrays: dict[str, Any] = {n: rng.standard_normal(s) for n, s in shapes.items()}
    g = rng.standard_normal((2, 3, 5))
    for (name, x), got in zip(
        arrays.items(), oracle.index_scores_vjp(**arrays, dscores=g), strict=True
    ):
        for at in np.ndindex(x.shape):
            moved = {n: y.astype(complex) for n, y in arrays.items()}
            moved[name][at] += 1e-30j
            slope = (g * oracle.index_scores(**moved)).sum().imag / 1e-30
            np.testing.assert_allclose(got[at], slope, atol=1e-14)
    scores, weights, dloss = g[0], rng.dirichlet(np.ones(5), 3), rng.standard_normal(3)
    scores[0, 2], weights[0, 2] = -np.inf, 0
    got = oracle.index_loss_vjp(scores, weights, dloss)
    for at in np.ndindex(scores.shape):
        moved_scores = scores.astype(complex)
        moved_scores[at] += 1e-30j
        slope = (dloss * oracle.index_loss(moved_scores, weights)).sum().imag / 1e-30
        np.testing.assert_allclose(got[at], 0 if at == (0, 2) else slope, atol=1e-14)


def test_the_share_of_a_set_by_hand() -> None:
    """Sums of 1 and 4; a set that is empty; a query that sees nothing."""
    lse_set, lse = np.array([0.0, -np.inf, -np.inf]), np.array([np.log(4), 0.0, -np.inf])
    np.testing.assert_allclose(oracle.share_held(lse_set, lse), [0.25, 0, 0])
