"""`heavy_attention` against its oracle: every way to sum, dtypes, causal, saved, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nlattn
from nlattn.maps.heavy import HeavyMap
from nlattn.maps.sparse import SparseMap
from nlattn.oracle import heavy as oracle

WAYS = [
    (p, normaliser)
    for p in (0.5, 1, 1.5, 2, 2.5, 3, 4, 6)
    for normaliser in ("auto", "dense", "factor")
    if normaliser != "factor" or p % 2 == 0
]


def arrays(seed: int, n: int = 21, m: int = 300, d: int = 4, dtype: Any = np.float64) -> Any:
    rng = np.random.default_rng(seed)
    k = rng.standard_normal((m, d)) * np.exp(rng.standard_normal((m, 1)))
    q = rng.standard_normal((n, d))
    q[3] = 0
    return q.astype(dtype), k.astype(dtype)


@pytest.mark.parametrize(("p", "normaliser"), WAYS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_is_the_oracle_s(p: float, normaliser: str, dtype: Any) -> None:
    """In float64 whatever the dtype, then rounded once."""
    q, k = arrays(0, dtype=dtype)
    A = nlattn.heavy_attention(q, k, 0.02, p=p, normaliser=normaliser)
    wide = q.astype(np.longdouble), k.astype(np.longdouble)
    want = oracle.heavy_attention(*wide, 0.02, p=p)
    _, lse = oracle.polynomial_attention(*wide, p=p)
    assert isinstance(A, SparseMap)
    assert A.dtype == dtype
    np.testing.assert_allclose(A.to_dense(), want, rtol=1e-12 if dtype == np.float64 else 6.1e-8)
    np.testing.assert_allclose(A.lse, lse.astype(float), rtol=1e-12)
    assert A.lse[3] == -np.inf
    np.testing.assert_array_equal(A.lse_interval, np.stack([A.lse, A.lse], 1))
    s = np.where(want > 0, wide[0] @ wide[1].T, -np.inf)
    np.testing.assert_allclose(A.scores(np.arange(21)), s.astype(dtype), rtol=2e-7)
    assert (A.to_dense().sum(1) <= 1 + 1e-6).all()
    assert A.work.scores == 21 * len(nlattn.universal_set(k, 0.02, p=p).keys)
    values = np.random.default_rng(1).standard_normal((300, 2)).astype(dtype)
    np.testing.assert_allclose(A @ values, want.astype(float) @ values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_blocks_of_queries_do_not_show(causal: bool, monkeypatch: Any) -> None:
    q, k = arrays(2, 150, 150, 3)
    whole = nlattn.heavy_attention(q, k, 0.1, causal=causal)
    monkeypatch.setattr("nlattn.ops.heavy._BYTES", 1)  # 64 queries a block
    A = nlattn.heavy_attention(q, k, 0.1, causal=causal)
    for name in ("indptr", "indices"):
        np.testing.assert_array_equal(getattr(A.support, name), getattr(whole.support, name))
    np.testing.assert_array_equal(A.weights, whole.weights)
    np.testing.assert_array_equal(A.edge_scores, whole.edge_scores)


@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_causal_rows_see_the_keys_before_them(p: float) -> None:
    q, k = arrays(1, 40, 40, 3)
    A = nlattn.heavy_attention(q, k, 0.1, p=p, causal=True)
    want, lse = oracle.polynomial_attention(q, k, p=p, causal=True)
    np.testing.assert_allclose(A.to_dense(), np.where(want < 0.1, 0, want), rtol=1e-12)
    np.testing.assert_allclose(A.lse, lse, rtol=1e-12)
    assert A.to_dense()[0, 0] == 1
    longer = nlattn.heavy_attention(np.vstack([q, q]), k, 0.1, p=p, causal=True)
    np.testing.assert_allclose(longer.to_dense()[40:], oracle.heavy_attention(q, k, 0.1, p=p))


@pytest.mark.parametrize(("n", "m"), [(150, 150), (150, 70), (70, 150), (16, 16), (17, 0)])
def test_causal_sums_by_a_factor(n: int, m: int, monkeypatch: Any) -> None:
    monkeypatch.setattr("nlattn.engines.normaliser._BLOCK", 16)
    q, k = arrays(7, n, m)
    k[3 : m // 4] = k[:1]  # of rank 1 for a while
    got = nlattn.heavy_attention(q, k, 0.05, causal=True, normaliser="factor")
    want, lse = oracle.polynomial_attention(q, k, causal=True)
    np.testing.assert_allclose(got.to_dense(), np.where(want < 0.05, 0, want), rtol=1e-12)
    np.testing.assert_allclose(got.lse, lse, rtol=1e-12)


def test_causal_rows_whose_terms_cancel_are_summed_over_their_keys(monkeypatch: Any) -> None:
    """Keys of integers in a plane, queries all but orthogonal to it."""
    monkeypatch.setattr("nlattn.engines.normaliser._BLOCK", 4)
    rng = np.random.default_rng(8)
    k = np.round(4 * rng.standard_normal((40, 2))) @ np.array([[1.0, 1, 0], [0, 1, 1]])
    q = np.array([[1.0, -1, 1]]) + 2.0**-40 * np.round(4 * rng.standard_normal((40, 3)))
    got = nlattn.heavy_attention(q, k, 0.05, causal=True)
    want, lse = oracle.polynomial_attention(q, k, causal=True)
    np.testing.assert_allclose(got.to_dense(), np.where(want < 0.05, 0, want), rtol=1e-9)
    np.testing.assert_allclose(got.lse, lse, rtol=1e-11)


@pytest.mark.parametrize("p", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [1e-150, 1e-8, 1e8, 1e150])
def test_sizes_do_not_matter(p: float, size: float) -> None:
    q, k = arrays(2)
    want = nlattn.heavy_attention(q, k, 0.05, p=p)
    for queries, keys in ((size * q, k), (q, size * k), (size * q, k / size)):
        got = nlattn.heavy_attention(queries, keys, 0.05, p=p)
        np.testing.assert_array_equal(got.support.indices, want.support.indices)
        np.testing.assert_allclose(got.weights, want.weights, rtol=1e-10)
    np.testing.assert_allclose(
        nlattn.heavy_attention(size * q, k, 0.05, p=p).lse, want.lse + p * np.log(size), rtol=1e-10
    )


def test_queries_whose_terms_cancel_are_summed_over_all_keys() -> None:
    """Keys of integers in a plane, queries all but orthogonal to it."""
    rng = np.random.default_rng(3)
    k = np.round(4 * rng.standard_normal((30, 2))) @ np.array([[1.0, 1, 0], [0, 1, 1]])
    q = np.array([[1.0, -1, 1]]) + 2.0**-40 * np.round(4 * rng.standard_normal((5, 3)))
    for p in (2, 4):
        A = nlattn.heavy_attention(q, k, 0.05, p=p, normaliser="factor")
        want = oracle.heavy_attention(q, k, 0.05, p=p)
        np.testing.assert_allclose(A.to_dense(), want, rtol=1e-9)
        assert not nlattn.heavy_attention(np.array([[1.0, -1, 1]]), k, 0.05, p=p).weights.size


@pytest.mark.jit
@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
def test_sampled_sums_keep_their_interval(p: float) -> None:
    made = nlattn.testing.planted_keys(20_000, 3, 3, eps=0.3)
    q = np.vstack([made.keys[made.relevant], np.random.default_rng(0).standard_normal((60, 3))])
    exact = nlattn.heavy_attention(q, made.keys, 0.05, p=p)
    options: Any = {"p": p, "normaliser": "sampled", "eta": 0.3}
    got = nlattn.heavy_attention(q, made.keys, 0.05, **options)
    low, high = got.lse_interval.T
    np.testing.assert_allclose(high - low, np.log(1.3 / 0.7))
    assert ((low <= exact.lse) & (exact.lse <= high)).all()
    assert abs(got.lse - exact.lse).max() > 1e-6
    pairs = (set(zip(*x.to_csr().nonzero(), strict=True)) for x in (exact, got))
    assert next(pairs) <= next(pairs)
    again = nlattn.heavy_attention(q, made.keys, 0.05, **options)
    np.testing.assert_array_equal(got.lse, again.lse)
    other = nlattn.heavy_attention(q, made.keys, 0.05, seed=1, **options)
    assert (got.lse != other.lse).any()
    few = nlattn.heavy_attention(q, made.keys[:50], 0.05, **options)
    np.testing.assert_array_equal(few.lse_interval[:, 0], few.lse)


def test_a_given_set_is_used() -> None:
    q, k = arrays(4)
    chosen = nlattn.universal_set(k, 0.01, p=3)
    got = nlattn.heavy_attention(q, k, 0.02, p=3, universal=chosen)
    want = nlattn.heavy_attention(q, k, 0.02, p=3)
    np.testing.assert_array_equal(got.support.indices, want.support.indices)
    assert got.work.scores == 21 * len(chosen.keys)


def test_no_keys_no_queries_and_keys_of_zeros() -> None:
    for p in (1, 2, 4):
        for n, m in ((0, 5), (3, 0), (0, 0)):
            A = nlattn.heavy_attention(np.ones((n, 2)), np.ones((m, 2)), 0.1, p=p)
            assert A.shape == (n, m)
            assert len(A.weights) == (0 if m == 0 else n * m)
        A = nlattn.heavy_attention(np.ones((2, 3)), np.zeros((4, 3)), 0.1, p=p)
        assert not A.weights.size
        assert np.isneginf(A.lse).all()


def test_what_is_not_finite_has_no_entries() -> None:
    q, k = arrays(5)
    q[1, 0] = np.nan
    for p in (2, 3):
        A = nlattn.heavy_attention(q, k, 0.05, p=p, nonfinite="propagate")
        assert np.isnan(A.lse[1])
        assert not A.to_dense()[1].any()
        assert A.to_dense()[0].any()
        k_ = k.copy()
        k_[0, 0] = np.inf
        A = nlattn.heavy_attention(q, k_, 0.05, p=p, nonfinite="propagate")
        assert np.isnan(A.lse).all()
        assert not A.weights.size


def test_it_can_be_saved(tmp_path: Path) -> None:
    q, k = arrays(6)
    A = nlattn.heavy_attention(q, k, 0.05)
    A.save(tmp_path / "a.npz")
    B = nlattn.load_map(tmp_path / "a.npz")
    assert isinstance(B, HeavyMap)
    np.testing.assert_array_equal(A.to_dense(), B.to_dense())
    np.testing.assert_array_equal(A.lse_interval, B.lse_interval)
    assert A.nbytes == B.nbytes
    with pytest.raises(ValueError, match=r"interval is object \(\), expected \(n, 2\)"):
        HeavyMap.from_state({k: x for k, x in A.state().items() if k != "interval"})


ONE, TWO = np.ones((4, 2)), np.ones((3, 4, 2))
BAD: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (TWO, {}, ValueError, r"q has leading axes \(3,\), expected one head \(n, d\), \(m, d\)"),
    (ONE, {"eps": 2}, ValueError, r"eps=2.0 is outside \(0, 1\], expected the share of a row"),
    (ONE, {"p": -2}, ValueError, "p=-2.0, expected a positive number"),
    (
        ONE,
        {"normaliser": "exact"},
        ValueError,
        "normaliser='exact', expected 'auto', 'factor', 'dense' or 'sampled'",
    ),
    (
        ONE,
        {"normaliser": "factor", "p": 3},
        ValueError,
        "normaliser='factor' needs an even p, and 2 if causal, got p=3.0, causal=False",
    ),
    (
        ONE,
        {"normaliser": "factor", "p": 4, "causal": True},
        ValueError,
        "normaliser='factor' needs an even p, and 2 if causal, got p=4.0, causal=True",
    ),
    (
        ONE,
        {"normaliser": "sampled", "causal": True},
        ValueError,
        "normaliser='sampled' needs causal=False",
    ),
    (ONE, {"eta": 1}, ValueError, "eta=1.0, failure=0.001 are not both below 1"),
    (ONE, {"universal": [1]}, TypeError, "universal is a list, expected a UniversalSet"),
    (
        ONE,
        {"universal": nlattn.universal_set(np.ones((3, 2)), 0.1)},
        ValueError,
        r"universal has shape \(1, 3\), expected \(1, m\) with m=4 from k",
    ),
    (
        ONE,
        {"universal": 1, "causal": True},
        ValueError,
        "universal is for all keys, which causal=True does not let a query see",
    ),
    (
        ONE,
        {"max_bytes": 10},
        MemoryError,
        r"needs 320 B \(entries of the first 4 of 4 queries\), above max_bytes=10 B; "
        "take a larger eps or fewer queries",
    ),
]


@pytest.mark.parametrize(("q", "options", "error", "text"), BAD)
def test_bad_arguments_are_refused(q: Any, options: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=f"^heavy_attention: {text}$"):
        nlattn.heavy_attention(q, ONE, **{"eps": 0.1, **options})
