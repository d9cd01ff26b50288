"""Dense attention where numbers are not finite: what a row may not see does not reach it.

Kernels multiply weights of 0 with what is hidden, and ``0 x NaN`` is NaN. Here they see zeros in
place of numbers that are not finite, so rows that see none of these have the bits of a call without
them. Rows that do, "struck" ones, are computed again in NumPy, over the pairs that are seen alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Array, Bools, Floats, Ints
from nlattn.kernels.panel import Scores

_PAIRS = 1 << 20
"""Pairs of queries and keys that are held at a time."""


def finite(*arrays: Floats) -> bool:
    """Whether all numbers of some arrays are."""
    return all(math.isfinite(_check.largest(x)) for x in arrays)


def wild(x: Floats, axis: int | tuple[int, ...] = -1) -> Bools:
    """Where a number along some axes is not finite."""
    found: Bools = np.logical_not(np.isfinite(x).all(axis))
    return found


def cleaned(x: Floats) -> Floats:
    """A copy with 0 for what is not finite."""
    return _check.frozen(np.where(np.isfinite(x), x, x.dtype.type(0)))


def product(weights: Floats, seen: Bools, x: Floats) -> Floats:
    """``weights x`` (r, e) over the pairs that are seen (r, m); weights are 0 elsewhere."""
    bad = wild(x)
    out: Floats = weights @ np.where(bad[:, None], x.dtype.type(0), x)
    for j in np.flatnonzero(bad):
        rows = seen[:, j]
        out[rows] += weights[rows, j, None] * x[j]
    return out


def seen(p: Scores, head: int, rows: Ints, keys: Ints) -> Bools:
    """Which of some keys may be seen by some queries: band, mask, and a bias above -inf."""
    band = p.band[p.slices[head, 6]][rows]
    yes: Bools = (band[:, :1] <= keys) & (keys < band[:, 1:2])
    if p.has_mask:
        yes &= part(p.mask[p.slices[head, 4]], rows // p.rows, keys // p.columns)
    if p.has_bias:
        yes &= part(p.bias[p.slices[head, 3]], rows, keys) != -np.inf
    return yes


def part(x: Array, rows: Ints, keys: Ints) -> Array:
    """Some rows and columns of an array that may have one of either."""
    x = x[rows] if len(x) > 1 else x
    return x[:, keys] if x.shape[1] > 1 else x


def clean(p: Scores) -> Scores:
    """The same scores of cleaned arrays."""
    bias = np.where(np.isfinite(p.bias) | np.isneginf(p.bias), p.bias, p.bias.dtype.type(0))
    return p._replace(q=cleaned(p.q), k=cleaned(p.k), bias=_check.frozen(bias))


class Struck(NamedTuple):
    """Some queries of one head, and what they see."""

    head: int
    rows: Ints
    seen: Bools
    """(r, m), as all that follows."""
    slope: Floats | np.floating
    """Of the soft cap."""
    weights: Floats
    kept: Floats
    """Weights after dropout, of which values are summed."""
    used: Bools
    """Which of those that are seen are kept."""
    top: Floats
    """(r,) largest score; `total` (r,) is relative to it."""
    total: Floats


def struck(p: Scores, v: Floats | None = None, beside: Sequence[Floats] = ()) -> Iterator[Struck]:
    """Rows that see a number that is not finite, or have one in an array of `beside` (batch, n)."""
    n, m = p.q.shape[1], p.k.shape[1]
    step = max(1, _PAIRS // max(m, 1))
    bias_bad = p.has_bias and not finite(np.where(np.isneginf(p.bias), 0, p.bias))
    for head, (a, b, c) in enumerate(p.slices[:, :3]):
        bad_keys = wild(p.k[b])
        if v is not None:
            bad_keys |= wild(v[c])
        bad = wild(p.q[a])
        for x in beside:
            bad |= wild(x[head].reshape(n, -1))
        keys, rows = np.flatnonzero(bad_keys), np.arange(n)
        for first in range(0, n, step):
            some = rows[first : first + step]
            bad[some] |= seen(p, head, some, keys).any(1)
            if bias_bad:
                bad[some] |= (seen(p, head, some, np.arange(m)) & _wild(p, head, some)).any(1)
        for first in range(0, int(bad.sum()), step):
            yield _weigh(p, head, np.flatnonzero(bad)[first : first + step])


def _wild(p: Scores, head: int, rows: Ints) -> Bools:
    """Where a bias is NaN or infinite, -inf aside."""
    part = p.bias[p.slices[head, 3]]
    wild: Bools = ~np.isfinite(part[rows] if len(part) > 1 else part)
    return wild


def _weigh(p: Scores, head: int, rows: Ints) -> Struck:
    """Weights of some queries, one line per equation."""
    a, b, _, d, _, drawn, band = p.slices[head]
    keys = np.arange(p.k.shape[1])
    yes = seen(p, head, rows, keys)
    sink, slope_of_bias = p.logits[head]
    there = p.band[band][rows, 1] >= 0
    with np.errstate(all="ignore"):
        s, slope = p.scale * (p.q[a][rows] @ p.k[b].T), p.q.dtype.type(1)
        if p.cap > 0:
            bent = np.tanh(s / p.cap)
            s, slope = p.cap * bent, 1 - bent * bent
        if p.has_bias:
            s = s + (p.bias[d][rows] if p.bias.shape[1] > 1 else p.bias[d])
        if slope_of_bias != 0:
            s = s - slope_of_bias * abs(p.band[band][rows, 2:] - keys).astype(s.dtype)
        s = np.where(yes, s, -np.inf)
        logit = np.where(there, sink, -np.inf)
        top = np.maximum(s.max(1, initial=-np.inf), logit)
        floor = np.where(np.isneginf(top), 0, top)
        powers = np.exp(s - floor[:, None])
        total = powers.sum(1) + np.exp(logit - floor)
        weights = np.where(yes, powers / np.where(total == 0, 1, total)[:, None], 0)
    kind = p.q.dtype
    used = yes & part(p.kept[drawn], rows, keys)
    kept = np.where(used, weights * p.factor, 0)
    weights, kept, top, total = (x.astype(kind) for x in (weights, kept, top, total))
    return Struck(head, rows, yes, slope, weights, kept, used, top, total)


Attend = Callable[[Scores, Floats], tuple[Floats, Floats]]
Adjoint = Callable[[Scores, Floats, Floats], Floats]
DenseVjp = Callable[
    [Scores, Floats, Floats, Floats, Floats], tuple[Floats, Floats, Floats, Floats | None]
]


def attend(p: Scores, v: Floats, plainly: Attend) -> tuple[Floats, Floats]:
    """Outputs and normalisers as of `dense.attend`, which is given as `plainly`."""
    out, norm = plainly(clean(p), cleaned(v))
    norm = norm.copy()
    with np.errstate(all="ignore"):
        for x in struck(p, v):
            out[x.head, x.rows] = product(x.kept, x.used, v[p.slices[x.head, 2]])
            norm[0, x.head, x.rows], norm[1, x.head, x.rows] = x.top, x.total
    return out, _check.frozen(norm)


def adjoint(p: Scores, g: Floats, plainly: Adjoint, attend_plainly: Attend) -> Floats:
    """``A.T g`` of a single slice; `plainly` takes scores, normalisers and g."""
    neat, zero = clean(p), _check.frozen(np.zeros((1, p.k.shape[1], 1), g.dtype))
    _, norm = attend_plainly(neat, zero)
    whole, rest = g.copy(), []
    for x in struck(p, None, (g[None],)):
        whole[x.rows] = 0
        rest.append(x)
    out: Floats = plainly(neat, norm, _check.frozen(whole))
    with np.errstate(all="ignore"):
        for x in rest:
            out += product(x.weights.T, x.seen.T, g[x.rows])
    return out


def vjp(
    p: Scores, v: Floats, dout: Floats, delta: Floats, plainly: DenseVjp, attend_plainly: Attend
) -> tuple[Floats, Floats, Floats, Floats | None]:
    """Gradients of queries, keys, values, and of the bias in its shape, if there is one.

    `plainly` takes scores, values, cotangents, normalisers and `delta`, and returns these four.
    """
    neat, values = clean(p), cleaned(v)
    _, norm = attend_plainly(neat, values)
    g, d, rest = dout.copy(), delta.copy(), []
    for x in struck(p, v, (dout, delta)):
        g[x.head, x.rows], d[x.head, x.rows] = 0, 0
        rest.append(x)
    dq, dk, dv, dbias = plainly(neat, values, _check.frozen(g), norm, d)
    with np.errstate(all="ignore"):
        for x in rest:
            a, b, c, e = p.slices[x.head, :4]
            here = dout[x.head, x.rows]
            dweights = np.where(x.used, here @ v[c].T * p.factor, 0)
            dweights -= delta[x.head, x.rows, None]
            ds = np.where(x.seen, x.weights * dweights, 0).astype(v.dtype)
            draw = np.where(x.seen, ds * (p.scale * x.slope), 0).astype(v.dtype)
            dq[x.head, x.rows] = product(draw, x.seen, p.k[b])
            dk[x.head] += product(draw.T, x.seen.T, p.q[a][x.rows])
            dv[x.head] += product(x.kept.T, x.used.T, here)
            if dbias is not None:
                at = x.rows if len(dbias[e]) > 1 else np.zeros(len(x.rows), np.int64)
                summed = ds if dbias.shape[2] > 1 else ds.sum(1, keepdims=True)
                np.add.at(dbias[e], at, summed)
    return dq, dk, dv, dbias
