"""FAVOR+: positive random features that estimate ``exp(q.k)``, and attention through them.

Paper: Choromanski et al., "Rethinking Attention with Performers", 2020, sections 2.3 and 2.4;
eps, maxima and causal sums as in the published port. Status: paper; ``stabilizer="neutral"`` and
the exact derivative of the maxima: ours. Here features and the n x m map are written out. In
complex arrays the imaginary part is a perturbation, so maxima are those of the real part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import numpy as np

from nlattn.oracle.layout import any_layout
from nlattn.oracle.seen import product

if TYPE_CHECKING:
    from typing import Unpack

Array = np.ndarray
RELU_EPS = 1e-3


@any_layout
def positive_features(
    x: Array,
    projection: Array,
    *,
    scale: float | None = None,
    eps: float = 1e-4,
    stabilizer: str = "neutral",
    role: str = "query",
) -> Array:
    """``r**-0.5 (exp(t - M) + eps)`` with ``t = c P x - |c x|^2 / 2``, (..., n, r).

    M is 0 ("none"); the largest ``c P x`` of a row of queries, or of all keys ("max"); or
    the same of t and log eps, and then eps is divided by exp(M) too ("neutral").
    """
    c = x.real.dtype.type(x.shape[-1]) ** -0.25 if scale is None else scale
    projected = c * (x @ projection.T)
    t = projected - (c * x * (c * x)).sum(-1, keepdims=True) / 2
    axes = (-1,) if role == "query" else (-1, -2)
    top: Array | float = 0.0
    shrunk: Array | float = eps
    if stabilizer == "max":
        top = _largest(projected, axes)
    if stabilizer == "neutral":
        with np.errstate(divide="ignore"):
            floor = np.log(x.real.dtype.type(eps))
        top = np.maximum(t.real.max(axis=axes, keepdims=True, initial=-np.inf), floor)
        shrunk = np.exp(floor - top)
    result: Array = (np.exp(t - top) + shrunk) / np.sqrt(x.real.dtype.type(len(projection)))
    return result


def _largest(x: Array, axes: tuple[int, ...]) -> Array:
    """The first entry of largest real part over the last axes, which are kept."""
    flat = x.reshape(*x.shape[: -len(axes)], -1)
    first = flat.real.argmax(-1)[..., None]
    top: Array = np.take_along_axis(flat, first, -1).reshape(first.shape[:-1] + (1,) * len(axes))
    return top


@any_layout
def relu_features(x: Array, projection: Array, *, scale: float | None = None) -> Array:
    """``relu(c P x) + 1e-3``."""
    c = x.real.dtype.type(x.shape[-1]) ** -0.25 if scale is None else scale
    projected = c * (x @ projection.T)
    return np.where(projected.real > 0, projected, 0) + RELU_EPS


@any_layout
def features(
    q: Array,
    k: Array,
    *,
    projection: Array | None = None,
    kernel: str = "softmax",
    causal: bool = False,
    scale: float | None = None,
    eps: float = 1e-4,
    stabilizer: str | None = None,
) -> tuple[Array, Array]:
    """``phi(q)`` (..., n, r) and ``phi(k)`` (..., m, r)."""
    if kernel == "none":
        powers = np.exp(q - q.real.max(-1, keepdims=True))
        phi_q = powers / powers.sum(-1, keepdims=True)
        if causal:
            return phi_q, np.exp(k)
        powers = np.exp(k - k.real.max(-2, keepdims=True))
        return phi_q, powers / powers.sum(-2, keepdims=True)
    assert projection is not None
    if kernel == "relu":
        return tuple(relu_features(x, projection, scale=scale) for x in (q, k))  # type: ignore[return-value]
    stabilizer = stabilizer or ("neutral" if causal else "max")
    if causal and stabilizer == "neutral":
        stabilizer = "none"  # the same value, and denominator_eps is added to the bare sum
    phi_q, phi_k = (
        positive_features(x, projection, scale=scale, eps=eps, stabilizer=stabilizer, role=role)
        for x, role in ((q, "query"), (k, "key"))
    )
    return phi_q, phi_k


@any_layout
def linear_attention(phi_q: Array, phi_k: Array, v: Array) -> Array:
    """``out = (phi_q phi_k.T / row sum) v``."""
    A = phi_q @ np.swapaxes(phi_k, -1, -2)
    result: Array = (A / A.sum(-1, keepdims=True)) @ v
    return result


def _weights(
    phi_q: Array, phi_k: Array, causal: bool, denominator_eps: float
) -> tuple[Array, Array]:
    """The map, and its denominators (..., n, 1)."""
    A = phi_q @ np.swapaxes(phi_k, -1, -2)
    if causal:
        A = np.where(np.tri(*A.shape[-2:]) > 0, A, 0)
    D = A.sum(-1, keepdims=True)
    if causal:
        D = D + denominator_eps * phi_q.sum(-1, keepdims=True)
        return np.where(np.tri(*A.shape[-2:]) > 0, A / D, 0), D
    return A / D, D


class FeatureOptions(TypedDict, total=False):
    """Options of `features`."""

    projection: Array | None
    kernel: str
    causal: bool
    scale: float | None
    eps: float
    stabilizer: str | None


@any_layout
def favor_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    denominator_eps: float = 1e-6,
    **options: Unpack[FeatureOptions],
) -> Array:
    """``out_i = phi(q_i) . sum_j phi(k_j) v_j / phi(q_i) . sum_j phi(k_j)``; causal: j <= i."""
    phi_q, phi_k = features(q, k, **options)
    causal = options.get("causal", False)
    A, _ = _weights(phi_q, phi_k, causal, denominator_eps)
    return product(A, v, _seen(A, causal))


def _seen(A: Array, causal: bool) -> Array:
    """Which key each query may attend to."""
    yes: Array = np.tri(*A.shape[-2:]) > 0 if causal else np.ones(A.shape[-2:], bool)
    return yes


@any_layout
def favor_attention_vjp(
    q: Array,
    k: Array,
    v: Array,
    dout: Array,
    *,
    denominator_eps: float = 1e-6,
    stabilizer_gradient: str = "exact",
    **options: Unpack[FeatureOptions],
) -> tuple[Array, Array, Array]:
    """Gradients (dq, dk, dv), through the map and then through the features."""
    causal = options.get("causal", False)
    phi_q, phi_k = features(q, k, **options)
    A, D = _weights(phi_q, phi_k, causal, denominator_eps)
    seen = _seen(A, causal)
    dv = product(np.swapaxes(A, -1, -2), dout, seen.T)
    dA = np.where(seen, dout @ np.swapaxes(v, -1, -2), 0)
    dS = np.where(seen, (dA - (A * dA).sum(-1, keepdims=True)) / D, 0)
    dphi_q = product(dS, phi_k, seen)
    dphi_k = product(np.swapaxes(dS, -1, -2), phi_q, seen.T)
    if causal:
        dphi_q = dphi_q - denominator_eps * (A * dA).sum(-1, keepdims=True) / D
    dq = _shared(q, dphi_q, "query", phi_q, stabilizer_gradient, options)
    dk = _shared(k, dphi_k, "key", phi_k, stabilizer_gradient, options)
    return dq, dk, dv.sum(tuple(range(dv.ndim - v.ndim))) if dv.ndim > v.ndim else dv


def _shared(
    x: Array, dphi: Array, role: str, phi: Array, by: str, options: FeatureOptions
) -> Array:
    """Gradient of features of x, summed over the heads that share it."""
    more = dphi.ndim - x.ndim
    if not more:
        return features_vjp(x, dphi, role=role, phi=phi, stabilizer_gradient=by, **options)
    lead = dphi.shape[:-2]
    whole, features = (np.broadcast_to(y, (*lead, *y.shape[-2:])) for y in (x, phi))
    dx = features_vjp(whole, dphi, role=role, phi=features, stabilizer_gradient=by, **options)
    return np.asarray(dx.sum(tuple(range(more))))


@any_layout
def features_vjp(
    x: Array,
    dphi: Array,
    *,
    role: str,
    phi: Array,
    projection: Array | None = None,
    kernel: str = "softmax",
    causal: bool = False,
    scale: float | None = None,
    eps: float = 1e-4,
    stabilizer: str | None = None,
    stabilizer_gradient: str = "exact",
) -> Array:
    """Gradient of ``sum(dphi phi)`` with respect to x."""
    if kernel == "none":
        if causal and role == "key":
            return phi * dphi
        axis = -1 if role == "query" else -2
        dx: Array = phi * (dphi - (phi * dphi).sum(axis, keepdims=True))
        return dx
    assert projection is not None
    c = x.real.dtype.type(x.shape[-1]) ** -0.25 if scale is None else scale
    projected = c * (x @ projection.T)
    if kernel == "relu":
        return c * (np.where(projected.real > 0, dphi, 0) @ projection)
    stabilizer = stabilizer or ("neutral" if causal else "max")
    if stabilizer == "neutral":
        stabilizer = "none" if causal else "neutral"
    E = _exponentials(x, projection, projected, c, eps, stabilizer, role)
    dt = dphi * E
    dprojected = dt.copy()
    if stabilizer == "max" and stabilizer_gradient == "exact":
        flat = (-1,) if role == "query" else (-1, -2)
        where = projected.reshape(*projected.shape[: -len(flat)], -1).real.argmax(-1)[..., None]
        shape = dprojected.shape
        dprojected = dprojected.reshape(*shape[: -len(flat)], -1)
        total = dt.sum(flat)[..., None]
        there = np.take_along_axis(dprojected, where, -1) - total
        np.put_along_axis(dprojected, where, there, -1)
        dprojected = dprojected.reshape(shape)
    dx = c * (dprojected @ projection)
    dx -= c * c * x * dt.sum(-1, keepdims=True)
    return dx


def _exponentials(
    x: Array, projection: Array, projected: Array, c: float, eps: float, stabilizer: str, role: str
) -> Array:
    """Features without eps."""
    if stabilizer != "neutral":
        return positive_features(x, projection, scale=c, eps=0, stabilizer=stabilizer, role=role)
    t = projected - (c * x * (c * x)).sum(-1, keepdims=True) / 2
    axes = (-1,) if role == "query" else (-1, -2)
    with np.errstate(divide="ignore"):
        top = np.maximum(t.real.max(axis=axes, keepdims=True), np.log(t.real.dtype.type(eps)))
    return np.asarray(np.exp(t - top) / np.sqrt(x.real.dtype.type(len(projection))))


@any_layout
def favor_attention_jvp(
    q: Array,
    k: Array,
    v: Array,
    dq: Array,
    dk: Array,
    dv: Array,
    *,
    denominator_eps: float = 1e-6,
    stabilizer_gradient: str = "exact",
    **options: Unpack[FeatureOptions],
) -> Array:
    """Change of `out` along dq, dk, dv: of the features, then of the map and the values."""
    causal = options.get("causal", False)
    phi_q, phi_k = features(q, k, **options)
    A, D = _weights(phi_q, phi_k, causal, denominator_eps)
    seen = _seen(A, causal)
    by = stabilizer_gradient
    dphi_q = features_jvp(q, dq, role="query", phi=phi_q, stabilizer_gradient=by, **options)
    dphi_k = features_jvp(k, dk, role="key", phi=phi_k, stabilizer_gradient=by, **options)
    dA = dphi_q @ np.swapaxes(phi_k, -1, -2) + phi_q @ np.swapaxes(dphi_k, -1, -2)
    dA = np.where(seen, dA, 0)
    dD = dA.sum(-1, keepdims=True)
    if causal:
        dD = dD + denominator_eps * dphi_q.sum(-1, keepdims=True)
    dA = np.where(seen, (dA - A * dD) / D, 0)
    return product(dA, v, seen) + product(A, dv, seen)


@any_layout
def features_jvp(
    x: Array,
    dx: Array,
    *,
    role: str,
    phi: Array,
    projection: Array | None = None,
    kernel: str = "softmax",
    causal: bool = False,
    scale: float | None = None,
    eps: float = 1e-4,
    stabilizer: str | None = None,
    stabilizer_gradient: str = "exact",
) -> Array:
    """Change of the features of x along dx."""
    if kernel == "none":
        if causal and role == "key":
            return phi * dx
        axis = -1 if role == "query" else -2
        dphi: Array = phi * (dx - (phi * dx).sum(axis, keepdims=True))
        return dphi
    assert projection is not None
    c = x.real.dtype.type(x.shape[-1]) ** -0.25 if scale is None else scale
    projected, moved = c * (x @ projection.T), c * (dx @ projection.T)
    if kernel == "relu":
        return np.asarray(np.where(projected.real > 0, moved, 0))
    stabilizer = stabilizer or ("neutral" if causal else "max")
    if stabilizer == "neutral" and causal:
        stabilizer = "none"
    dt = moved - c * c * (x * dx).sum(-1, keepdims=True)
    if stabilizer == "max" and stabilizer_gradient == "exact":
        axes = (-1,) if role == "query" else (-1, -2)
        flat, along = (y.reshape(*y.shape[: -len(axes)], -1) for y in (projected, moved))
        top = np.take_along_axis(along, flat.real.argmax(-1)[..., None], -1)
        dt = dt - top.reshape(*top.shape[:-1], *(1,) * len(axes))
    return np.asarray(dt * _exponentials(x, projection, projected, c, eps, stabilizer, role))
