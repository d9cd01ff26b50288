"""`soft_mean` against its oracle."""

from __future__ import annotations

import numpy as np
import pytest

import nlattn
from nlattn.oracle import soft as oracle


def test_it_is_its_oracle() -> None:
    rng = np.random.default_rng(0)
    q, k, v, dout = (rng.normal(size=(2, *s)) for s in [(3, 2), (4, 2), (4, 5), (3, 5)])
    want = oracle.soft_mean(q, k, v, scale=0.7)
    np.testing.assert_allclose(nlattn.soft_mean(q, k, v, scale=0.7), want, rtol=1e-14)
    np.testing.assert_allclose(nlattn.soft_mean_map(q[0], k[0], scale=0.7) @ v[0], want[0], 1e-14)
    got, right = (module.soft_mean_vjp(q, k, v, dout) for module in (nlattn, oracle))
    for mine, true in zip(got, right, strict=True):
        np.testing.assert_allclose(mine, true, rtol=1e-12, atol=1e-14)


def test_a_shape_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^soft_mean: k has shape \(4, 3\), expected \(m, d\) "):
        nlattn.soft_mean(np.ones((3, 2)), np.ones((4, 3)), np.ones((4, 1)))
