"""Softmax attention over all keys: outputs, normalisers, rows, best keys, and gradients.

`Scores` holds the arrays and options of a call. A normaliser is two rows of `norm` (2, batch, n):
the largest score of each query, and the sum of exponentials relative to it. Numbers that are not
finite reach those rows alone that see them, by way of `not_finite`.
"""

from __future__ import annotations

import numpy as np

from nlattn import _check
from nlattn._types import Bools, Floats, Ints
from nlattn.engines import not_finite
from nlattn.kernels import softmax, softmax_vjp
from nlattn.kernels.gemm import width
from nlattn.kernels.panel import KEYS, TILE, Scores, groups
from nlattn.runtime import jit

FAR = 1 << 40
"""Beyond any key, and safe to add to a row: a band as wide has no end."""


def attend(p: Scores, v: Floats) -> tuple[Floats, Floats]:
    """Outputs (batch, n, e) and normalisers (2, batch, n); 0 where there is nothing to see."""
    if not not_finite.finite(v):
        return not_finite.attend(p, v, _attend)
    return _attend(p, v)


def _attend(p: Scores, v: Floats) -> tuple[Floats, Floats]:
    batch, n, m, d, e = len(p.slices), p.q.shape[1], *p.k.shape[1:], v.shape[2]
    out: Floats = np.empty((batch, n, e), p.q.dtype)
    norm: Floats = np.empty((2, batch, n), p.q.dtype)
    for tiles in groups(batch * -(-n // TILE), TILE * m * (d + e)):
        softmax.attend(tiles, p, v, out, norm)
    return out, _check.frozen(norm)


def log_normaliser(norm: Floats) -> Floats:
    """Log of the sum of exponentials from normalisers (2, ...): float64, -inf for an empty row."""
    top, total = norm.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        lse: Floats = np.where(total == 0, -np.inf, top + np.log(total))
    return lse


def empty_rows(p: Scores, norm: Floats) -> Bools:
    """Queries (batch, n) that exist but have nothing to see."""
    rows: Bools = (norm[1] == 0) & (p.band[p.slices[:, 6], :, 1] >= 0)
    return rows


def vjp(
    p: Scores, v: Floats, dout: Floats, norm: Floats, delta: Floats
) -> tuple[Floats, Floats, Floats]:
    """Gradients of queries, keys and values of each slice; `delta` is ``dout . out - dlse``."""
    if not not_finite.finite(p.q, p.k, v, dout, delta, norm[1]):
        return not_finite.vjp(p, v, dout, delta, _all_vjp, _attend)[:3]
    return _vjp(p, v, dout, norm, delta)


def _all_vjp(
    p: Scores, v: Floats, dout: Floats, norm: Floats, delta: Floats
) -> tuple[Floats, Floats, Floats, Floats | None]:
    bias = _bias_vjp(p, v, dout, norm, delta) if p.has_bias else None
    return (*_vjp(p, v, dout, norm, delta), bias)


def _vjp(
    p: Scores, v: Floats, dout: Floats, norm: Floats, delta: Floats
) -> tuple[Floats, Floats, Floats]:
    batch, delta = len(p.slices), _check.frozen(delta)
    shapes = p.q.shape[1:], p.k.shape[1:], v.shape[1:]
    dq, dk, dv = (np.zeros((batch, *shape), p.q.dtype) for shape in shapes)
    side = softmax_vjp.diagonals(p)
    for diagonal in range(side):
        softmax_vjp.backward(batch * side, p, v, dout, norm, delta, diagonal, dq, dk, dv)
    return dq, dk, dv


def bias_vjp(p: Scores, v: Floats, dout: Floats, norm: Floats, delta: Floats) -> Floats:
    """Gradient of the bias, in the shape that it has in `p`."""
    if not not_finite.finite(p.q, p.k, v, dout, delta, norm[1]):
        return not_finite.vjp(p, v, dout, delta, _all_vjp, _attend)[3]  # type: ignore[return-value]
    return _bias_vjp(p, v, dout, norm, delta)


def _bias_vjp(p: Scores, v: Floats, dout: Floats, norm: Floats, delta: Floats) -> Floats:
    batch, n, m, d, e = len(p.slices), p.q.shape[1], *p.k.shape[1:], v.shape[2]
    dbias: Floats = np.zeros(p.bias.shape, p.q.dtype)
    parts, rows, columns = p.bias.shape
    tasks = parts * (-(-n // width(dbias)) if rows > 1 else 1)
    tasks *= -(-m // KEYS) if columns > 1 else 1
    delta = _check.frozen(delta)
    for some in groups(tasks, batch * n * m * (d + e) // max(tasks, 1)):
        softmax_vjp.bias_gradient(some, p, v, dout, norm, delta, dbias)
    return dbias


def adjoint(p: Scores, norm: Floats, x: Floats) -> Floats:
    """``A.T x`` (m, e) of a single slice, for x (n, e)."""
    if not not_finite.finite(norm[1], x):
        return not_finite.adjoint(p, x, _adjoint, _attend)
    return _adjoint(p, norm, x)


def _adjoint(p: Scores, norm: Floats, x: Floats) -> Floats:
    n, (m, d) = p.q.shape[1], p.k.shape[1:]
    out: Floats = np.empty((m, x.shape[1]), p.q.dtype)
    cost = KEYS * n * (d + x.shape[1])
    for keys in groups(-(-m // KEYS), cost):
        softmax.adjoint(keys, p, norm, x, out)
    return out


def rows(p: Scores, index: Ints, *, normalise: bool) -> Floats:
    """Weights of some queries (r,) of a single slice, or their scores: (r, m)."""
    m, d = p.k.shape[1:]
    out: Floats = np.empty((len(index), m), p.q.dtype)
    for some in groups(len(index), m * d):
        at = slice(some.start, some.stop)
        panels = jit.blocks(len(some), width(p.k))
        softmax.rows(panels, p, _check.frozen(index[at]), normalise, out[at])
    return out


def topk(p: Scores, k: int) -> tuple[Floats, Ints]:
    """Largest `k` weights of every query of a single slice, and their keys."""
    n, (m, d), w = p.q.shape[1], p.k.shape[1:], width(p.q)
    value: Floats = np.empty((n, k), p.q.dtype)
    index: Ints = np.empty((n, k), np.int64)
    for panels in groups(-(-n // w), w * m * d):
        softmax.topk(panels, p, value, index)
    return value, index


def dot_scores(q: Floats, k: Floats, factor: float) -> Scores:
    """Scores ``factor q.k`` of a single slice (1, n, d), (1, m, d), and nothing else."""
    bias, mask = np.zeros((1, 1, 1), q.dtype), np.ones((1, 1, 1), bool)
    band = np.stack(np.broadcast_arrays(0, k.shape[1], np.arange(q.shape[1])), -1)[None]
    return of_one(q, k, bias, mask, band, factor)


def of_one(
    q: Floats,
    k: Floats,
    bias: Floats,
    mask: Bools,
    band: Ints,
    factor: float,
    cap: float = 0.0,
    slope: float = 0.0,
    has_bias: bool = False,
    has_mask: bool = False,
    sink: float = -np.inf,
) -> Scores:
    """Scores of a single slice, its arrays with one leading axis."""
    kind = q.dtype.type
    return Scores(
        q,
        k,
        _check.frozen(bias),
        _check.frozen(mask),
        kept=_check.frozen(np.ones((1, 1, 1), bool)),
        band=_check.frozen(band, np.int64),
        logits=_check.frozen(np.array([[sink, slope]], q.dtype)),
        slices=_check.frozen(np.zeros((1, 7), np.int64)),
        scale=kind(factor),
        cap=kind(cap),
        factor=kind(1),
        rows=1,
        columns=1,
        has_bias=has_bias,
        has_mask=has_mask,
        has_dropout=False,
    )


def sink_vjp(p: Scores, norm: Floats, delta: Floats) -> Floats:
    """Gradient (batch,) of each slice's sink, which has a weight but no value."""
    sink = p.logits[:, :1].astype(np.float64)
    top, total = norm.astype(np.float64)
    there = (total != 0) & (p.band[p.slices[:, 6], :, 1] >= 0) & (sink > -np.inf)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        weight = np.where(there, np.exp(np.where(there, sink - top, 0)), 0)
    gradient: Floats = -np.where(there, weight / np.where(there, total, 1) * delta, 0).sum(1)
    return gradient
