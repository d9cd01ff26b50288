"""Max-pooling of channels-last arrays, and its gradient to the first maximum of each window."""

from __future__ import annotations

import math

import numpy as np

from nlattn._types import Floats


def max_pool(x: Floats, window: tuple[int, ...]) -> Floats:
    """Largest value of each window, x (B, *grid, C); what is left over at the end is dropped."""
    pooled: Floats = _windows(x, window).max(-1)
    return pooled


def max_pool_vjp(x: Floats, window: tuple[int, ...], dy: Floats) -> Floats:
    """Gradient of `max_pool`: all of dy to the first maximum, in raster order of the window."""
    windows = _windows(x, window)
    dwindows = np.zeros(windows.shape, x.dtype)
    np.put_along_axis(dwindows, windows.argmax(-1)[..., None], dy[..., None], -1)
    dx = np.zeros(x.shape, x.dtype)
    grid = tuple(n * w for n, w in zip(dy.shape[1:-1], window, strict=True))
    split = [size for pair in zip(dy.shape[1:-1], window, strict=True) for size in pair]
    blocks = dwindows.reshape(*dy.shape, *window)
    d = len(window)
    order = [0, *(axis for i in range(d) for axis in (1 + i, 2 + d + i)), 1 + d]
    inner = blocks.transpose(order).reshape(len(x), *split, x.shape[-1])
    dx[_corner(grid)] = inner.reshape(len(x), *grid, x.shape[-1])
    return dx


def _corner(grid: tuple[int, ...]) -> tuple[slice, ...]:
    return (slice(None), *(slice(n) for n in grid))


def _windows(x: Floats, window: tuple[int, ...]) -> Floats:
    """Values of each window last: (B, *pooled grid, C, size of the window)."""
    d = len(window)
    pooled = [n // w for n, w in zip(x.shape[1:-1], window, strict=True)]
    split = [size for pair in zip(pooled, window, strict=True) for size in pair]
    whole = x[_corner(tuple(n * w for n, w in zip(pooled, window, strict=True)))]
    blocks = whole.reshape(len(x), *split, x.shape[-1])
    order = [0, *range(1, 2 * d, 2), 2 * d + 1, *range(2, 2 * d + 1, 2)]
    windows: Floats = blocks.transpose(order).reshape(
        len(x), *pooled, x.shape[-1], math.prod(window)
    )
    return windows
