"""The oracle of heavy attention: numbers worked by hand, and what it is invariant to."""

from __future__ import annotations

import numpy as np
import pytest

from nlattn.oracle.heavy import heavy_attention, polynomial_attention


def test_two_keys_by_hand() -> None:
    """Scores 1 and -3: weights 1/10 and 9/10 for p = 2, 1/4 and 3/4 for p = 1."""
    q, k = np.array([[1.0], [0.0]]), np.array([[1.0], [-3.0]])
    A, lse = polynomial_attention(q, k)
    np.testing.assert_allclose(A, [[0.1, 0.9], [0, 0]])
    np.testing.assert_allclose(lse, [np.log(10), -np.inf])
    np.testing.assert_allclose(heavy_attention(q, k, 0.5), [[0, 0.9], [0, 0]])
    np.testing.assert_allclose(heavy_attention(q, k, 0.2, p=1), [[0.25, 0.75], [0, 0]])
    np.testing.assert_allclose(
        heavy_attention(q, k, 0.05, causal=True), [[1, 0], [0, 0]], atol=1e-15
    )


@pytest.mark.parametrize("p", [0.5, 1, 2, 3, 6])
def test_lengths_of_queries_do_not_matter(p: float) -> None:
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 6, 3))
    A, lse = polynomial_attention(q, k, p=p)
    np.testing.assert_allclose(A.sum(1), 1)
    for factor in (1e-150, -1.0, 1e150):
        scaled, moved = polynomial_attention(factor * q, k, p=p)
        np.testing.assert_allclose(scaled, A, rtol=1e-12)
        np.testing.assert_allclose(moved, lse + p * np.log(abs(factor)), rtol=1e-12)


def test_longdouble_stays_longdouble() -> None:
    x = np.linspace(-1, 1, 12).reshape(4, 3).astype(np.longdouble)
    assert heavy_attention(x, x, 0.1, p=3).dtype == np.longdouble
