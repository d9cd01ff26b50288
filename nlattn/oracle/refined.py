"""Refined linear self-attention: products over the number of keys, without a softmax.

Paper: Wang et al., "Less Memory, Faster Speed: Refining Self-Attention Module for Image
Reconstruction", 2019. Status: reconstruction, from its abstract and two independent third-party
implementations. Here in the O(n^2) order; `channel_mixing` is the matrix of the O(n) order.
"""

from __future__ import annotations

import numpy as np

from nlattn.oracle.layout import any_layout

Array = np.ndarray


@any_layout
def refined_self_attention(q: Array, k: Array, v: Array) -> Array:
    """``out[i] = (1/m) sum_j (q[i].k[j]) v[j]``."""
    A = (q @ np.swapaxes(k, -1, -2)) / k.shape[-2]
    result: Array = A @ v
    return result


@any_layout
def channel_mixing(k: Array, v: Array) -> Array:
    """``M = (1/m) sum_j v[j] k[j].T`` (..., e, d), so that ``out[i] = M q[i]``."""
    result: Array = (np.swapaxes(v, -1, -2) @ k) / k.shape[-2]
    return result


@any_layout
def refined_self_attention_vjp(
    q: Array, k: Array, v: Array, dout: Array
) -> tuple[Array, Array, Array]:
    """Gradients (dq, dk, dv), through the map."""
    m = k.shape[-2]
    A = (q @ np.swapaxes(k, -1, -2)) / m
    dA = dout @ np.swapaxes(v, -1, -2)
    return dA @ k / m, np.swapaxes(dA, -1, -2) @ q / m, np.swapaxes(A, -1, -2) @ dout


@any_layout
def refined_self_attention_jvp(
    q: Array, k: Array, v: Array, dq: Array, dk: Array, dv: Array
) -> Array:
    """Change of `out` along dq, dk, dv: of the map, and of the values."""
    m, k_T = k.shape[-2], np.swapaxes(k, -1, -2)
    dA = (dq @ k_T + q @ np.swapaxes(dk, -1, -2)) / m
    result: Array = dA @ v + (q @ k_T / m) @ dv
    return result
