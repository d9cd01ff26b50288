"""Patch-based stochastic attention (PSAL), one line per equation, for given matches.

Paper: Cherel, Almansa, Gousseau, Newson, "Patch-based stochastic attention for image editing",
2022, section 3. Status: paper; borders: ours. For query pixel i with matches m_t(i):

    cost     c_t(i) = sum over patch offsets w of |q[i + w] - k[m_t(i) + w]|^2
    plain    out_i = sum_t pi_t v[m_t(i)],   pi = softmax over t of -c_t(i) / temperature
    voting   out_i = sum_(w, t) pi v[m_t(i + w) - w],   pi = softmax over (w, t) of -c_t(i + w) / T

A vote whose centre or key leaves its grid is dropped; patches are padded at borders. Real,
longdouble and complex arrays.
"""

from __future__ import annotations

import numpy as np

from nlattn.oracle.layout import any_layout
from nlattn.oracle.patchmatch import patchmatch

Array = np.ndarray


def patches(x: Array, patch: int, border: str) -> Array:
    """The patch around every pixel: (H, W, d) to (H, W, patch, patch, d)."""
    r, (H, W) = patch // 2, x.shape[:2]
    padded = np.pad(x, ((r, r), (r, r), (0, 0)), mode=border)  # type: ignore[call-overload]
    return np.stack(
        [np.stack([padded[a : a + H, b : b + W] for b in range(patch)], 2) for a in range(patch)],
        2,
    )


def costs(q: Array, k: Array, index: Array, patch: int, border: str = "reflect") -> Array:
    """Cost of every match (Hq, Wq, topk); 0 where there is none."""
    near_q, near_k = patches(q, patch, border), patches(k, patch, border)
    matched = near_k.reshape(-1, *near_k.shape[2:])[index]
    total = ((near_q[:, :, None] - matched) ** 2).sum((-3, -2, -1))
    return np.asarray(np.where(index < 0, 0, total))


def votes(
    index: Array, grid: tuple[int, int], radius: int
) -> list[list[tuple[tuple[int, int, int], int]]]:
    """For every query in raster order: (row, column, t) of each cost, and the key it speaks for."""
    Hq, Wq, topk = index.shape
    found = []
    for y, x in np.ndindex(Hq, Wq):
        row = []
        for a in range(-radius, radius + 1):
            for b in range(-radius, radius + 1):
                for t in range(topk):
                    if not (0 <= y + a < Hq and 0 <= x + b < Wq) or index[y + a, x + b, t] < 0:
                        continue
                    row_k, column = divmod(int(index[y + a, x + b, t]), grid[1])
                    if 0 <= row_k - a < grid[0] and 0 <= column - b < grid[1]:
                        row.append(((y + a, x + b, t), (row_k - a) * grid[1] + column - b))
        found.append(row)
    return found


Vote = tuple[tuple[int, int, int], int]  # its place, and the key


def cheapest(row: list[Vote], c: Array) -> list[Vote]:
    """Of several votes for a key, the first of the lowest cost."""
    best: dict[int, tuple[int, int, int]] = {}
    for place, key in row:
        if key not in best or c[place].real < c[best[key]].real:
            best[key] = place
    return [(place, key) for place, key in row if best[key] == place]


def weights(
    c: Array,
    index: Array,
    grid: tuple[int, int],
    radius: int,
    temperature: float,
    dedup: bool,
) -> list[tuple[list[Vote], Array]]:
    """For every query its votes of a radius, their places and keys, and their weights."""
    rows = []
    for row in votes(index, grid, radius):
        kept = cheapest(row, c) if dedup else row
        z = np.array([-c[place] / temperature for place, _ in kept], c.dtype)
        w = np.exp(z - z.real.max(initial=-np.inf))
        rows.append((kept, w / w.sum() if len(w) else w))
    return rows


@any_layout
def psal(
    q: Array,
    k: Array,
    v: Array,
    index: Array | None = None,
    *,
    patch: int = 3,
    topk: int = 3,
    iterations: int = 5,
    seed: int = 0,
    key_mask: Array | None = None,
    temperature: float = 1.0,
    aggregate: bool = False,
    dedup: bool = False,
    border: str = "reflect",
) -> Array:
    """Outputs (Hq, Wq, e) of one head; `index` (Hq, Wq, topk) holds keys, -1 for none, or is found.

    `border` says how patches are padded; `topk` to `key_mask` are for finding, among patches that
    hold no pixel that `key_mask` hides.
    """
    if index is None:
        known = None if key_mask is None else known_patches(key_mask, patch)
        index = patchmatch(
            q, k, score="neg_l2", key_mask=known, patch=patch, topk=topk, iterations=iterations,
            seed=seed,
        ).index  # fmt: skip
    c = costs(q, k, index, patch, border)
    return speak(c, v, index, patch // 2 if aggregate else 0, temperature, dedup)


def known_patches(mask: Array, patch: int) -> Array:
    """Where no pixel of the patch is unknown; those beyond the border are not."""
    r, (H, W) = patch // 2, mask.shape
    return np.array(
        [
            [mask[max(0, y - r) : y + r + 1, max(0, x - r) : x + r + 1].all() for x in range(W)]
            for y in range(H)
        ]
    )


def speak(
    c: Array, v: Array, index: Array, radius: int, temperature: float = 1.0, dedup: bool = False
) -> Array:
    """Outputs for given costs, with votes of a radius."""
    flat = v.reshape(-1, v.shape[-1])
    out = np.zeros((index.shape[0] * index.shape[1], v.shape[-1]), np.result_type(c, v))
    for i, (row, w) in enumerate(weights(c, index, v.shape[:2], radius, temperature, dedup)):
        for (_, key), share in zip(row, w, strict=True):
            out[i] += share * flat[key]
    return out.reshape(*index.shape[:2], -1)


@any_layout
def psal_vjp(
    q: Array,
    k: Array,
    v: Array,
    index: Array,
    dout: Array,
    *,
    patch: int = 3,
    temperature: float = 1.0,
    aggregate: bool = False,
    dedup: bool = False,
    border: str = "reflect",
) -> tuple[Array, Array, Array]:
    """Gradients (dq, dk, dv) of ``sum(dout * out)``, the matches held fixed."""
    radius = patch // 2 if aggregate else 0
    c = costs(q, k, index, patch, border)
    flat = v.reshape(-1, v.shape[-1])
    dc, dv = np.zeros_like(c), np.zeros_like(flat)
    g = dout.reshape(-1, dout.shape[-1])
    for i, (row, w) in enumerate(weights(c, index, v.shape[:2], radius, temperature, dedup)):
        inner = [g[i] @ flat[key] for _, key in row]
        mean = sum(share * x for share, x in zip(w, inner, strict=True))
        for (place, key), share, x in zip(row, w, inner, strict=True):
            dv[key] += share * g[i]
            dc[place] -= share * (x - mean) / temperature
    near_q, near_k = patches(q, patch, border), patches(k, patch, border)
    dnear_q, dnear_k = np.zeros_like(near_q), np.zeros_like(near_k)
    for y, x, t in np.argwhere(index >= 0):
        row_k, column = divmod(int(index[y, x, t]), k.shape[1])
        slope = 2 * dc[y, x, t] * (near_q[y, x] - near_k[row_k, column])
        dnear_q[y, x] += slope
        dnear_k[row_k, column] -= slope
    dq, dk = patches_vjp(dnear_q, q, border), patches_vjp(dnear_k, k, border)
    return dq, dk, dv.reshape(v.shape)


@any_layout
def psal_jvp(
    q: Array,
    k: Array,
    v: Array,
    index: Array,
    dq: Array,
    dk: Array,
    dv: Array,
    *,
    patch: int = 3,
    temperature: float = 1.0,
    aggregate: bool = False,
    dedup: bool = False,
    border: str = "reflect",
) -> Array:
    """Change of `out` along dq, dk, dv, the matches held fixed."""
    radius = patch // 2 if aggregate else 0
    c = costs(q, k, index, patch, border)
    (near_q, moved_q), (near_k, moved_k) = (
        (patches(x, patch, border), patches(dx, patch, border)) for x, dx in ((q, dq), (k, dk))
    )
    dc = np.zeros_like(c)
    for y, x, t in np.argwhere(index >= 0):
        there = divmod(int(index[y, x, t]), k.shape[1])
        apart, moved = near_q[y, x] - near_k[there], moved_q[y, x] - moved_k[there]
        dc[y, x, t] = 2 * (apart * moved).sum()
    flat, dflat = v.reshape(-1, v.shape[-1]), dv.reshape(-1, v.shape[-1])
    out = np.zeros((index.shape[0] * index.shape[1], v.shape[-1]), np.result_type(c, v))
    for i, (row, w) in enumerate(weights(c, index, v.shape[:2], radius, temperature, dedup)):
        slopes = [-dc[place] / temperature for place, _ in row]
        mean = sum(share * slope for share, slope in zip(w, slopes, strict=True))
        for (_, key), share, slope in zip(row, w, slopes, strict=True):
            out[i] += share * (slope - mean) * flat[key] + share * dflat[key]
    return out.reshape(*index.shape[:2], -1)


def patches_vjp(dnear: Array, x: Array, border: str) -> Array:
    """Gradient of the image: each pixel of each patch is a pixel of the image."""
    H, W, patch = dnear.shape[:3]
    numbers = np.arange(H * W).reshape(H, W, 1)
    dx = np.zeros((H * W, x.shape[-1]), x.dtype)
    np.add.at(dx, patches(numbers, patch, border)[..., 0], dnear)
    return dx.reshape(x.shape)
