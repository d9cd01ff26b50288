"""The instances with known answers, and the answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nlattn
from nlattn import testing


@pytest.mark.parametrize("noise", [1.0, 1e-6, 1e6])
def test_planted_keys_have_the_leverage_they_are_made_for(noise: float) -> None:
    made = testing.planted_keys(4000, 16, 6, eps=0.2, noise=noise, seed=1)
    chosen = nlattn.universal_set(made.keys, 0.15)
    np.testing.assert_array_equal(chosen.keys, made.relevant)
    planted = chosen.upper[made.relevant]
    np.testing.assert_allclose(planted, made.leverage, atol=0.01)
    assert np.delete(chosen.upper, made.relevant).max() < 0.02
    assert not nlattn.universal_set(made.keys, 0.25).keys.size


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, 4, 6])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tight_keys_are_all_needed(p: float, dtype: Any) -> None:
    K = testing.tight_keys(3, 8, dtype=dtype)
    chosen = nlattn.universal_set(K, 1 / 8, p=p)
    np.testing.assert_array_equal(chosen.keys, np.arange(24))
    assert chosen.borderline.all()
    A = nlattn.heavy_attention(np.eye(3, dtype=dtype), K, 1 / 8, p=p)
    np.testing.assert_array_equal(A.support.indices, np.arange(24))
    np.testing.assert_allclose(A.weights, 1 / 8, rtol=1e-6)
    if p <= 2:
        assert chosen.bound == 24
    if p == 2:
        assert not nlattn.universal_set(K, 1 / 8 + 1e-9).keys.size


@pytest.mark.parametrize(("p", "d"), [(4, 8), (6, 4)])
def test_for_larger_p_more_keys_than_channels_over_eps_are_heavy(p: int, d: int) -> None:
    K = testing.spread_keys(d, p, seed=3)
    eps = {4: 0.25, 6: 0.0625}[p]
    A = nlattn.heavy_attention(K, K, eps, p=p)
    own = (A.support.indices == np.repeat(np.arange(len(K)), np.diff(A.support.indptr))).sum()
    assert own > len(K) / 3
    assert len(nlattn.universal_set(K, eps, p=p).keys) >= own


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="planted_keys: relevant=4, expected at most 3"):
        testing.planted_keys(10, 3, 4)
    with pytest.raises(ValueError, match=r"planted_keys: eps=1\.0 is not below 1"):
        testing.planted_keys(10, 3, 2, eps=1)
    with pytest.raises(ValueError, match="tight_keys: copies=0, expected at least 1"):
        testing.tight_keys(2, 0)
