"""Sums over a support against SciPy and the score routine; every result is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from nlattn import _check
from nlattn.kernels import sparse as kernels
from nlattn.kernels import support as supports
from nlattn.kernels.scores import DOT, NEG_L2, score
from nlattn.runtime import jit

N, M, D, E = 5, 7, 3, 4
NONE = _check.frozen(np.empty(0))


def ints(*values: Any) -> Any:
    return _check.frozen(np.array(values, np.int64))


def problem(dtype: Any, seed: int = 0) -> Any:
    """Arrays of two heads that share one of the support's two slices."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal(s).astype(dtype) for s in ((2, N, D), (1, M, D), (2, M, E)))
    filled = rng.random((N, M)) < 0.5
    filled[1] = False
    support = csr_array(filled)
    return [*map(_check.frozen, (q, k, v))], support


def pointers(support: csr_array) -> Any:
    return _check.frozen(support.indptr, np.int64), _check.frozen(support.indices, np.int32)


@jit.function
def one_score(kind: int, factor: Any, q: np.ndarray, k: np.ndarray) -> float:
    return score(kind, factor, q, k)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weight", range(4))
def test_the_stored_weights_are_those_that_are_applied(weight: int, dtype: Any) -> None:
    (q, k, v), support = problem(dtype)
    indptr, indices = pointers(support)
    nnz = len(indices)
    options = kernels.EdgeOptions(weight, 0.7, 1.5, 9.0, NONE)
    slices = ints([0, 0, 0, 0, 0], [1, 0, 1, 0, nnz])
    out, lse = np.full((2, N, E), np.nan, dtype), np.full((2, N), np.nan)
    kernels.attend(1, q, k, v, indptr, indices, slices, options, out, lse)
    scores, P = np.full(2 * nnz, np.nan, dtype), np.full(2 * nnz, np.nan, dtype)
    again = np.full((2, N), np.nan)
    kernels.weigh(1, q, k, indptr, indices, slices, options, scores, P, again)
    np.testing.assert_array_equal(again, lse)
    kind = NEG_L2 if weight == kernels.GAUSSIAN else DOT
    for b in range(2):
        mine = P[b * nnz : (b + 1) * nnz]
        A = csr_array((mine, indices, indptr), shape=(N, M)).toarray()
        want = np.where(lse[b, :, None] > -np.inf, A @ v[b], 9)
        np.testing.assert_allclose(out[b], want, rtol=1e-5, atol=1e-6)
        rows = np.repeat(np.arange(N), np.diff(indptr))
        for t, (i, j) in enumerate(zip(rows, indices, strict=True)):
            assert scores[b * nnz + t] == one_score(kind, dtype(0.7), q[b, i], k[0, j])
    assert np.isneginf(lse[:, 1]).all()


def test_large_powers_do_not_overflow() -> None:
    q, k = _check.frozen(np.full((1, 1, 1), 1e10)), _check.frozen(np.array([[[1.0], [2.0]]]))
    P, scores, lse = np.empty(2), np.empty(2), np.empty((1, 1))
    options = kernels.EdgeOptions(kernels.ABSPOW, 1.0, 60.0, 0.0, NONE)
    slices = ints([0, 0, 0, 0, 0])
    indices = _check.frozen(np.array([0, 1], np.int32))
    kernels.weigh(1, q, k, ints(0, 2), indices, slices, options, scores, P, lse)
    np.testing.assert_allclose(P, [2.0**-60, 1], rtol=1e-12)
    np.testing.assert_allclose(lse, 60 * np.log(2e10), rtol=1e-12)


@given(seed=st.integers(0, 10**6), slices=st.integers(1, 3), n=st.integers(0, 6))
def test_the_transpose_is_scipys(seed: int, slices: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [csr_array(rng.random((n, M)) < 0.4) for _ in range(slices)]
    indices = np.concatenate([part.indices for part in parts])
    starts = np.cumsum([0, *(len(part.indices) for part in parts)])
    indptr = np.concatenate([[0], *(p.indptr[1:] + s for p, s in zip(parts, starts, strict=False))])
    result = [np.full(slices * M + 1, -1), np.full(len(indices), -1), np.full(len(indices), -1)]
    result[2] = result[2].astype(np.int32)
    cursor = np.full((slices, M), -1)
    frozen = _check.frozen(indptr, np.int64), _check.frozen(indices, np.int32)
    kernels.transpose(slices, *frozen, cursor, *result)
    for s, part in enumerate(parts):
        numbered = csr_array(
            (np.arange(len(part.indices)) + 1, part.indices, part.indptr), part.shape
        )
        want = numbered.tocsc()
        want.sort_indices()
        own = slice(starts[s], starts[s + 1])
        np.testing.assert_array_equal(result[0][s * M : s * M + M + 1] - starts[s], want.indptr)
        np.testing.assert_array_equal(result[1][own] - starts[s], want.data - 1)
        np.testing.assert_array_equal(result[2][own], want.indices)


@pytest.mark.parametrize("centred", [0, 1])
def test_gather_sums_over_edges(centred: int) -> None:
    (q, k, _), support = problem(np.float64)
    indptr, indices = pointers(support)
    c = _check.frozen(np.random.default_rng(1).standard_normal(len(indices)))
    out = np.full((2, N, D), np.nan)
    options = _check.frozen(np.array([2.0, centred]))
    slices = ints([0, 0, 0, 0], [0, 1, 0, 0])
    kernels.gather(1, c, ints(), indptr, indices, k, q, slices, options, out)
    C = csr_array((c, indices, indptr), shape=(N, M)).toarray()
    want = 2 * (C @ k[0] - centred * C.sum(1)[:, None] * q)
    np.testing.assert_allclose(out, want, rtol=1e-13, atol=1e-14)


@jit.function
def sort(values: np.ndarray, count: int) -> None:
    supports._sort(values, count)


@given(st.lists(st.integers(-(2**40), 2**40), max_size=40))
def test_the_sort_sorts(values: list[int]) -> None:
    array = np.array([*values, -(2**50)], np.int64)
    sort(array, len(values))
    assert array[:-1].tolist() == sorted(values)
    assert array[-1] == -(2**50)
