"""Cross-scale attention: every pixel pastes the s times larger patches of keys it resembles.

Queries q on H x W, keys k on h x w, values v on s h x s w; odd patch p, r = (p - 1) / 2, offsets o
from -r to r in both axes, 0 outside a grid:

    nu_l  = max(sqrt(sum_o k[l + o] . k[l + o]), floor)
    S_il  = sum_o q[i + o] . k[l + o] / nu_l
    A_i   = softmax_l(temperature S_il), or 1 at the first of the largest
    out   = sum_il A_il T_l pasted at s i, stride s,    T_l the s p x s p patch of v around key l
            over z, the number of patches pasted ("average"), the sum of the A_il behind them whose
            keys lie in the grid ("mass"), or a constant ("divide")

cropped to s H x s W, or by s on every side as published. Source: [mei2020], the published module.
Status: author code; "average" and "mass" are ours. Real, longdouble and complex arrays alike.
"""

from __future__ import annotations

from typing import Literal, TypedDict

import numpy as np

from nlattn.oracle.layout import any_layout

Array = np.ndarray


class Options(TypedDict):
    """All that is given beside arrays."""

    scale: int
    patch: int
    temperature: float
    floor: float
    overlap: str
    divisor: float
    assign: str
    crop: str


PADS: dict[str, Literal["edge", "reflect", "constant"]] = {
    "edge": "edge",
    "reflect": "reflect",
    "zero": "constant",
}


@any_layout
def downscale(x: Array, scale: int, *, pad: str = "edge") -> Array:
    """Bilinear, without antialias, at ``(i + 0.5) s - 0.5``; x padded to multiples of s."""
    s = scale
    x = padded(x, s, pad)
    low, high = (s - 1) // 2, s // 2
    corners = [x[..., a::s, b::s, :] for a in (low, high) for b in (low, high)]
    return np.asarray(sum(corners[1:], corners[0]) / 4)


@any_layout
def downscale_vjp(x: Array, dout: Array, scale: int, *, pad: str = "edge") -> Array:
    """Gradient by x of ``sum(dout * downscale(x))``."""
    s = scale
    dx = np.zeros(padded(x, s, pad).shape, x.dtype)
    for a in ((s - 1) // 2, s // 2):
        for b in ((s - 1) // 2, s // 2):
            dx[..., a::s, b::s, :] += dout / 4
    return padded_vjp(dx, x.shape, pad)


def padded(x: Array, s: int, pad: str) -> Array:
    """At bottom and right to multiples of s."""
    H, W = x.shape[-3:-1]
    mode = PADS[pad]
    return np.pad(x, [(0, 0)] * (x.ndim - 3) + [(0, -H % s), (0, -W % s), (0, 0)], mode=mode)


def padded_vjp(dx: Array, shape: tuple[int, ...], pad: str) -> Array:
    """Adjoint of `padded`: what stands at a copy goes to the original."""
    H, W = shape[-3:-1]
    out = np.zeros(shape, dx.dtype)
    at = np.arange(H * W).reshape(1, H, W, 1) + 1
    s = np.array(dx.shape[-3:-1])
    mode = PADS[pad]
    source = np.pad(at[0], [(0, s[0] - H), (0, s[1] - W), (0, 0)], mode=mode)[..., 0]
    for y, x in np.ndindex(*source.shape):
        if source[y, x] > 0:
            out[..., (source[y, x] - 1) // W, (source[y, x] - 1) % W, :] += dx[..., y, x, :]
    return out


def unfold(x: Array, size: int, step: int, margin: int) -> Array:
    """Patches of x (H, W, C), zeros outside: (rows, columns, size, size, C)."""
    x = np.pad(x, ((margin, margin), (margin, margin), (0, 0)))
    rows, columns = ((n - size) // step + 1 for n in x.shape[:2])
    return np.stack(
        [
            x[step * a : step * a + size, step * b : step * b + size]
            for a in range(rows)
            for b in range(columns)
        ]
    ).reshape(rows, columns, size, size, -1)


def fold(patches: Array, step: int) -> Array:
    """Paste patches (rows, columns, size, size, C) with a stride, summed."""
    rows, columns, size, _, C = patches.shape
    out = np.zeros((step * (rows - 1) + size, step * (columns - 1) + size, C), patches.dtype)
    for a, b in np.ndindex(rows, columns):
        out[step * a : step * a + size, step * b : step * b + size] += patches[a, b]
    return out


def weights(
    q: Array, k: Array, p: int, temperature: float, floor: float, assign: str
) -> tuple[Array, ...]:
    """A (n, L), S (n, L), key patches, nu and whether it is above the floor."""
    Q, K = (unfold(x, p, 1, p // 2).reshape(-1, p * p * x.shape[2]) for x in (q, k))
    N = np.sqrt((K * K).sum(1))
    above = N.real > floor
    nu = np.where(above, N, floor)
    S = Q @ K.T / nu
    if assign == "argmax":
        A = np.zeros_like(S)
        A[np.arange(len(S)), S.real.argmax(1)] = 1
    else:
        E = np.exp(temperature * (S - S.real.max(1, keepdims=True)))
        A = E / E.sum(1, keepdims=True)
    return A, S, Q, K, nu, above


def normaliser(
    A: Array, H: int, W: int, h: int, w: int, p: int, overlap: str, divisor: float
) -> Array:
    """What each cell of the uncropped result is over, (H + p - 1, W + p - 1, 1); 1 for 0."""
    if overlap == "divide":
        return np.full((H + p - 1, W + p - 1, 1), divisor, A.dtype)
    inside = np.ones((h, w, 1), A.dtype)
    cells = (
        np.ones((h * w, p * p), A.dtype) if overlap == "average" else unfold(inside, p, 1, p // 2)
    )
    pasted = (A if overlap == "mass" else A * 0 + 1 / (h * w)) @ cells.reshape(h * w, p * p)
    z = fold(pasted.reshape(H, W, p, p, 1), 1)
    return np.where(z == 0, 1, z)  # far outside, where nothing is pasted


def cropped(x: Array, s: int, p: int, crop: str) -> tuple[slice, slice]:
    """The rows and columns that are kept."""
    margin = s * (p // 2) if crop == "exact" else s
    return slice(margin, x.shape[0] - margin), slice(margin, x.shape[1] - margin)


@any_layout
def cross_scale_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: int,
    patch: int = 3,
    temperature: float = 10.0,
    floor: float = 1e-4,
    overlap: str = "average",
    divisor: float = 6.0,
    assign: str = "softmax",
    crop: str = "exact",
) -> Array:
    """Outputs (..., s H, s W, e)."""
    lead = np.broadcast_shapes(*(x.shape[:-3] for x in (q, k, v)))
    q, k, v = (np.broadcast_to(x, lead + x.shape[-3:]) for x in (q, k, v))
    if lead:
        options = Options(scale=scale, patch=patch, temperature=temperature, floor=floor,
            overlap=overlap, divisor=divisor, assign=assign, crop=crop)  # fmt: skip
        each = [cross_scale_attention(q[b], k[b], v[b], **options) for b in np.ndindex(lead)]
        return np.stack(each).reshape(lead + each[0].shape)
    s, p, (H, W), (h, w), e = scale, patch, q.shape[:2], k.shape[:2], v.shape[2]
    A = weights(q, k, p, temperature, floor, assign)[0]
    T = unfold(v, s * p, s, s * (p // 2)).reshape(h * w, -1)
    out = fold((A @ T).reshape(H, W, s * p, s * p, e), s)
    z = normaliser(A, H, W, h, w, p, overlap, divisor)
    rows, columns = cropped(out, s, p, crop)
    return np.asarray((out / z.repeat(s, 0).repeat(s, 1))[rows, columns])


@any_layout
def cross_scale_attention_vjp(
    q: Array,
    k: Array,
    v: Array,
    dout: Array,
    *,
    scale: int,
    patch: int = 3,
    temperature: float = 10.0,
    floor: float = 1e-4,
    overlap: str = "average",
    divisor: float = 6.0,
    assign: str = "softmax",
    crop: str = "exact",
) -> tuple[Array, Array, Array]:
    """Gradients (dq, dk, dv) of ``sum(dout * out)``; of what heads share, sums over these."""
    if dout.ndim > 3:
        options = Options(scale=scale, patch=patch, temperature=temperature, floor=floor,
            overlap=overlap, divisor=divisor, assign=assign, crop=crop)  # fmt: skip
        lead = dout.shape[:-3]
        whole = [np.broadcast_to(x, (*lead, *x.shape[-3:])) for x in (q, k, v)]
        parts = [
            cross_scale_attention_vjp(*(x[b] for x in (*whole, dout)), **options)
            for b in range(len(dout))
        ]
        made = (np.stack(x) for x in zip(*parts, strict=True))
        return tuple(  # type: ignore[return-value]
            g.sum(tuple(range(g.ndim - x.ndim))) if g.ndim > x.ndim else g
            for g, x in zip(made, (q, k, v), strict=True)
        )
    s, p, (H, W), (h, w), e = scale, patch, q.shape[:2], k.shape[:2], v.shape[2]
    A, S, Q, K, nu, above = weights(q, k, p, temperature, floor, assign)
    T = unfold(v, s * p, s, s * (p // 2)).reshape(h * w, -1)
    pasted = fold((A @ T).reshape(H, W, s * p, s * p, e), s)
    z = normaliser(A, H, W, h, w, p, overlap, divisor)
    dpasted = np.zeros_like(pasted)
    rows, columns = cropped(pasted, s, p, crop)
    dpasted[rows, columns] = dout
    dpasted /= z.repeat(s, 0).repeat(s, 1)

    dtiles = unfold(dpasted, s * p, s, 0).reshape(H * W, -1)
    dA = dtiles @ T.T
    dv = fold((A.T @ dtiles).reshape(h, w, s * p, s * p, e), s)
    margin = s * (p // 2)
    dv = dv[margin : margin + s * h, margin : margin + s * w]
    if overlap == "mass":
        lost = (dpasted * pasted).reshape(H + p - 1, s, W + p - 1, s, e).sum((1, 3, 4))[
            ..., None
        ] / z
        seen = unfold(np.ones((h, w, 1), A.dtype), p, 1, p // 2).reshape(h * w, p * p)
        dA -= unfold(lost, p, 1, 0).reshape(H * W, p * p) @ seen.T
    if assign == "argmax":
        return np.zeros_like(q), np.zeros_like(k), dv
    dS = temperature * A * (dA - (A * dA).sum(1, keepdims=True))
    dK = (dS / nu).T @ Q
    dnu = -(S * dS).sum(0) / nu
    dK += np.where(above, dnu / nu, 0)[:, None] * K
    dQ = (dS / nu) @ K
    r = p // 2
    dq = fold(dQ.reshape(H, W, p, p, -1), 1)[r : r + H, r : r + W]
    dk = fold(dK.reshape(h, w, p, p, -1), 1)[r : r + h, r : r + w]
    return dq, dk, dv


@any_layout
def cross_scale_attention_jvp(
    q: Array,
    k: Array,
    v: Array,
    dq: Array,
    dk: Array,
    dv: Array,
    *,
    scale: int,
    patch: int = 3,
    temperature: float = 10.0,
    floor: float = 1e-4,
    overlap: str = "average",
    divisor: float = 6.0,
    assign: str = "softmax",
    crop: str = "exact",
) -> Array:
    """Change of `out` along dq, dk, dv."""
    lead = np.broadcast_shapes(*(x.shape[:-3] for x in (q, k, v)))
    if lead:
        options = Options(scale=scale, patch=patch, temperature=temperature, floor=floor,
            overlap=overlap, divisor=divisor, assign=assign, crop=crop)  # fmt: skip
        whole = [np.broadcast_to(x, lead + x.shape[-3:]) for x in (q, k, v, dq, dk, dv)]
        each = [
            cross_scale_attention_jvp(*(x[b] for x in whole), **options) for b in np.ndindex(lead)
        ]
        return np.stack(each).reshape(lead + each[0].shape)
    s, p, (H, W), (h, w), e = scale, patch, q.shape[:2], k.shape[:2], v.shape[2]
    A, S, Q, K, nu, above = weights(q, k, p, temperature, floor, assign)
    dQ, dK = (unfold(x, p, 1, p // 2).reshape(-1, p * p * x.shape[2]) for x in (dq, dk))
    dnu = np.where(above, (K * dK).sum(1) / nu, 0)
    dS = (dQ @ K.T + Q @ dK.T - S * dnu) / nu
    dA = 0 * S if assign == "argmax" else temperature * A * (dS - (A * dS).sum(1, keepdims=True))
    T, dT = (unfold(x, s * p, s, s * (p // 2)).reshape(h * w, -1) for x in (v, dv))
    pasted, moved = (fold(x.reshape(H, W, s * p, s * p, e), s) for x in (A @ T, dA @ T + A @ dT))
    z = normaliser(A, H, W, h, w, p, overlap, divisor).repeat(s, 0).repeat(s, 1)
    if overlap == "mass":
        cells = unfold(np.ones((h, w, 1), A.dtype), p, 1, p // 2).reshape(h * w, p * p)
        dz = fold((dA @ cells).reshape(H, W, p, p, 1), 1)
        moved = moved - pasted / z * dz.repeat(s, 0).repeat(s, 1)
    rows, columns = cropped(pasted, s, p, crop)
    return np.asarray((moved / z)[rows, columns])
