"""The indexer's functions against their oracle, ties, and the way from scores to attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nlattn
from nlattn.oracle import indexer as oracle


@pytest.mark.parametrize(("dtype", "wide"), [(np.float32, np.float64), (np.float64, np.longdouble)])
def test_scores_are_as_exact_as_numpy(dtype: Any, wide: Any) -> None:
    rng = np.random.default_rng(0)
    shapes = (2, 3, 9, 4, 16), (3, 11, 16), (2, 1, 9, 4), (2, 3, 9, 11)
    arrays = [rng.standard_normal(s).astype(dtype) for s in shapes]
    exact = [x.astype(wide) for x in arrays]
    got = [nlattn.index_scores(*arrays[:3]), *nlattn.index_scores_vjp(*arrays)]
    plain, want = (
        [oracle.index_scores(*x[:3]), *oracle.index_scores_vjp(*x)] for x in (arrays, exact)
    )
    for a, b, c in zip(got, plain, want, strict=True):
        more = c.ndim - a.ndim
        kept = tuple(i for i, size in enumerate(a.shape) if size == 1 != c.shape[more + i])
        b, c = (x.sum(tuple(range(more))).sum(kept, keepdims=True) for x in (b, c))
        assert (a.dtype, a.shape) == (dtype, c.shape)
        error, allowed = (np.sqrt(np.mean((x - c) ** 2)) for x in (a, b))
        assert error <= 2 * allowed + np.spacing(dtype(abs(c).max()))


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"causal": True, "causal_offset": -2}])
@pytest.mark.parametrize("t", [1, 4, 20])
def test_the_best_keys_with_ties(t: int, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(t)
    scores = rng.integers(-2, 3, (2, 8, 11)).astype(np.float32)
    scores = np.where(rng.random(scores.shape) < 0.2, -np.inf, np.maximum(scores, 0))
    got = nlattn.topk_keys(scores, t, **options)
    assert (got.dtype, got.shape) == (np.int32, (2, 8, t))
    np.testing.assert_array_equal(got, oracle.topk_keys(scores, t, **options))


def test_no_keys_and_no_queries() -> None:
    np.testing.assert_array_equal(nlattn.topk_keys(np.zeros((2, 0)), 2), [[-1, -1], [-1, -1]])
    assert nlattn.topk_keys(np.zeros((0, 3)), 2).shape == (0, 2)


def test_loss_and_its_gradient() -> None:
    rng = np.random.default_rng(0)
    scores, weights = rng.standard_normal((2, 3, 6)), rng.dirichlet(np.ones(6), (2, 3))
    scores[0, 1, :3], weights[0, 1, :3] = -np.inf, 0
    dloss = rng.standard_normal((2, 3))
    np.testing.assert_allclose(
        nlattn.index_loss(scores, weights), oracle.index_loss(scores, weights), rtol=1e-13
    )
    np.testing.assert_allclose(
        nlattn.index_loss_vjp(scores, weights, dloss),
        oracle.index_loss_vjp(scores, weights, dloss),
        atol=1e-15,
    )


def test_losses_of_lists_are_those_of_arrays() -> None:
    scores, weights = np.array([[1.0, -np.inf, 3.0]]), np.array([[0.25, 0.0, 0.75]])
    want = nlattn.index_loss_vjp(scores, weights, np.ones(1))
    got = nlattn.index_loss_vjp(scores.tolist(), weights.tolist(), [1.0])  # type: ignore[arg-type]
    np.testing.assert_array_equal(got, want)


def test_from_scores_to_attention() -> None:
    """The chosen keys hold the share of the weights that their normalisers say."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 12, 4))
    index = nlattn.index_scores(rng.standard_normal((12, 2, 4)), k, rng.random((12, 2)))
    support = nlattn.support_from_index(nlattn.topk_keys(index, 5, causal=True), 12)
    _, part = nlattn.sparse_attention(q, k, v, support, return_lse=True)
    _, whole = nlattn.attention(q, k, v, causal=True, return_lse=True)
    share = nlattn.share_held(part, whole)
    weights = nlattn.attention_map(q, k, causal=True).to_dense()
    chosen = nlattn.sparse_attention_map(q, k, support).to_dense() > 0
    np.testing.assert_allclose(share, (weights * chosen).sum(1), rtol=1e-12)
    np.testing.assert_allclose(share[:5], 1)
    assert nlattn.share_held(np.array([-np.inf]), np.array([-np.inf])) == 0


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: nlattn.topk_keys(np.zeros(3), 1), ValueError, r"topk_keys: scores has shape \(3,"),
        (
            lambda: nlattn.topk_keys(np.zeros((1, 3)), 0),
            ValueError,
            "topk_keys: t=0, expected at le",
        ),
        (
            lambda: nlattn.topk_keys(np.zeros((2, 3)), 10**9),
            MemoryError,
            r"topk_keys: needs 8 GB \(2 x 1000000000 int32\), above max_bytes=4 GB; pass a smaller",
        ),
        (
            lambda: nlattn.topk_keys(np.zeros((2, 3)), 10**30),
            ValueError,
            "topk_keys: t=10{30}, expected at most 2147483647",
        ),
        (
            lambda: nlattn.topk_keys(np.full((1, 3), np.nan), 1),
            ValueError,
            r"topk_keys: scores\[0, 0\] is nan, expected finite values or -inf",
        ),
        (
            lambda: nlattn.index_scores(np.ones((2, 3, 4)), np.ones((5, 4)), np.ones((2, 2))),
            ValueError,
            r"index_scores: w has shape \(2, 2\), expected \(n, h\) with h=3 from q",
        ),
        (
            lambda: nlattn.index_scores(
                np.ones((9, 1, 1)), np.ones((9, 1)), np.ones((9, 1)), max_bytes=100
            ),
            MemoryError,
            "index_scores: needs 648 B",
        ),
        (
            lambda: nlattn.index_loss(np.array([[-np.inf, 0.0]]), np.array([[0.5, 0.5]])),
            ValueError,
            r"index_loss: weights\[0, 0\] is 0.5, expected at least 0, and 0 where a score is -inf",
        ),
        (
            lambda: nlattn.index_loss_vjp(np.zeros((2, 3)), np.full((2, 3), 1 / 3), np.ones(3)),
            ValueError,
            r"index_loss_vjp: dloss has shape \(3,\), expected \(2,\), a number for each query$",
        ),
        (
            lambda: nlattn.index_loss(np.array([[np.nan, 0]]), np.full((1, 2), 0.5)),
            ValueError,
            r"index_loss: scores\[0, 0\] is nan, expected finite values or -inf$",
        ),
        (
            lambda: nlattn.index_loss(np.zeros((1, 2)), np.array([[0.5, np.inf]])),
            ValueError,
            r"index_loss: weights\[0, 1\] is inf, expected finite values$",
        ),
        (
            lambda: nlattn.index_loss_vjp(np.zeros((1, 2)), np.ones((1, 2)), np.array([np.inf])),
            ValueError,
            r"index_loss_vjp: dloss\[0\] is inf, expected finite values$",
        ),
        (
            lambda: nlattn.index_loss_jvp(
                np.zeros((1, 2)), np.ones((1, 2)), np.full((1, 2), np.nan)
            ),
            ValueError,
            r"index_loss_jvp: dscores\[0, 0\] is nan, expected finite values$",
        ),
    ],
)
def test_bad_calls_are_refused_in_words(call: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=f"^{text}"):
        call()
