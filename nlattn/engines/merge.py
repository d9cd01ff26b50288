"""Partial results of attention over disjoint sets of keys: shares of the sets, means, gradients.

Normalisers `z` (..., parts, n) are natural logarithms, -inf for an empty set, whose output does not
count. All is float64.
"""

from __future__ import annotations

import numpy as np

from nlattn._types import Floats


def merged(x: Floats, z: Floats) -> tuple[Floats, Floats]:
    """Outputs (..., n, e) over all sets from those of each (..., parts, n, e), and normalisers."""
    share, lse = _shares(z)
    return _mean(share, x), lse


def joined(a: tuple[Floats, ...], b: tuple[Floats, ...]) -> tuple[Floats, ...]:
    """Outputs and normalisers over two sets, and their changes where those of each are given."""
    x, z, *change = map(np.stack, zip(a, b, strict=True), (-3, -2, -3, -2))
    return *merged(x, z), *(jvp(x, z, *change) if change else ())


def part_vjp(
    share: Floats, own: Floats, out: Floats, dout: Floats, dlse: Floats
) -> tuple[Floats, Floats]:
    """Gradients of one set's outputs and normalisers, of which all hold `share` (..., n) of it."""
    moved = np.where(share[..., None] == 0, 0, own - out)
    inner = (moved * dout).sum(-1) + dlse
    return share[..., None] * dout, np.where(share == 0, 0, share * inner)


def vjp(x: Floats, z: Floats, dout: Floats, dlse: Floats) -> tuple[Floats, Floats]:
    """Gradients of the outputs and normalisers of each set."""
    share, _ = _shares(z)
    whole = _mean(share, x)[..., None, :, :]
    return part_vjp(share, x, whole, dout[..., None, :, :], dlse[..., None, :])


def jvp(x: Floats, z: Floats, dx: Floats, dz: Floats) -> tuple[Floats, Floats]:
    """Changes of the merged outputs and normalisers."""
    share, _ = _shares(z)
    moved = np.where(share == 0, 0, dz.astype(np.float64))
    mean = np.einsum("...pn,...pn->...n", share, moved)
    slopes = np.where(share == 0, 0, share * (moved - mean[..., None, :]))
    return _mean(slopes, x) + _mean(share, dx), mean


def _shares(z: Floats) -> tuple[Floats, Floats]:
    """Share of each set in all weights, and the logarithm of the sum of all."""
    top = z.max(-2, keepdims=True, initial=-np.inf)
    none = np.isneginf(top)
    with np.errstate(under="ignore"):
        powers = np.exp(z - np.where(none, 0, top))
    total = powers.sum(-2, keepdims=True)
    lse = np.where(none, -np.inf, np.log(np.where(none, 1, total)) + top)[..., 0, :]
    return powers / np.where(none, 1, total), lse


def _mean(share: Floats, x: Floats) -> Floats:
    """Mean of outputs (..., n, e), one set after the other."""
    out: Floats = np.zeros((*x.shape[:-3], *x.shape[-2:]))
    for s in range(x.shape[-3]):
        part = share[..., s, :, None]
        out += np.where(part == 0, 0, part * x[..., s, :, :])
    return out
