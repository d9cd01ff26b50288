"""Universal sets: nothing is missing whatever the query, nothing is in it without need."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nlattn
from nlattn.oracle import universal as oracle
from nlattn.oracle.heavy import polynomial_attention
from tests import adversary
from tests.conftest import NO_JIT

INSTANCES = 80 if NO_JIT else 1680 if os.environ.get("NLATTN_THOROUGH") else 420
"""Of each p; six of them."""


@pytest.mark.parametrize("p", adversary.POWERS)
def test_no_adversary_finds_a_key_that_is_missing(p: float) -> None:
    """Every weight of at least eps, in extended precision, is at a key of the set."""
    heavy = 0
    for number, (Q, K, eps) in enumerate(adversary.instances(p, INSTANCES)):
        chosen = nlattn.universal_set(K, eps, p=p)
        inside = np.zeros(len(K), bool)
        inside[chosen.keys] = True
        sizes = abs(K[K.any(1)]).max(1)
        if sizes.max(initial=0) < 1e4 * sizes.min(initial=np.inf):  # else some are not certain
            assert len(chosen.keys) <= chosen.bound * 1.01 + 1e-9
        wide_q, wide_k = Q.astype(np.longdouble), K.astype(np.longdouble)
        A, _ = polynomial_attention(wide_q, wide_k, p=p)
        found = (eps <= A) & adversary.reliable(wide_q, wide_k, 2.0**-64)[:, None]
        assert not found[:, ~inside].any()
        heavy += found.sum()
        if number % 5:
            continue
        got = nlattn.heavy_attention(Q, K, eps, p=p, universal=chosen).to_dense()
        sure = adversary.reliable(Q, K, 2.0**-53)
        np.testing.assert_allclose(got[sure] + (got[sure] == 0) * A[sure], A[sure], rtol=1e-6)
        assert (got[sure] > 0)[A[sure] >= eps * (1 + 1e-6)].all()
        assert not (got[sure] > 0)[A[sure] < eps * (1 - 1e-6)].any()
    assert heavy > INSTANCES


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, 4, 6])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_is_the_oracle_s(p: float, dtype: Any) -> None:
    K = np.random.default_rng(0).standard_normal((60, 4)).astype(dtype)
    for eps in (0.03, 0.1, 0.2):
        got = nlattn.universal_set(K, eps, p=p)
        np.testing.assert_array_equal(
            got.keys, np.flatnonzero(oracle.universal_set(K.astype(float), eps, p=p))
        )
        assert got.support.shape == (1, 60)
        np.testing.assert_array_equal(got.support.indices, got.keys)


def test_every_key_is_needed_for_squares() -> None:
    K = np.random.default_rng(1).standard_normal((80, 5))
    chosen = nlattn.universal_set(K, 0.08)
    assert 0 < len(chosen.keys) < 80
    A, _ = polynomial_attention(np.linalg.pinv(K).T, K)
    np.testing.assert_array_equal(np.flatnonzero(A.diagonal() >= 0.08), chosen.keys)
    assert not chosen.borderline.any()


@pytest.mark.parametrize("p", [1, 1.5, 3, 4, 6])
def test_tight_sets_hold_what_some_query_needs(p: float) -> None:
    K = np.random.default_rng(2).standard_normal((30, 3))
    loose, tight = (nlattn.universal_set(K, 0.15, p=p, tight=t) for t in (False, True))
    assert set(tight.keys) <= set(loose.keys)
    assert not tight.borderline.any()
    for i in loose.keys:
        low, _ = nlattn.lp_sensitivity(K, int(i), p)
        assert (low >= 0.15) == (i in tight.keys)


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 20),
    p=st.sampled_from([1.0, 2.0, 3.0, 4.0]),
    eps=st.sampled_from([0.05, 0.3]),
)
def test_a_row_s_set_holds_what_its_prefix_needs(seed: int, n: int, p: float, eps: float) -> None:
    rng = np.random.default_rng(seed)
    K = rng.standard_normal((n, 3)) * 10.0 ** rng.integers(-3, 4, (n, 1))
    K[rng.random(n) < 0.2] = 0
    chosen = nlattn.universal_set(K, eps, p=p, causal=True)
    assert chosen.support.shape == (n, n)
    for i in range(n):
        row = chosen.support.indices[slice(*chosen.support.indptr[i : i + 2])]
        assert len(row) <= chosen.bound
        outside = np.setdiff1d(np.arange(i + 1), row)
        Q = adversary.queries(rng, K[: i + 1], p)
        A, _ = polynomial_attention(Q, K[: i + 1], p=p)
        A = A[adversary.reliable(Q, K[: i + 1], 2.0**-53)]
        assert (A[:, outside] < eps * (1 + 1e-9)).all()


BOUNDS = {1.0: 15, 2.0: 15, 3.0: 25, 4.0: 30, 6.0: 50}
"""Of 3 channels and eps=0.2: r / eps; for p = 3 r^1.5 / eps; for even p as many as monomials."""
CAUSAL = {1.0: 75, 2.0: 15, 3.0: 51, 4.0: 30}
"""r (eps n^(1 - p/2))^(-2/p) of 200 keys where there are no monomials; n^0 for p below 2."""


@pytest.mark.parametrize("p", BOUNDS)
def test_how_many_keys_a_set_may_have_at_most(p: float) -> None:
    K = np.random.default_rng(6).standard_normal((200, 3))
    assert nlattn.universal_set(K, 0.2, p=p).bound == BOUNDS[p]
    assert nlattn.universal_set(K[:4], 0.2, p=p).bound == 4
    if p in CAUSAL:
        assert nlattn.universal_set(K, 0.2, p=p, causal=True).bound == CAUSAL[p]


def test_causal_sets_are_those_of_the_prefixes() -> None:
    K = np.random.default_rng(3).standard_normal((50, 3))
    causal = nlattn.universal_set(K, 0.2, causal=True)
    want = oracle.universal_set(K, 0.2, causal=True)
    rows = np.repeat(np.arange(50), np.diff(causal.support.indptr))
    got = np.zeros((50, 50), bool)
    got[rows, causal.support.indices] = True
    np.testing.assert_array_equal(got, want)
    last = nlattn.universal_set(K, 0.2)
    assert set(last.keys) < set(causal.keys)
    assert np.diff(causal.support.indptr).max() <= causal.bound == 15
    arrived = [nlattn.universal_set(K[: i + 1], 0.2).upper[-1] for i in range(50)]
    np.testing.assert_allclose(causal.upper, arrived, rtol=1e-9)


def test_sets_of_prefixes_shrink_by_lewis_weights() -> None:
    K = np.random.default_rng(4).standard_normal((60, 3))
    for p in (1.0, 3.0):
        causal = nlattn.universal_set(K, 0.15, p=p, causal=True)
        last = causal.support.indices[causal.support.indptr[-2] :]
        assert set(last) <= set(nlattn.universal_set(K, 0.15, p=p).keys) | set(range(50, 60))


def test_sets_are_nested_and_follow_the_order_of_keys() -> None:
    rng = np.random.default_rng(5)
    K = rng.standard_normal((40, 4))
    order = rng.permutation(40)
    for p in (1.5, 2, 3):
        wide, narrow = (set(nlattn.universal_set(K, e, p=p).keys) for e in (0.05, 0.2))
        assert narrow < wide
        moved = nlattn.universal_set(K[order], 0.2, p=p).keys
        assert set(order[moved]) == narrow


def test_odd_keys() -> None:
    assert not nlattn.universal_set(np.zeros((4, 3)), 0.1).keys.size
    assert nlattn.universal_set(np.zeros((4, 3)), 0.1).bound == 0
    assert not nlattn.universal_set(np.zeros((0, 3)), 0.1).keys.size
    few = nlattn.universal_set(np.random.default_rng(0).standard_normal((3, 5)), 1.0)
    np.testing.assert_array_equal(few.keys, [0, 1, 2])
    causal = nlattn.universal_set(np.array([[0.0], [1], [0], [1]]), 0.5, causal=True)
    assert causal.support.indices.tolist() == [1, 1, 1, 3]
    assert causal.support.indptr.tolist() == [0, 0, 1, 2, 4]


def test_heads_have_sets_of_their_own_and_a_bad_one_keeps_all() -> None:
    K = np.random.default_rng(6).standard_normal((2, 3, 20, 4))
    K[1, 2, 0, 0] = np.inf
    for causal in (False, True):
        whole = nlattn.universal_set(K, 0.3, causal=causal, nonfinite="propagate")
        rows = 20 if causal else 1
        assert whole.support.shape == (2, 3, rows, 20)
        nlattn.support(*whole.support)
        for b, head in enumerate(K.reshape(6, 20, 4)[:5]):
            one = nlattn.universal_set(head, 0.3, causal=causal)
            ends = whole.support.indptr[b * rows : b * rows + rows + 1]
            np.testing.assert_array_equal(
                whole.support.indices[ends[0] : ends[-1]], one.support.indices
            )
        start = whole.support.indptr[5 * rows]
        assert len(whole.support.indices) - start == (210 if causal else 20)
        assert whole.borderline[1, 2].all()


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"eps": 0}, ValueError, r"eps=0.0 is outside \(0, 1\], expected the share of a row"),
    ({"eps": 1.1}, ValueError, r"eps=1.1 is outside \(0, 1\], expected the share of a row"),
    ({"eps": np.nan}, ValueError, "eps=nan is not finite"),
    ({"eps": 0.1, "p": 0}, ValueError, "p=0.0, expected a positive number"),
    ({"eps": 0.1, "causal": 1}, TypeError, "causal=1 is no bool"),
    (
        {"eps": 0.1, "tight": True, "p": 0.5},
        ValueError,
        "tight=True needs p >= 1 and causal=False, got p=0.5, causal=False",
    ),
    (
        {"eps": 0.1, "causal": True, "max_bytes": 8},
        MemoryError,
        r"needs 12 B \(sets of the first 2 of 4 keys\), above max_bytes=8 B; "
        "take a larger eps or fewer keys",
    ),
]


@pytest.mark.parametrize(("options", "error", "text"), BAD)
def test_bad_arguments_are_refused(options: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=f"^universal_set: {text}$"):
        nlattn.universal_set(np.ones((4, 2)), **options)


def test_flags_are_refused_in_words() -> None:
    K = np.eye(3)
    for name in ("tight", "causal"):
        with pytest.raises(TypeError, match=f"^universal_set: {name}=2 is no bool"):
            nlattn.universal_set(K, 0.3, **{name: 2})
