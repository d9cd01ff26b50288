"""Forward mode of linear attention: how sums over keys, and what queries read of them, change.

The same chunks as the gradients: features and their changes are made again, in NumPy and BLAS
between compiled feature maps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Floats
from nlattn.engines.factored import KeySums, chunks
from nlattn.engines.factored_fit import Hidden
from nlattn.engines.features import Identity, Random
from nlattn.runtime import threads


class KeyChanges(NamedTuple):
    """Changes of the sums over keys of each slice, float64, relative to the same maxima."""

    values: Floats
    """(batch, r, e) of features, with eps, times values."""
    features: Floats
    """(batch, r)"""


def key_sums(fit: _check.Fit, f: Identity, hidden: Hidden, sums: KeySums) -> KeyChanges:
    """Changes along dk and dv of the sums that `factored.key_sums` makes."""
    batch, m, e = fit.batch, *fit.shape("m e")
    r, names = f.size(fit["k"].shape[2]), ("k", "v", "dk", "dv")
    slices, tasks = fit.slices(*names), chunks(batch, m)
    total = KeyChanges(np.zeros((batch, r, e)), np.zeros((batch, r)))
    fall = [top_change(f, sums, b, fit["dk"][slices[b, 2]]) for b in range(batch)] if m else []

    @np.errstate(invalid="ignore", over="ignore")  # of numbers that are not finite
    def part(number: int) -> tuple[int, Floats, Floats]:
        b, rows = tasks[number]
        k, v, dk, dv = (fit[n][i, rows] for n, i in zip(names, slices[b], strict=True))
        if hidden.mask is not None:
            kept = hidden.mask[hidden.parts[b], rows]
            k, v, dk, dv = (x[kept] for x in (k, v, dk, dv))
        block = f(k, sums.top[b])
        dphi = f.jvp(block, dk)
        if fall[b]:
            dphi = dphi - block.phi * dphi.dtype.type(fall[b])
        moved = dphi.T @ v
        moved += block.whole.T @ dv
        return b, moved, dphi.sum(0, dtype=np.float64)

    for b, values, features in threads.each(part, len(tasks), batch * m):
        total.values[b] += values
        total.features[b] += features
    return total


def top_change(f: Identity, sums: KeySums, b: int, dk: Floats) -> float:
    """Change of a maximum that all keys share, where it counts."""
    if not (isinstance(f, Random) and f.moving and f.joint):
        return 0.0
    row, feature = sums.first[b]
    return float(dk[row] @ f.projection[feature])


def read(
    fit: _check.Fit, f: Identity, context: Floats, dcontext: Floats,
    norms: tuple[Floats, Floats] | None = None,
) -> Floats:  # fmt: skip
    """Change (batch, n, e) of ``phi(q) context``, over ``phi(q).norm`` if that is given.

    `norms` are the norm and its change, (batch, r).
    """
    batch, n, kind = fit.batch, fit.dims["n"], fit.dtype
    out: Floats = np.empty((batch, n, context.shape[2]), kind)
    slices, tasks, start = fit.slices("q", "dq"), chunks(batch, n), np.zeros(context.shape[1])
    context, dcontext = context.astype(kind), dcontext.astype(kind)
    each = None if norms is None else [x.astype(kind) for x in norms]

    @np.errstate(invalid="ignore", over="ignore")
    def part(number: int) -> None:
        b, rows = tasks[number]
        block = f(fit["q"][slices[b, 0], rows], start)
        phi, dphi = block.whole, f.jvp(block, fit["dq"][slices[b, 1], rows])
        moved = dphi @ context[b]
        moved += phi @ dcontext[b]
        if each is not None:
            norm, dnorm = (x[b] for x in each)
            total = (phi @ norm)[:, None]
            change = (dphi @ norm + phi @ dnorm)[:, None]
            moved -= (phi @ context[b]) * (change / total)
            moved /= total
        out[b, rows] = moved

    for _ in threads.each(part, len(tasks), batch * n):
        pass
    return out
