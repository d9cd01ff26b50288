"""Non-local means: every pixel is a mean of the pixels whose surroundings look alike.

With patches ``F_i`` of ``p x p x C`` numbers, reflected at the border, for pixel i and keys j of S:

    d2_ij = |F_i - F_j|^2 / (p^2 C)
    w_ij  = exp(-max(d2_ij - 2 sigma^2, 0) / h^2),      w_ii = max_j w_ij, 1 or 0
    B_i   = sum_S w_ij V_j / sum_S w_ij                 u_i if all weights are 0
    pixel:  V = u, out = B
    patch:  V = F, out_x = mean of B_i[x - i] over all patches i that cover x

Sources: [buades2005] for the patches and the mean, [buades2011] for the weight and for patches that
vote. Status: paper; the gradients are derived here. Real, longdouble and complex arrays alike: the
squares are analytic, so that the complex step differentiates them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nlattn.oracle.layout import any_layout

Array = np.ndarray
Support = tuple[Array, Array, tuple[int, ...]]


def window_support(H: int, W: int, distance: int) -> Support:
    """All keys at most `distance` rows and columns away, the pixel itself included."""
    y, x = (a.ravel() for a in np.mgrid[:H, :W])
    near = (abs(y[:, None] - y) <= distance) & (abs(x[:, None] - x) <= distance)
    indptr = np.concatenate([[0], np.cumsum(near.sum(1))])
    return indptr, np.nonzero(near)[1], (H * W, H * W)


def few_support(image: Array, p: int, distance: int, topk: int, aim: float) -> Support:
    """The pixel, and the `topk` keys around it whose squared distance is nearest to `aim`."""
    H, W, _ = image.shape[-3:]
    rows = []
    for b in np.ndindex(image.shape[:-3]):
        F = patches(image[b], p).real
        for i, keys in _rows(None, b, H, W, distance):
            others = keys[keys != i]
            d2 = ((F[i] - F[others]) ** 2).sum(1) / F.shape[1]
            best = np.asarray(np.argsort(abs(d2 - aim), kind="stable"))[:topk]
            rows.append(np.sort(np.append(others[best], i)))
    indptr = np.cumsum([0, *(len(row) for row in rows)])
    return indptr, np.concatenate(rows), (*image.shape[:-3], H * W, H * W)


def reflected(length: int, r: int) -> Array:
    """Which pixels stand at ``-r, ..., length - 1 + r``."""
    return np.pad(np.arange(length), r, mode="reflect")


def patches(u: Array, p: int) -> Array:
    """Surroundings of every pixel, (H W, p p C)."""
    H, W, C = u.shape
    rows, columns = reflected(H, p // 2), reflected(W, p // 2)
    return np.stack(
        [u[np.ix_(rows[y : y + p], columns[x : x + p])].ravel() for y in range(H) for x in range(W)]
    ).reshape(H * W, p * p * C)


def patches_vjp(dF: Array, H: int, W: int, p: int) -> Array:
    """Cotangent (H, W, C) of the picture, from that of its patches."""
    dF = dF.reshape(H, W, p, p, -1)
    du = np.zeros((H, W, dF.shape[-1]), dF.dtype)
    rows, columns = reflected(H, p // 2), reflected(W, p // 2)
    for y, x, a, b in np.ndindex(H, W, p, p):
        du[rows[y + a], columns[x + b]] += dF[y, x, a, b]
    return du


def votes(B: Array, H: int, W: int, p: int) -> Array:
    """Mean over the patches that cover a pixel; votes for pixels outside are dropped."""
    B = B.reshape(H, W, p, p, -1)
    r = p // 2
    out, count = np.zeros((H, W, B.shape[-1]), B.dtype), np.zeros((H, W, 1), int)
    for y, x, a, b in np.ndindex(H, W, p, p):
        if 0 <= y + a - r < H and 0 <= x + b - r < W:
            out[y + a - r, x + b - r] += B[y, x, a, b]
            count[y + a - r, x + b - r] += 1
    return np.asarray(out / count)


def votes_vjp(dout: Array, p: int) -> Array:
    """Cotangent (H W, p p C) of the estimates B, from that of the picture."""
    H, W, C = dout.shape
    r = p // 2
    cy, cx = (np.minimum(n - 1, np.arange(n) + r) - np.maximum(0, np.arange(n) - r) + 1
              for n in (H, W))  # fmt: skip
    shared = np.pad(dout / (cy[:, None] * cx)[:, :, None], ((r, r), (r, r), (0, 0)))
    return np.stack(
        [shared[y : y + p, x : x + p].ravel() for y in range(H) for x in range(W)]
    ).reshape(H * W, p * p * C)


def weights(
    F: Array, i: int, keys: Array, sigma: float, h: float, self_weight: str
) -> tuple[Array, Array, Array, int]:
    """Weights of pixel i, with itself last; their sum; keys; and the place of the largest."""
    others = keys[keys != i]
    d2 = ((F[i] - F[others]) ** 2).sum(1) / F.shape[1]
    excess = np.where(d2.real > 2 * sigma**2, d2 - 2 * sigma**2, 0)
    w = np.exp(-excess / h**2) if h > 0 else (excess == 0).astype(F.dtype)
    best = int(w.real.argmax()) if len(w) else -1
    own = F.dtype.type(self_weight == "one")
    if self_weight == "max" and len(w):
        own = w[best]
    w = np.append(w, own)
    if w.sum() == 0:
        w[-1] = 1
    return w, w.sum(), np.append(others, i), best


@any_layout
def nl_means(
    image: Array,
    *,
    sigma: float,
    h: float | None = None,
    patch_size: int = 5,
    patch_distance: int = 5,
    topk: int | None = None,
    select: str = "nearest",
    aggregate: str = "patch",
    self_weight: str = "max",
    support: Support | str | None = None,
    tolerance: float = 1e-3,  # noqa: ARG001  of all pixels it is exact
) -> Array:
    """Denoised (..., H, W, C)."""
    H, W, C = image.shape[-3:]
    if topk is not None and support is None:
        aim = 2 * sigma**2 if select == "statistical" else 0.0
        support = few_support(image, patch_size, patch_distance, topk, aim)
    p, h = patch_size, 0.6 * sigma if h is None else h
    out = np.empty_like(image)
    for b in np.ndindex(image.shape[:-3]):
        F = patches(image[b], p)
        V = F if aggregate == "patch" else image[b].reshape(-1, C)
        B = np.empty_like(V)
        for i, keys in _rows(support, b, H, W, patch_distance):
            w, Z, S, _ = weights(F, i, keys, sigma, h, self_weight)
            B[i] = (w[:, None] * V[S]).sum(0) / Z
        out[b] = votes(B, H, W, p) if aggregate == "patch" else B.reshape(H, W, C)
    return out


@any_layout
def nl_means_vjp(
    image: Array,
    dout: Array,
    *,
    sigma: float,
    h: float | None = None,
    patch_size: int = 5,
    patch_distance: int = 5,
    topk: int | None = None,
    select: str = "nearest",
    aggregate: str = "patch",
    self_weight: str = "max",
    support: Support | str | None = None,
    tolerance: float = 1e-3,  # noqa: ARG001  of all pixels it is exact
) -> Array:
    """Gradient of ``sum(dout * out)`` by the image, the support held fixed."""
    H, W, C = image.shape[-3:]
    if topk is not None and support is None:
        aim = 2 * sigma**2 if select == "statistical" else 0.0
        support = few_support(image, patch_size, patch_distance, topk, aim)
    p, h = patch_size, 0.6 * sigma if h is None else h
    dimage = np.empty_like(image)
    for b in np.ndindex(image.shape[:-3]):
        F = patches(image[b], p)
        V = F if aggregate == "patch" else image[b].reshape(-1, C)
        dB = votes_vjp(dout[b], p) if aggregate == "patch" else dout[b].reshape(-1, C)
        dF, dV = np.zeros_like(F), np.zeros_like(V)
        for i, keys in _rows(support, b, H, W, patch_distance):
            w, Z, S, best = weights(F, i, keys, sigma, h, self_weight)
            dV[S] += (w / Z)[:, None] * dB[i]
            dw = (V[S] @ dB[i] - (w / Z) @ V[S] @ dB[i]) / Z
            if self_weight == "max" and best >= 0 and w[best] != 0:
                dw[best] += dw[-1]
            difference = F[i] - F[S]
            d2 = (difference**2).sum(1) / F.shape[1]
            slope = np.where(d2.real > 2 * sigma**2, -w * dw / (h**2 if h > 0 else 1), 0)
            slope[-1] = 0
            dd = (2 / F.shape[1]) * slope[:, None] * difference
            dF[i] += dd.sum(0)
            dF[S] -= dd
        if aggregate == "patch":
            dF += dV
        dimage[b] = patches_vjp(dF, H, W, p)
        if aggregate == "pixel":
            dimage[b] += dV.reshape(H, W, C)
    return dimage


@any_layout
def nl_means_jvp(
    image: Array,
    dimage: Array,
    *,
    sigma: float,
    h: float | None = None,
    patch_size: int = 5,
    patch_distance: int = 5,
    topk: int | None = None,
    select: str = "nearest",
    aggregate: str = "patch",
    self_weight: str = "max",
    support: Support | str | None = None,
    tolerance: float = 1e-3,  # noqa: ARG001  of all pixels it is exact
) -> Array:
    """Change of the denoised image along `dimage`, the support held fixed."""
    H, W, C = image.shape[-3:]
    if topk is not None and support is None:
        aim = 2 * sigma**2 if select == "statistical" else 0.0
        support = few_support(image, patch_size, patch_distance, topk, aim)
    p, h = patch_size, 0.6 * sigma if h is None else h
    dout = np.empty_like(image)
    for b in np.ndindex(image.shape[:-3]):
        F, dF = patches(image[b], p), patches(dimage[b], p)
        V, dV = (F, dF) if aggregate == "patch" else (x[b].reshape(-1, C) for x in (image, dimage))
        dB = np.empty_like(V)
        for i, keys in _rows(support, b, H, W, patch_distance):
            w, Z, S, best = weights(F, i, keys, sigma, h, self_weight)
            d2 = ((F[i] - F[S]) ** 2).sum(1) / F.shape[1]
            moved = 2 * ((F[i] - F[S]) * (dF[i] - dF[S])).sum(1) / F.shape[1]
            dw = np.where(d2.real > 2 * sigma**2, -w * moved / (h**2 if h > 0 else 1), 0)
            dw[-1] = dw[best] if self_weight == "max" and best >= 0 and w[best] != 0 else 0
            dB[i] = dw @ V[S] + w @ dV[S]
            dB[i] = (dB[i] - (w @ V[S] / Z) * dw.sum()) / Z
        dout[b] = votes(dB, H, W, p) if aggregate == "patch" else dB.reshape(H, W, C)
    return dout


def _rows(
    support: Support | str | None, b: tuple[int, ...], H: int, W: int, distance: int
) -> Iterator[tuple[int, Array]]:
    """(pixel, its keys) of one picture; "certified" is a window of all of it."""
    if support is None or isinstance(support, str):
        distance = distance if support is None else max(H, W)
        indptr, indices, _ = window_support(H, W, distance)
        start = 0
    else:
        indptr, indices, shape = support
        lead = shape[:-2]
        start = int(np.ravel_multi_index(b[len(b) - len(lead) :], lead)) * H * W if lead else 0
    for i in range(H * W):
        yield i, indices[indptr[start + i] : indptr[start + i + 1]]
