"""Forward mode of attention: how outputs move as queries, keys and values do.

With weights P and changes ds of the scores, ``dP = P (ds - sum_j P ds)``, outputs change by
``dP v + P dv`` and logarithms of normalisers by ``sum_j P ds``. In blocks of queries, or on the
edges of a support: nothing of size n x m is made.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array

from nlattn._types import Floats, Ints
from nlattn.engines import dense
from nlattn.engines.sparse import Edges, WeightFunction
from nlattn.kernels.panel import Scores
from nlattn.runtime.threads import serial_blas

_BLOCK = 1 << 20  # weights, or numbers of gathered rows, at once


Changes = tuple[Sequence[Floats], Sequence[Floats], Sequence[Floats]]
"""Of queries, keys and values, of each slice of a call."""


@serial_blas
def attention(
    p: Scores,
    v: Floats,
    norm: Floats,
    changes: Changes,
    dbias: Sequence[Floats] | None = None,
    dsinks: Floats | None = None,
) -> tuple[Floats, Floats]:
    """Changes of outputs (batch, n, e) and of ``lse`` (batch, n), the latter float64."""
    batch, n, m, e = len(p.slices), p.q.shape[1], p.k.shape[1], v.shape[2]
    out: Floats = np.empty((batch, n, e), p.q.dtype)
    lse: Floats = np.zeros((batch, n))
    step = max(1, _BLOCK // max(m, 1))
    for b in range(batch):
        dq, dk, dv = (x[b] for x in changes)
        part = slice(b, b + 1)
        one = p._replace(slices=p.slices[part], logits=p.logits[part])
        k, values = p.k[p.slices[b, 1]], v[p.slices[b, 2]]
        for start in range(0, n, step):
            i = np.arange(start, min(start + step, n))
            q = p.q[p.slices[b, 0], i]
            P = _weights(one, i, norm[:, b, i])
            ds = p.scale * (dq[i] @ k.T + q @ dk.T)
            if p.cap > 0:
                ds *= 1 - np.tanh(p.scale * (q @ k.T) / p.cap) ** 2
            if dbias is not None:
                ds += dbias[b][i] if len(dbias[b]) > 1 else dbias[b]
            mean = (P * ds).sum(1, dtype=np.float64)
            if dsinks is not None:
                mean += _sink(p, b, norm[:, b, i]) * float(dsinks[b])
            dP = P * (ds - mean[:, None].astype(P.dtype))
            if p.has_dropout:
                kept = p.kept[p.slices[b, 5]]
                kept = kept[i] if len(kept) > 1 else kept
                P, dP = (np.where(kept, x, 0) * p.factor for x in (P, dP))
            out[b, i] = dP @ values + P @ dv
            lse[b, i] = mean
    return out, lse


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


def on_edges(
    edges: Edges, weights: WeightFunction, dbias: Floats | None = None,
    dsinks: Floats | None = None,
) -> tuple[Floats, Floats]:  # fmt: skip
    """The same on a support; changes are the arrays dq, dk, dv of the call."""
    scores, P, lse = edges._weigh(weights)
    fit, n, m = edges.fit, edges.n, edges.m
    names = ("q", "k", "v", "dq", "dk", "dv")
    folded = [fit[name].reshape(len(fit[name]), -1, fit[name].shape[-1]) for name in names]
    which = fit.slices(*names)
    out: Floats = np.empty((fit.batch, n, folded[2].shape[2]), fit.dtype)
    dlse: Floats = np.zeros((fit.batch, n))
    for b in range(fit.batch):
        q, k, v, dq, dk, dv = (x[part] for x, part in zip(folded, which[b], strict=True))
        first = edges.slices[b] * n
        indptr = edges.support.indptr[first : first + n + 1]
        here = slice(int(indptr[0]), int(indptr[-1]))
        own = slice(here.start + int(edges.shift[b]), here.stop + int(edges.shift[b]))
        keys = edges.support.indices[here]
        indptr = indptr - indptr[0]
        rows = np.repeat(np.arange(n), np.diff(indptr))
        ds = _moved(rows, keys, (q, k, dq, dk), weights)
        if dbias is not None:
            ds = ds + dbias[here]
        s, w = scores[own].astype(np.float64), P[own].astype(np.float64)
        if weights.weight == "dot":
            dP = ds / np.diff(indptr)[rows]
        else:
            if weights.weight == "abspow":  # of log |s|^p
                ds = np.where(s == 0, 0, weights.power * ds / np.where(s == 0, 1, s))
            dlse[b] = np.bincount(rows, w * ds, minlength=n)
            if dsinks is not None and weights.sinks is not None:
                with np.errstate(invalid="ignore"):
                    share = np.exp(weights.sinks[b] - lse[b])
                dlse[b] += np.where(np.isneginf(lse[b]), 0, share) * dsinks[b]
            dP = w * (ds - dlse[b][rows])
        shape = (n, m)
        moved = csr_array((dP, keys, indptr), shape) @ v.astype(np.float64)
        out[b] = moved + csr_array((w, keys, indptr), shape) @ dv.astype(np.float64)
    return out, dlse


def _moved(rows: Ints, keys: Ints, arrays: tuple[Floats, ...], weights: WeightFunction) -> Floats:
    """Changes (nnz,) of the scores of one head's edges, float64."""
    q, k, dq, dk = (x.astype(np.float64) for x in arrays)
    ds: Floats = np.empty(len(rows))
    step = max(1, _BLOCK // q.shape[1])
    for start in range(0, len(rows), step):
        some = slice(start, start + step)
        i, j = rows[some], keys[some]
        if weights.weight == "gaussian":
            ds[some] = -2 * np.einsum("td,td->t", q[i] - k[j], dq[i] - dk[j])
        else:
            ds[some] = np.einsum("td,td->t", dq[i], k[j]) + np.einsum("td,td->t", q[i], dk[j])
    return weights.factor * ds
