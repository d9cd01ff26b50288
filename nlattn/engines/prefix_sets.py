"""Universal sets of all prefixes of the keys, in one pass.

A bound of a sensitivity among the keys so far holds among more keys as well, so a key whose bound
has once been below eps never returns. Kept: the candidates themselves, and a triangle for all
other keys so far; together they have the prefix's Gram matrix.
"""

from __future__ import annotations

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Ints
from nlattn.engines.sensitivity import Keys, bounds, lewis_logs, monomials, tensor_columns
from nlattn.engines.whitened import factor, triangle

_FIRST = 24  # keys of the first prefix that gets Lewis weights; then half as many again


def sets(
    keys: Keys, eps: float, p: float, max_bytes: float, op: str
) -> tuple[list[Ints], Floats, Floats]:
    """For every row of all m keys, its set; and bounds (m,) of each key when it arrives."""
    m, n = len(keys.some), len(keys.tau)
    tensor = tensor_columns(keys, p) > 0
    rows = monomials(keys.X, int(p) // 2) if tensor else keys.X
    places, lost = np.flatnonzero(keys.some), np.flatnonzero(keys.lost)
    lower, upper = np.zeros(m), np.zeros(m)
    rest: Floats = np.zeros((0, rows.shape[1]))
    alive = np.zeros(0, np.int64)
    found: list[Ints] = []
    now, held, seen, due = np.zeros(0, np.int64), 0, 0, _FIRST
    for i in range(m):
        if keys.some[i]:
            alive, seen = np.append(alive, seen), seen + 1
            low, high = _bounds(rest, rows[alive], keys.error[alive], p, seen, tensor)
            lower[i], upper[i] = low[-1], high[-1]
            if p != 2 and seen in (due, n):
                high = np.minimum(high, _lewis(keys, seen, p)[alive])
                upper[i], due = high[-1], due + due // 2
            out = high < eps
            if out.any():
                rest = triangle(np.vstack([rest, rows[alive[out]]]))
                alive = alive[~out]
            now = np.union1d(places[alive], lost[lost <= i])
        elif keys.lost[i]:
            now = np.union1d(now, [i])
        held += 4 * len(now)
        if held > max_bytes:
            what = f"sets of the first {i + 1} of {m} keys"
            _check.memory(op, held, max_bytes, what, "take a larger eps or fewer keys")
        found.append(now)
    assert seen == n
    if len(lost):
        lower[:], upper[lost] = 0, 1
    return found, lower, upper


def _lewis(keys: Keys, seen: int, p: float) -> Floats:
    """Bounds (seen,) of a prefix by Lewis weights, which cost too much for every one."""
    own = Keys.of(_check.frozen(keys.X[:seen]))
    error = keys.error[:seen]
    steep = own.factor.steep
    moved = 4 * steep * (error + error.max() * np.sqrt(own.factor.tau))
    own = own._replace(error=own.error + moved[own.some])
    return own.spread_bounds(*bounds(own, p, lewis_logs(own, p)))[1]


def _bounds(
    rest: Floats, candidates: Floats, error: Floats, p: float, seen: int, tensor: bool
) -> tuple[Floats, Floats]:
    """Bounds of the candidates' sensitivities among the keys so far."""
    whole = factor(_check.frozen(np.vstack([rest, candidates])))
    size = whole.tau[len(rest) :]
    steep = whole.steep
    h = int(p) // 2 if tensor else 1
    slack = whole.error[len(rest) :] + 4 * h * steep * (error + error.max() * np.sqrt(size))
    high = np.minimum(np.where(size > 0, np.sqrt(size) + slack, 1), 1)
    low = np.maximum(np.sqrt(size) - slack, 0)
    if tensor:
        return np.zeros(len(low)), high**2
    if p == 2:
        return low**2, high**2
    if p > 2:
        return low**p, np.minimum(seen ** (p / 2 - 1) * high**p, 1)
    return seen ** (p / 2 - 1) * low**p, high**p
