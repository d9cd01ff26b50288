"""Supports, scores of keys and selections as one writes them in an afternoon."""

from __future__ import annotations

from typing import Any

import numpy as np


def sparse_attention(
    bad: str, q: Any, k: Any, v: Any, *, support_indptr: Any, support_indices: Any,
    support_shape: Any, weight: str = "softmax", scale: Any = None, bandwidth: float = 1.0,
    power: float = 2.0, bias: Any = None, sinks: Any = None, support_index: Any = None,
) -> Any:  # fmt: skip
    """One query after the other, on its own list of keys, or on its row of a table of them."""
    lead = q.shape[:-2]
    if not k.shape[:-2] == v.shape[:-2] == lead or len(support_shape) != q.ndim:
        raise NotImplementedError
    n, m = (int(x) for x in support_shape[-2:])
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    out = np.zeros((*lead, n, v.shape[-1]), np.result_type(q, k, v, float))
    for row, (*b, i) in enumerate(np.ndindex(*lead, n)):
        first, last = support_indptr[row], support_indptr[row + 1]
        if support_index is not None:
            support_indices = _of_table(bad, support_index[(*b, i)], m)
            first, last = 0, len(support_indices)
        keys = support_indices[first : last - 1 if bad == "last key" else last]
        if bad == "all keys":
            keys = np.arange(m)
        if not len(keys):
            continue
        head = tuple(b)
        s = factor * k[head][keys] @ q[head][i]
        more = 0 if bias is None or len(keys) != last - first else bias[first:last]
        more = {"once": 0 * more, "raw counts": np.exp(more)}.get(bad, more)
        if weight == "softmax":
            s = s / factor if bad == "no scale" else s
            top, s = s.max(), s + more
            w = np.exp(s - top)
        elif weight == "gaussian":
            d2 = ((q[head][i] - k[head][keys]) ** 2).sum(-1)
            h2 = {"linear h": bandwidth, "twice": 2 * bandwidth**2}.get(bad, bandwidth**2)
            w = np.exp(-(d2 - d2.min()) / h2 + more)
        else:
            w = np.where(s.real < 0, -s, s) ** power if weight == "abspow" else s
        total = len(keys) if weight == "dot" and bad != "by sum" else w.sum()
        if sinks is not None and bad != "no sinks":
            total = total + np.exp(sinks[b[-1] if bad != "first sink" else 0] - top)
        out[head][i] = (w / total if total else w) @ v[head][keys]
    return out


def _of_table(bad: str, row: Any, m: int) -> Any:
    """The keys that a row of a table names."""
    if bad == "holes read key 0":
        return np.where((row < 0) | (row >= m), 0, row)
    if bad == "python holes":  # x[-1] is the last one
        return np.where(row >= m, m - 1, row) % m
    if bad == "clamped":
        return np.clip(row, 0, m - 1)
    if bad == "beyond is last":
        row = np.minimum(row, m - 1)
    if bad == "beyond wraps":
        row = np.where(row >= m, row % m, row)
    none = (row < 0) | (row >= m)
    if bad == "stops at a hole":
        row = row[: int(none.argmax())] if none.any() else row
        none = none[: len(row)]
    keys = row[~none]
    wrong = ("as often as named", "beyond is last", "beyond wraps")
    return keys if bad in wrong else np.unique(keys)


def scram(bad: str, q: Any, k: Any, v: Any, **given: Any) -> Any:
    """The same on grids."""
    q_, k_, v_ = (x.reshape(*x.shape[:-3], -1, x.shape[-1]) for x in (q, k, v))
    if bad == "grids by columns":
        q_, k_, v_ = (
            np.swapaxes(x, -2, -3).reshape(y.shape) for x, y in ((q, q_), (k, k_), (v, v_))
        )
    if bad == "columns":
        v_ = np.swapaxes(v, -2, -3).reshape(v_.shape)
    indices = given["support_indices"]
    if bad == "one too large":
        given["support_indices"] = (indices + 1) % k_.shape[-2]
    out = sparse_attention(bad, q_, k_, v_, **given)
    return out.reshape(*out.shape[:-2], *q.shape[-3:-1], -1)


def lev_attention(bad: str, q: Any, k: Any, v: Any, *, index: Any, scale: Any = None) -> Any:
    """Softmax over the chosen keys."""
    if bad == "all keys":
        index = np.broadcast_to(np.arange(k.shape[-2]), (*index.shape[:-1], k.shape[-2]))
    chosen = np.broadcast_to(index, (*k.shape[:-2], index.shape[-1]))[..., None]
    values = np.take_along_axis(v, chosen, -2)
    if bad == "first values":
        values = v[..., : chosen.shape[-2], :]
    k = np.take_along_axis(k, chosen, -2)
    factor = q.shape[-1] ** -0.5 if scale is None or (bad == "or" and not scale) else scale
    s = (1 if bad == "no scale" else factor) * q @ np.swapaxes(k, -1, -2)
    axis = -2 if bad == "queries" else -1
    w = np.exp(s - s.max(axis, keepdims=True))
    return w / w.sum(axis, keepdims=True) @ values


def leverage_scores(bad: str, k: Any, *, method: str = "qr") -> Any:  # noqa: ARG001
    """By singular vectors."""
    if bad == "centred":
        k = k - k.mean(-2, keepdims=True)
    U, s, _ = np.linalg.svd(k, full_matrices=False)
    if bad == "lengths":
        return (k**2).sum(-1)
    kept = s > 1e-10 * s.max(-1, keepdims=True)
    tau = ((U * kept[..., None, :]) ** 2).sum(-1)
    if bad == "ridge":
        tau = ((U * (s / np.sqrt(s * s + 1))[..., None, :]) ** 2).sum(-1)
    if bad == "small ridge":
        inverse = np.linalg.inv(np.swapaxes(k, -1, -2) @ k + 0.004 * np.eye(k.shape[-1]))
        tau = np.einsum("...jd,...de,...je->...j", k, inverse, k)
    if bad == "normalised":
        tau = tau / tau.sum(-1, keepdims=True)
    return np.sqrt(tau) if bad == "roots" else tau


def lewis_weights(bad: str, k: Any, *, p: float) -> Any:
    """The fixed point, by damped steps."""
    if k.ndim > 2:
        raise NotImplementedError
    some = k.any(1)
    rows = k[some]
    w = np.full(len(rows), k.shape[1] / len(rows))
    p = {"inverted": 1 / p, "leverage": 2.0}.get(bad, p)
    for _ in range(3 if bad == "three steps" else 400):
        tau = leverage_scores("", w[:, None] ** (0.5 - 1 / p) * rows)
        eta = 2 / p if p >= 2 else 4 / (p + 2)
        w = w ** (1 - eta) * (w ** (2 / p - 1) * tau) ** (eta * p / 2)
    out = np.zeros(len(k))
    out[some] = w / w.sum() if bad == "normalised" else w
    return out


def universal_set(bad: str, k: Any, *, eps: float, p: float = 2) -> Any:
    """Keys of large leverage; of p = 2 only."""
    if p != 2:
        raise NotImplementedError
    tau = leverage_scores("lengths" if bad == "lengths" else "", k)
    eps = eps**2 if bad == "squared" else eps
    if bad == "relative":
        tau = tau / tau.max(-1, keepdims=True)
    inside = tau > eps * (1 + 1e-12) if bad == "strict" else tau >= eps * (1 - 1e-12)
    return ~inside if bad == "inverted" else inside


def sensitivity_bounds(bad: str, k: Any, *, p: float) -> Any:
    """Our own bounds, handed on wrongly: they have no short form."""
    from nlattn.oracle.lewis import sensitivity_bounds as bounds

    if k.ndim > 2:
        raise NotImplementedError
    low, high = bounds(k, 2.0 if bad == "p" else p)
    return {"exchanged": (high, low), "one": (low, 0 * high + 1)}.get(bad, (low, high))


def lp_sensitivity(bad: str, k: Any, *, i: int, p: float) -> Any:
    """The same for one key."""
    from nlattn.oracle.lewis import lp_sensitivity as bracket

    if k.ndim > 2:
        raise NotImplementedError
    low, high = bracket(k, i + 1 if bad == "next" else i, 2.0 if bad == "p" else p)
    return (1 / low, 1 / high) if bad == "reciprocal" else (low, high)


def heavy_attention(
    bad: str, q: Any, k: Any, *, eps: float, p: float = 2.0, causal: bool = False
) -> Any:
    """All entries, then the large ones."""
    s = abs(q @ k.T)
    f = (s / max(s.max(initial=0), 1e-30)) ** (1.0 if bad == "p" else p)
    if causal and bad != "not causal":
        f = np.tril(f)
    if bad == "softmax":
        s = np.where(f > 0, q @ k.T, -np.inf)
        f = np.exp(s - s.max(1, keepdims=True))
    axis = 0 if bad == "queries" else 1
    total = f.sum(axis, keepdims=True)
    if bad == "later keys":
        total = ((s / max(s.max(initial=0), 1e-30)) ** p).sum(axis, keepdims=True)
    A = f / np.where(total == 0, 1, total)
    heavy = np.where(eps * eps > A, 0, A) if bad == "squared" else np.where(eps > A, 0, A)
    if bad == "all":
        return A
    rest = heavy.sum(1, keepdims=True)
    return heavy / np.where(rest == 0, 1, rest) if bad == "renormalised" else heavy


FAULTS: dict[str, dict[str, str]] = {
    "sparse_attention": {
        "holes read key 0": "with the first key for an empty entry",
        "python holes": "with the last key for an empty entry",
        "clamped": "with the first key for -1, the last for what is beyond",
        "beyond is last": "with the last key for entries beyond the keys",
        "beyond wraps": "with entries beyond the keys taken modulo their number",
        "stops at a hole": "with rows that end at their first empty entry",
        "as often as named": "with keys counted as often as they are named",
        "once": "without the bias",
        "raw counts": "with counts added to the scores, not their logarithms",
        "no sinks": "without the sinks",
        "first sink": "with the first head's sink for all",
        "no scale": "with a scale of 1",
        "last key": "without the last key of each row",
        "all keys": "with all keys, whatever the support is",
        "linear h": "with h in place of its square",
        "twice": "with 2 h^2 in place of h^2",
        "by sum": "divided by the sum of weights, not by their number",
    },
    "scram": {
        "no scale": "with a scale of 1",
        "one too large": "with every key index one too large",
        "columns": "with values read by columns, not by rows",
        "grids by columns": "with grids read column by column, results written row by row",
        "all keys": "with all keys, whatever the support is",
    },
    "lev_attention": {
        "all keys": "with all keys, whatever the chosen ones are",
        "first values": "with values of the first keys, not of the chosen ones",
        "no scale": "with a scale of 1",
        "queries": "with the softmax over queries",
        "or": "with the default in place of scale = 0, as if 0 were nothing",
    },
    "leverage_scores": {
        "centred": "with keys less their mean",
        "lengths": "with squared lengths in place of leverage",
        "ridge": "with a ridge of 1",
        "small ridge": "with a ridge of 0.004 added to the Gram matrix",
        "normalised": "with scores that sum to 1",
        "roots": "with the root of the scores",
    },
    "lewis_weights": {
        "inverted": "with 1/p in place of p",
        "leverage": "with leverage, whatever p is",
        "three steps": "after three steps of the fixed point",
        "normalised": "with scores that sum to 1",
    },
    "universal_set": {
        "lengths": "your set holds all keys: everything is selected",
        "squared": "with eps squared",
        "relative": "with scores relative to the largest",
        "inverted": "inverted: the keys that are not in it",
    },
    "sensitivity_bounds": {
        "p": "with p = 2",
        "exchanged": "with the two ends exchanged",
        "one": "with 1 as the upper bound",
    },
    "lp_sensitivity": {
        "next": "of the key after",
        "p": "with p = 2",
        "reciprocal": "with reciprocals",
    },
    "heavy_attention": {
        "p": "with p = 1",
        "not causal": "without causality",
        "later keys": "with the sum of all keys, later ones too",
        "softmax": "with a softmax in place of powers",
        "queries": "normalised over queries",
        "squared": "with eps squared",
        "all": "with all entries, small ones too",
        "renormalised": "with rows that sum to 1 over what is kept",
    },
}
