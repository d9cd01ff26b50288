"""The oracle of Efficient Attention: numbers worked by hand, invariants, published vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlattn.oracle import efficient as oracle
from tests import published_runs
from tests.helpers import assert_gradients

LOG3 = np.log(3.0)
MASK = np.array([True, False, True, True, False])


def test_two_positions_by_hand() -> None:
    """Query channels weigh 1/4 and 3/4; key channel 0 weighs 3/4, 1/4, and channel 1 evenly."""
    q, k = np.array([[0.0, LOG3]]), np.array([[LOG3, 5.0], [0.0, 5.0]])
    v = np.array([[4.0, 0.0], [0.0, 8.0]])
    np.testing.assert_allclose(oracle.efficient_context(k, v), [[3, 2], [2, 4]])
    np.testing.assert_allclose(oracle.efficient_attention(q, k, v), [[2.25, 3.5]])


def test_scaling_by_hand() -> None:
    """``q (k.T v) / m``, and over the kept keys alone with a mask."""
    q, k, v = np.array([[2.0]]), np.array([[1.0], [3.0]]), np.array([[5.0], [7.0]])
    scaling: Any = {"normalization": "scaling"}
    np.testing.assert_allclose(oracle.efficient_attention(q, k, v, **scaling), [[26]])
    mask = np.array([False, True])
    np.testing.assert_allclose(oracle.efficient_attention(q, k, v, mask=mask, **scaling), [[42]])


@pytest.mark.parametrize("normalization", ["softmax", "scaling"])
def test_no_key_left(normalization: str) -> None:
    x = np.ones((2, 3))
    options: Any = {"normalization": normalization, "mask": np.zeros(2, bool)}
    np.testing.assert_array_equal(oracle.efficient_attention(x, x, x, **options), 0)
    for gradient in oracle.efficient_attention_vjp(x, x, x, x, **options):
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("normalization", ["softmax", "scaling"])
def test_a_masked_key_is_a_dropped_key(normalization: str) -> None:
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 5, 3))
    k[1] = 1e4  # would drown all others if it took part in the maximum
    got = oracle.efficient_attention(q, k, v, mask=MASK, normalization=normalization)
    want = oracle.efficient_attention(q, k[MASK], v[MASK], normalization=normalization)
    np.testing.assert_allclose(got, want, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("normalization", ["softmax", "scaling"])
def test_gradients_agree_with_the_complex_step(normalization: str, mask: Any) -> None:
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((2, *shape)) for shape in ((4, 3), (5, 3), (5, 2)))
    dout = rng.standard_normal((2, 4, 2))
    options: Any = {"normalization": normalization, "mask": mask}
    got = oracle.efficient_attention_vjp(q, k, v, dout, **options)
    assert_gradients(
        got,
        lambda *x: (dout * oracle.efficient_attention(*x, **options)).sum(),
        [q, k, v],
    )


@pytest.mark.parametrize("name", ["ea_softmax_1head", "ea_softmax_2heads", "ea_scaling_1head"])
def test_published_modules(name: str) -> None:
    published_runs.efficient(oracle, name)
