"""The permutohedral filter with a dictionary, and attention by signs, as one writes them."""

from __future__ import annotations

from typing import Any

import numpy as np


def permutohedral_attention(
    bad: str, q: Any, k: Any, v: Any, *, q_simplices_rem0: Any = None, q_simplices_rank: Any = None,
    k_simplices_rem0: Any = None, k_simplices_rank: Any = None, normalize: bool = True,
    weight: str = "gaussian", scale: Any = None, lattice: str = "published",
    query_vertices: bool = True,
) -> Any:  # fmt: skip
    """One head after the other; simplices are given."""
    if q_simplices_rem0 is None or lattice != "published":
        raise NotImplementedError
    lead = np.broadcast_shapes(*(x.shape[:-2] for x in (q, k, v)))
    q, k, v, q_simplices_rem0, q_simplices_rank, k_simplices_rem0, k_simplices_rank = (
        np.broadcast_to(x, lead + x.shape[-2:])
        for x in (q, k, v, q_simplices_rem0, q_simplices_rank, k_simplices_rem0, k_simplices_rank)
    )
    out = np.zeros((*q.shape[:-1], v.shape[-1]))
    root, factor = 1.0, np.ones(k.shape[:-1])
    if weight == "softmax" and bad != "unweighted":
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        root = scale**0.5
        factor = np.exp(scale * (k * k).sum(-1) / 2)
    for b in np.ndindex(lead):
        x = factor[b][:, None] * np.concatenate([v[b], np.ones((len(v[b]), 1))], 1)
        of = _corners(bad, root * k[b], k_simplices_rem0[b], k_simplices_rank[b])
        to = _corners(bad, root * q[b], q_simplices_rem0[b], q_simplices_rank[b])
        also = to if query_vertices and bad != "keys alone" else []
        F = _filter(bad, of, to, x, also)
        Z = F[:, -1:] if normalize and bad != "undivided" else 1
        out[b] = np.where(Z == 0, 0, F[:, :-1] / np.where(Z == 0, 1, Z))
    return out


def _corners(bad: str, f: Any, rem0: Any, rank: Any) -> list[list[tuple[Any, float]]]:
    """Lattice points of every point, and its weights of them."""
    d = f.shape[1]
    E = np.zeros((d + 1, d))
    for j in range(1, d + 1):
        E[:j, j - 1], E[j, j - 1] = 1, -j
        E[:, j - 1] *= np.sqrt(2 / 3) * (d + 1) / np.sqrt(j * (j + 1))
    found = []
    for u, w, r in zip(f @ E.T, rem0, rank, strict=True):
        D = np.empty(d + 1)
        D[r] = (u - w) / (d + 1)
        b = [1 + D[d] - D[0]] + [D[d - i] - D[d - i + 1] for i in range(1, d + 1)]
        if bad == "opposite":
            b = b[::-1]
        if bad == "nearest":
            b = [float(i == np.argmax(b)) for i in range(d + 1)]
        found.append([(tuple(w + i - (d + 1) * (r > d - i)), b[i]) for i in range(d + 1)])
    return found


def _filter(bad: str, of: Any, to: Any, x: Any, also: Any) -> Any:
    if not of:
        return np.zeros((len(to), x.shape[1]))
    d = len(of[0]) - 1
    z = {p: np.zeros(x.shape[1]) for corners in [*of, *also] for p, _ in corners}
    for corners, y in zip(of, x, strict=True):
        for p, b in corners:
            z[p] = z[p] + b * y
    axes = list(range(d + 1)) if bad != "no blur" else []
    axes = axes[::-1] if bad == "reversed" else axes[:-1] if bad == "short" else axes
    half = 1.0 if bad == "wide" else 0.5
    for j in axes:
        step = np.full(d + 1, -1)
        step[j] = d
        zero = np.zeros(x.shape[1])
        if bad == "in place":
            for p, y in z.items():
                z[p] = y + half * (z.get(tuple(p + step), zero) + z.get(tuple(p - step), zero))
            continue
        z = {
            p: y + half * (z.get(tuple(p + step), zero) + z.get(tuple(p - step), zero))
            for p, y in z.items()
        }
    alpha = 1 if bad == "no alpha" else 1 / (1 + 2.0**-d)
    zero = np.zeros(x.shape[1])
    rows = [alpha * sum(b * z.get(p, zero) for p, b in corners) for corners in to]
    return np.array(rows).reshape(len(to), x.shape[1])


def hamming_attention(
    bad: str, q: Any, k: Any, v: Any, *, keys: int, scale: Any = None, straight_through: Any = None
) -> Any:  # fmt: skip
    """All distances, then a sort."""
    if straight_through is not None:
        raise NotImplementedError
    d = q.shape[-1]
    q_minus, k_minus = (x <= 0 if bad == "zero" else x < 0 for x in (q, k))
    s = d - 2 * (q_minus[..., :, None, :] != k_minus[..., None, :, :]).sum(-1)
    if bad == "numbers":
        s = q @ np.swapaxes(k, -1, -2)
    keys = min(max(1, keys - (bad == "fewer")), k.shape[-2])
    order = np.argsort(s if bad == "farthest" else -s, axis=-1, kind="stable")
    if bad == "ties":
        order = np.argsort(s, axis=-1, kind="stable")[..., ::-1]
    index = order[..., :keys]
    factor = d**-0.5 if scale is None else scale
    factor = {"agreeing": factor / 2, "no scale": 1.0}.get(bad, factor)
    t = factor * np.take_along_axis(s, index, -1).astype(float)
    w = np.exp(t - t.max(-1, keepdims=True, initial=-1e300))
    w = w / w.sum(-1, keepdims=True)
    return (w[..., None] * np.take_along_axis(v[..., None, :, :], index[..., None], -2)).sum(-2)


FAULTS = {
    "permutohedral_attention": {
        "undivided": "without the normaliser",
        "no blur": "without the blur",
        "reversed": "with the axes blurred in reverse order",
        "short": "with the last axis left out of the blur",
        "in place": "with axes blurred in place",
        "wide": "with a blur of 1, 1, 1",
        "no alpha": "without alpha",
        "opposite": "with the vertices' weights in the opposite order",
        "nearest": "with all weight on the nearest vertex",
        "keys alone": "without the vertices of queries",
    },
    "hamming_attention": {
        "numbers": "with scores of the numbers, not of signs",
        "farthest": "with the farthest keys",
        "ties": "with the highest of equal keys, not the lowest",
        "fewer": "with a key fewer",
        "agreeing": "with scores that count agreeing signs: half of ours",
        "no scale": "with a scale of 1",
        "zero": "with the sign of 0 taken for -1",
    },
}
