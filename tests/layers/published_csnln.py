"""The published cells of cross-scale networks, patch by patch: own lines from their description.

Channels first, one picture, plain NumPy loops; padding and stepping as the authors' network has
them: "same" padding of patches, values cut in patches of scale times 3 pixels, a transposed
convolution that crops `scale` pixels, and the constant 6.
"""

from __future__ import annotations

from typing import Any

import numpy as np

FACTOR = {2: 2, 3: 3, 4: 2}
CONVS = {2: (6, 2, 2), 3: (9, 3, 3), 4: (6, 2, 2)}


def prelu(z: Any, slope: Any) -> Any:
    return np.maximum(z, 0) + slope[0] * np.minimum(z, 0)


def conv(x: Any, w: Any, b: Any, stride: int = 1, padding: int = 0) -> Any:
    K = w.shape[2]
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    H, W = ((size - K) // stride + 1 for size in x.shape[1:])
    out = np.empty((len(w), H, W))
    for i in range(H):
        for j in range(W):
            part = x[:, i * stride : i * stride + K, j * stride : j * stride + K]
            out[:, i, j] = np.tensordot(w, part, 3)
    return out + (0 if b is None else b[:, None, None])


def deconv(x: Any, w: Any, b: Any, stride: int, padding: int) -> Any:
    K, (H, W) = w.shape[2], x.shape[1:]
    out = np.zeros((w.shape[1], (H - 1) * stride + K, (W - 1) * stride + K))
    for i in range(H):
        for j in range(W):
            part = np.tensordot(x[:, i, j], w, 1)
            out[:, i * stride : i * stride + K, j * stride : j * stride + K] += part
    out = out[:, padding : out.shape[1] - padding, padding : out.shape[2] - padding]
    return out + (0 if b is None else b[:, None, None])


def same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after, so that there are ``ceil(size / stride)`` patches."""
    total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
    return total // 2, total - total // 2


def patches(x: Any, kernel: int, stride: int) -> Any:
    """(L, C, kernel, kernel) in raster order."""
    x = np.pad(x, ((0, 0), *(same(size, kernel, stride) for size in x.shape[1:])))
    rows, columns = (range(0, size - kernel + 1, stride) for size in x.shape[1:])
    return np.stack([x[:, i : i + kernel, j : j + kernel] for i in rows for j in columns])


class Cell:
    """Weights by their published names."""

    def __init__(self, weights: Any, scale: int):
        self.w, self.scale, self.how = weights, scale, CONVS[scale]

    def active(self, name: str, x: Any, *how: int, turned: bool = False) -> Any:
        function = deconv if turned else conv
        z = function(x, self.w[f"{name}.0.weight"], self.w[f"{name}.0.bias"], *how)
        return prelu(z, self.w[f"{name}.1.weight"])

    def inscale(self, name: str, x: Any) -> Any:
        q, k, v = (
            self.active(f"{name}{part}", x)
            for part in ("conv_match1", "conv_match2", "conv_assembly")
        )
        s = q.reshape(len(q), -1).T @ k.reshape(len(k), -1)
        a = np.exp(s - s.max(1, keepdims=True))
        return ((a / a.sum(1, keepdims=True)) @ v.reshape(len(v), -1).T).T.reshape(v.shape)

    def across(self, name: str, x: Any) -> Any:
        s = FACTOR[self.scale]
        q, v = (self.active(f"{name}{part}", x) for part in ("conv_match_1", "conv_assembly"))
        low, high = (s - 1) // 2, s // 2  # bilinear samples at (i + 0.5) s - 0.5
        small = sum(x[:, a::s, b::s] for a in (low, high) for b in (low, high)) / 4
        k = patches(self.active(f"{name}conv_match_2", small), 3, 1)
        norm = np.sqrt((k**2).sum((1, 2, 3), keepdims=True))
        k = k / np.maximum(norm, self.w[f"{name}escape_NaN"][0])
        score = 10 * conv(q, k, None, 1, 1)
        a = np.exp(score - score.max(0))
        return deconv(a / a.sum(0), patches(v, 3 * s, s), None, s, s) / 6

    def projection(self, name: str, x: Any) -> Any:
        down = self.active(
            f"{name}upsample", self.inscale(f"{name}down_attention.", x), *self.how[1:], turned=True
        )
        e = self.across(f"{name}up_attention.", x) - down
        body = [
            self.w[f"{name}encoder.body.{i}"]
            for i in ("0.weight", "0.bias", "1.weight", "2.weight", "2.bias")
        ]
        z = prelu(conv(e, body[0], body[1], 1, 1), body[2])
        return down + e + conv(z, body[3], body[4], 1, 1)

    def cell(self, x: Any) -> tuple[Any, Any]:
        how = self.how[1:]
        up = self.projection("multi_source_projection.", x)
        missed = x - self.active("down_sample_1", up, *how)
        h = up + self.active("error_encode", missed, *how, turned=True)
        if self.scale != 4:
            return self.active("post_conv", self.active("down_sample_2", h, *how), 1, 1), h
        up = self.projection("multi_source_projection_2.", h)
        missed = x - self.active("down_sample_3", up, 4, 2)
        h = up + self.active("error_encode_2", missed, 4, 2, turned=True)
        return self.active("post_conv", self.active("down_sample_4", h, 4, 2), 1, 1), h
