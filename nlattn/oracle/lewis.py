"""Lewis weights, and sensitivities of keys: the most a key can receive from any query.

    sigma_i = sup_y |<k_i, y>|^p / sum_l |<k_l, y>|^p                                  sensitivity
    tau_i   = k_i^T (K^T K)^+ k_i, which is sigma_i for p = 2                          leverage
    w_i     = tau_i(W^(1/2 - 1/p) K), a fixed point                                    Lewis weight
    s_i(v)  = k_i^T (K^T V^(1 - 2/p) K)^+ k_i, for any positive v

Sources: [kannan2024] for sensitivities as bounds of attention, [cohen2015] for Lewis weights;
damping, averaging and certificates are derived in docs/algorithms/lewis.md. Status: paper, and
ours. One matrix K (n, d) of real or longdouble numbers; everything rests on `basis` alone.
"""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from nlattn.oracle.layout import any_layout

Array = np.ndarray


def basis(K: Array) -> Array:
    """Orthonormal basis of the column space: Gram-Schmidt, largest column first, each twice."""
    n, d = K.shape
    left = K / np.where(K.any(0), abs(K).max(0, initial=0), 1)
    norms = np.sqrt((left**2).sum(0))
    tolerance = max(n, d) * np.finfo(K.dtype).eps * norms.max(initial=0)
    Q = np.zeros((n, 0), K.dtype)
    while left.shape[1]:
        norms = np.sqrt((left**2).sum(0))
        largest = norms.argmax()
        if norms[largest] <= tolerance:
            break
        column = left[:, largest] / norms[largest]
        column = column - Q @ (Q.T @ column)
        column = column / np.sqrt((column**2).sum())
        Q = np.column_stack([Q, column])
        left = np.delete(left, largest, axis=1)
        left = left - Q @ (Q.T @ left)
    return Q


@any_layout
def leverage(K: Array) -> Array:
    """Leverage ``tau_i = |Q_i|^2``, (n,)."""
    return np.asarray((basis(K) ** 2).sum(1))


@any_layout
def s(K: Array, v: Array, p: float) -> Array:
    """``s_i(v) = v_i^(2/p - 1) tau_i(V^(1/2 - 1/p) K)``, (n,)."""
    return np.asarray(v ** (2 / p - 1) * leverage(v[:, None] ** (1 / 2 - 1 / p) * K))


@any_layout
def residual(K: Array, w: Array, p: float) -> Array:
    """``max_i |log(tau_i(W^(1/2 - 1/p) K) / w_i)|`` over the rows of K that are not 0."""
    some = K.any(1)
    return abs(np.log(w[some] ** (-2 / p) * s(K[some], w[some], p))).max(initial=0)


@any_layout
def lewis_weights(
    K: Array,
    p: float,
    *,
    eta: float | None = None,
    steps: int = 200,
    average: float | None = None,
) -> tuple[Array, Any]:
    """Weights (n,) and their residual after `steps` of ``log w <- (1-eta) log w + eta p/2 log s``.

    With `average` e, the mean of the first ``ceil(ln(n/r) / ln(1+e))`` iterates of eta = 2/p.
    """
    some = K.any(1)
    rows = K[some]
    n, r = len(rows), basis(rows).shape[1]
    w = np.full(n, r / max(n, 1), K.dtype)
    if average is not None:
        eta, steps = 2 / p, int(np.ceil(np.log(max(n, 1) / max(r, 1)) / np.log1p(average))) - 1
    eta = (2 / p if p >= 2 else 4 / (p + 2)) if eta is None else eta
    total = w
    for _ in range(steps):
        w = w ** (1 - eta) * s(rows, w, p) ** (eta * p / 2)
        total = total + w
    weights = np.zeros(len(K), K.dtype)
    weights[some] = w if average is None else total / (max(steps, 0) + 1)
    return weights, residual(K, weights, p)


@any_layout
def features(K: Array, h: int) -> Array:
    """Monomials of degree h such that ``<phi(k), phi(y)> = <k, y>^h``, (n, C(d+h-1, h))."""
    d, columns = K.shape[1], []
    for factors in combinations_with_replacement(range(d), h):
        a = np.bincount(factors, minlength=d)
        number = np.prod(np.arange(1, h + 1)) / np.prod([np.prod(np.arange(1, x + 1)) for x in a])
        columns.append(np.sqrt(K.dtype.type(number)) * np.prod(K**a, axis=1))
    return np.stack(columns, 1)


@any_layout
def sensitivity_bounds(K: Array, p: float, *, weights: Array | None = None) -> tuple[Array, Array]:
    """Lower and upper bounds (n,) of every sensitivity, whatever the positive `weights`."""
    some = K.any(1)
    rows, n = K[some], int(some.sum())
    lower, upper = np.zeros(len(K), K.dtype), np.zeros(len(K), K.dtype)
    if n == 0:
        return lower, upper
    v = (lewis_weights(K, p)[0] if weights is None else weights)[some]
    tau = leverage(rows)
    bounds = [certificate(s(rows, x, p), x, p) for x in (v, np.ones_like(v))]
    if p % 2 == 0:
        bounds.append(leverage(features(rows, int(p) // 2)))
    lower[some] = tau ** (p / 2) * (n ** (p / 2 - 1) if p < 2 else 1)
    upper[some] = np.minimum(np.min(bounds, axis=0), 1)
    return lower, upper


def certificate(s_v: Array, v: Array, p: float) -> Array:
    """Bound of the sensitivities from ``s(v)``, for any positive v: Hoelder's inequality."""
    if p >= 2:
        return np.asarray(v.sum() ** (p / 2 - 1) * s_v ** (p / 2))
    return np.asarray(s_v ** (p / 2) * (s_v ** (p / 2) / v).max() ** ((2 - p) / p))


@any_layout
def lp_sensitivity(K: Array, i: int, p: float, *, steps: int = 300) -> tuple[Any, Any]:
    """Bracket of one sensitivity, p > 1: ``1 / |z|_p^p`` of a z = K y with z_i = 1, and its dual.

    The dual: any ``lam`` with ``K^T lam = k_i`` has ``sigma_i <= (sum |lam|^(p*))^(p - 1)``,
    ``p* = p / (p - 1)``. Both are computed through projections on column spaces.
    """
    Q = basis(K)
    e = np.zeros(len(K), K.dtype)
    e[i] = 1
    own = Q @ Q[i]
    if own[i] <= 0:
        return K.dtype.type(0), K.dtype.type(0)
    z = own / own[i]
    for _ in range(steps):
        root = np.maximum(abs(z), abs(z).max() * K.dtype.type(1e-12)) ** (p / 2 - 1)
        B = basis(root[:, None] * Q)
        target = (B @ B[i]) / root  # W^(-1/2) P W^(-1/2) e_i, up to a factor
        step = target / target[i] - z
        a = 1 / (p - 1) if p > 2 else 1.0
        while a > 1e-12 and (abs(z + a * step) ** p).sum() >= (abs(z) ** p).sum():
            a = a / 2
        if a <= 1e-12:
            break
        z = z + a * step
    total = (abs(z) ** p).sum()
    lam = np.sign(z) * abs(z) ** (p - 1) / total
    lam = lam + Q @ (Q[i] - Q.T @ lam)
    return 1 / total, (abs(lam) ** (p / (p - 1))).sum() ** (p - 1)
