"""The oracle of `soft_mean`, by hand and by the complex step."""

from __future__ import annotations

import numpy as np
from nlattn.oracle.soft import soft_mean, soft_mean_vjp

from tests.helpers import assert_gradients


def test_two_keys_by_hand() -> None:
    q, k, v = np.ones((1, 1)), np.array([[0.0], [np.log(3)]]), np.array([[4.0], [8.0]])
    np.testing.assert_allclose(soft_mean(q, k, v, scale=1.0), [[7.0]], rtol=1e-15)


def test_gradients_agree_with_the_complex_step() -> None:
    rng = np.random.default_rng(0)
    q, k, v, dout = (rng.normal(size=shape) for shape in [(3, 2), (4, 2), (4, 5), (3, 5)])
    got = soft_mean_vjp(q, k, v, dout, scale=0.7)
    assert_gradients(got, lambda *x: (soft_mean(*x, scale=0.7) * dout).sum(), (q, k, v))
