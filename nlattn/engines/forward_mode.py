"""Forward mode of attention: how outputs move as queries, keys and values do.

With weights P and changes ds of the scores, ``dP = P (ds - sum_j P ds)``, outputs change by
``dP v + P dv`` and logarithms of normalisers by ``sum_j P ds``. In blocks of queries, or on the
edges of a support: nothing of size n x m is made.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from nlattn import _check
from nlattn._types import Floats, Ints, Result
from nlattn.engines import dense, not_finite
from nlattn.engines.sparse import Edges, WeightFunction
from nlattn.kernels import softmax_jvp
from nlattn.kernels import sparse as kernels
from nlattn.kernels.panel import TILE, Scores, groups
from nlattn.kernels.softmax_jvp import Changes
from nlattn.runtime.threads import serial_blas

_BLOCK = 1 << 20  # weights at once


def attention(p: Scores, v: Floats, x: Changes) -> tuple[Floats, Floats]:
    """Changes of outputs (batch, n, e) and of ``lse`` (batch, n), the latter float64."""
    if not_finite.finite(p.q, p.k, v, x.q, x.k, x.v, x.bias, x.logits):
        return _attention(p, v, x)
    return _among_wild(p, v, x)


def _attention(p: Scores, v: Floats, x: Changes) -> tuple[Floats, Floats]:
    batch, n, m, d, e = len(p.slices), p.q.shape[1], *p.k.shape[1:], v.shape[2]
    out: Floats = np.empty((batch, n, e), p.q.dtype)
    lse: Floats = np.empty((batch, n), p.q.dtype)
    for tiles in groups(batch * -(-n // TILE), 3 * TILE * m * (d + e)):
        softmax_jvp.attend(tiles, p, v, x, out, lse)
    return out, lse.astype(np.float64)


def changes(
    p: Scores,
    fit: _check.Fit,
    dbias: Floats | None = None,
    dsinks: Floats | None = None,
    dslopes: Floats | None = None,
) -> Changes:
    """Those of a call: its arrays dq, dk and dv, a folded bias, numbers of heads (batch,)."""
    logits: Floats = np.zeros((len(p.slices), 2), fit.dtype)
    for column, each in enumerate((dsinks, dslopes)):
        if each is not None:
            logits[:, column] = each
    none: Floats = np.zeros((1, 1, 1), fit.dtype)
    bias = _check.frozen(none if dbias is None else dbias)
    dq, dk, dv = (_check.frozen(fit[name]) for name in ("dq", "dk", "dv"))
    return Changes(dq, dk, dv, bias, _check.frozen(logits), dbias is not None)


@serial_blas
@np.errstate(invalid="ignore", over="ignore")
def _among_wild(p: Scores, v: Floats, x: Changes) -> tuple[Floats, Floats]:
    """The same where numbers are not finite: rows that see such a one are computed again."""
    dq, dk, dv = not_finite.cleaned(x.q), not_finite.cleaned(x.k), not_finite.cleaned(x.v)
    neat = Changes(dq, dk, dv, not_finite.cleaned(x.bias), not_finite.cleaned(x.logits), x.has_bias)
    out, lse = _attention(not_finite.clean(p), not_finite.cleaned(v), neat)
    norm = dense.attend(p, v)[1]
    spoilt = np.where(np.isfinite(x.logits).all(1), 0.0, np.nan)[:, None]
    beside = (np.broadcast_to(spoilt, lse.shape),)
    for some in not_finite.struck(_marked(p, x), _mark(v, x.v), beside):
        b, i = some.head, some.rows
        out[b, i], lse[b, i] = _rows(p, v, x, norm, b, i)
    return out, lse


def _mark(array: Floats, change: Floats) -> Floats:
    """An array that is NaN where its change is not finite."""
    return np.where(np.isfinite(change), array, array.dtype.type(np.nan))


def _marked(p: Scores, x: Changes) -> Scores:
    bias = p.bias
    if x.has_bias:
        bias = np.where(np.isneginf(bias), bias, _mark(bias, x.bias))
    return p._replace(q=_mark(p.q, x.q), k=_mark(p.k, x.k), bias=bias)


def _rows(p: Scores, v: Floats, x: Changes, norm: Floats, b: int, i: Ints) -> tuple[Floats, Floats]:
    """Changes of some outputs and normalisers of a slice, where what is not seen adds nothing."""
    (of_q, of_k, of_v, of_bias), m = p.slices[b, :4], p.k.shape[1]
    one = p._replace(slices=p.slices[b : b + 1], logits=p.logits[b : b + 1])
    k, q, (dsink, dslope) = p.k[of_k], p.q[of_q, i], x.logits[b]
    P = _weights(one, i, norm[:, b, i])
    ds = p.scale * (x.q[of_q, i] @ k.T + q @ x.k[of_k].T)
    if p.cap > 0:
        ds *= 1 - np.tanh(p.scale * (q @ k.T) / p.cap) ** 2
    if x.has_bias:
        ds += not_finite.part(x.bias[of_bias], i, np.arange(m))
    if dslope != 0:
        ds -= dslope * distances(p, b, i, ds.dtype)
    yes = not_finite.seen(p, b, i, np.arange(m))
    ds = np.where(yes, ds, 0)
    mean = (P * ds).sum(1, dtype=np.float64)
    if dsink != 0:
        mean += _sink(p, b, norm[:, b, i]) * float(dsink)
    dP = P * (ds - mean[:, None].astype(P.dtype))
    if p.has_dropout:
        kept = not_finite.part(p.kept[p.slices[b, 5]], i, np.arange(m))
        P, dP = (np.where(kept, y, 0) * p.factor for y in (P, dP))
        yes = yes & kept
    P, dP = (np.where(yes, y, 0) for y in (P, dP))
    return not_finite.product(dP, yes, v[of_v]) + not_finite.product(P, yes, x.v[of_v]), mean


def distances(p: Scores, b: int, i: Ints, dtype: DTypeLike) -> Floats:
    """``|i + offset - j|`` (r, m) of some queries of a slice, of which slopes are factors."""
    place = p.band[p.slices[b, 6]][i, 2:]
    return abs(place - np.arange(p.k.shape[1])).astype(dtype)


@serial_blas
@np.errstate(invalid="ignore", over="ignore")
def slopes_vjp(p: Scores, v: Floats, dout: Floats, norm: Floats, delta: Floats) -> Floats:
    """Gradient (batch,) of each slice's slope: scores fall by it times a distance."""
    total, m = np.zeros(len(p.slices)), p.k.shape[1]
    plain = not_finite.finite(p.q, p.k, v, dout, delta, norm[1])
    step = max(1, _BLOCK // max(m, 1))
    for b in range(len(total)):
        one = p._replace(slices=p.slices[b : b + 1], logits=p.logits[b : b + 1])
        for start in range(0, p.q.shape[1], step):
            i = np.arange(start, min(start + step, p.q.shape[1]))
            P = _weights(one, i, norm[:, b, i])
            dP = dout[b, i] @ v[p.slices[b, 2]].T
            if p.has_dropout:
                kept = not_finite.part(p.kept[p.slices[b, 5]], i, np.arange(m))
                dP = np.where(kept, dP * p.factor, 0)
            ds = P * (dP - delta[b, i, None])
            if not plain:
                ds = np.where(not_finite.seen(p, b, i, np.arange(m)), ds, 0)
            total[b] -= (ds * distances(p, b, i, ds.dtype)).sum(dtype=np.float64)
    return total


def of_call(p: Scores, fit: _check.Fit) -> tuple[Floats, Floats]:
    """The same along the arrays dq, dk and dv of a call."""
    return attention(p, fit["v"], changes(p, fit))


def _weights(one: Scores, i: Ints, norm: Floats) -> Floats:
    """Weights (r, m) of some queries of one slice; 0 in an empty row."""
    s = dense.rows(one, i, normalise=False)
    top, total = norm[0][:, None], norm[1][:, None]
    with np.errstate(under="ignore"):
        P: Floats = np.exp(s - np.where(total == 0, 0, top)) / np.where(total == 0, 1, total)
    return np.where(total == 0, 0, P)


def _sink(p: Scores, b: int, norm: Floats) -> Floats:
    """Share (r,) of each query's weight that the sink takes."""
    top, total = norm.astype(np.float64)
    with np.errstate(under="ignore", over="ignore"):
        share = np.exp(float(p.logits[b, 0]) - np.where(total == 0, 0, top))
    return np.where(total == 0, 0, share / np.where(total == 0, 1, total))


@np.errstate(invalid="ignore", over="ignore")  # of numbers that are not finite
def on_edges(
    edges: Edges, weights: WeightFunction, dbias: Floats | None = None,
    dsinks: Floats | None = None,
) -> tuple[Floats, Floats]:  # fmt: skip
    """The same on a support; changes are the arrays dq, dk, dv of the call."""
    scores, P, lse = edges._weigh(weights)
    fit, n = edges.fit, edges.n
    dlse: Floats = np.zeros((fit.batch, n))
    if dsinks is not None and weights.sinks is not None:
        with np.errstate(invalid="ignore", under="ignore"):
            share = np.exp(weights.sinks[:, None] - lse)
        dlse += np.where(np.isneginf(lse), 0, share) * dsinks[:, None]
    options = weights._replace(bias=dbias).options
    scores, P = _check.frozen(scores), _check.frozen(P)
    q, k, dq, dk = (edges._array(name) for name in ("q", "k", "dq", "dk"))
    x = kernels.Moving(q, k, dq, dk, _table(edges, "q", "k", "dq", "dk"))
    tasks, dP = edges._blocks(n), np.empty_like(P)
    kernels.move(tasks, x, *edges.support[:2], options, scores, P, dlse, dP)
    dP, P = (edges.dropped(weights, x) for x in (dP, P))
    out = read(edges, dP, "v", tasks)
    out += read(edges, P, "dv", tasks)
    return out, dlse


def unfolded(edges: Edges, out: Floats, lse: Floats, return_lse: bool) -> Result:
    """Changes with the leading axes and the grid of the call."""
    fit, grid = edges.fit, edges.query_grid
    result = fit.unfold(out.reshape(fit.batch, *grid, out.shape[2]))
    return (result, fit.unfold(lse.reshape(fit.batch, *grid), cast=False)) if return_lse else result


def read(edges: Edges, c: Floats, name: str, tasks: int) -> Floats:
    """``sum_j c_ij x_j`` (batch, n, e) of an array of the call."""
    x = edges._array(name)
    out: Floats = np.empty((edges.fit.batch, edges.n, x.shape[2]), edges.fit.dtype)
    rows = _check.frozen(np.empty(0, np.int64)), *edges.support[:2]
    table, plain = _table(edges, name, name), _check.frozen(np.array([1.0, 0.0]))
    kernels.gather(tasks, _check.frozen(c), *rows, x, x, table, plain, out)
    return out


def _table(edges: Edges, *names: str) -> Ints:
    """Slices of some arrays, of the support, and where coefficients start."""
    columns = edges.fit.slices(*names), edges.slices, edges.shift
    return _check.frozen(np.column_stack(columns), np.int64)
