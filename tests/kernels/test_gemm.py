"""Panel products against NumPy: offsets, strides, numbers of rows that no tile divides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlattn.kernels.gemm import aligned, multiply, width
from nlattn.runtime import jit


@jit.function
def run(a: Any, at: Any, b: Any, b0: int, b_k: int, c: Any, c0: int, c_row: int) -> None:
    multiply(a, at[0], at[1], at[2], b, b0, b_k, c, c0, c_row, at[3], at[4])


@jit.function
def address(x: Any, size: int) -> Any:
    y = aligned(size, x)
    return y.ctypes.data % 64, y.size, width(y)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("rows", "depth"), [(1, 1), (8, 3), (19, 40), (7, 9)])
def test_a_panel_is_a_product(dtype: Any, transposed: bool, rows: int, depth: int) -> None:
    rng = np.random.default_rng(0)
    w = address(np.empty(0, dtype), 1)[2]
    a = rng.standard_normal((depth, rows) if transposed else (rows, depth)).astype(dtype)
    flat = np.concatenate([np.full(3, np.nan, dtype), a.ravel()])
    b = rng.standard_normal((depth, w + 5)).astype(dtype)
    c = np.full((rows + 1, w + 3), np.nan, dtype)
    steps = (1, rows) if transposed else (depth, 1)
    at = np.array([3, *steps, rows, depth])
    run(flat, at, b, 2, w + 5, c, 1, w + 3)
    a, b = (a.T if transposed else a).astype(np.float64), b[:, 2 : 2 + w].astype(np.float64)
    # A sum of `depth` products in one chain: Higham, Accuracy and Stability, equation 3.5.
    bound = depth * np.finfo(dtype).eps * (abs(a) @ abs(b))
    assert (abs(c[:rows, 1 : 1 + w] - a @ b) <= bound).all()
    assert np.isnan(c[:, 0]).all()
    assert np.isnan(c[:, 1 + w :]).all()
    assert np.isnan(c[rows]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_buffers_start_on_a_cache_line(dtype: Any) -> None:
    for size in (1, 7, 64, 1000):
        assert address(np.empty(0, dtype), size)[:2] == (0, size)
