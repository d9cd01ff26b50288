"""A backend whose gradient has byte offsets of 32 bits: right up to 2**31 bytes, wrong beyond.

nlattn validate tests/faults/offsets.py --tier large --operators attention
"""

from __future__ import annotations

from typing import Any

import numpy as np

_BLOCK = 1 << 14


class Backend:
    """Attention of one head in blocks of queries; `bits` of an offset are kept."""

    name = "offsets of 32 bits"

    def __init__(self, bits: int = 32):
        self.bits = bits

    def capabilities(self) -> dict[str, Any]:
        """Dense attention, its gradient, and that of neighbourhoods."""
        names = ["attention", "neighbourhood_attention_vjp"]
        return {"operators": names, "dtypes": ["float32"]}

    def neighbourhood_attention_vjp(
        self, q: Any, k: Any, v: Any, dout: Any, *, window: Any, causal: Any
    ) -> Any:
        """On a grid, windows that end at the query's row; queries at ``int32(place * 1024)``."""
        if list(causal) != [True, False]:
            raise NotImplementedError
        (a, b), (H, W, d) = window, q.shape
        grads = dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
        columns = np.clip(np.arange(W) - b // 2, 0, W - b)[:, None] + np.arange(b)
        flat, step = q.reshape(H * W, d), max(1, _BLOCK // W)
        for start in range(0, H, step):
            rows = np.arange(start, min(start + step, H))
            if not dout[rows].any():
                continue
            places = (rows[:, None] * W + np.arange(W)) * 1024 % (1 << (self.bits - 1)) // 1024
            mine, g = flat[places], dout[rows]
            at = rows[:, None] + np.arange(1 - a, 1)
            keys = np.maximum(at, 0)[:, None, :, None], columns[None, :, None, :]
            near, values = (x[keys].reshape(len(rows), W, a * b, -1) for x in (k, v))
            s = (near @ mine[..., None])[..., 0] * q.dtype.type(d**-0.5)
            s = np.where(np.repeat(at >= 0, b, 1)[:, None], s, -np.inf)
            P = np.exp(s - s.max(-1, keepdims=True))
            P /= P.sum(-1, keepdims=True)
            dP = (values @ g[..., None])[..., 0]
            dS = P * (dP - (P * dP).sum(-1, keepdims=True)) * q.dtype.type(d**-0.5)
            dq[rows] = (dS[..., None, :] @ near)[..., 0, :]
            for x, y, w in ((dk, mine, dS), (dv, g, P)):
                parts = (w[..., None] * y[..., None, :]).reshape(len(rows), W, a, b, -1)
                np.add.at(x, keys, parts)
        return grads

    def attention(self, q: Any, k: Any, v: Any) -> Any:
        """Softmax attention, with offsets as long as they need be."""
        out = np.empty((len(q), v.shape[1]), q.dtype)
        for start in range(0, len(q), _BLOCK):
            rows = slice(start, start + _BLOCK)
            out[rows] = _weights(q[rows], k) @ v
        return out

    def attention_vjp(self, q: Any, k: Any, v: Any, dout: Any) -> Any:
        """Its gradients, from queries at ``int32(row * stride)``."""
        dq, dk, dv = np.empty_like(q), np.zeros_like(k), np.zeros_like(v)
        stride = q.shape[1] * q.itemsize
        for start in range(0, len(q), _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, len(q)))
            offsets = (rows * stride) % (1 << (self.bits - 1))  # what a sign bit would say, lost
            mine, g = q[offsets // stride], dout[rows]
            P = _weights(mine, k)
            dP = g @ v.T
            dS = P * (dP - (P * dP).sum(1, keepdims=True)) * q.dtype.type(q.shape[1] ** -0.5)
            dq[rows] = dS @ k
            dk += dS.T @ mine
            dv += P.T @ g
        return dq, dk, dv


def _weights(q: Any, k: Any) -> Any:
    s = q @ k.T * q.dtype.type(q.shape[1] ** -0.5)
    p = np.exp(s - s.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)
