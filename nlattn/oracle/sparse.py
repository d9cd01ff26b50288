"""Attention restricted to a support: every query attends to its own list of keys.

For query i with keys S, scores s_j and weights w_j = f(s_j):

    out_i = sum_S w_j v_j / Z_i,    lse_i = log Z_i

    softmax    f(s) = exp(s)     s = scale q.k               Z = sum w
    gaussian   f(s) = exp(s)     s = -|q - k|^2 / h^2        Z = sum w
    abspow     f(s) = |s|^p      s = scale q.k               Z = sum w
    dot        f(s) = s          s = scale q.k               Z = |S|

To the scores of the first two a bias of each edge may be added, the logarithm of how often a key
counts; a sink adds exp(sink) to Z. Before the bias softmax scores may be capped, and queries and
keys normalised before these are formed; weights may be dropped after Z is.

Sources: [wang2018, eq. 1-4] for the weights; the gradients are derived here. Status: ours.
The indexer, which chooses keys: DeepSeek-AI, "DeepSeek-V3.2-Exp", 2025, eq. 1 for the scores, and
the loss of the dense warm-up. Status: paper; ties and empty entries are ours.
Real, longdouble and complex arrays alike; in complex arithmetic every function is analytic, so
that the complex step differentiates it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nlattn.oracle.dense import LOG_2, rms_normalised, rms_normalised_vjp
from nlattn.oracle.layout import any_layout

Array = np.ndarray
Support = tuple[Array, Array, tuple[int, ...]]


def scores(q: Array, k: Array, weight: str, scale: float, bandwidth: float) -> Array:
    """Scores of one query (d,) against keys (s, d)."""
    if weight == "gaussian":
        return np.asarray(-((q - k) ** 2).sum(-1) / bandwidth**2)
    return np.asarray(scale * (k @ q))


def probabilities(
    s: Array, weight: str, power: float, sink: Array | None = None
) -> tuple[Array, float | np.floating]:
    """Weights over their normaliser, (s,), and the normaliser's logarithm; no key gives -inf."""
    if weight == "dot":
        w, top, Z = s, 0.0, s.dtype.type(len(s))
    elif weight == "abspow":
        w, top = np.where(s.real < 0, -s, s) ** power, 0.0
        Z = w.sum()
    else:
        top = s.real.max(initial=-np.inf)
        if sink is not None:
            top = np.maximum(top, sink.real)
        if np.isneginf(top):
            return np.zeros_like(s), -np.inf
        w = np.exp(s - top)
        Z = w.sum() if sink is None else w.sum() + np.exp(sink - top)
    if Z == 0:
        return np.zeros_like(s), -np.inf
    return w / Z, top + np.log(Z)


def score_cotangents(
    s: Array, P: Array, dP: Array, dlse: object, weight: str, power: float
) -> Array:
    """Cotangents (s,) of the scores, from those of the probabilities, ``dP_j = dout . v_j``."""
    if weight == "dot":
        return np.asarray(dP / max(len(s), 1))
    inner = P * (dP - (P * dP).sum() + dlse)
    if weight == "abspow":  # f'(s) / f(s) = p / s; a weight of 0 has no slope
        return np.asarray(np.where(s == 0, 0, power * inner / np.where(s == 0, 1, s)))
    return np.asarray(inner)


@any_layout
def sparse_attention(
    q: Array,
    k: Array,
    v: Array,
    support: Support,
    *,
    weight: str = "softmax",
    scale: float | None = None,
    bandwidth: float = 1.0,
    power: float = 2.0,
    softcap: float | None = None,
    bias: Array | None = None,
    sinks: Array | None = None,
    qk_norm: float | None = None,
    dropout_mask: Array | None = None,
    dropout_scale: float = 1.0,
    masked_rows: str = "zero",
    return_lse: bool = False,
    lse_base: str = "e",
) -> Array | tuple[Array, Array]:
    """Outputs (..., n, e), and with `return_lse` also the log normalisers (..., n)."""
    scale = _scale(q, scale)
    q, k = _unit(q, qk_norm), _unit(k, qk_norm)
    lead, (q_, k_, v_) = _heads(support, q, k, v)
    out = np.zeros((*lead, q.shape[-2], v.shape[-1]), v.dtype)
    lse = np.full((*lead, q.shape[-2]), -np.inf, v.dtype)
    sinks_ = None if sinks is None else np.broadcast_to(sinks, lead)
    for b, i, S, edges in _rows(support, lead, q.shape[-2]):
        s, _ = _capped(scores(q_[b][i], k_[b][S], weight, scale, bandwidth), softcap)
        s = s if bias is None else s + bias[edges]
        P, lse[b][i] = probabilities(s, weight, power, None if sinks_ is None else sinks_[b])
        kept = _kept(dropout_mask, edges, dropout_scale)
        out[b][i] = (P * kept)[kept != 0] @ v_[b][S[kept != 0]]
        if lse[b][i] == -np.inf and masked_rows == "nan":
            out[b][i] = np.nan
    return (out, _in_base(lse, lse_base)) if return_lse else out


@any_layout
def sparse_attention_vjp(
    q: Array,
    k: Array,
    v: Array,
    support: Support,
    dout: Array,
    *,
    dlse: Array | None = None,
    weight: str = "softmax",
    scale: float | None = None,
    bandwidth: float = 1.0,
    power: float = 2.0,
    softcap: float | None = None,
    bias: Array | None = None,
    sinks: Array | None = None,
    qk_norm: float | None = None,
    dropout_mask: Array | None = None,
    dropout_scale: float = 1.0,
    lse_base: str = "e",
) -> tuple[Array, ...]:
    """Gradients (dq, dk, dv[, dbias][, dsinks]) of ``sum(dout * out) + sum(dlse * lse)``.

    The support is held fixed.
    """
    scale = _scale(q, scale)
    unit_q, unit_k = _unit(q, qk_norm), _unit(k, qk_norm)
    lead, (q_, k_, v_) = _heads(support, unit_q, unit_k, v)
    dq, dk, dv = (np.zeros((*lead, *x.shape[-2:]), x.dtype) for x in (q, k, v))
    sinks_ = None if sinks is None else np.broadcast_to(sinks, lead)
    dbias = None if bias is None else np.zeros_like(bias)
    dsinks = None if sinks is None else np.zeros((*lead, 1), q.dtype)
    for b, i, S, edges in _rows(support, lead, q.shape[-2]):
        g, a = dout[b][i], 0.0 if dlse is None else _in_base(dlse[b][i], lse_base)
        s, slope = _capped(scores(q_[b][i], k_[b][S], weight, scale, bandwidth), softcap)
        s = s if bias is None else s + bias[edges]
        P, lse = probabilities(s, weight, power, None if sinks_ is None else sinks_[b])
        kept = _kept(dropout_mask, edges, dropout_scale)
        dP = np.where(kept == 0, 0, kept * (v_[b][S] @ g))
        ds = score_cotangents(s, P, dP, a, weight, power)[:, None]
        if dbias is not None:
            dbias[edges] += ds[:, 0]
        if dsinks is not None and sinks_ is not None:
            dsinks[b] += np.exp(sinks_[b] - lse) * (a - (P * dP).sum())
        dv[b][S] += (P * kept)[:, None] * g
        ds = ds if softcap is None else ds * slope[:, None]
        if weight == "gaussian":
            difference = (2 / bandwidth**2) * (q_[b][i] - k_[b][S])
            dq[b][i] -= (ds * difference).sum(0)
            dk[b][S] += ds * difference
        else:
            dq[b][i] += scale * (ds * k_[b][S]).sum(0)
            dk[b][S] += scale * ds * q_[b][i]
    if qk_norm is not None:
        dq, dk = rms_normalised_vjp(q, dq, qk_norm), rms_normalised_vjp(k, dk, qk_norm)
    gradients = [_summed(dq, q.shape), _summed(dk, k.shape), _summed(dv, v.shape)]
    if dbias is not None:
        gradients.append(dbias)
    if dsinks is not None and sinks is not None:
        gradients.append(_summed(dsinks[..., 0], np.shape(sinks)))
    return tuple(gradients)


@any_layout
def sparse_attention_jvp(
    q: Array,
    k: Array,
    v: Array,
    support: Support,
    dq: Array,
    dk: Array,
    dv: Array,
    *,
    dbias: Array | None = None,
    dsinks: Array | None = None,
    weight: str = "softmax",
    scale: float | None = None,
    bandwidth: float = 1.0,
    power: float = 2.0,
    softcap: float | None = None,
    bias: Array | None = None,
    sinks: Array | None = None,
    qk_norm: float | None = None,
    dropout_mask: Array | None = None,
    dropout_scale: float = 1.0,
    return_lse: bool = False,
    lse_base: str = "e",
) -> Array | tuple[Array, Array]:
    """Change of `out`, and of `lse`, as q, k, v (bias, sinks) move along dq, dk, dv."""
    scale = _scale(q, scale)
    if qk_norm is not None:  # the derivative is its own transpose
        dq, dk = rms_normalised_vjp(q, dq, qk_norm), rms_normalised_vjp(k, dk, qk_norm)
        q, k = _unit(q, qk_norm), _unit(k, qk_norm)
    lead, (q_, k_, v_, dq_, dk_, dv_) = _heads(support, q, k, v, dq, dk, dv)
    out = np.zeros((*lead, q.shape[-2], v.shape[-1]), v.dtype)
    dlse = np.zeros((*lead, q.shape[-2]), v.dtype)
    sinks_ = None if sinks is None else np.broadcast_to(sinks, lead)
    moved = None if dsinks is None else np.broadcast_to(dsinks, lead)
    for b, i, S, edges in _rows(support, lead, q.shape[-2]):
        s, slope = _capped(scores(q_[b][i], k_[b][S], weight, scale, bandwidth), softcap)
        s = s if bias is None else s + bias[edges]
        P, lse = probabilities(s, weight, power, None if sinks_ is None else sinks_[b])
        if weight == "gaussian":
            apart = q_[b][i] - k_[b][S]
            ds = -2 / bandwidth**2 * (apart * (dq_[b][i] - dk_[b][S])).sum(-1)
        else:
            ds = slope * (scale * (k_[b][S] @ dq_[b][i] + dk_[b][S] @ q_[b][i]))
        ds = ds if dbias is None else ds + dbias[edges]
        if weight == "dot":
            dP = ds / max(len(S), 1)
        else:
            if weight == "abspow":  # of log |s|^p
                ds = np.where(s == 0, 0, power * ds / np.where(s == 0, 1, s))
            dlse[b][i] = (P * ds).sum()
            if moved is not None and sinks_ is not None and lse != -np.inf:
                dlse[b][i] += np.exp(sinks_[b] - lse) * moved[b]
            dP = P * (ds - dlse[b][i])
        kept = _kept(dropout_mask, edges, dropout_scale)
        S, dP, P = S[kept != 0], (dP * kept)[kept != 0], (P * kept)[kept != 0]
        out[b][i] = dP @ v_[b][S] + P @ dv_[b][S]
    return (out, _in_base(dlse, lse_base)) if return_lse else out


def _unit(x: Array, eps: float | None) -> Array:
    return x if eps is None else rms_normalised(x, eps)


def _in_base(lse: Array, lse_base: str) -> Array:
    return lse / LOG_2 if lse_base == "2" else lse


def _capped(s: Array, softcap: float | None) -> tuple[Array, Array]:
    """Capped scores, and the slope of the cap."""
    if softcap is None:
        return s, np.ones(s.shape)
    bent = np.tanh(s / softcap)
    return softcap * bent, 1 - bent**2


def _kept(dropout_mask: Array | None, edges: slice, scale: float) -> Array:
    """What the weights of some edges are multiplied by."""
    if dropout_mask is None:
        return np.ones(edges.stop - edges.start)
    return np.where(dropout_mask[edges], scale, 0)


def _scale(q: Array, scale: float | None) -> float:
    return q.shape[-1] ** -0.5 if scale is None else scale


def _heads(support: Support, *arrays: Array) -> tuple[tuple[int, ...], list[Array]]:
    """The common leading axes, and the arrays broadcast to them."""
    lead = np.broadcast_shapes(support[2][:-2], *(x.shape[:-2] for x in arrays))
    return lead, [np.broadcast_to(x, lead + x.shape[-2:]) for x in arrays]


def _rows(
    support: Support, lead: tuple[int, ...], n: int
) -> Iterator[tuple[tuple[int, ...], int, Array, slice]]:
    """(head, query, its keys, their places among all edges) of every row."""
    indptr, indices, shape = support
    slices = np.broadcast_to(np.arange(np.prod(shape[:-2], dtype=int)).reshape(shape[:-2]), lead)
    for b in np.ndindex(lead):
        for i in range(n):
            row = slices[b] * n + i
            edges = slice(indptr[row], indptr[row + 1])
            yield b, i, indices[edges], edges


def _summed(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the axes along which an array of `shape` was broadcast."""
    gradient = gradient.sum(tuple(range(gradient.ndim - len(shape))))
    kept = tuple(i for i, size in enumerate(shape) if size == 1 != gradient.shape[i])
    return np.asarray(gradient.sum(kept, keepdims=True))
