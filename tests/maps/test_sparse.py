"""The sparse map is the operator it says: products, rows, largest weights, singular values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.sparse.linalg import svds

import nlattn
from nlattn.maps.sparse import SparseMap
from tests.helpers import for_any_threads

N, M = 6, 9


def example(dtype: Any = np.float64, weight: str = "softmax") -> tuple[SparseMap, Any]:
    """A map with one row without keys, and its weights worked out densely."""
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((N, 3)).astype(dtype), rng.standard_normal((M, 3)).astype(dtype)
    allowed = rng.random((N, M)) < 0.5
    allowed[2] = False
    support = nlattn.support_from_index(np.where(allowed, np.arange(M), -1), M)
    A = nlattn.sparse_attention_map(q, k, support, weight=weight)
    return A, nlattn.sparse_attention(q, k, np.eye(M, dtype=dtype), support, weight=weight)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weight", ["softmax", "gaussian", "abspow", "dot"])
def test_it_is_its_matrix(weight: str, dtype: Any) -> None:
    A, dense = example(dtype, weight)
    rng = np.random.default_rng(1)
    v, g = rng.standard_normal((M, 4)).astype(dtype), rng.standard_normal((N, 4)).astype(dtype)
    tolerance = 20 * np.finfo(dtype).eps
    assert A.shape == (N, M)
    assert A.dtype == dtype
    np.testing.assert_array_equal(A.to_dense(), dense)
    np.testing.assert_array_equal(A.to_csr().toarray(), dense)
    np.testing.assert_array_equal(A.rows([[4, 2]]), dense[[[4, 2]]])
    np.testing.assert_allclose(A @ v, dense @ v, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(A @ v[:, 0], dense @ v[:, 0], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(A.T @ g, dense.T @ g, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(A.H @ (1j * g), 1j * dense.T @ g, rtol=tolerance, atol=tolerance)
    assert (A @ v).dtype == dtype


def test_scores_and_normalisers_explain_the_weights() -> None:
    A, dense = example()
    scores = A.scores(np.arange(N))
    np.testing.assert_array_equal(np.isneginf(scores), dense == 0)
    assert np.isneginf(A.lse[2])
    rows = np.delete(np.arange(N), 2)
    np.testing.assert_allclose(np.exp(scores[rows] - A.lse[rows, None]), dense[rows], rtol=1e-14)


def test_ties_go_to_the_lowest_key() -> None:
    support = nlattn.support_from_index([[3, 1, 2]], 4)
    A = nlattn.sparse_attention_map(np.zeros((1, 2)), np.zeros((4, 2)), support)
    assert A.topk(2)[1].tolist() == [[1, 2]]


def test_its_singular_values_are_those_of_the_matrix() -> None:
    A, dense = example()
    got = svds(A, k=3, return_singular_vectors=False, random_state=0)
    want = np.linalg.svd(dense, compute_uv=False)[:3]
    np.testing.assert_allclose(np.sort(got)[::-1], want, rtol=1e-10)


def test_size_and_work_are_counted() -> None:
    A, _ = example(np.float32)
    nnz = len(A.support.indices)
    assert A.work.scores == nnz
    assert A.work.multiply_adds == 3 * nnz
    np.testing.assert_array_equal(A.work.per_query, np.diff(A.support.indptr))
    before = A.nbytes
    assert before == nnz * (4 + 4 + 4) + 8 * N + 8 * (N + 1)
    _ = A.T @ np.ones(N, np.float32)
    assert A.nbytes == before + nnz * (8 + 4) + 8 * (M + 1)


def test_the_csr_refuses_to_grow() -> None:
    A, _ = example()
    nnz = len(A.support.indices)
    text = rf"attention_map.to_csr: needs .* \({nnz} float64 weights and their keys\), above"
    with pytest.raises(MemoryError, match=text):
        A.to_csr(max_bytes=10)


@pytest.mark.jit
def test_products_are_the_same_bits_for_any_number_of_threads() -> None:
    rng = np.random.default_rng(2)
    q, k = rng.standard_normal((2, 3000, 4)).astype(np.float32)
    support = nlattn.support_from_index(rng.integers(0, 3000, (3000, 7)), 3000)
    x = rng.standard_normal((3000, 5)).astype(np.float32)

    def results() -> tuple[Any, ...]:
        A = nlattn.sparse_attention_map(q, k, support)
        return A @ x, A.T @ x, A.weights, A.lse

    for_any_threads(results)
