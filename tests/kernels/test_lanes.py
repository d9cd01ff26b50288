"""Rows of a panel in vectors: against NumPy, row counts that end no chain, NaN and infinities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import config

from nlattn.kernels.exp import exp
from nlattn.kernels.gemm import PANEL_BYTES
from nlattn.kernels.lanes import exponentials, highest, slopes
from nlattn.runtime import jit

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
COUNTS = pytest.mark.parametrize("count", [0, 1, 16, 37])


@jit.function
def raise_top(s: Any, count: int, top: Any) -> None:
    highest(s, count, top)


@jit.function
def weigh(s: Any, count: int, shift: Any, total: Any) -> None:
    exponentials(s, count, shift, total)


@jit.function
def steepen(at: Any, top: Any, inverse: Any, mean: Any, s: Any, ds: Any) -> None:
    slopes(s, ds, at[0], at[1], at[2], top, inverse, mean)


@jit.function
def one_by_one(x: Any, out: Any) -> None:
    for i in range(x.size):
        out[i] = exp(x[i])


def panel(dtype: Any, count: int) -> Any:
    w = PANEL_BYTES // np.dtype(dtype).itemsize
    s = np.random.default_rng(0).standard_normal((count + 1, w)).astype(dtype)
    s[count] = np.nan  # must be neither read nor written
    return s, w


@DTYPES
@COUNTS
def test_the_highest_of_each_lane(dtype: Any, count: int) -> None:
    s, w = panel(dtype, count)
    top = np.full(w, 0.5, dtype)
    if count > 2:
        s[1, 0], s[2, 1], s[:, 2] = np.nan, np.inf, np.nan
    want = np.fmax(top, np.fmax.reduce(s[:count], 0, initial=-np.inf))
    raise_top(s.ravel(), count, top)
    np.testing.assert_array_equal(top, want)


@DTYPES
@COUNTS
def test_exponentials_are_those_of_single_numbers(dtype: Any, count: int) -> None:
    s, w = panel(dtype, count)
    shift, total = np.linspace(0, 3, w, dtype=dtype), np.ones(w, dtype)
    if count > 2:
        s[0, :3] = np.nan, -np.inf, -1e30
    want = np.empty(count * w, dtype)
    one_by_one((s[:count] - shift).ravel(), want)
    weigh(s.ravel(), count, shift, total)
    spacings = 4 if config.DISABLE_JIT else 0  # NumPy's exponential then
    spacings *= np.finfo(dtype).eps
    np.testing.assert_allclose(s[:count], want.reshape(count, w), spacings, 1e-37)
    assert np.isnan(s[count]).all()
    sums = 1 + want.reshape(count, w).astype(np.float64).sum(0)
    # Chains of 16, then a chain of chains.
    np.testing.assert_allclose(total, sums, rtol=(16 + count / 16) * np.finfo(dtype).eps)


@DTYPES
@COUNTS
def test_slopes_of_the_softmax(dtype: Any, count: int) -> None:
    rng = np.random.default_rng(1)
    w = PANEL_BYTES // np.dtype(dtype).itemsize
    step, s0 = w + 3, 5
    s, ds = rng.standard_normal((2, s0 + (count + 1) * step)).astype(dtype)
    top, inverse, mean = rng.uniform(0.5, 1, (3, w)).astype(dtype)
    places = s0 + step * np.arange(count)[:, None] + np.arange(w)
    outside = np.setdiff1d(np.arange(s.size), places)
    weights = np.exp(s[places].astype(np.float64) - top) * inverse
    want, kept = weights * (ds[places].astype(np.float64) - mean), ds[outside].copy()
    steepen(np.array([s0, step, count]), top, inverse, mean, s, ds)
    # exp: a spacing of the difference of at most 8; then two products.
    bound = 8 * np.finfo(dtype).eps
    np.testing.assert_allclose(s[places], weights, rtol=bound)
    np.testing.assert_allclose(ds[places], want, rtol=bound, atol=bound)
    np.testing.assert_array_equal(ds[outside], kept)
