"""Distances to boxes and points, and the tree over them."""

from __future__ import annotations

import numpy as np
import pytest

from nlattn.engines import boxes
from nlattn.kernels.bounds import bear, nearer_last, weights, widened
from nlattn.kernels.boxes import outside
from nlattn.kernels.gemm import SOME, distances, distances_to, width
from nlattn.kernels.lanes import below, lowest_bit, within
from nlattn.runtime import jit


@jit.function
def of_box(box: np.ndarray, panel: np.ndarray, dims: int, out: np.ndarray) -> None:
    outside(box, 2 * dims, panel, dims, out, width(out))


@jit.function
def steps_of_lanes(
    far: np.ndarray, sharp: np.ndarray, allowed: np.ndarray, spent: np.ndarray, yes: np.ndarray
) -> None:
    w, kind = width(far), far.dtype.type
    yes[0] = nearer_last(far, w, far)
    yes[1] = nearer_last(far, w, far)
    weights(far, w, 2, sharp, sharp)
    yes[2] = bear(far, w, kind(2), kind(3), allowed, spent)
    yes[3] = bear(far, w, kind(1e9), kind(3), allowed, spent)


@jit.function
def some_widened(a: np.ndarray, out: np.ndarray) -> None:
    widened(a, 2, 0.25, out, 1, 7)


@jit.function
def of_points(x: np.ndarray, panel: np.ndarray, rows: int, dims: int, out: np.ndarray) -> None:
    distances(x, dims, panel, 0, out, 0, rows, dims)


@jit.function
def lanes_within(x: np.ndarray, limits: np.ndarray) -> int:
    return within(x, width(x), limits)


@jit.function
def of_some(
    x: np.ndarray, some: np.ndarray, panel: np.ndarray, step: int, dims: int, out: np.ndarray
) -> None:
    distances_to(x, some, panel, 2, step, out, some.size, dims)


@jit.function
def bits_below(x: np.ndarray, limit: float) -> tuple[int, int]:
    bits = below(x, width(x), x.dtype.type(limit))
    return bits, lowest_bit(bits)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_distances_of_some_rows_from_points_by_coordinate(dtype: type) -> None:
    rng = np.random.default_rng(2)
    w, dims, count = width(np.zeros(1, dtype)), 5, 7
    x, points = (rng.standard_normal((n, dims)).astype(dtype) for n in (9, count))
    panel = np.append(np.zeros(2), np.append(points.T, np.full(w, np.nan))).astype(dtype)
    some = np.array([8, 1, 1, 4, 0, 0, 0, 0])
    assert some.size % SOME == 0
    out = np.empty((some.size, w), dtype)
    of_some(x.reshape(-1), some, panel, count, dims, out.reshape(-1))
    want = ((x[some, None].astype(float) - points) ** 2).sum(2)[:, :w]
    np.testing.assert_allclose(out[:, :count], want, rtol=(dims + 2) * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_below_a_limit(dtype: type) -> None:
    w = width(np.zeros(1, dtype))
    x = np.ones(2 * w, dtype)
    x[w + 1], x[w + 2], x[-1] = np.nan, 0.5, -np.inf
    assert bits_below(x, 0.5) == (1 << 2 | 1 << (w - 1), 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_distances_of_a_panel(dtype: type) -> None:
    rng = np.random.default_rng(0)
    dims, rows = 5, 11
    panel = rng.standard_normal((dims, width(np.zeros(1, dtype)))).astype(dtype)
    w = panel.shape[1]
    ends = np.sort(rng.standard_normal((3, 2, dims)), axis=1).astype(dtype)
    out = np.full((3, w), np.nan, dtype)
    of_box(ends.reshape(-1), panel.reshape(-1), dims, out.reshape(-1))
    eps = np.finfo(dtype).eps  # a sum of `dims` squares of differences
    for got, box in zip(out[1:], ends[1:], strict=True):
        low, high = box[:, :, None].astype(float)
        want = (np.maximum(np.maximum(low - panel, panel - high), 0) ** 2).sum(0)
        np.testing.assert_allclose(got, want, rtol=(dims + 2) * eps)
    assert np.isnan(out[0]).all()
    x = rng.standard_normal((rows + 1, dims)).astype(dtype)
    out = np.full((rows, w), np.nan, dtype)
    of_points(x.reshape(-1), panel.reshape(-1), rows, dims, out.reshape(-1))
    want = ((x[1:, :, None].astype(float) - panel) ** 2).sum(1)
    np.testing.assert_allclose(out, want, rtol=(dims + 2) * eps)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lanes_within_their_limits(dtype: type) -> None:
    w = width(np.zeros(1, dtype))
    x, limits = np.ones(2 * w, dtype), np.zeros(w, dtype)
    limits[[0, 3, w - 1]], x[w + 3], x[w + 5] = 1, np.nan, -np.inf
    assert lanes_within(x, limits) == 1 | 1 << 5 | 1 << (w - 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_steps_on_the_bounds_of_lanes(dtype: type) -> None:
    w = width(np.zeros(1, dtype))
    far, yes = np.arange(3 * w).astype(dtype), np.zeros(4, bool)
    sharp, allowed, spent = np.full(w, -0.25, dtype), np.full(w, 3, dtype), np.ones(w, dtype)
    steps_of_lanes(far, sharp, allowed, spent, yes)
    assert yes.tolist() == [True, False, True, False]  # the nearer row is last, then stays so
    want = np.exp(0.25 - 0.25 * np.arange(2 * w, 3 * w))
    np.testing.assert_allclose(far[w : 2 * w], want, rtol=1e-5)
    np.testing.assert_allclose(spent, 1 + 3 * want, rtol=1e-5)
    np.testing.assert_allclose(allowed, 3 - 3 * want, rtol=1e-5)
    sharp[:] = 1
    steps_of_lanes(far, sharp, allowed, spent, yes)
    assert (far[2 * w :] <= np.exp(64) * 1.001).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_are_widened(dtype: type) -> None:
    x = np.random.default_rng(0).standard_normal(20).astype(dtype)
    out = np.full(10, np.nan)
    some_widened(x, out)
    np.testing.assert_array_equal(out[1:8], x[2:9].astype(np.float64) / 4)
    assert np.isnan(out[[0, 8, 9]]).all()


def test_a_tree_holds_every_key_once_and_boxes_hold_their_points() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((333, 4))
    x[100:200] = x[100]
    keys = np.arange(0, 999, 3, dtype=np.int32)
    features = np.zeros((999, 4))
    features[keys] = x
    tree = boxes.plant(x, features, keys)
    assert sorted(tree.order) == keys.tolist()
    points, ends = tree.points.reshape(-1, 4), tree.boxes.reshape(-1, 2, 4)
    np.testing.assert_array_equal(points, x[tree.order // 3])
    for level in range(tree.levels + 1):
        for i in range(1 << level):
            node, rows = (1 << level) + i, slice(i * 333 >> level, (i + 1) * 333 >> level)
            np.testing.assert_array_equal(ends[node, 0], points[rows].min(0))
            np.testing.assert_array_equal(ends[node, 1], points[rows].max(0))
            assert tree.least[node] == tree.order[rows].min()
            assert tree.most[node] == tree.order[rows].max()
            assert tree.uniform[node] == (points[rows] == points[rows][0]).all()
            if level == tree.levels or tree.uniform[node]:
                assert (np.diff(tree.order[rows]) > 0).all()
                assert tree.size <= boxes.LEAF << tree.levels
