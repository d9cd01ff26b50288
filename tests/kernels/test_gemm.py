"""Panels against NumPy: products and distances, offsets, strides, rows that no tile divides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlattn.kernels.gemm import (
    aligned,
    distances,
    distances_of,
    multiply,
    scaled,
    totals_of,
    width,
)
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


@jit.function
def apart(a: Any, b: Any, c: Any, at: Any) -> None:
    distances(a, at[0], b, at[1], c, at[2], at[3], at[4])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("rows", "depth"), [(1, 1), (8, 3), (19, 5)])
def test_distances_are_made_of_differences(dtype: Any, rows: int, depth: int) -> None:
    rng = np.random.default_rng(1)
    w = address(np.empty(0, dtype), 1)[2]
    a = (1000 + rng.standard_normal((rows, depth))).astype(dtype)
    b = (1000 + rng.standard_normal((depth, w))).astype(dtype)
    edge = np.full(2, np.nan, dtype)
    flat = [np.concatenate([edge, x.ravel(), edge]) for x in (a, b, np.zeros((rows, w), dtype))]
    apart(*flat, np.array([2, 2, 2, rows, depth]))
    differences = b.astype(float) - a.astype(float)[:, :, None]
    want, c = (differences**2).sum(1), flat[2]
    np.testing.assert_allclose(c[2:-2].reshape(rows, w), want, rtol=depth * np.finfo(dtype).eps)
    assert np.isnan(c[[0, 1, -2, -1]]).all()


@jit.function
def thrice(a: Any, b: Any, c: Any) -> None:
    scaled(a, 0, 2, 1, b, 0, width(c), c, 0, width(c), 9, 2, c.dtype.type(3))


def test_a_factor_is_applied_once() -> None:
    w = address(np.empty(0), 1)[2]
    a, b, c = np.arange(18.0).reshape(9, 2), np.arange(2.0 * w).reshape(2, w), np.empty((9, w))
    thrice(a.ravel(), b.ravel(), c.ravel())
    np.testing.assert_array_equal(c, 3 * (a @ b))


@jit.function
def of_rows(a: Any, index: Any, b: Any, c: Any, rows: int, depth: int) -> None:
    distances_of(a, index, b, c, rows, depth, 2)


@jit.function
def of_columns(a: Any, index: Any, columns: int, b: Any, c: Any, depth: int) -> None:
    totals_of(a, index, columns, b, c, depth)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_picked_rows_need_not_be_copied(dtype: Any) -> None:
    rng = np.random.default_rng(2)
    w, rows, depth, columns = address(np.empty(0, dtype), 1)[2], 19, 5, 11
    index = rng.integers(0, 40, rows)
    a, b = rng.standard_normal((40, depth)).astype(dtype), np.empty((depth, w), dtype)
    b[:], c = rng.standard_normal(b.shape), np.full((rows + 1, w), np.nan, dtype)
    of_rows(a.ravel(), index, b.ravel(), c.ravel(), rows, depth)
    want = ((a[index, :, None].astype(float) - b) ** 2).sum(1)
    np.testing.assert_allclose(c[:rows], want, rtol=(depth + 3) * np.finfo(dtype).eps)
    assert np.isnan(c[rows]).all()
    values = rng.standard_normal((40, columns)).astype(np.float32)  # of less precision, too
    s, out = rng.random((rows, w)).astype(dtype), np.full((columns + 1, w), np.nan, dtype)
    of_columns(values.ravel(), index, columns, s.ravel(), out.ravel(), rows)
    some = values[index].T.astype(float)
    bound = rows * np.finfo(dtype).eps * (abs(some) @ s)
    assert (abs(out[:columns] - some @ s) <= bound).all()
    assert np.isnan(out[columns]).all()
