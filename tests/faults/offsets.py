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
        """Dense attention and its gradient."""
        return {"operators": ["attention"], "dtypes": ["float32"]}

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
