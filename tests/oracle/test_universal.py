"""The oracle of universal sets: by hand, needed, sufficient, and early keys when causal."""

from __future__ import annotations

import numpy as np
import pytest

from nlattn.oracle.heavy import polynomial_attention
from nlattn.oracle.lewis import leverage
from nlattn.oracle.universal import universal_set

E3 = np.repeat(np.eye(3), 4, axis=0)


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, 4])
def test_repeated_unit_vectors_by_hand(p: float) -> None:
    """Each of four copies gets a quarter at most."""
    assert universal_set(E3, 0.25, p=p).all()
    assert not universal_set(E3, 0.26, p=2).any()
    assert universal_set(np.vstack([E3, 0 * E3]), 0.25, p=p).tolist() == [True] * 12 + [False] * 12


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, 4])
def test_no_query_gives_more_to_a_key_outside(p: float) -> None:
    rng = np.random.default_rng(0)
    K = rng.standard_normal((40, 3))
    queries = np.vstack([rng.standard_normal((2000, 3)), K, K @ np.linalg.inv(K.T @ K)])
    A, _ = polynomial_attention(queries, K, p=p)
    outside = ~universal_set(K, 0.1, p=p)
    assert outside.any()
    assert A[:, outside].max() < 0.1


def test_for_squares_every_key_is_needed() -> None:
    K = np.random.default_rng(1).standard_normal((40, 3))
    A, _ = polynomial_attention(K @ np.linalg.inv(K.T @ K), K)
    np.testing.assert_allclose(A.diagonal(), leverage(K), rtol=1e-12)
    np.testing.assert_array_equal(A.diagonal() >= 0.1, universal_set(K, 0.1))


def test_early_keys_were_heavier_early() -> None:
    K = np.random.default_rng(2).standard_normal((60, 3))
    causal, last = universal_set(K, 0.2, causal=True), universal_set(K, 0.2)
    np.testing.assert_array_equal(causal[-1], last)
    assert causal[0, 0]
    assert not np.triu(causal, 1).any()
    assert (causal.any(0) & ~last).any()
    falling = causal[1:] & ~np.eye(60, dtype=bool)[1:]
    assert (falling <= causal[:-1]).all()
