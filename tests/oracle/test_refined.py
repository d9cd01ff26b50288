"""The oracle of refined self-attention: numbers worked by hand, its two orders, its gradients."""

from __future__ import annotations

import numpy as np

from nlattn.oracle import efficient, refined
from tests import published_runs
from tests.helpers import assert_gradients, published


def test_two_keys_by_hand() -> None:
    q, k, v = np.array([[2.0]]), np.array([[1.0], [3.0]]), np.array([[5.0], [7.0]])
    np.testing.assert_allclose(refined.refined_self_attention(q, k, v), [[26]])
    np.testing.assert_allclose(refined.channel_mixing(k, v), [[13]])


def test_both_orders_and_efficient_attention_with_scaling_agree() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, *shape)) for shape in ((4, 3), (5, 3), (5, 2)))
    out = refined.refined_self_attention(q, k, v)
    mixed = q @ np.swapaxes(refined.channel_mixing(k, v), -1, -2)
    np.testing.assert_allclose(mixed, out, atol=1e-15)
    scaling = efficient.efficient_attention(q, k, v, normalization="scaling")
    np.testing.assert_allclose(scaling, out, atol=1e-15)


def test_gradients_agree_with_the_complex_step() -> None:
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((2, *shape)) for shape in ((4, 3), (5, 3), (5, 2)))
    dout = rng.standard_normal((2, 4, 2))
    got = refined.refined_self_attention_vjp(q, k, v, dout)
    assert_gradients(got, lambda *x: (dout * refined.refined_self_attention(*x)).sum(), [q, k, v])


def test_the_published_module() -> None:
    """``y = gamma out + x`` between 1x1 convolutions."""
    data, _ = published("refined_sa_5x7")
    q, k, v = published_runs.projected(data, ("query_conv", "key_conv", "value_conv"))
    out = refined.refined_self_attention(q, k, v)
    x = data["in.x"].reshape(*data["in.x"].shape[:2], -1)
    published_runs.assert_output(data, data["w.gamma"] * out + x.swapaxes(1, 2))
