"""Softmax attention once more: an operator to follow docs/contributing.md with.

Paper: Vaswani et al., "Attention Is All You Need", 2017, equation 1. Status: paper.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlattn.oracle.layout import any_layout

Array = NDArray[Any]


def weights(q: Array, k: Array, scale: float | None) -> Array:
    """``P[i, j] = softmax_j(scale q[i].k[j])``."""
    s = (q.shape[-1] ** -0.5 if scale is None else scale) * (q @ np.swapaxes(k, -1, -2))
    powers = np.exp(s - s.real.max(-1, keepdims=True, initial=-np.inf))
    result: Array = powers / powers.sum(-1, keepdims=True)
    return result


@any_layout
def soft_mean(q: Array, k: Array, v: Array, *, scale: float | None = None) -> Array:
    """``out = P v``."""
    result: Array = weights(q, k, scale) @ v
    return result


@any_layout
def soft_mean_vjp(
    q: Array, k: Array, v: Array, dout: Array, *, scale: float | None = None
) -> tuple[Array, Array, Array]:
    """``dS = P (dP - sum_j P dP)``; ``dq = c dS k``, ``dk = c dS.T q``, ``dv = P.T dout``."""
    P = weights(q, k, scale)
    dP = dout @ np.swapaxes(v, -1, -2)
    dS = P * (dP - (P * dP).sum(-1, keepdims=True))
    dS *= q.shape[-1] ** -0.5 if scale is None else scale
    return dS @ k, np.swapaxes(dS, -1, -2) @ q, np.swapaxes(P, -1, -2) @ dout
