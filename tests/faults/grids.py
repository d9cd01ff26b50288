"""Operators on image grids as one writes them in an afternoon, pixel by pixel."""

from __future__ import annotations

from typing import Any

import numpy as np


def nl_means(
    bad: str, image: Any, *, sigma: float, patch_size: int, patch_distance: int,
    aggregate: str = "patch", self_weight: str = "max", h: Any = None,
) -> Any:  # fmt: skip
    """Buades's denoiser."""
    if image.ndim > 3:
        raise NotImplementedError
    H, W = image.shape[:2]
    p, r = patch_size, patch_size // 2
    h = 0.6 * sigma if h is None else h
    mode: Any = "edge" if bad == "edge" else "reflect"
    padded = np.pad(image, ((r, r), (r, r), (0, 0)), mode=mode)
    F = np.array([[padded[y : y + p, x : x + p] for x in range(W)] for y in range(H)])
    reach = patch_distance - 1 if bad == "narrow" else patch_distance
    out, count = np.zeros_like(image), np.zeros((H, W, 1))
    for y, x in np.ndindex(H, W):
        keys, weights = [], []
        for i in range(max(0, y - reach), min(H, y + reach + 1)):
            for j in range(max(0, x - reach), min(W, x + reach + 1)):
                apart = (F[y, x] - F[i, j]) ** 2
                d2 = apart.sum() / (p * p if bad == "sums" else apart.size)
                if bad == "disk":
                    a, b = np.mgrid[-r : r + 1, -r : r + 1]
                    d2 = apart[a * a + b * b <= r * r].mean()
                excess = d2 if bad == "no sigma" else max(d2 - 2 * sigma**2, 0)
                keys.append((i, j))
                weights.append(np.exp(-excess / (h if bad == "linear h" else h * h)))
        own = keys.index((y, x))
        others = [w for t, w in enumerate(weights) if t != own]
        if bad != "own":
            best = max(others, default=0.0)
            weights[own] = {"max": best, "one": 1.0, "zero": 0.0}[self_weight]
        if sum(weights) == 0:
            weights[own] = 1.0
        w = np.array(weights) / sum(weights)
        if aggregate == "pixel" or bad == "pixel":
            out[y, x] = sum(share * image[key] for share, key in zip(w, keys, strict=True))
            count[y, x] = 1
            continue
        mean = sum(share * F[key] for share, key in zip(w, keys, strict=True))
        for a, b in np.ndindex(p, p):
            if 0 <= y + a - r < H and 0 <= x + b - r < W:
                out[y + a - r, x + b - r] += mean[a, b]
                count[y + a - r, x + b - r] += 1
    return out / (p * p if bad == "votes" and aggregate == "patch" else count)


def _unfolded(x: Any, p: int, step: int = 1) -> Any:
    r = step * (p // 2)
    padded = np.pad(x, ((r, r), (r, r), (0, 0)))
    size = step * p
    return np.array(
        [
            padded[a : a + size, b : b + size]
            for a in range(0, x.shape[0], step)
            for b in range(0, x.shape[1], step)
        ]
    )


def cross_scale_attention(
    bad: str, q: Any, k: Any, v: Any, *, scale: int, patch: int = 3, overlap: str = "average",
    temperature: float = 10.0,
) -> Any:  # fmt: skip
    """Mei's attention, by pasting."""
    if overlap not in ("average", "mass"):
        raise NotImplementedError
    if q.ndim > 3:
        parts = [
            cross_scale_attention(
                bad, *x, scale=scale, patch=patch, overlap=overlap, temperature=temperature
            )
            for x in zip(*(y.reshape(-1, *y.shape[-3:]) for y in (q, k, v)), strict=True)
        ]
        return np.array(parts).reshape(*q.shape[:-3], *parts[0].shape)
    s, p, r = scale, patch, patch // 2
    (H, W), (h, w) = q.shape[:2], k.shape[:2]
    Q, K, T = _unfolded(q, p), _unfolded(k, p), _unfolded(v, p, s)
    if bad == "convolution":
        Q = Q[:, ::-1, ::-1]
    if bad == "mirror":
        if min(h, w) <= r:
            raise NotImplementedError
        wide = np.pad(k, ((r, r), (r, r), (0, 0)), mode="reflect")
        K = np.array([wide[y : y + p, x : x + p] for y in range(h) for x in range(w)])
    length = np.sqrt((K**2).sum((1, 2, 3)))
    if bad == "pixels":
        K = K / np.maximum(np.sqrt((K**2).sum(-1, keepdims=True)), 1e-4)
        length = np.ones(len(K))
    S = Q.reshape(H * W, -1) @ K.reshape(h * w, -1).T
    S = S if bad == "raw keys" else S / np.maximum(length, 1e-4)
    if bad == "unit queries":
        S = S / np.sqrt((Q**2).sum((1, 2, 3)))[:, None]
    S = S * (1 if bad == "no temperature" else temperature)
    axis = 0 if bad == "queries" else 1
    A = np.exp(S - S.max(axis, keepdims=True))
    A = A / A.sum(axis, keepdims=True)
    out = np.zeros((s * (H + p - 1), s * (W + p - 1), v.shape[2]))
    z = np.zeros((s * (H + p - 1), s * (W + p - 1), 1))
    inside = _unfolded(np.ones((h, w, 1)), p)
    for i, (y, x) in enumerate(np.ndindex(H, W)):
        place = (slice(s * y, s * (y + p)), slice(s * x, s * (x + p)))
        tile = np.tensordot(A[i], T, 1).reshape(p, s, p, s, -1)
        tile = {"turned": tile[::-1, :, ::-1], "across": np.swapaxes(tile, 0, 2)}.get(bad, tile)
        out[place] += tile.reshape(s * p, s * p, -1)
        seen = np.tensordot(A[i], inside, 1) if overlap == "mass" else np.ones((p, p, 1))
        z[place] += seen.repeat(s, 0).repeat(s, 1)
    z = {"nine": p * p + 0 * z, "six": 6 + 0 * z}.get(bad, z)
    out = out / np.where(z == 0, 1, z)
    return out[s * r : s * (r + H), s * r : s * (r + W)]


def psal(
    bad: str, q: Any, k: Any, v: Any, field_index: Any, *, patch: int = 3, temperature: float = 1.0,
    aggregate: bool = False,
) -> Any:  # fmt: skip
    """Cherel's attention on given matches."""
    if q.ndim > 3:
        raise NotImplementedError
    r, (H, W), (h, w) = patch // 2, q.shape[:2], k.shape[:2]
    mode: Any = "constant" if bad == "zeros" else "reflect"
    Q, K = (np.pad(x, ((r, r), (r, r), (0, 0)), mode=mode) for x in (q, k))
    topk = field_index.shape[-1]
    cost = np.zeros((H, W, topk))
    for y, x, t in np.ndindex(H, W, topk):
        if field_index[y, x, t] < 0:
            continue
        i, j = divmod(int(field_index[y, x, t]), w)
        squares = (Q[y : y + patch, x : x + patch] - K[i : i + patch, j : j + patch]) ** 2
        cost[y, x, t] = squares.sum() / (patch**2 if bad == "mean" else 1)
    if bad == "roots":
        cost = np.sqrt(cost)
    T = 1 / temperature if bad == "inverted" else temperature
    out = np.zeros((H, W, v.shape[-1]))
    reach = r if aggregate and bad != "no votes" else 0
    for y, x in np.ndindex(H, W):
        costs, values = [], []
        for a, b, t in np.ndindex(2 * reach + 1, 2 * reach + 1, topk):
            i, j = y + a - reach, x + b - reach
            if bad == "queries wrap":
                i, j = divmod(i * W + j, W)
            if not (0 <= i < H and 0 <= j < W) or field_index[i, j, t] < 0:
                continue
            y2, x2 = divmod(int(field_index[i, j, t]), w)
            if bad != "unmoved":
                sign = -1 if bad == "moved on" else 1
                y2, x2 = y2 - sign * (a - reach), x2 - sign * (b - reach)
            if bad == "keys wrap":
                y2, x2 = divmod(y2 * w + x2, w)
            if 0 <= y2 < h and 0 <= x2 < w:
                costs.append(cost[i, j, t])
                values.append(v[y2, x2])
        if costs:
            c = np.array(costs)
            weights = np.exp(-(c - c.min()) / T)
            out[y, x] = (weights / weights.sum()) @ np.array(values)
    return out


def qna(
    bad: str, q: Any, k: Any, v: Any, *, window: int, stride: int = 1, bias: Any = None,
    gate: Any = None, scale: Any = None,
) -> Any:  # fmt: skip
    """Arar's learned queries."""
    if k.ndim > 3:
        raise NotImplementedError
    (H, W), (t, d), r = k.shape[:2], q.shape, (window - 1) // 2
    factor = d**-0.5 if scale is None else scale
    factor = 1.0 if bad == "no scale" else factor
    rows, columns = ((n + 2 * r - window) // stride + 1 for n in (H, W))
    out = np.zeros((rows, columns, v.shape[-1]))
    for y, x, query in np.ndindex(rows, columns, t):
        z, values, gates, plain = [], [], [], []
        for a, b in np.ndindex(window, window):
            i, j = y * stride + a - r, x * stride + b - r
            inside = 0 <= i < H and 0 <= j < W
            if not inside and bad != "zero scores":
                continue
            tap = (window - 1 - a, window - 1 - b) if bad == "convolution" else (a, b)
            score = factor * q[query] @ k[i, j] if inside else 0.0
            g = 1.0 if gate is None or bad == "no gate" else gate[query][tap]
            if inside and bias is not None and bad != "no bias":
                score += bias[0 if bad == "shared bias" else query][tap]
            if bad == "early gate":
                score, g = score * g, 1.0
            z.append(score)
            gates.append(g)
            plain.append(v[i, j] if inside else 0 * v[0, 0])
            values.append(g * v[i, j] if inside else 0 * v[0, 0])
        e = np.exp(np.array(z) - max(z))
        if bad == "gated sum" and gate is not None:
            e, values = e * np.array(gates), plain
        out[y, x] += (e / e.sum()) @ np.array(values)
    return out / t if bad == "mean" else out


def qna_upsample(
    bad: str, q: Any, k: Any, v: Any, *, scale: int, window: int, bias: Any = None, gate: Any = None
) -> Any:
    """A set of queries for each phase."""
    if k.ndim > 3:
        raise NotImplementedError
    H, W = k.shape[:2]
    out = np.zeros((scale * H, scale * W, v.shape[-1]))
    for a, b in np.ndindex(scale, scale):
        f = {"exchanged": b * scale + a, "first": 0}.get(bad, a * scale + b)
        given = {n: x[f] for n, x in (("bias", bias), ("gate", gate)) if x is not None}
        phase = qna("", q[f], k, v, window=window, **given)
        if bad == "blocks":
            out[a * H : (a + 1) * H, b * W : (b + 1) * W] = phase
        else:
            out[a::scale, b::scale] = phase
    return out


FAULTS: dict[str, dict[str, str]] = {
    "nl_means": {
        "disk": "with a disk of pixels",
        "edge": "with the border repeated, not reflected",
        "narrow": "with a window one pixel narrower on each side",
        "sums": "with distances averaged over pixels but summed over channels",
        "no sigma": "without the 2 sigma^2",
        "linear h": "with h in place of its square",
        "own": "with a weight of 1 for the pixel itself",
        "pixel": "with one pixel in place of voting patches",
        "votes": "with votes divided by the patch's size at the border, too",
    },
    "cross_scale_attention": {
        "mirror": "with patches of keys reflected at the border",
        "convolution": "with convolution in place of correlation",
        "pixels": "with pixels of length 1 in place of patches",
        "raw keys": "with keys as they are, not divided by their length",
        "unit queries": "with queries of length 1, too",
        "no temperature": "with a temperature of 1",
        "queries": "with the softmax over queries",
        "nine": "with overlaps divided by the patch's size",
        "six": "with overlaps divided by 6",
        "turned": "with patches pasted the wrong way round",
        "across": "with rows and columns of cells exchanged where patches are pasted",
    },
    "psal": {
        "zeros": "with zeros beyond the border",
        "mean": "with distances averaged over pixels, not summed",
        "roots": "with distances, not their squares",
        "inverted": "with the temperature inverted",
        "no votes": "without votes of neighbours",
        "unmoved": "with votes for a neighbour's key, not moved back by its offset",
        "moved on": "with votes moved the other way",
        "keys wrap": "with keys of votes that go on in the next row of the grid",
        "queries wrap": "with neighbours that vote from the next row of the grid",
    },
    "qna": {
        "no scale": "with a scale of 1",
        "zero scores": "with scores of 0 outside the image, which count",
        "convolution": "with taps from the last to the first: convolution, not correlation",
        "no gate": "without the gate",
        "no bias": "without the bias",
        "shared bias": "with the bias of the first query for all",
        "early gate": "with the gate before the softmax",
        "gated sum": "with the gate before the normaliser",
        "mean": "averaged over queries, not summed",
    },
    "qna_upsample": {
        "exchanged": "with rows and columns of phases exchanged",
        "first": "with the first phase's queries for all",
        "blocks": "with phases side by side, not interleaved",
    },
}
