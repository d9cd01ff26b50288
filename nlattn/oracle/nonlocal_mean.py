"""Non-local means with four pairwise functions, every pair written out.

For query i and key j of m, scores f and weights A:

    gaussian, embedded_gaussian    f = scale q_i.k_j                 A = softmax of f over j
    dot_product                    f = q_i.k_j                       A = f / m
    concatenation                  f = relu(w_q.q_i + w_k.k_j)       A = f / m,  w = [w_q, w_k]

    out_i = sum_j A_ij v_j

Paper: [wang2018, eq. 1-6]. Status: paper. Real, longdouble and complex arrays alike; in complex
arithmetic every function is analytic (relu by its real part), so that the complex step
differentiates it.
"""

from __future__ import annotations

import numpy as np

from nlattn.oracle.layout import any_layout

Array = np.ndarray
SOFTMAX = ("gaussian", "embedded_gaussian")


def scores(q: Array, k: Array, pairwise: str, scale: float, weight: Array | None) -> Array:
    """``f[i, j]``, (..., n, m); of `concatenation` before the relu."""
    if pairwise in SOFTMAX:
        return np.asarray(scale * (q @ np.swapaxes(k, -1, -2)))
    if pairwise == "dot_product":
        return np.asarray(q @ np.swapaxes(k, -1, -2))
    if pairwise == "concatenation" and weight is not None:
        d = q.shape[-1]
        a, b = q @ weight[:d], k @ weight[d:]
        return np.asarray(a[..., :, None] + b[..., None, :])
    raise ValueError(pairwise)


def weights(f: Array, pairwise: str) -> Array:
    """``A[i, j]``, (..., n, m)."""
    m = f.shape[-1]
    if pairwise in SOFTMAX:
        powers = np.exp(f - f.real.max(-1, keepdims=True, initial=-np.inf))
        return np.asarray(powers / powers.sum(-1, keepdims=True))
    if pairwise == "concatenation":
        f = np.where(f.real > 0, f, 0)
    return np.asarray(f / max(m, 1))


@any_layout
def nonlocal_mean(
    q: Array,
    k: Array,
    v: Array,
    *,
    pairwise: str = "embedded_gaussian",
    scale: float = 1.0,
    weight: Array | None = None,
) -> Array:
    """Outputs (..., n, e)."""
    return np.asarray(weights(scores(q, k, pairwise, scale, weight), pairwise) @ v)


@any_layout
def nonlocal_mean_vjp(
    q: Array,
    k: Array,
    v: Array,
    dout: Array,
    *,
    pairwise: str = "embedded_gaussian",
    scale: float = 1.0,
    weight: Array | None = None,
) -> tuple[Array, ...]:
    """Gradients (dq, dk, dv), and dweight for `concatenation`, of ``sum(dout * out)``."""
    f = scores(q, k, pairwise, scale, weight)
    A = weights(f, pairwise)
    dv = np.swapaxes(A, -1, -2) @ dout
    dA = dout @ np.swapaxes(v, -1, -2)
    if pairwise in SOFTMAX:
        df = A * (dA - (A * dA).sum(-1, keepdims=True))
        dq, dk = scale * (df @ k), scale * (np.swapaxes(df, -1, -2) @ q)
        return _summed(dq, q), _summed(dk, k), _summed(dv, v)
    df = dA / max(k.shape[-2], 1)
    if pairwise == "dot_product":
        return _summed(df @ k, q), _summed(np.swapaxes(df, -1, -2) @ q, k), _summed(dv, v)
    assert weight is not None
    d = q.shape[-1]
    df = np.where(f.real > 0, df, 0)
    da, db = df.sum(-1)[..., None], df.sum(-2)[..., None]
    dw_q, dw_k = (da * q), (db * k)
    dweight = np.concatenate([dw_q.reshape(-1, d).sum(0), dw_k.reshape(-1, d).sum(0)])
    return _summed(da * weight[:d], q), _summed(db * weight[d:], k), _summed(dv, v), dweight


@any_layout
def nonlocal_mean_jvp(
    q: Array,
    k: Array,
    v: Array,
    dq: Array,
    dk: Array,
    dv: Array,
    *,
    dweight: Array | None = None,
    pairwise: str = "embedded_gaussian",
    scale: float = 1.0,
    weight: Array | None = None,
) -> Array:
    """Change of `out` as q, k, v (and `weight`) move along dq, dk, dv."""
    f = scores(q, k, pairwise, scale, weight)
    A, m = weights(f, pairwise), max(k.shape[-2], 1)
    if pairwise == "concatenation" and weight is not None:
        d = q.shape[-1]
        da, db = dq @ weight[:d], dk @ weight[d:]
        if dweight is not None:
            da, db = da + q @ dweight[:d], db + k @ dweight[d:]
        dA = np.where(f.real > 0, da[..., :, None] + db[..., None, :], 0) / m
    else:
        df = dq @ np.swapaxes(k, -1, -2) + q @ np.swapaxes(dk, -1, -2)
        dA = df / m
        if pairwise in SOFTMAX:
            df = scale * df
            dA = A * (df - (A * df).sum(-1, keepdims=True))
    return np.asarray(dA @ v + A @ dv)


def _summed(gradient: Array, x: Array) -> Array:
    """Sum over the axes along which x was broadcast."""
    gradient = gradient.sum(tuple(range(gradient.ndim - x.ndim)))
    kept = tuple(i for i, size in enumerate(x.shape) if size == 1 and gradient.shape[i] > 1)
    return np.asarray(gradient.sum(kept, keepdims=True))
