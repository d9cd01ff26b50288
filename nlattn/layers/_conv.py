"""1x1 convolution of channels-last arrays: one matrix product per pixel, and its gradients.

BLAS is held to one thread, so that results are the same bits however many threads it has.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from nlattn._types import Floats
from nlattn.runtime import threads


class ConvGradients(NamedTuple):
    """Gradients of a 1x1 convolution."""

    x: Floats
    weight: Floats
    bias: Floats


@threads.serial_blas
def conv(x: Floats, weight: Floats, bias: Floats | None = None) -> Floats:
    """``y = x weight.T + bias``: x (B, ..., C), weight (c, C), bias (c,); y (B, ..., c)."""
    with np.errstate(all="ignore"):
        y: Floats = pixels(x) @ weight.T
        if bias is not None:
            y += bias
    return y.reshape(*x.shape[:-1], len(weight))


@threads.serial_blas
def conv_vjp(x: Floats, weight: Floats, dy: Floats) -> ConvGradients:
    """Gradients of input, weight (c, C) and bias (c,) for the cotangent dy (B, ..., c)."""
    rows = dy.reshape(-1, len(weight))
    with np.errstate(all="ignore"):
        dx = pixels(dy) @ weight
        dweight = rows.T @ x.reshape(-1, x.shape[-1])
    return ConvGradients(dx.reshape(x.shape), dweight, total(rows))


def total(rows: Floats) -> Floats:
    """Sum over all axes but the last, accumulated in float64."""
    sums: Floats = rows.sum(tuple(range(rows.ndim - 1)), dtype=np.float64)
    return sums.astype(rows.dtype)


def pixels(x: Floats) -> Floats:
    """Pixels in raster order, (B, n, channels): a product for each slice, whatever its batch."""
    return x.reshape(len(x), math.prod(x.shape[1:-1]), x.shape[-1])
