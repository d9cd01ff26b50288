"""Linear attention and its relatives as one writes them in an afternoon."""

from __future__ import annotations

from typing import Any

import numpy as np


def _softmax(x: Any, axis: int) -> Any:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def _turned(x: Any) -> Any:
    return np.swapaxes(x, -1, -2)


def nonlocal_mean(
    bad: str, q: Any, k: Any, v: Any, *, pairwise: str = "embedded_gaussian", scale: float = 1.0,
    weight: Any = None,
) -> Any:  # fmt: skip
    """Wang's four pairwise functions."""
    n, d, m = q.shape[-2], q.shape[-1], k.shape[-2]
    if pairwise in ("gaussian", "embedded_gaussian"):
        s = (scale / np.sqrt(d) if bad == "scaled" else scale) * q @ _turned(k)
        return _softmax(s, -2 if bad == "queries" else -1) @ v
    if pairwise == "concatenation":
        theta, phi = weight[:d], weight[d:]
        if bad == "halves":
            theta, phi = phi, theta
        s = (q @ theta)[..., None] + (k @ phi)[..., None, :]
        s = s if bad == "no relu" else np.where(s.real <= 0, 0, s)  # of slope 0 at 0
    else:
        s = q @ _turned(k)
    return s @ v / {"by n": n, "undivided": 1}.get(bad, m)


def efficient_attention(
    bad: str, q: Any, k: Any, v: Any, *, normalization: str = "softmax", mask: Any = None
) -> Any:
    """Keys against values first."""
    m = k.shape[-2]
    kept = np.ones(k.shape[:-1], bool) if mask is None else mask
    if not kept.any():
        raise NotImplementedError
    if bad == "mask ignored":
        kept = np.ones_like(kept)
    if normalization == "softmax":
        rows, columns = (-2, -1) if bad == "axes" else (-1, -2)
        q = q if bad == "raw queries" else _softmax(q, rows)
        logits = k if bad == "late mask" else np.where(kept[..., None], k, -np.inf)
        k = np.where(kept[..., None], _softmax(logits, columns), 0)
    else:
        count = kept.sum(-1)[..., None, None]
        k = np.where(kept[..., None], k, 0) / {"by all": m, "by root": np.sqrt(count)}.get(
            bad, count
        )
    return q @ (_turned(k) @ v)


def refined_self_attention(bad: str, q: Any, k: Any, v: Any) -> Any:
    """Linear order."""
    n, d, m = q.shape[-2], q.shape[-1], k.shape[-2]
    if bad == "softmax":
        return _softmax(q @ _turned(k) / np.sqrt(d), -1) @ v
    return q @ (_turned(k) @ v) / {"by n": n, "undivided": 1, "scaled": m * np.sqrt(d)}.get(bad, m)


def _features(bad: str, x: Any, projection: Any, c: float, eps: float, top: Any) -> Any:
    t = c * x @ projection.T
    if bad != "no square":
        t = t - c**2 * (x**2).sum(-1, keepdims=True) / 2
    r = len(projection)
    if bad == "eps outside":
        return np.exp(t - top) / np.sqrt(r) + eps
    return (np.exp(t - top) + (0 if bad == "no eps" else eps)) / np.sqrt(r)


def favor_attention(
    bad: str, q: Any, k: Any, v: Any, *, projection: Any, causal: bool = False, eps: float = 1e-4,
    kernel: str = "softmax", denominator_eps: float = 1e-6,
) -> Any:  # fmt: skip
    """Performer's attention."""
    d = q.shape[-1]
    c = {"no quarter": 1.0, "half root": d**-0.5}.get(bad, d**-0.25)
    if kernel == "relu":
        f, g = (np.maximum(c * x @ projection.T, 0) + 1e-3 for x in (q, k))
    else:
        a, b = (c * x @ projection.T for x in (q, k))
        top = b.max((-1, -2), keepdims=True) if bad != "row maxima" else b.max(-1, keepdims=True)
        f = _features(bad, q, projection, c, eps, 0 if causal else a.max(-1, keepdims=True))
        own = 0.0 if bad == "eps of queries" else eps
        g = _features(bad, k, projection, c, own, 0 if causal else top)
    s = f @ _turned(g)
    total = 0.0
    if causal:
        s = s if bad == "not causal" else np.where(np.tri(*s.shape[-2:]) > 0, s, 0)
        total = denominator_eps * f.sum(-1, keepdims=True)
    return s @ v if bad == "no normaliser" else s @ v / (s.sum(-1, keepdims=True) + total)


def enla(
    bad: str, q: Any, k: Any, v: Any, *, projection: Any, amplification: float = 6.0,
    eps: float = 1e-4,
) -> Any:  # fmt: skip
    """ENLCA's attention."""
    axis = -2 if bad == "positions" else -1

    def amplified(x: Any) -> Any:
        a = amplification if bad == "no root" else np.sqrt(amplification)
        return a * x / np.maximum(np.sqrt((x**2).sum(axis, keepdims=True)), 5e-5)

    k = amplified(k) / (np.sqrt(amplification) if bad == "one side" else 1)
    if bad == "unit values":
        v = v / np.sqrt((v**2).sum(-1, keepdims=True))
    c = q.shape[-1] ** -0.25 if bad == "quarter" else 1.0
    f, g = (_features(bad, x, projection, c, eps, 0) for x in (amplified(q), k))
    s = f @ _turned(g)
    return s @ v / s.sum(-1, keepdims=True)


def enlca_loss(bad: str, q: Any, k: Any, *, positives: int, negatives: Any, margin: float) -> Any:
    """Contrast of the best keys with mediocre ones."""
    if bad != "raw":
        q, k = (
            np.sqrt(6) * x / np.maximum(np.sqrt((x**2).sum(-1, keepdims=True)), 5e-5)
            for x in (q, k)
        )
    s = np.sort(np.exp(q @ _turned(k)), axis=-1)
    s = s if bad == "ascending" else s[..., ::-1]
    low, high = negatives
    if bad == "late":
        low, high = low + 1, high + 1
    pos, neg = s[..., :positives].mean(-1), s[..., low:high].mean(-1)
    loss = margin - np.log(pos / (neg + 1e-6))
    loss = loss if bad == "no hinge" else np.maximum(loss, 0)
    return loss.sum(-1) if bad == "sum" else loss.mean(-1)


FAULTS: dict[str, dict[str, str]] = {
    "nonlocal_mean": {
        "scaled": "with a scale of 1/sqrt(d)",
        "queries": "with the softmax over queries",
        "halves": "with the halves of the weight swapped",
        "no relu": "without the relu",
        "by n": "divided by the number of queries, not of keys",
        "undivided": "not divided by the number of keys",
    },
    "efficient_attention": {
        "axes": "with both softmaxes along the other axis",
        "raw queries": "without the softmax of queries",
        "late mask": "with the mask applied after the softmax of keys",
        "mask ignored": "without the mask",
        "by root": "divided by the root of the number of keys",
    },
    "refined_self_attention": {
        "softmax": "with softmax attention in its place",
        "by n": "divided by the number of queries, not of keys",
        "undivided": "not divided by the number of keys",
        "scaled": "with one more scale of 1/sqrt(d)",
    },
    "favor_attention": {
        "eps outside": "with eps outside the factor 1/sqrt(r)",
        "no eps": "without eps",
        "no square": "without the half square of the length",
        "row maxima": "with the maximum of each key, not of all keys",
        "eps of queries": "with eps for queries alone",
        "no quarter": "without the factor d^-1/4",
        "half root": "with the factor d^-1/2 in place of d^-1/4",
        "no normaliser": "without the normaliser",
        "not causal": "without causality",
    },
    "enla": {
        "positions": "with lengths over positions, not over channels",
        "no root": "with the amplification, not its root",
        "one side": "with amplified queries only",
        "unit values": "with values of length 1",
        "quarter": "with the factor d^-1/4",
        "eps outside": "with eps outside the factor 1/sqrt(r)",
    },
    "enlca_loss": {
        "raw": "with vectors as they are, neither normalised nor amplified",
        "ascending": "with the least scores first",
        "late": "with the negatives one rank too late",
        "no hinge": "without the hinge",
        "sum": "summed over queries, not averaged",
    },
}
