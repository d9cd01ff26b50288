"""Hamming attention: softmax over the keys whose signs agree most with the query's.

    s_ij = sign(q_i) . sign(k_j) = d - 2 (number of channels whose signs differ)
    N_i  = the `keys` keys of largest s_ij, ties to the lowest index
    out_i = sum_{j in N_i} softmax_{j in N_i}(scale s_ij) v_j

sign(x) is -1 for x < 0 and +1 otherwise: for 0, -0 and NaN too. Its derivative is 0 almost
everywhere; straight through it is taken for 1 ("identity"), or for 1 where |x| <= 1 ("clip").

Paper: Horton et al., "Hamming Attention Distillation: Binarizing Keys and Queries for Efficient
Long-Context Transformers", arXiv 2502.01770, 2025, from its abstract and public summaries: the
full text was not at hand. Status: reconstruction. Real, longdouble and complex arrays alike: what
passes straight through is the imaginary part, so that the complex step gives the same gradients.
"""

from __future__ import annotations

import numpy as np

from nlattn.oracle.layout import any_layout

Array = np.ndarray


def slope(x: Array, straight_through: str) -> Array:
    """What is taken for the derivative of the sign."""
    if straight_through == "clip":
        return np.asarray((abs(x.real) <= 1).astype(x.real.dtype))
    return np.full(x.shape, int(straight_through == "identity"), x.real.dtype)


def signs(x: Array, straight_through: str = "none") -> Array:
    """-1 and +1 of x's dtype, and in complex arrays a perturbation that has passed through."""
    sign = np.zeros_like(x)
    sign[...] = np.where(x.real < 0, -1, 1)
    if np.iscomplexobj(x):
        sign += 1j * x.imag * slope(x, straight_through)
    return sign


def nearest(s: Array, keys: int) -> Array:
    """The `keys` keys of largest score of every row, ascending; ties to the lowest index."""
    best = np.argsort(-np.asarray(s.real), axis=-1, kind="stable")[..., :keys]
    return np.asarray(np.sort(best, axis=-1))


def _chosen(
    q: Array, k: Array, keys: int, scale: float | None, through: str
) -> tuple[tuple[Array, Array], Array, Array, Array]:
    """Signs of queries, the chosen keys, and their softmax with the normaliser's logarithm."""
    sq, sk = signs(q, through), signs(k, through)
    s = sq @ np.swapaxes(sk, -1, -2)
    index = nearest(s, keys)
    s = (q.shape[-1] ** -0.5 if scale is None else scale) * np.take_along_axis(s, index, -1)
    top = s.real.max(-1, keepdims=True, initial=-np.inf)
    w = np.exp(s - np.where(np.isneginf(top), 0, top))
    Z = w.sum(-1, keepdims=True)
    some = Z.real > 0
    P = w / np.where(some, Z, 1)
    log = np.log(np.where(some, Z, 1)) + np.where(some, top, -np.inf)
    return (sq, sk), index, P, log[..., 0]


@any_layout
def hamming_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    keys: int = 32,
    scale: float | None = None,
    straight_through: str = "identity",
    return_lse: bool = False,
) -> Array | tuple[Array, Array]:
    """Outputs (..., n, e), and with `return_lse` also the log normalisers (..., n)."""
    _, index, P, lse = _chosen(q, k, keys, scale, straight_through)
    v, index = _together(v, index)
    out = (P[..., None] * np.take_along_axis(v[..., None, :, :], index, -2)).sum(-2)
    return (out, np.broadcast_to(lse, out.shape[:-1])) if return_lse else out


@any_layout
def hamming_attention_vjp(
    q: Array,
    k: Array,
    v: Array,
    dout: Array,
    *,
    dlse: Array | None = None,
    keys: int = 32,
    scale: float | None = None,
    straight_through: str = "identity",
) -> tuple[Array, Array, Array]:
    """Gradients (dq, dk, dv), the chosen keys held fixed: ``dq = scale (dS sign(k)) slope(q)``."""
    (sq, sk), index, P, _ = _chosen(q, k, keys, scale, straight_through)
    m, lead = k.shape[-2], dout.shape[:-2]
    vb, place = _together(v, index)
    dP = (dout[..., None, :] * np.take_along_axis(vb[..., None, :, :], place, -2)).sum(-1)
    log = 0 if dlse is None else dlse[..., None]
    dS = P * (dP - (P * dP).sum(-1, keepdims=True) + log)
    whole, weights = (np.zeros((*lead, q.shape[-2], m), dout.dtype) for _ in range(2))
    place = np.broadcast_to(index, (*lead, *index.shape[-2:]))
    np.put_along_axis(whole, place, dS, -1)
    np.put_along_axis(weights, place, np.broadcast_to(P, place.shape), -1)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    dq = scale * (whole @ sk) * slope(q, straight_through)
    dk = scale * (np.swapaxes(whole, -1, -2) @ sq) * slope(k, straight_through)
    dv = np.swapaxes(weights, -1, -2) @ dout
    return _summed(dq, q.shape), _summed(dk, k.shape), _summed(dv, v.shape)


@any_layout
def hamming_attention_jvp(
    q: Array,
    k: Array,
    v: Array,
    dq: Array,
    dk: Array,
    dv: Array,
    *,
    keys: int = 32,
    scale: float | None = None,
    straight_through: str = "identity",
    return_lse: bool = False,
) -> Array | tuple[Array, Array]:
    """Change of `out`, and of `lse`, along dq, dk, dv, the chosen keys held fixed."""
    (sq, sk), index, P, _ = _chosen(q, k, keys, scale, straight_through)
    moved_q, moved_k = (slope(x, straight_through) * dx for x, dx in ((q, dq), (k, dk)))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    dS = scale * (moved_q @ np.swapaxes(sk, -1, -2) + sq @ np.swapaxes(moved_k, -1, -2))
    dS = np.take_along_axis(dS, index, -1)
    mean = (P * dS).sum(-1, keepdims=True)
    v, place = _together(v, index)
    near, dnear = (np.take_along_axis(x[..., None, :, :], place, -2)
                   for x in (v, np.broadcast_to(dv, v.shape)))  # fmt: skip
    out = ((P * (dS - mean))[..., None] * near + P[..., None] * dnear).sum(-2)
    return (out, np.broadcast_to(mean[..., 0], out.shape[:-1])) if return_lse else out


def _together(v: Array, index: Array) -> tuple[Array, Array]:
    """Values and chosen keys with the same leading axes, the index as ``(..., n, keys, 1)``."""
    lead = np.broadcast_shapes(v.shape[:-2], index.shape[:-2])
    v = np.broadcast_to(v, lead + v.shape[-2:])
    return v, np.broadcast_to(index, lead + index.shape[-2:])[..., None]


def _summed(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the axes along which an array of `shape` was broadcast."""
    gradient = gradient.sum(tuple(range(gradient.ndim - len(shape))))
    kept = tuple(i for i, size in enumerate(shape) if size == 1 != gradient.shape[i])
    return np.asarray(gradient.sum(kept, keepdims=True))
