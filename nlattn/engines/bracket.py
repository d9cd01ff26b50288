"""The sensitivity of one key from both sides: a query, and a combination of keys equal to it.

``sigma_i = 1 / min {|Ky|_p^p : <k_i,y> = 1}``; and ``sigma_i <= |lam|_{p*}^p`` for any ``lam``
with ``K^T lam = k_i``, ``p* = p / (p - 1)``, which meets it at the minimum.
"""

from __future__ import annotations

import numpy as np

from nlattn import _check
from nlattn._types import Floats
from nlattn.engines.sensitivity import Keys
from nlattn.engines.whitened import factor

_HALVINGS = 40
_FLOOR = 1e-12  # of the largest score: weights of smaller ones are held, lest they vanish or burst


def bracket(
    keys: Keys, i: int, p: float, tol: float, steps: int, eps: float = np.inf
) -> tuple[float, float, int]:
    """Both ends for key `i`, p >= 1, and the steps taken; enough if they tell it from `eps`."""
    if not keys.some[i]:
        return 0.0, float(keys.lost[i]), 0
    at = int(np.count_nonzero(keys.some[:i]))
    if p == 2:
        root, error = np.sqrt(keys.tau[at]), keys.error[at]
        least = 0.0 if keys.lost.any() else max(root - error, 0.0) ** 2
        return least, min((root + error) ** 2, 1.0), 0
    if keys.lost.any() or not keys.tau[at] > 0:
        return 0.0, 1.0, 0
    x = keys.X[at]
    z = _scores(keys.X, x / keys.tau[at])
    low, high = _ends(keys, at, p, z, _dual(z, p))
    if p == 1:
        z, lam, count = _programme(keys.X, x, z)
        return *_best((low, high), _ends(keys, at, p, z, lam)), count
    count = 0
    while count < steps:
        if high - low <= tol or (eps <= 1 and (high < eps or low >= eps)):
            break
        moved = _step(keys.X, at, p, z)
        if moved is None:
            break
        z, count = moved, count + 1
        low, high = _best((low, high), _ends(keys, at, p, z, _dual(z, p)))
    return low, high, count


def _scores(X: Floats, y: Floats) -> Floats:
    return np.asarray(np.einsum("ij,j->i", X, y))


def _best(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    return max(a[0], b[0]), min(a[1], b[1])


def _step(X: Floats, at: int, p: float, z: Floats) -> Floats | None:
    """Scores after one damped step of reweighted least squares; None if nothing falls."""
    size = abs(z) / abs(z).max()
    row = np.maximum(size, _FLOOR) ** (p / 2 - 1)
    whiten = factor(X, _check.frozen(row / row.max())).whiten
    target = _scores(X, whiten @ (whiten.T @ X[at]))
    if not target[at] > 0:
        return None
    step, a = target / target[at] - z, 1 / (p - 1) if p > 2 else 1.0
    now = (abs(z) ** p).sum()
    for _ in range(_HALVINGS):
        moved = z + a * step
        if (abs(moved) ** p).sum() < now:
            return np.asarray(moved / moved[at])
        a /= 2
    return None


def _dual(z: Floats, p: float) -> Floats:
    return np.asarray(np.sign(z) * abs(z) ** (p - 1) / (abs(z) ** p).sum())


def _ends(keys: Keys, at: int, p: float, z: Floats, lam: Floats) -> tuple[float, float]:
    """Bounds from scores with ``z_i = 1`` and from any `lam`; what rounding left is added."""
    X, x = keys.X, keys.X[at]
    for _ in range(2):  # the second projection removes what the first one rounded
        left = x - np.einsum("ij,i->j", X, lam)
        lam = lam + _scores(X, left)
    left = x - np.einsum("ij,i->j", X, lam)
    dual = abs(lam).max() if p == 1 else (abs(lam) ** (p / (p - 1))).sum() ** (1 - 1 / p)
    wide = len(X) ** max(1 / 2 - 1 / p, 0)  # |z|_2 <= wide |z|_p
    dual += wide * (np.sqrt((left**2).sum()) + 2.0**-52 * X.shape[1])
    error = wide * keys.error[at]
    relative = 2 * wide * (keys.error**p).sum() ** (1 / p)
    root = (abs(z) ** p).sum() ** (-1 / p)
    low = max(root - error, 0.0) * max(1 - relative, 0.0)
    high = (dual + error) * (1 + 2 * relative) if relative < 0.5 else 1.0
    return float(low**p), float(min(high**p, 1.0))


def _programme(X: Floats, x: Floats, z: Floats) -> tuple[Floats, Floats, int]:
    """For p = 1, ``min sum t, -t <= Xy <= t, <x,y> = 1``, its multipliers and steps; else `z`."""
    from scipy.optimize import linprog
    from scipy.sparse import csr_array, dia_array, hstack, vstack

    n, r = X.shape
    cost = np.concatenate([np.zeros(r), np.ones(n)])
    keys, slack = csr_array(X), dia_array((np.ones((1, n)), [0]), shape=(n, n))
    sides = vstack([hstack([keys, -slack]), hstack([-keys, -slack])])
    fixed = np.concatenate([x, np.zeros(n)])[None]
    free = [(None, None)] * r + [(0, None)] * n
    found = linprog(cost, sides, np.zeros(2 * n), fixed, [1.0], free, method="highs")
    if found.status != 0:
        return z, _dual(z, 1), int(found.nit)
    z = _scores(X, found.x[:r])
    at = int(abs(X - x).sum(1).argmin())
    multipliers = found.ineqlin.marginals
    lam = multipliers[:n] - multipliers[n:]
    along = (_scores(X, x) * lam).sum()
    return z / z[at], lam * (x**2).sum() / along if along else _dual(z, 1), int(found.nit)
