"""Weights ``relu(a_i + b_j) / m`` from a number of each query and key: sums by sorted keys.

The same sums give the gradients: with queries and keys exchanged, and along the cotangents.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Ints
from nlattn.kernels import concatenation as kernels
from nlattn.kernels.concatenation import KEYS, QUERIES, SortedKeys
from nlattn.runtime import jit, threads

_ROWS = 1 << 12
_PAIRS = 1 << 20  # made at a time


class Numbers(NamedTuple):
    """What the halves of `weight` make of queries and keys."""

    a: Floats
    """(Bq, n) float64, ``q w_q``."""
    b: Floats
    """(Bk, m) float64, ``k w_k``."""
    w_q: Floats
    w_k: Floats

    @classmethod
    def of(cls, fit: _check.Fit) -> Numbers:
        """From q, k and weight (2 d,)."""
        d, weight = fit.dims["d"], fit["weight"][0]
        halves = _check.frozen(weight[:d]), _check.frozen(weight[d:])
        found = []
        for x, w in zip((fit["q"], fit["k"]), halves, strict=True):
            out: Floats = np.empty(x.shape[:2])
            kernels.project(len(x) * jit.blocks(x.shape[1], QUERIES), x, w, out)
            found.append(_check.frozen(out))
        return cls(found[0], found[1], *halves)


def attend(fit: _check.Fit) -> Floats:
    """Output of every slice, (batch, n, e)."""
    numbers, slices = Numbers.of(fit), fit.slices("k", "v", "q", "q")
    return read(numbers.a, numbers.b, fit["v"], slices, fit.dims["m"])[0]


def vjp(fit: _check.Fit) -> tuple[Floats, Floats, Floats, Floats]:
    """Gradients of q, k, v and weight; the slope of relu at 0 is 0."""
    (a, b, w_q, w_k), m = Numbers.of(fit), fit.dims["m"]
    _, da = read(a, b, fit["v"], fit.slices("k", "v", "q", "dout"), m, fit["dout"])
    dv, db = read(b, a, fit["dout"], fit.slices("q", "dout", "k", "v"), m, fit["v"])
    dweight = np.concatenate([_weight_vjp(fit, "q", da), _weight_vjp(fit, "k", db)])
    return (
        fit.reduce("q", da[..., None] * w_q),
        fit.reduce("k", db[..., None] * w_k),
        fit.reduce("v", dv),
        dweight.astype(fit.out_dtype),
    )


def jvp(fit: _check.Fit) -> Floats:
    """Change of the output of every slice along dq, dk, dv and, if given, dweight.

    With keys by falling b, those that a query sees are the first ones: sums over these are read.
    """
    (a, b, w_q, w_k), (m, d) = Numbers.of(fit), fit.shape("m d")
    moved_w = fit["dweight"][0] if "dweight" in fit else np.zeros(2 * d, fit.dtype)
    out = read(a, b, fit["dv"], fit.slices("k", "dv", "q", "q"), m)[0]
    names = ("q", "k", "v", "dq", "dk")
    for head, (i, j, v, di, dj) in enumerate(fit.slices(*names)):
        with np.errstate(all="ignore"):
            da = fit["dq"][di] @ w_q.astype(float) + fit["q"][i] @ moved_w[:d].astype(float)
            db = fit["dk"][dj] @ w_k.astype(float) + fit["k"][j] @ moved_w[d:].astype(float)
            order = np.argsort(b[j], kind="stable")[::-1]  # NaN first, so that everyone reads it
            counts = m - np.searchsorted(b[j][order][::-1], -a[i], side="right")
            x = fit["v"][v][order].astype(float)
            sums: Floats = np.zeros((2, m + 1, x.shape[1]))
            np.cumsum(x, 0, out=sums[0, 1:])
            np.cumsum(x * db[order, None], 0, out=sums[1, 1:])
            out[head] += (da[:, None] * sums[0, counts] + sums[1, counts]) / max(1, m)
    return out


@threads.serial_blas
def _weight_vjp(fit: _check.Fit, name: str, factor: Floats) -> Floats:
    """Rows of an array times `factor` (batch, rows), summed over rows and slices: (d,) float64."""
    x, total = fit[name], np.zeros(fit.dims["d"])
    with np.errstate(all="ignore"):
        for part, rows in zip(fit.slices(name)[:, 0], factor, strict=True):
            for start in range(0, len(rows), _ROWS):
                block = slice(start, start + _ROWS)
                total += rows[block] @ x[part, block].astype(np.float64)
    return total


def read(
    a: Floats, b: Floats, x: Floats, slices: Ints, divisor: int, y: Floats | None = None
) -> tuple[Floats, Floats]:
    """``sum_j relu(a_i + b_j) x_j / divisor`` (B, n, e), and its slope in a along y (B, n).

    `a` (Ba, n) and `b` (Bb, m) float64, `x` (Bx, m, e), `y` (By, n, e); `slices` (B, 4) say which
    of b, x, a and y belong to each slice of the result.
    """
    m, e = x.shape[1:]
    order = np.argsort(b, axis=1, kind="stable")[:, ::-1]  # NaN first, so that everyone reads it
    keys = SortedKeys(b, _check.frozen(order), x, _check.frozen(slices))
    sums: Floats = np.empty((len(slices), m // KEYS, 4, e))
    kernels.sum_keys(len(slices) * (m // KEYS), keys, sums)
    rising = np.take_along_axis(b, order, 1)[:, ::-1]
    counts = np.empty((len(slices), a.shape[1]), np.int64)
    for head, (of_b, _, of_a, _) in enumerate(slices):
        counts[head] = m - np.searchsorted(rising[of_b], -a[of_a], side="right")
    queries = np.argsort(counts, axis=1, kind="stable")
    out: Floats = np.empty((*counts.shape, e), x.dtype)
    slope: Floats = np.empty(counts.shape)
    along = np.empty((1, 1, 0), x.dtype) if y is None else y
    before, a, along = (_check.frozen(z) for z in (_before(sums), a, along))
    ranks = _check.frozen(queries), _check.frozen(counts)
    blocks = len(slices) * jit.blocks(a.shape[1], QUERIES)
    kernels.read(blocks, keys, before, a, along, *ranks, float(max(1, divisor)), out, slope)
    return out, slope


def _before(sums: Floats) -> Floats:
    """Sums before each block of keys, and after the last, from those of the blocks."""
    heads, blocks, _, e = sums.shape
    result: Floats = np.zeros((heads, blocks + 1, 4, e))
    with np.errstate(all="ignore"):
        for block in range(blocks):
            for part in (0, 2):
                old, own = result[:, block, part], sums[:, block, part]
                total = old + own
                virtual = total - old
                error = (old - (total - virtual)) + (own - virtual)
                left = result[:, block, part + 1] + sums[:, block, part + 1] + error
                result[:, block + 1, part], result[:, block + 1, part + 1] = total, left
    return result


def pairs(a: Floats, b: Floats, divisor: int, dtype: np.dtype) -> Floats:
    """``relu(a_i + b_j) / divisor`` of all pairs, (n, m)."""
    out: Floats = np.empty((len(a), len(b)), dtype)
    step = max(1, _PAIRS // max(len(b), 1))
    for start in range(0, len(a), step):
        rows = slice(start, start + step)
        out[rows] = np.maximum(a[rows, None] + b, 0) / divisor
    return out


def topk(a: Floats, b: Floats, k: int, dtype: np.dtype) -> tuple[Floats, Ints]:
    """Largest `k` weights of each query, and their keys: those of largest b."""
    first = np.argsort(-b, kind="stable")[:k]
    weights = np.maximum(a[:, None] + b[first], 0) / len(b)
    return weights.astype(dtype), np.where(weights > 0, first, -1)
