"""`refined_self_attention` and its channel view against their oracles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nlattn
from nlattn.oracle import refined as oracle
from tests.helpers import assert_as_exact_as_numpy


def arrays(dtype: Any) -> list[Any]:
    rng = np.random.default_rng(0)
    shapes = (2, 40, 9), (2, 70, 9), (2, 70, 5), (2, 40, 5)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def results(module: Any, inputs: list[Any]) -> list[Any]:
    q, k, v, dout = inputs
    out = module.refined_self_attention(q, k, v)
    return [out, module.channel_mixing(k, v), *module.refined_self_attention_vjp(q, k, v, dout)]


@pytest.mark.parametrize(("dtype", "wide"), [(np.float32, np.float64), (np.float64, np.longdouble)])
def test_it_is_as_exact_as_numpy(dtype: Any, wide: Any) -> None:
    inputs = arrays(dtype)
    exact = results(oracle, [x.astype(wide) for x in inputs])
    assert_as_exact_as_numpy(results(nlattn, inputs), results(oracle, inputs), exact)


def test_one_matrix_maps_every_position() -> None:
    q, k, v, _ = arrays(np.float64)
    out = nlattn.refined_self_attention(q, k, v)
    mixing = nlattn.channel_mixing(k, v)
    assert mixing.shape == (2, 5, 9)
    np.testing.assert_allclose(q @ mixing.swapaxes(-1, -2), out, atol=1e-15)


def test_the_map_is_signed_and_says_so() -> None:
    q, k, v, _ = (x[0] for x in arrays(np.float64))
    one = nlattn.refined_self_attention_map(q, k)
    np.testing.assert_allclose(one.to_dense(), q @ k.T / 70, atol=1e-15)
    np.testing.assert_array_equal(one.scores([3]), one.rows([3]))
    np.testing.assert_allclose(one @ v, nlattn.refined_self_attention(q, k, v), atol=1e-15)
    assert not one.normalised


def test_no_keys_give_nothing() -> None:
    q, k, v, dout = arrays(np.float64)
    assert not nlattn.refined_self_attention(q, k[:, :0], v[:, :0]).any()
    dq, dk, _ = nlattn.refined_self_attention_vjp(q, k[:, :0], v[:, :0], dout)
    assert not dq.any()
    assert dk.shape == (2, 0, 9)
