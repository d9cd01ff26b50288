"""Distances to boxes and points, and the tree over them."""

from __future__ import annotations

import numpy as np
import pytest

from nlattn.engines import boxes
from nlattn.kernels.boxes import outside
from nlattn.kernels.gemm import distances, width
from nlattn.kernels.lanes import within
from nlattn.runtime import jit


@jit.function
def of_box(box: np.ndarray, panel: np.ndarray, dims: int, out: np.ndarray) -> None:
    outside(box, 2 * dims, panel, dims, out, width(out))


@jit.function
def of_points(x: np.ndarray, panel: np.ndarray, rows: int, dims: int, out: np.ndarray) -> None:
    distances(x, dims, panel, 0, out, 0, rows, dims)


@jit.function
def lanes_within(x: np.ndarray, limits: np.ndarray) -> int:
    return within(x, width(x), limits)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_distances_of_a_panel(dtype: type) -> None:
    rng = np.random.default_rng(0)
    dims, rows = 5, 11
    panel = rng.standard_normal((dims, width(np.zeros(1, dtype)))).astype(dtype)
    w = panel.shape[1]
    ends = np.sort(rng.standard_normal((2, 2, dims)), axis=1).astype(dtype)
    out = np.full((2, w), np.nan, dtype)
    of_box(ends.reshape(-1), panel.reshape(-1), dims, out.reshape(-1))
    low, high = ends[1][:, :, None].astype(float)
    want = (np.maximum(np.maximum(low - panel, panel - high), 0) ** 2).sum(0)
    eps = np.finfo(dtype).eps  # a sum of `dims` squares of differences
    np.testing.assert_allclose(out[1], want, rtol=(dims + 2) * eps)
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
