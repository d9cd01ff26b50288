"""The exponential and the hyperbolic tangent against longdouble."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import config

from nlattn.kernels.exp import exp, tanh
from nlattn.runtime import jit

POINTS = 1001 if config.DISABLE_JIT else 200_001


@jit.function
def evaluate(x: Any, e: Any, t: Any) -> None:
    for i in range(x.size):
        e[i] = exp(x[i])
        t[i] = tanh(x[i])


def both(x: Any) -> tuple[Any, Any]:
    e, t = np.full_like(x, np.nan), np.full_like(x, np.nan)
    evaluate(x, e, t)
    return e, t


@pytest.mark.parametrize(
    ("dtype", "low", "high", "bound"),
    [(np.float32, -87, 80, 1e-7), (np.float64, -708, 700, 2.2e-16)],
)
def test_exp_is_within_one_spacing(dtype: Any, low: float, high: float, bound: float) -> None:
    for x in (np.linspace(low, high, POINTS), np.linspace(-1, 0.1, POINTS)):
        x = x.astype(dtype)
        want = np.exp(x.astype(np.longdouble))
        assert np.max(np.abs(both(x)[0] / want - 1)) < bound


@pytest.mark.parametrize(("dtype", "bound"), [(np.float32, 2.4e-7), (np.float64, 4.4e-16)])
def test_tanh_is_within_two_spacings(dtype: Any, bound: float) -> None:
    for high in (30.0, 1.0, 1e-5):
        x = np.linspace(-high, high, POINTS - 1).astype(dtype)
        want = np.tanh(x.astype(np.longdouble))
        assert np.max(np.abs(both(x)[1] / want - 1)) < bound


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ends_and_special_values(dtype: Any) -> None:
    x = np.array([0, -np.inf, np.nan, -1e30, np.finfo(dtype).min, -0.0], dtype)
    e, t = both(x)
    np.testing.assert_array_equal(e, np.array([1, 0, np.nan, 0, 0, 1], dtype))
    np.testing.assert_array_equal(t, np.array([0, -1, np.nan, -1, -1, 0], dtype))
    assert both(np.array([np.inf], dtype))[1] == 1
    assert e.dtype == t.dtype == dtype


@pytest.mark.parametrize(("dtype", "low"), [(np.float32, -88), (np.float64, -709)])
def test_exp_fades_to_zero_without_a_jump(dtype: Any, low: float) -> None:
    x = np.linspace(low - 2, low + 4, 500).astype(dtype)
    e = both(x)[0]
    assert (np.diff(e) >= 0).all()
    np.testing.assert_allclose(e, np.exp(x.astype(np.longdouble)), atol=2 * np.finfo(dtype).tiny)
