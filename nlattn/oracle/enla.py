"""ENLA: linear attention of amplified unit vectors through random features, and ENLCA's loss.

Paper: Xia et al., "Efficient Non-Local Contrastive Attention for Image Super-Resolution", 2022,
sections 3.1 to 3.3. Status: paper, author code. Here features, map and all scores are written out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nlattn.oracle.favor import features_jvp, features_vjp, linear_attention, positive_features
from nlattn.oracle.layout import any_layout

Array = np.ndarray
FEATURES: Any = {"scale": 1.0, "stabilizer": "none"}


def _length(x: Array) -> Array:
    """Euclidean length over channels, (..., n, 1); analytic, so that a complex step passes."""
    squares = (x * x).sum(-1, keepdims=True)
    return np.where(squares == 0, 0, np.sqrt(np.where(squares == 0, 1, squares)))


@any_layout
def amplify(x: Array, amplification: float | None = 6.0, floor: float = 5e-5) -> Array:
    """``sqrt(a) x / max(|x|, floor)``; x itself if `amplification` is None."""
    if amplification is None:
        return x
    length = _length(x)
    root = np.sqrt(x.real.dtype.type(amplification))
    result: Array = root * (x / np.where(length.real > floor, length, floor))
    return result


@any_layout
def amplify_vjp(
    x: Array, g: Array, amplification: float | None = 6.0, floor: float = 5e-5
) -> Array:
    """Gradient of ``sum(g amplify(x))`` with respect to x; the derivative is its own transpose."""
    if amplification is None:
        return g
    length = _length(x)
    root = np.sqrt(x.real.dtype.type(amplification))
    long = length.real > floor
    safe = np.where(long, length, floor)
    u = x / safe
    result: Array = root * (g - np.where(long, u * (u * g).sum(-1, keepdims=True), 0)) / safe
    return result


@any_layout
def enla(
    q: Array,
    k: Array,
    v: Array,
    *,
    projection: Array,
    amplification: float | None = 6.0,
    floor: float = 5e-5,
    eps: float = 1e-4,
) -> Array:
    """``out_i = phi(q_i) . sum_j phi(k_j) v_j / phi(q_i) . sum_j phi(k_j)``."""
    phi_q, phi_k = (
        positive_features(amplify(x, amplification, floor), projection, eps=eps, **FEATURES)
        for x in (q, k)
    )
    return linear_attention(phi_q, phi_k, v)


@any_layout
def enla_vjp(
    q: Array,
    k: Array,
    v: Array,
    dout: Array,
    *,
    projection: Array,
    amplification: float | None = 6.0,
    floor: float = 5e-5,
    eps: float = 1e-4,
) -> tuple[Array, Array, Array]:
    """Gradients (dq, dk, dv), through the map, the features and the normalisation."""
    uq, uk = (amplify(x, amplification, floor) for x in (q, k))
    phi_q, phi_k = (positive_features(u, projection, eps=eps, **FEATURES) for u in (uq, uk))
    A = phi_q @ np.swapaxes(phi_k, -1, -2)
    D = A.sum(-1, keepdims=True)
    A = A / D
    dA = dout @ np.swapaxes(v, -1, -2)
    dS = (dA - (A * dA).sum(-1, keepdims=True)) / D
    gradients = []
    for role, x, u, phi, dphi in (
        ("query", q, uq, phi_q, dS @ phi_k),
        ("key", k, uk, phi_k, np.swapaxes(dS, -1, -2) @ phi_q),
    ):
        du = features_vjp(u, dphi, role=role, phi=phi, projection=projection, eps=eps, **FEATURES)
        gradients.append(amplify_vjp(x, du, amplification, floor))
    return gradients[0], gradients[1], np.swapaxes(A, -1, -2) @ dout


@any_layout
def enla_jvp(
    q: Array,
    k: Array,
    v: Array,
    dq: Array,
    dk: Array,
    dv: Array,
    *,
    projection: Array,
    amplification: float | None = 6.0,
    floor: float = 5e-5,
    eps: float = 1e-4,
) -> Array:
    """Change of `out` along dq, dk, dv, through normalisation, features and map."""
    made = []
    for role, x, dx in (("query", q, dq), ("key", k, dk)):
        u, du = amplify(x, amplification, floor), amplify_vjp(x, dx, amplification, floor)
        phi = positive_features(u, projection, eps=eps, **FEATURES)
        moved = features_jvp(u, du, phi=phi, projection=projection, role=role, eps=eps, **FEATURES)
        made.append((phi, moved))
    (phi_q, dphi_q), (phi_k, dphi_k) = made
    A = phi_q @ np.swapaxes(phi_k, -1, -2)
    D = A.sum(-1, keepdims=True)
    A = A / D
    dA = (dphi_q @ np.swapaxes(phi_k, -1, -2) + phi_q @ np.swapaxes(dphi_k, -1, -2)) / D
    return np.asarray((dA - A * dA.sum(-1, keepdims=True)) @ v + A @ dv)


def _ranked(
    q: Array, k: Array, amplification: float | None, floor: float, last: int
) -> tuple[Array, Array]:
    """Keys of the `last` largest scores of each row, ties to the lowest key, and the scores."""
    logits = amplify(q, amplification, floor) @ np.swapaxes(
        amplify(k, amplification, floor), -1, -2
    )
    order = np.argsort(-logits.real, axis=-1, kind="stable")[..., :last]
    return order, np.exp(np.take_along_axis(logits, order, -1))


def _hinge(
    scores: Array, positives: int, negatives: tuple[int, int], margin: float, eps: float
) -> tuple[Array, Array, Array]:
    """``margin - log(pos / (neg + eps))`` of each row, and the two means."""
    pos = scores[..., :positives].mean(-1)
    neg = scores[..., negatives[0] : negatives[1]].mean(-1)
    return margin - np.log(pos / (neg + eps)), pos, neg


@any_layout
def enlca_loss(
    q: Array,
    k: Array,
    *,
    amplification: float | None = 6.0,
    floor: float = 5e-5,
    positives: int = 15,
    negatives: tuple[int, int] = (50, 65),
    margin: float = 1.0,
    eps: float = 1e-6,
    parity: bool = False,
) -> Array:
    """``mean_i max(0, margin - log(pos_i / (neg_i + eps)))`` over the rows of each slice.

    With `parity`, NaN where there are too few keys.
    """
    if parity and k.shape[-2] <= negatives[0]:
        return np.full(_lead(q, k), np.nan)
    _, scores = _ranked(q, k, amplification, floor, negatives[1])
    hinge, _, _ = _hinge(scores, positives, negatives, margin, eps)
    loss: Array = np.where(hinge.real > 0, hinge, 0).mean(-1)
    return loss


@any_layout
def enlca_loss_vjp(
    q: Array,
    k: Array,
    dout: Array,
    *,
    amplification: float | None = 6.0,
    floor: float = 5e-5,
    positives: int = 15,
    negatives: tuple[int, int] = (50, 65),
    margin: float = 1.0,
    eps: float = 1e-6,
    parity: bool = False,
) -> tuple[Array, Array]:
    """Gradients (dq, dk), the ranks held fixed."""
    if parity and k.shape[-2] <= negatives[0]:
        return np.full(q.shape, np.nan), np.full(k.shape, np.nan)
    order, scores = _ranked(q, k, amplification, floor, negatives[1])
    hinge, pos, neg = _hinge(scores, positives, negatives, margin, eps)
    w = _slopes(scores, pos, neg, positives, negatives[0], eps)
    rows = q.shape[-2]
    w = np.where(hinge.real[..., None] > 0, w, 0) * np.asarray(dout)[..., None, None] / rows
    dlogits = np.zeros((*scores.shape[:-1], k.shape[-2]), scores.dtype)
    np.put_along_axis(dlogits, order, w, -1)
    duq = dlogits @ amplify(k, amplification, floor)
    duk = np.swapaxes(dlogits, -1, -2) @ amplify(q, amplification, floor)
    return amplify_vjp(q, duq, amplification, floor), amplify_vjp(k, duk, amplification, floor)


def _lead(q: Array, k: Array) -> tuple[int, ...]:
    return np.broadcast_shapes(q.shape[:-2], k.shape[:-2])


def _slopes(scores: Array, pos: Array, neg: Array, positives: int, low: int, eps: float) -> Array:
    """Derivative of each row's hinge by the logarithms of its scores."""
    w, high = np.zeros_like(scores), scores.shape[-1]
    w[..., :positives] -= scores[..., :positives] / (positives * pos[..., None])
    w[..., low:] += scores[..., low:] / ((high - low) * (neg[..., None] + eps))
    return w


@any_layout
def enlca_loss_jvp(
    q: Array,
    k: Array,
    dq: Array,
    dk: Array,
    *,
    amplification: float | None = 6.0,
    floor: float = 5e-5,
    positives: int = 15,
    negatives: tuple[int, int] = (50, 65),
    margin: float = 1.0,
    eps: float = 1e-6,
    parity: bool = False,
) -> Array:
    """Change of the loss along dq, dk, the ranks held fixed."""
    if parity and k.shape[-2] <= negatives[0]:
        return np.full(_lead(q, k), np.nan)
    order, scores = _ranked(q, k, amplification, floor, negatives[1])
    hinge, pos, neg = _hinge(scores, positives, negatives, margin, eps)
    w = _slopes(scores, pos, neg, positives, negatives[0], eps)
    (uq, duq), (uk, duk) = (
        (amplify(x, amplification, floor), amplify_vjp(x, dx, amplification, floor))
        for x, dx in ((q, dq), (k, dk))
    )
    dlogits = duq @ np.swapaxes(uk, -1, -2) + uq @ np.swapaxes(duk, -1, -2)
    moved = (w * np.take_along_axis(dlogits, order, -1)).sum(-1)
    loss: Array = np.where(hinge.real > 0, moved, 0).mean(-1)
    return loss
