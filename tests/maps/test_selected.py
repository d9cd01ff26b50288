"""The map on selected keys is the operator it says, and says that it is a heuristic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nlattn
from nlattn.maps.selected import SelectedMap

N, M, INDEX = 6, 9, [1, 4, 5]


def example(dtype: Any = np.float64) -> tuple[SelectedMap, Any]:
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((N, 3)).astype(dtype), rng.standard_normal((M, 3)).astype(dtype)
    A = nlattn.lev_attention_map(q, k, index=INDEX, query_grid=(2, 3), key_grid=(3, 3))
    return A, nlattn.lev_attention(q, k, np.eye(M, dtype=dtype), index=INDEX)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_is_its_matrix(dtype: Any) -> None:
    A, dense = example(dtype)
    rng = np.random.default_rng(1)
    v, g = rng.standard_normal((M, 4)).astype(dtype), rng.standard_normal((N, 4)).astype(dtype)
    tolerance = 20 * np.finfo(dtype).eps
    assert (A.shape, A.dtype, A.guarantee) == ((N, M), dtype, "heuristic")
    np.testing.assert_allclose(A.to_dense(), dense, rtol=tolerance)
    np.testing.assert_array_equal(A.to_csr().toarray(), A.to_dense())
    np.testing.assert_array_equal(A.rows([[4, 2]]), A.to_dense()[[[4, 2]]])
    np.testing.assert_allclose(A @ v, dense @ v, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(A.T @ g, dense.T @ g, rtol=tolerance, atol=tolerance)
    scores = A.scores(np.arange(N))
    assert np.isneginf(np.delete(scores, INDEX, 1)).all()
    weights = np.exp(scores[:, INDEX] - A.lse[:, None])
    np.testing.assert_allclose(weights, dense[:, INDEX], rtol=tolerance)


def test_size_and_work_are_counted() -> None:
    A, _ = example(np.float32)
    assert A.work.scores == N * 3
    assert A.nbytes == A._dense.nbytes + A.index.nbytes
    assert 4 * 3 * (N + 3) < A.nbytes < 4 * 3 * (N + 3) + 8 * N + 8 * 3 + 16
    with pytest.raises(MemoryError, match=r"attention_map.to_csr: needs 216 B \(6 x 3 float32\)"):
        A.to_csr(max_bytes=10)


def test_the_first_key_may_be_selected_and_one_without_a_number_is_last() -> None:
    k = np.ones((4, 2))
    k[2] = np.nan
    A = nlattn.lev_attention_map(np.ones((1, 2)), k, index=[0, 2], nonfinite="propagate")
    B = SelectedMap.from_state(A.state())
    np.testing.assert_array_equal(B.index, [0, 2])
    np.testing.assert_array_equal(B.topk(2)[1], A.topk(2)[1])
    assert set(A.topk(2)[1].ravel()) <= {-1, 0, 2}


BROKEN = {
    "no index": ({"index": None}, "it lacks index"),
    "falling": ({"index": np.array([1, 5, 4])}, "index holds no ascending keys from 0 to 8"),
    "outside": ({"index": np.array([1, 4, 9])}, "index holds no ascending keys from 0 to 8"),
    "none": ({"index": np.zeros(0, int)}, "index holds no ascending keys from 0 to 8"),
    "twice": ({"index": np.array([1, 4, 4])}, "index holds no ascending keys from 0 to 8"),
    "before 0": ({"index": np.array([-1, 4, 5])}, "index holds no ascending keys from 0 to 8"),
    "too few": ({"index": np.array([1, 4])}, "key_grid|expected"),
    "no grid": ({"key_grid": None}, "it lacks key_grid"),
    "too many": ({"extra": np.zeros(1)}, "it has extra, which no such map has"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_state_is_refused(what: str) -> None:
    changes, text = BROKEN[what]
    state = {**example()[0].state(), **changes}
    with pytest.raises(ValueError, match=text):
        SelectedMap.from_state({name: x for name, x in state.items() if x is not None})
