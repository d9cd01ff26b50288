"""The dense map: a SciPy operator, its rows, best keys and limits."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from scipy.sparse.linalg import aslinearoperator, svds

import nlattn
from nlattn.maps.state import Stored, dense_options
from nlattn.oracle.dense import attention_stages


def example(dtype: Any = np.float64, n: int = 7, m: int = 9, **options: Any) -> tuple[Any, Any]:
    """A map and its weights."""
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((n, 4)).astype(dtype), rng.standard_normal((m, 4)).astype(dtype)
    stages = attention_stages(q, k, np.zeros((m, 1), dtype), **options)
    return nlattn.attention_map(q, k, **options), stages


BIAS = np.where(np.arange(63).reshape(7, 9) % 4 == 0, -np.inf, 0.5)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"softcap": 0.8, "window": (2, 1)},
    {"bias": BIAS, "mask": np.arange(9) != 2},
    {"mask": np.arange(7)[:, None] != 3, "causal": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ", ".join(o) or "plain")
def test_it_is_the_matrix_of_weights(options: dict[str, Any]) -> None:
    A, stages = example(**options)
    rng = np.random.default_rng(1)
    right, left = rng.standard_normal((9, 3)), rng.standard_normal((7, 40))
    weights = stages.weights
    np.testing.assert_allclose(A @ right, weights @ right, atol=1e-14)
    np.testing.assert_allclose(A @ right[:, 0], weights @ right[:, 0], atol=1e-14)
    np.testing.assert_allclose(A.T @ left, weights.T @ left, atol=1e-14)
    np.testing.assert_allclose(A.H @ (left * 1j), weights.T @ left * 1j, atol=1e-14)
    np.testing.assert_allclose(A @ (right * 2j), weights @ right * 2j, atol=1e-14)
    np.testing.assert_allclose(A.rmatvec(left[:, 0]), weights.T @ left[:, 0], atol=1e-14)
    np.testing.assert_allclose(A.to_dense(), weights, atol=1e-15)
    np.testing.assert_array_equal(A.to_csr().toarray(), A.to_dense())
    np.testing.assert_allclose(A.lse, stages.lse, atol=1e-14)
    np.testing.assert_allclose(A.scores([6, 0]), stages.masked[[6, 0]], atol=1e-15)
    np.testing.assert_allclose((2 * A).T.matvec(left[:, 0]), 2 * weights.T @ left[:, 0], atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_singular_values(dtype: Any) -> None:
    A, stages = example(dtype)
    assert A.dtype == dtype
    got = svds(A, k=3, return_singular_vectors=False, random_state=0)
    want = np.linalg.svd(stages.weights)[1][:3]
    np.testing.assert_allclose(
        np.sort(got)[::-1], want, rtol=1e-5 if dtype == np.float32 else 1e-12
    )
    assert aslinearoperator(A) is A


def test_integers_are_computed_in_the_dtype_of_the_map() -> None:
    A, stages = example(np.float32)
    got = A @ np.arange(9)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, stages.weights @ np.arange(9), rtol=1e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ", ".join(o) or "plain")
@pytest.mark.parametrize("k", [1, 4, 9])
def test_best_keys(options: dict[str, Any], k: int) -> None:
    A, stages = example(**options)
    value, index = A.topk(k)
    order = np.argsort(-stages.masked, axis=1, kind="stable")[:, :k]
    some = np.take_along_axis(stages.masked, order, 1) > -np.inf
    np.testing.assert_array_equal(index, np.where(some, order, -1))
    want = np.where(some, np.take_along_axis(stages.weights, order, 1), 0)
    np.testing.assert_allclose(value, want, atol=1e-15)


def test_equal_keys_are_listed_in_order() -> None:
    A = nlattn.attention_map(np.ones((2, 1)), np.array([[0.0], [1], [1], [0], [1]]))
    np.testing.assert_array_equal(A.topk(4)[1], [[1, 2, 4, 0]] * 2)


def test_rows_of_any_integers() -> None:
    A, stages = example()
    index = np.array([[3, 0], [3, 6]], np.uint8)
    assert A.rows(index).shape == (2, 2, 9)
    np.testing.assert_allclose(A.rows(index), stages.weights[index], atol=1e-15)
    np.testing.assert_allclose(A.rows(5), stages.weights[5], atol=1e-15)
    assert A.rows([]).shape == (0, 9)


def test_what_it_says_of_itself() -> None:
    A, _ = example(window=(0, 0))
    assert A.shape == (7, 9)
    assert (A.query_grid, A.key_grid) == ((7,), (9,))
    assert A.work.scores == 7
    np.testing.assert_array_equal(A.work.per_query, 1)
    assert A.nbytes >= 8 * (7 + 9) * 4
    q, k = np.ones((6, 2)), np.ones((4, 2))
    B = nlattn.attention_map(q, k, query_grid=(2, 3), key_grid=(2, 2))
    assert (B.query_grid, B.key_grid) == ((2, 3), (2, 2))
    assert B.work.scores == 24
    assert B.work.multiply_adds == 48


def test_normalisers_are_computed_once() -> None:
    A, stages = example()
    A @ np.ones(9)
    first = A.lse
    np.testing.assert_allclose(first, stages.lse)
    assert A.lse is first


REFUSED: list[tuple[Any, type[Exception], str]] = [
    (lambda A: A.rows([7]), ValueError, "attention_map.rows: index holds 7, expected 0 to 6"),
    (lambda A: A.rows(-1), ValueError, "attention_map.rows: index holds -1, expected 0 to 6"),
    (
        lambda A: A.rows([0.5]),
        TypeError,
        "attention_map.rows: index has dtype float64, expected integers",
    ),
    (
        lambda A: A.scores([0, 1], max_bytes=100),
        MemoryError,
        "attention_map.scores: needs 144 B (2 x 9 float64), above max_bytes=100 B; "
        "ask for fewer rows at a time",
    ),
    (lambda A: A.topk(0), ValueError, "attention_map.topk: k=0, expected at least 1"),
    (lambda A: A.topk(10), ValueError, "attention_map.topk: k=10, expected at most 9"),
    (
        lambda A: A.to_dense(max_bytes=500),
        MemoryError,
        "attention_map.to_dense: needs 504 B (7 x 9 float64), above max_bytes=500 B; "
        "use rows() or topk()",
    ),
    (
        lambda A: A.to_csr(max_bytes=500),
        MemoryError,
        "attention_map.to_csr: needs 756 B (the first 7 of 7 rows), above max_bytes=500 B; "
        "use rows() or topk()",
    ),
    (
        lambda A: A @ np.ones(8),
        ValueError,
        "attention_map @ x: x has shape (8,), expected (9,) or (9, e)",
    ),
]


@pytest.mark.parametrize(("use", "error", "text"), REFUSED, ids=[x[2][:40] for x in REFUSED])
def test_limits(use: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match="^" + re.escape(text)):
        use(example()[0])


def test_the_size_of_a_photograph_is_refused_before_allocating() -> None:
    x = np.zeros((512 * 512, 1), np.float32)
    text = (
        "attention_map.to_dense: needs 275 GB (262144 x 262144 float32), "
        "above max_bytes=4 GB; use rows() or topk()"
    )
    with pytest.raises(MemoryError, match=re.escape(text)):
        nlattn.attention_map(x, x).to_dense()


def test_bad_maps_are_refused() -> None:
    x = np.ones((4, 2))
    with pytest.raises(ValueError, match=r"attention_map: q has leading axes \(3,\), expected"):
        nlattn.attention_map(np.ones((3, 4, 2)), x)
    with pytest.raises(ValueError, match=r"query_grid is \(3, 2\), expected a product of 4"):
        nlattn.attention_map(x, x, query_grid=(3, 2))


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ", ".join(o) or "plain")
def test_saved_and_loaded(options: dict[str, Any], tmp_path: Any) -> None:
    A, _ = example(**options)
    A.save(tmp_path / "map.npz")
    B = nlattn.load_map(tmp_path / "map.npz")
    np.testing.assert_array_equal(B.to_dense(), A.to_dense())
    np.testing.assert_array_equal(B.lse, A.lse)


BAD_STATES: list[tuple[dict[str, Any], str]] = [
    ({"q": np.zeros((7, 4), np.float32)}, "its arrays are not of one dtype"),
    ({"bias": np.zeros((2, 9))}, r"bias has shape \(2, 9\), for 7 queries and 9 keys"),
    ({"band": np.array([-(2**50), 0, 0, 0])}, "band is"),
    ({"more": np.zeros(1)}, "it has more, which no such map has"),
]


@pytest.mark.parametrize(("change", "text"), BAD_STATES, ids=[x[1][:20] for x in BAD_STATES])
def test_states_that_do_not_fit_are_refused(change: dict[str, Any], text: str) -> None:
    A, _ = example()
    with pytest.raises(ValueError, match=text):
        type(A).from_state({**A.state(), **change})


@pytest.mark.jit
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_many_tiles(dtype: Any) -> None:
    A, stages = example(dtype, 600, 530, window=(200, 300))
    rng = np.random.default_rng(0)
    bound = 100 * np.finfo(dtype).eps
    x, y = rng.standard_normal((530, 33)).astype(dtype), rng.standard_normal((600, 5)).astype(dtype)
    np.testing.assert_allclose(A.T @ y, stages.weights.T @ y, atol=bound)
    np.testing.assert_allclose(A @ x, stages.weights @ x, atol=bound)
    np.testing.assert_allclose(A.to_dense(), stages.weights, atol=bound)
    value, index = A.topk(3)
    np.testing.assert_allclose(value, -np.sort(-stages.weights, axis=1)[:, :3], atol=bound)
    np.testing.assert_allclose(np.take_along_axis(A.to_dense(), index, 1), value, atol=bound)


def test_bytes_are_those_of_what_is_held() -> None:
    q, k = np.ones((3, 2)), np.ones((4, 2))
    plain = nlattn.attention_map(q, k).nbytes
    assert q.nbytes + k.nbytes + 3 * 8 < plain < q.nbytes + k.nbytes + 3 * 8 + 64
    assert nlattn.attention_map(q, k, mask=np.ones((3, 4), bool)).nbytes - plain == 12 - 1
    assert nlattn.attention_map(q, k, bias=np.zeros((3, 4))).nbytes - plain == 8 * (12 - 1)


def test_bands_of_version_01_by_hand() -> None:
    def band(low: int, high: int) -> Any:
        state = {"scale": np.array([0.5, 2.0]), "band": np.array([low, high, 1, 0])}
        return dense_options(Stored(state), 3, 4)

    scale, rows, flags = band(-1, 1)
    assert (scale, flags) == ([0.5, 2.0, 0.0], [1, 0])
    assert rows.tolist() == [[0, 2, 0], [0, 3, 1], [1, 4, 2]]
    assert band(-9, -8)[1].tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2]]
    assert band(1, 9)[1].tolist() == [[1, 4, 0], [2, 4, 1], [3, 4, 2]]


@pytest.mark.parametrize("row", [[-1, 2, 0], [0, -2, 0], [0, 5, 0]])
def test_a_band_that_leaves_the_keys_is_refused(row: list[int]) -> None:
    state = {"given": np.zeros(2, int), "scale": np.ones(3), "band": np.array([row])}
    with pytest.raises(ValueError, match=r"^band leaves the 4 keys$"):
        dense_options(Stored(state), 1, 4)
