"""Queries, gates and position biases of the QnA layer, from its weights and back."""

from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import DTypeLike

from nlattn._modes import Gate, Position
from nlattn._types import Floats, StateDict
from nlattn.layers._dual import held

GATES: tuple[Gate, ...] = get_args(Gate)
POSITIONS: tuple[Position, ...] = get_args(Position)
_EPS = 1e-6  # added to the norm of a query


class QnaKind(NamedTuple):
    """What kind of layer it is."""

    heads: int
    window: tuple[int, int]
    gate: Gate
    position: Position
    normalize_queries: bool
    detach_query_norm: bool
    scale_rpe_bias: bool
    copies: int
    """How often the absolute bias is added."""


def shapes(kind: QnaKind, t: int, given: Container[str]) -> dict[str, str]:
    """Names and shapes of the weights; biases of projections are those in `given`."""
    taps, h = kind.window[0] * kind.window[1], kind.heads
    found = {"query": "t F", "Wk": "C F", "Wk_b": f"{h} d", "to_v.kernel": "C F", "to_v.bias": "F"}
    found |= {
        "normal": {"attn_scale_weights": f"1 1 {taps} {t * h}"},
        "normal_elementwise": {"attn_scale_weights": f"1 1 1 {t * h}"},
        "ones": {"attn_scale_pos": f"1 1 {taps} {t} {h}"},
    }.get(kind.gate, {})
    found |= {
        "relative_pos": {"rpe_bias": f"{taps} {t * h}"},
        "absolute_pos": {"absolute_pos_embedding": f"{taps} {t} F"},
        "contextual_pos": {
            "rpe_bias.kernel": f"{h} d {taps} {h}",
            "rpe_bias.bias": f"{taps} {h}",
        },
    }.get(kind.position, {})
    found |= {"to_out.kernel": "F Cout", "to_out.bias": "Cout"}
    optional = ("Wk_b", "to_v.bias", "to_out.bias")
    return {name: shape for name, shape in found.items() if name in given or name not in optional}


def queries(kind: QnaKind, query: Floats) -> Floats:
    """Queries (h, t, d) over ``sqrt(d)``, normalised if asked for, from (t, F)."""
    q = _by_head(query, kind.heads)
    if kind.normalize_queries:
        norm = np.sqrt((q * q).sum(-1, keepdims=True))
        q = q / ((held(norm) if kind.detach_query_norm else norm) + q.dtype.type(_EPS))
    return q * q.dtype.type(q.shape[-1] ** -0.5)


def queries_vjp(kind: QnaKind, query: Floats, dq: Floats) -> Floats:
    """Gradient of the weight (t, F)."""
    q = _by_head(query, kind.heads)
    g = dq * q.dtype.type(q.shape[-1] ** -0.5)
    if kind.normalize_queries:
        norm = np.sqrt((q * q).sum(-1, keepdims=True))
        far = norm + q.dtype.type(_EPS)
        along = 0 if kind.detach_query_norm else (q * g).sum(-1, keepdims=True)
        g = (g - q * np.where(norm > 0, along / np.where(norm > 0, norm * far, 1), 0)) / far
    return g.transpose(1, 0, 2).reshape(query.shape)


def gate(kind: QnaKind, weights: StateDict, t: int, dtype: DTypeLike) -> Floats | None:
    """The gate (h, t, kh, kw)."""
    h, (kh, kw) = kind.heads, kind.window
    ones: Floats = np.ones((h, t, kh, kw), dtype)
    if kind.gate in ("normal", "ones"):
        name = "attn_scale_weights" if kind.gate == "normal" else "attn_scale_pos"
        return _of_taps(weights[name], kind, t)
    if kind.gate == "normal_elementwise":
        columns: Floats = weights["attn_scale_weights"]
        return ones * columns.reshape(t, h).T[..., None, None]
    if kind.gate == "avg":
        return ones / ones.dtype.type(t)
    if kind.gate == "posneg":
        signs: Floats = np.where(np.arange(t * h) < t * h // 2, 1, -1).astype(dtype)
        return ones * signs.reshape(t, h).T[..., None, None]
    return None


def gate_vjp(kind: QnaKind, dgate: Floats | None) -> dict[str, Floats]:
    """Gradients of the gate's weights, if it has any."""
    if dgate is None or kind.gate in ("avg", "posneg"):
        return {}
    if kind.gate == "normal_elementwise":
        return {"attn_scale_weights": dgate.sum((2, 3)).T}
    name = "attn_scale_weights" if kind.gate == "normal" else "attn_scale_pos"
    return {name: dgate.transpose(2, 3, 1, 0)}


def bias(kind: QnaKind, weights: StateDict, q: Floats) -> Floats | None:
    """The bias (h, t, kh, kw), for queries as `queries` gives them."""
    t = q.shape[1]
    if kind.position == "relative_pos":
        relative: Floats = _rpe_scale(kind, q) * weights["rpe_bias"]
        return _of_taps(relative, kind, t)
    if kind.position == "absolute_pos":
        table = np.einsum("gtd,ktgd->ktg", q, _embedding(kind, weights, q))
        return q.dtype.type(kind.copies) * _of_taps(table, kind, t)
    if kind.position == "contextual_pos":
        table = np.einsum("ftc,fckg->ktg", q, weights["rpe_bias.kernel"])
        return _of_taps(table + weights["rpe_bias.bias"][:, None], kind, t)
    return None


def bias_vjp(
    kind: QnaKind, weights: StateDict, q: Floats, dbias: Floats | None
) -> tuple[dict[str, Floats], Floats]:
    """Gradients of the position's weights, and of the queries through them."""
    none = np.zeros_like(q)
    if dbias is None:
        return {}, none
    d = dbias.transpose(2, 3, 1, 0).reshape(-1, q.shape[1], kind.heads)
    if kind.position == "relative_pos":
        return {"rpe_bias": _rpe_scale(kind, q) * d}, none
    if kind.position == "absolute_pos":
        d = q.dtype.type(kind.copies) * d
        dq = np.einsum("ktg,ktgd->gtd", d, _embedding(kind, weights, q))
        return {"absolute_pos_embedding": np.einsum("ktg,gtd->ktgd", d, q)}, dq
    dq = np.einsum("ktg,fckg->ftc", d, weights["rpe_bias.kernel"])
    kernel = np.einsum("ktg,ftc->fckg", d, q)
    return {"rpe_bias.kernel": kernel, "rpe_bias.bias": d.sum(1)}, dq


def _by_head(query: Floats, heads: int) -> Floats:
    return query.reshape(len(query), heads, -1).transpose(1, 0, 2)


def _of_taps(table: Floats, kind: QnaKind, t: int) -> Floats:
    """(kh kw, t h) to (h, t, kh, kw): columns are ``query * heads + head``."""
    return table.reshape(*kind.window, t, kind.heads).transpose(3, 2, 0, 1)


def _embedding(kind: QnaKind, weights: StateDict, q: Floats) -> Floats:
    embedding: Floats = weights["absolute_pos_embedding"]
    return embedding.reshape(-1, q.shape[1], kind.heads, q.shape[2])


def _rpe_scale(kind: QnaKind, q: Floats) -> np.floating:
    return q.dtype.type(q.shape[2] ** -0.5 if kind.scale_rpe_bias else 1)
