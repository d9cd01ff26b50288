"""Scores of the lightning indexer and their gradients, a head and a block of queries at a time."""

from __future__ import annotations

import numpy as np

from nlattn._types import Floats, Ints
from nlattn.engines.not_finite import product
from nlattn.runtime.threads import serial_blas

_PAIRS = 1 << 22
"""Pairs of queries and keys whose products are held at a time."""


def _blocks(n: int, m: int) -> range:
    return range(0, n, max(1, _PAIRS // max(m, 1)))


@serial_blas
def scores(q: Floats, k: Floats, w: Floats) -> Floats:
    """(n, m) of one slice: q (n, h, d), k (m, d), w (n, h); heads are added in their order."""
    n, m = len(q), len(k)
    out: Floats = np.zeros((n, m), q.dtype)
    step = _blocks(n, m).step
    for i in _blocks(n, m):
        for head in range(q.shape[1]):
            s = np.maximum(q[i : i + step, head] @ k.T, 0)
            s *= w[i : i + step, head, None]
            out[i : i + step] += s
    return out


@serial_blas
@np.errstate(invalid="ignore", over="ignore")
def scores_vjp(q: Floats, k: Floats, w: Floats, g: Floats) -> tuple[Floats, Floats, Floats]:
    """Gradients of queries, keys and weights of one slice."""
    n, m = len(q), len(k)
    dq, dk, dw = np.zeros_like(q), np.zeros_like(k), np.zeros_like(w)
    step = _blocks(n, m).step
    for i in _blocks(n, m):
        some = slice(i, i + step)
        for head in range(q.shape[1]):
            s = q[some, head] @ k.T
            on = np.where(s <= 0, 0, g[some])
            dw[some, head] = np.einsum("ij,ij->i", on, np.where(on == 0, 0, s))
            on = np.where(on == 0, 0, on * w[some, head, None])
            seen = on != 0  # 0 times NaN is NaN
            dq[some, head] = product(on, seen, k)
            dk += product(on.T, seen.T, q[some, head])
    return dq, dk, dw


@serial_blas
def scores_jvp(q: Floats, k: Floats, w: Floats, dq: Floats, dk: Floats, dw: Floats) -> Floats:
    """Change (n, m) of the scores of one slice along dq, dk and dw."""
    n, m = len(q), len(k)
    out: Floats = np.zeros((n, m), q.dtype)
    step = _blocks(n, m).step
    for i in _blocks(n, m):
        some = slice(i, i + step)
        for head in range(q.shape[1]):
            s = q[some, head] @ k.T
            moved = dq[some, head] @ k.T
            moved += q[some, head] @ dk.T
            moved *= w[some, head, None]
            moved += s * dw[some, head, None]
            out[some] += np.where(s <= 0, 0, moved)
    return out


def best(x: Floats, t: int, ends: Ints) -> Ints:
    """The `t` largest of each row of x (rows, m) below its end, ties to the lowest; -1 for none."""
    rows, m = x.shape
    found: Ints = np.full((rows, t), -1, np.int32)
    step = _blocks(rows, m).step
    for i in _blocks(rows, m):
        some = x[i : i + step]
        hidden = np.arange(m) >= ends[i : i + step, None]
        low = np.where(hidden | np.isneginf(some), np.inf, -some)
        order = np.argsort(low, axis=1, kind="stable")[:, :t]
        there = np.take_along_axis(low, order, 1) < np.inf
        found[i : i + step, : order.shape[1]] = np.where(there, order, -1)
    return found
