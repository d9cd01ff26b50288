"""What layers are made of: 1x1 convolution, max-pooling, batch normalisation, their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from nlattn.layers import _conv, _norm, _pool


def slope(f: Callable[[Any], Any], x: Any, direction: Any, cotangent: Any, h: float = 1e-5) -> Any:
    """Central difference of ``sum(cotangent * f)`` along a direction."""
    return (cotangent * (f(x + h * direction) - f(x - h * direction))).sum() / (2 * h)


def test_convolution_by_hand() -> None:
    x = np.array([[[1.0, 2.0], [3.0, 4.0]]])
    weight, bias = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, -1.0]]), np.array([0.0, 10.0, 0.0])
    np.testing.assert_array_equal(_conv.conv(x, weight, bias), [[[1, 13, -2], [3, 17, -4]]])
    g = _conv.conv_vjp(x, weight, np.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 2.0]]]))
    np.testing.assert_array_equal(g.x, [[[1, 0], [1, -1]]])
    np.testing.assert_array_equal(g.weight, [[1, 2], [3, 4], [6, 8]])
    np.testing.assert_array_equal(g.bias, [1, 1, 2])


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 1, 1, 5), (3, 7, 5)])
def test_a_convolution_acts_on_each_pixel_of_each_slice(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal(shape), rng.standard_normal((3, 5))
    y = _conv.conv(x, weight)
    np.testing.assert_allclose(y, np.einsum("...c,oc->...o", x, weight), atol=1e-14)
    for one, want in zip(x, y, strict=True):
        np.testing.assert_array_equal(_conv.conv(one[None], weight)[0], want)
    assert _conv.conv_vjp(x, weight, y).x.shape == shape


def test_any_number_of_blas_threads_gives_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((2, 700, 33)), rng.standard_normal((17, 33))
    dy = rng.standard_normal((2, 700, 17))
    with threadpool_limits(1, user_api="blas"):
        want = _conv.conv(x, weight), *_conv.conv_vjp(x, weight, dy)
    got = _conv.conv(x, weight), *_conv.conv_vjp(x, weight, dy)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_pooling_by_hand() -> None:
    """The odd row and column are dropped, and ties go to the first in raster order."""
    x = np.array([[1, 5, 5, 9], [5, 2, 7, 9], [8, 8, 8, 8]], float)[None, :, :3, None]
    np.testing.assert_array_equal(_pool.max_pool(x, (2, 2))[0, ..., 0], [[5]])
    dx = _pool.max_pool_vjp(x, (2, 2), np.full((1, 1, 1, 1), 3.0))
    np.testing.assert_array_equal(dx[0, ..., 0], [[0, 3, 0], [0, 0, 0], [0, 0, 0]])
    frames = np.arange(24.0).reshape(1, 2, 3, 4, 1)
    np.testing.assert_array_equal(
        _pool.max_pool(frames, (1, 2, 2))[0, ..., 0], [[[5, 7]], [[17, 19]]]
    )
    line = np.array([3.0, 1.0, 4.0, 4.0, 5.0])[None, :, None]
    np.testing.assert_array_equal(_pool.max_pool(line, (2,))[0, :, 0], [3, 4])
    np.testing.assert_array_equal(
        _pool.max_pool_vjp(line, (2,), np.array([[[1.0], [2.0]]]))[0, :, 0], [1, 0, 2, 0, 0]
    )


@given(grid=st.lists(st.integers(2, 5), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_pooling_any_grid(grid: list[int], seed: int) -> None:
    """A pooled value is the largest of its window; each passes its gradient to one place."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 4, (2, *grid, 3)).astype(float)
    window = (2,) * len(grid)
    y = _pool.max_pool(x, window)
    dy = rng.standard_normal(y.shape)
    dx = _pool.max_pool_vjp(x, window, dy)
    for place in np.ndindex(y.shape):
        b, *where, c = place
        part = (b, *(slice(2 * i, 2 * i + 2) for i in where), c)
        assert y[place] == x[part].max()
        first = np.unravel_index(x[part].argmax(), window)
        want = np.zeros(window)
        want[first] = dy[place]
        np.testing.assert_array_equal(dx[part], want)
    assert dx.sum() == pytest.approx(dy.sum())


def test_normalisation_by_hand() -> None:
    x = np.array([[[1.0], [3.0]]])
    batch = _norm.statistics(x)
    assert (batch.mean[0], batch.variance[0], batch.size) == (2, 1, 2)
    np.testing.assert_allclose(
        _norm.normalise(x, batch, 0.0, np.array([2.0]), np.array([5.0])), [[[3], [7]]]
    )
    kept = _norm.moved(_norm.Statistics(np.array([1.0]), np.array([1.0])), batch)
    np.testing.assert_allclose(kept.mean, 0.9 + 0.1 * 2)
    np.testing.assert_allclose(kept.variance, 0.9 + 0.1 * 2)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_normalisation_agree_with_differences(training: bool) -> None:
    rng = np.random.default_rng(0)
    x, dx, dy = rng.standard_normal((3, 2, 4, 5, 3))
    scale, shift, d = rng.standard_normal((3, 3))
    kept = _norm.Statistics(rng.standard_normal(3), rng.random(3))

    def forward(x: Any, scale: Any, shift: Any) -> Any:
        return _norm.normalise(x, _norm.statistics(x) if training else kept, 1e-5, scale, shift)

    g = _norm.normalise_vjp(x, _norm.statistics(x) if training else kept, 1e-5, scale, dy)
    for gradient, direction, f, at in (
        (g.x, dx, lambda x: forward(x, scale, shift), x),
        (g.scale, d, lambda s: forward(x, s, shift), scale),
        (g.shift, d, lambda s: forward(x, scale, s), shift),
    ):
        want = slope(f, at, direction, dy)
        np.testing.assert_allclose((gradient * direction).sum(), want, rtol=1e-8)


def test_single_precision_stays_single() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    one = np.ones(4, np.float32)
    batch = _norm.statistics(x)
    arrays = [
        _conv.conv(x, np.eye(4, dtype=np.float32), one),
        *_conv.conv_vjp(x, np.eye(4, dtype=np.float32), x),
        _pool.max_pool(x, (2,)),
        _pool.max_pool_vjp(x, (2,), x[:, :1]),
        _norm.normalise(x, batch, 1e-5, one, one),
        *_norm.normalise_vjp(x, batch, 1e-5, one, x),
    ]
    assert {a.dtype for a in arrays} == {np.dtype(np.float32)}
