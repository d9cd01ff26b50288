"""Convolutions with kernels, strides and zero padding, forward and transposed; and PReLU.

Arrays are channels-last, (B, H, W, C); weights as published, (out, in, K, K), transposed ones
(in, out, K, K). BLAS is held to one thread, so that results are the same bits however many it has.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn._types import Floats
from nlattn.layers._conv import total
from nlattn.layers._dual import bilinear
from nlattn.runtime import threads


class Stride(NamedTuple):
    """Kernel, stride and padding."""

    kernel: int
    stride: int
    padding: int


@bilinear
@threads.serial_blas
def gather(x: Floats, weight: Floats, how: Stride) -> Floats:
    """``y[i] = sum_ab weight[:, :, a, b] x[s i + (a, b) - padding]``: convolution."""
    patches = _patches(x, how)
    with np.errstate(all="ignore"):
        flat = patches.reshape(len(x), -1, patches.shape[3] * how.kernel**2)
        y: Floats = flat @ weight.reshape(len(weight), -1).T
    return y.reshape(*patches.shape[:3], len(weight))


@bilinear
@threads.serial_blas
def scatter(x: Floats, weight: Floats, how: Stride) -> Floats:
    """The adjoint of `gather`, weight (in, out, K, K): transposed convolution."""
    B, H, W, _ = x.shape
    K, s, p = how
    wide = np.zeros((B, s * (H - 1) + K, s * (W - 1) + K, weight.shape[1]), x.dtype)
    flat = x.reshape(B, H * W, -1)
    with np.errstate(all="ignore"):
        for a in range(K):
            for b in range(K):
                part = flat @ np.ascontiguousarray(weight[:, :, a, b])
                wide[:, a : a + s * (H - 1) + 1 : s, b : b + s * (W - 1) + 1 : s] += part.reshape(
                    B, H, W, -1
                )
    return wide[:, p : wide.shape[1] - p, p : wide.shape[2] - p]


@threads.serial_blas
def weight_gradient(x: Floats, dy: Floats, how: Stride) -> Floats:
    """Gradient (out, in, K, K) of the weight of ``dy <- gather(x)``."""
    patches = _patches(x, how)
    with np.errstate(all="ignore"):
        rows = dy.reshape(-1, dy.shape[3])
        dweight: Floats = rows.T @ patches.reshape(len(rows), -1)
    return dweight.reshape(dy.shape[3], x.shape[3], how.kernel, how.kernel)


def prelu(z: Floats, slope: Floats) -> Floats:
    """``z`` where positive, ``slope z`` elsewhere."""
    return np.where(z > 0, z, slope * z)


def prelu_vjp(z: Floats, slope: Floats, dy: Floats) -> tuple[Floats, Floats]:
    """Gradients of z, the slope's own at 0, and of the shared slope (1,)."""
    dslope = total(np.where(z > 0, 0, z * dy).reshape(-1, 1))
    return np.where(z > 0, dy, slope * dy), dslope


def _patches(x: Floats, how: Stride) -> Floats:
    """What each output reads, (B, H, W, C, K, K)."""
    K, s, p = how
    wide = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(wide, (K, K), (1, 2))
    return windows[:, ::s, ::s]
