"""Local attention with learned queries, one line per equation.

Paper: Arar, Shamir, Bermano, "Learned Queries for Efficient Local Attention" (QnA), 2022.
Status: author code. For one query, window tap (u, w), output pixel (I, J):

    y = I stride + u - padding,  x = J stride + w - padding     (the pixel that a tap reads)
    z = scale q . k[y, x] + bias[u, w];   p = softmax of z over the taps inside the image
    out[I, J] = sum over queries of sum over inside taps of p gate[u, w] v[y, x]

Arrays may be real, longdouble or complex; maxima are those of the real part.
"""

from __future__ import annotations

import numpy as np

from nlattn.oracle.layout import any_layout

Array = np.ndarray
Pair = int | tuple[int, int]


def pair(value: Pair) -> tuple[int, int]:
    """One number for both axes, or one for each."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


class Taps:
    """Where each tap of each window lies: ``y, x`` (Ho, Wo, kh, kw), and whether inside."""

    def __init__(
        self,
        H: int,
        W: int,
        window: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | None = None,
    ):
        (kh, kw), (sh, sw) = pair(window), pair(stride)
        ph, pw = ((kh - 1) // 2, (kw - 1) // 2) if padding is None else pair(padding)
        Ho, Wo = (H + 2 * ph - kh) // sh + 1, (W + 2 * pw - kw) // sw + 1
        I, J, u, w = np.ogrid[:Ho, :Wo, :kh, :kw]
        y, x = np.broadcast_arrays(I * sh + u - ph, J * sw + w - pw)
        self.inside = (y >= 0) & (y < H) & (x >= 0) & (x < W)
        self.y, self.x = np.where(self.inside, y, 0), np.where(self.inside, x, 0)

    def read(self, image: Array) -> Array:
        """Each window's view of an image: (..., H, W) to (..., Ho, Wo, kh, kw)."""
        return np.asarray(image[..., self.y, self.x])

    def add(self, values: Array, H: int, W: int) -> Array:
        """The transpose of `read`: (..., Ho, Wo, kh, kw) to (..., H, W)."""
        flat = np.moveaxis(np.zeros((*values.shape[:-4], H, W), values.dtype), (-2, -1), (0, 1))
        np.add.at(flat, (self.y, self.x), np.moveaxis(values, (-4, -3, -2, -1), (0, 1, 2, 3)))
        return np.moveaxis(flat, (0, 1), (-2, -1))


def weights(
    q: Array, k: Array, taps: Taps, bias: Array | None, scale: float | None
) -> tuple[Array, Array]:
    """Softmax over taps (..., t, Ho, Wo, kh, kw), 0 outside; and its log normaliser."""
    scale = 1 / np.sqrt(q.real.dtype.type(q.shape[-1])) if scale is None else scale
    score = scale * np.einsum("...td,...hwd->...thw", q, k)
    z = taps.read(score)
    if bias is not None:
        z = z + bias[..., :, None, None, :, :]
    inside = np.broadcast_to(taps.inside, z.shape)
    top = np.where(inside, z.real, -np.inf).max((-2, -1), keepdims=True, initial=-np.inf)
    top = np.where(np.isneginf(top), 0, top)
    powers = np.where(inside, np.exp(np.where(inside, z - top, 0)), 0)
    total = powers.sum((-2, -1), keepdims=True)
    some = total != 0
    with np.errstate(divide="ignore"):
        lse = np.where(some, top + np.log(np.where(some, total, 1)), -np.inf)
    return np.where(inside, powers / np.where(some, total, 1), 0), lse[..., 0, 0]


@any_layout
def qna(
    q: Array,
    k: Array,
    v: Array,
    *,
    window: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | None = None,
    bias: Array | None = None,
    gate: Array | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Array | tuple[Array, Array]:
    """Outputs (..., Ho, Wo, e); with `return_lse` also log normalisers (..., t, Ho, Wo)."""
    H, W = k.shape[-3:-1]
    taps = Taps(H, W, window, stride, padding)
    p, lse = weights(q, k, taps, bias, scale)
    gated = p if gate is None else p * gate[..., :, None, None, :, :]
    near = _near(v, taps)
    out = np.einsum("...tijuw,...ijuwe->...ije", gated, near)
    return (out, lse) if return_lse else out


def _near(v: Array, taps: Taps) -> Array:
    """Values that each window reads (..., Ho, Wo, kh, kw, e), 0 outside."""
    near = np.moveaxis(taps.read(np.moveaxis(v, -1, -3)), -5, -1)
    return np.where(taps.inside[..., None], near, 0)


@any_layout
def qna_vjp(
    q: Array,
    k: Array,
    v: Array,
    dout: Array,
    *,
    window: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | None = None,
    bias: Array | None = None,
    gate: Array | None = None,
    scale: float | None = None,
) -> tuple[Array | None, ...]:
    """Gradients (dq, dk, dv, dbias, dgate) of ``sum(dout * out)``; None for what was not given."""
    factor = 1 / np.sqrt(q.real.dtype.type(q.shape[-1])) if scale is None else scale
    H, W = k.shape[-3:-1]
    taps = Taps(H, W, window, stride, padding)
    p, _ = weights(q, k, taps, bias, scale)
    g = (
        np.ones_like(p)
        if gate is None
        else np.broadcast_to(gate[..., :, None, None, :, :], p.shape)
    )
    near = _near(v, taps)
    cv = np.einsum("...ije,...ijuwe->...ijuw", dout, near)[..., None, :, :, :, :]
    co = (p * g * cv).sum((-2, -1), keepdims=True)
    dz = np.where(taps.inside, p * (g * cv - co), 0)
    spread = np.moveaxis((p * g).sum(-5)[..., None] * dout[..., None, None, :], -1, -5)
    dv = np.moveaxis(taps.add(np.where(taps.inside, spread, 0), H, W), -3, -1)
    dscore = taps.add(dz, H, W)
    dq = factor * np.einsum("...thw,...hwd->...td", dscore, k)
    dk = factor * np.einsum("...thw,...td->...hwd", dscore, q)
    dbias, dgate = dz.sum((-4, -3)), (p * cv).sum((-4, -3))
    return (
        _summed(dq, q.shape),
        _summed(dk, k.shape),
        _summed(dv, v.shape),
        None if bias is None else _summed(dbias, bias.shape),
        None if gate is None else _summed(dgate, gate.shape),
    )


@any_layout
def qna_jvp(
    q: Array,
    k: Array,
    v: Array,
    dq: Array,
    dk: Array,
    dv: Array,
    *,
    window: Pair,
    dbias: Array | None = None,
    dgate: Array | None = None,
    stride: Pair = 1,
    padding: Pair | None = None,
    bias: Array | None = None,
    gate: Array | None = None,
    scale: float | None = None,
) -> Array:
    """Change of `out` along dq, dk, dv, dbias and dgate."""
    factor = 1 / np.sqrt(q.real.dtype.type(q.shape[-1])) if scale is None else scale
    H, W = k.shape[-3:-1]
    taps = Taps(H, W, window, stride, padding)
    p, _ = weights(q, k, taps, bias, scale)
    moved = np.einsum("...td,...hwd->...thw", dq, k) + np.einsum("...td,...hwd->...thw", q, dk)
    dz = taps.read(factor * moved)
    if dbias is not None:
        dz = dz + dbias[..., :, None, None, :, :]
    dp = p * (dz - (p * dz).sum((-2, -1), keepdims=True))
    if gate is not None:
        g = gate[..., :, None, None, :, :]
        dp = dp * g if dgate is None else dp * g + p * dgate[..., :, None, None, :, :]
        p = p * g
    path = "...tijuw,...ijuwe->...ije"
    return np.asarray(np.einsum(path, dp, _near(v, taps)) + np.einsum(path, p, _near(dv, taps)))


def _summed(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the axes along which an array of `shape` was broadcast."""
    gradient = gradient.sum(tuple(range(gradient.ndim - len(shape))))
    kept = tuple(i for i, size in enumerate(shape) if size == 1 and gradient.shape[i] > 1)
    return np.asarray(gradient.sum(kept, keepdims=True))
