"""Efficient Attention: keys are summed against values once, and every query reads the sum.

Paper: Shen et al., "Efficient Attention: Attention with Linear Complexities", 2018, section 3.
Status: paper, author code; key mask and ``n != m``: ours. Here the n x m map is written out. In
complex arrays the imaginary part is a perturbation, so maxima are those of the real part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import numpy as np

from nlattn.oracle.layout import any_layout

if TYPE_CHECKING:
    from typing import Unpack

Array = np.ndarray


def softmax(x: Array, axis: int, kept: Array | None = None) -> Array:
    """Softmax along one axis over the entries `kept`; 0 where none is."""
    kept = np.broadcast_to(True if kept is None else kept, x.shape)
    top = np.max(x.real, axis=axis, keepdims=True, initial=-np.inf, where=kept)
    powers = np.where(kept, np.exp(np.where(kept, x - np.where(np.isneginf(top), 0, top), 0)), 0)
    total = powers.sum(axis, keepdims=True)
    weights: Array = powers / np.where(total == 0, 1, total)
    return weights


@any_layout
def factors(
    q: Array, k: Array, *, normalization: str = "softmax", mask: Array | None = None
) -> tuple[Array, Array]:
    """Q (..., n, d) and K (..., m, d), whose product is the map."""
    m = k.shape[-2]
    kept = np.ones(m, bool) if mask is None else mask
    if normalization == "softmax":
        return softmax(q, -1), softmax(k, -2, kept[..., None])
    count = np.maximum(kept.sum(-1), 1).astype(q.real.dtype)[..., None, None]
    root = np.sqrt(count)
    return q / root, np.where(kept[..., None], k, 0) / root


def _kept(x: Array, mask: Array | None) -> Array:
    """Rows of hidden keys are 0, whatever they held."""
    return x if mask is None else np.where(mask[..., None], x, 0)


@any_layout
def efficient_context(
    k: Array, v: Array, *, mask: Array | None = None, normalization: str = "softmax"
) -> Array:
    """``G = K.T v`` (..., d, e)."""
    _, K = factors(k, k, mask=mask, normalization=normalization)
    return np.swapaxes(K, -1, -2) @ _kept(v, mask)


class FactorOptions(TypedDict, total=False):
    """Options of `factors`."""

    normalization: str
    mask: Array | None


@any_layout
def efficient_attention(q: Array, k: Array, v: Array, **options: Unpack[FactorOptions]) -> Array:
    """``out = (Q K.T) v``."""
    Q, K = factors(q, k, **options)
    return (Q @ np.swapaxes(K, -1, -2)) @ _kept(v, options.get("mask"))


@any_layout
def efficient_attention_vjp(
    q: Array, k: Array, v: Array, dout: Array, **options: Unpack[FactorOptions]
) -> tuple[Array, Array, Array]:
    """Gradients (dq, dk, dv), through the map and then through each normalisation."""
    Q, K = factors(q, k, **options)
    mask = options.get("mask")
    A = Q @ np.swapaxes(K, -1, -2)
    dv = _kept(np.swapaxes(A, -1, -2) @ dout, mask)
    dA = dout @ np.swapaxes(_kept(v, mask), -1, -2)
    dQ = dA @ K
    dK = np.swapaxes(dA, -1, -2) @ Q
    if options.get("normalization", "softmax") == "softmax":
        dq = Q * (dQ - (Q * dQ).sum(-1, keepdims=True))
        dk = K * (dK - (K * dK).sum(-2, keepdims=True))
        return dq, _kept(dk, mask), dv
    kept = np.ones(k.shape[-2], bool) if mask is None else mask
    root = np.sqrt(np.maximum(kept.sum(-1), 1).astype(q.real.dtype))[..., None, None]
    return dQ / root, np.where(kept[..., None], dK, 0) / root, dv


@any_layout
def efficient_attention_jvp(
    q: Array, k: Array, v: Array, dq: Array, dk: Array, dv: Array, **options: Unpack[FactorOptions]
) -> Array:
    """Change of `out` along dq, dk, dv: of the map, and of the values."""
    Q, K = factors(q, k, **options)
    mask = options.get("mask")
    v, dk, dv = (_kept(x, mask) for x in (v, dk, dv))
    if options.get("normalization", "softmax") == "softmax":
        dQ = Q * (dq - (Q * dq).sum(-1, keepdims=True))
        dK = K * (dk - (K * dk).sum(-2, keepdims=True))
    else:
        dQ, dK = factors(dq, dk, **options)
    K_T, dK_T = np.swapaxes(K, -1, -2), np.swapaxes(dK, -1, -2)
    result: Array = (dQ @ K_T + Q @ dK_T) @ v + (Q @ K_T) @ dv
    return result
