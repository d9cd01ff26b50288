"""Certified bounds of sensitivities, on the whitened keys of one head.

Every certificate holds for any positive weights; they are kept as logarithms, since powers of
weights leave the range of floats. Upper bounds are of the exact keys: rounding is added to them.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Bools, Floats
from nlattn.engines.whitened import U, Whitening, factor

_FEATURES = 256  # columns that the tensor certificate may have
_ELEMENTS = 1 << 24
_ROUNDED = 8 * U  # of a sum of a few terms, each of which is rounded, beside their sizes
_FAR = 900  # exponents from which a channel is brought near 1


class Keys(NamedTuple):
    """The keys of one head that are not 0, whitened."""

    some: Bools
    """(m,) which keys these are."""
    lost: Bools
    """(m,) other keys than 0: so small beside the rest that nothing is known of them."""
    X: Floats
    """(n, r) with orthonormal columns, frozen."""
    tau: Floats
    """(n,) leverage."""
    error: Floats
    """(n,) bound of the error of the rows of X."""
    factor: Whitening
    """Of all keys."""

    @classmethod
    def of(cls, k: Floats) -> Keys:
        """Whitening k (m, d), frozen and finite."""
        k = _moderate(k)
        whole = factor(k)
        X = whole.basis(k)
        there = k.any(1)
        some: Bools = there & ((whole.tau > 0) | (whole.error < 1))
        if not some.all():
            X = _check.frozen(X[some])
        return cls(some, there & ~some, X, whole.tau[some], whole.error[some], whole)

    def spread(self, x: Floats) -> Floats:
        """`x` (n,) at the places of all keys, 0 elsewhere."""
        out: Floats = np.zeros(len(self.some))
        out[self.some] = x
        return out

    def spread_bounds(self, low: Floats, high: Floats) -> tuple[Floats, Floats]:
        """Bounds (n,) at the places of all keys: lost ones may have any share of a row."""
        lower, upper = self.spread(low), self.spread(high)
        if self.lost.any():
            lower[:], upper[self.lost] = 0, 1
        return lower, upper


def _moderate(k: Floats) -> Floats:
    """Channels near the edges of float64 in other units, which no share sees; no key becomes 0."""
    top = np.maximum(k.max(0, initial=0), -k.min(0, initial=0)).astype(np.float64)
    power = np.frexp(top)[1]
    power[abs(power) <= _FAR] = 0
    if not power.any():
        return k
    wide = k.astype(np.float64)
    least = np.copysign(np.finfo(float).smallest_subnormal, wide)
    with np.errstate(under="ignore"):
        moved = np.ldexp(wide, -power)
    return _check.frozen(np.where((wide != 0) & (moved == 0), least, moved))


def exponent(p: float) -> float:
    """Of the weights that multiply rows."""
    return 1 / 2 - 1 / p


def reweighed(X: Floats, log_v: Floats, p: float) -> tuple[Floats, Whitening]:
    """Factors of the rows, ``v^(1/2 - 1/p)`` over their largest, and the factored product."""
    shifted = exponent(p) * log_v
    row = np.exp(shifted - shifted.max(initial=-math.inf))
    return row, factor(X, _check.frozen(row))


def log_s(X: Floats, log_v: Floats, p: float) -> Floats:
    """``log s_i(v)``, (n,)."""
    _, whole = reweighed(X, log_v, p)
    tau = np.maximum(whole.tau, np.finfo(np.float64).tiny)
    return np.asarray(np.log(tau) - 2 * exponent(p) * log_v)


def certificate(keys: Keys, log_v: Floats, p: float) -> Floats:
    """Upper bounds (n,) from any positive weights."""
    row, whole = reweighed(keys.X, log_v, p)
    steep = whole.steep
    with np.errstate(over="ignore"):
        slack = 2 * steep * float(np.sqrt(((row * keys.error) ** 2).sum()))
    if slack > 0.5 or whole.rank < keys.X.shape[1]:
        return np.ones(len(log_v))
    root = (np.sqrt(whole.tau) + whole.error + row * keys.error * steep) * (1 + 2 * slack)
    with np.errstate(over="ignore"):
        own = 2 * np.log(np.maximum(root, np.finfo(np.float64).tiny))
        moved = 2 * exponent(p) * log_v
        log, size = own - moved, abs(own) + abs(moved) + 1
        if p >= 2:
            top = log_v.max()
            total = top + math.log(np.exp(log_v - top).sum())
            size = p / 2 * size + (p / 2 - 1) * (abs(total) + len(log_v))
            return np.asarray(np.exp((p / 2 - 1) * total + p / 2 * log + _ROUNDED * size))
        size = p / 2 * size + (2 - p) / p * (p / 2 * size + abs(log_v)).max()
        power = p / 2 * log + (2 - p) / p * (p / 2 * log - log_v).max()
        return np.asarray(np.exp(power + _ROUNDED * size))


def tensor_size(p: float, r: int) -> int:
    """Monomials of degree p / 2 in r variables; 0 if p is not an even integer above 2."""
    return math.comb(r + int(p) // 2 - 1, int(p) // 2) if p > 2 and p % 2 == 0 else 0


def tensor_columns(keys: Keys, p: float) -> int:
    """`tensor_size` of the keys, 0 where that is more than is worth it."""
    n, r = keys.X.shape
    size = tensor_size(p, r)
    return size if size <= _FEATURES and n * size <= _ELEMENTS else 0


def monomials(x: Floats, h: int) -> Floats:
    """``phi(x)`` with ``<phi(x), phi(y)> = <x, y>^h``, (n, C(r+h-1, h))."""
    r = x.shape[1]
    out: Floats = np.empty((len(x), math.comb(r + h - 1, h)))
    for c, which in enumerate(itertools.combinations_with_replacement(range(r), h)):
        repeats = math.prod(math.factorial(which.count(a)) for a in set(which))
        out[:, c] = math.sqrt(math.factorial(h) / repeats)
        for a in which:
            out[:, c] *= x[:, a]
    return out


def tensor_certificate(keys: Keys, p: float) -> Floats | None:
    """Leverage of the monomials: bounds (n,) for even p, None if there are too many of them."""
    if not tensor_columns(keys, p):
        return None
    h = int(p) // 2
    whole = factor(_check.frozen(monomials(keys.X, h)))
    steep = whole.steep
    moved = h * keys.error * (1 + h * keys.error) ** (h - 1)
    slack = 2 * steep * float(np.sqrt((moved**2).sum()))
    if slack > 0.5:
        return None
    return np.asarray(((np.sqrt(whole.tau) + whole.error + moved * steep) * (1 + 2 * slack)) ** 2)


def bounds(keys: Keys, p: float, log_v: Floats | None) -> tuple[Floats, Floats]:
    """Lower and upper bounds (n,): the best of all certificates for each key."""
    n = len(keys.tau)
    if n == 0:
        return np.zeros(0), np.zeros(0)
    root = np.sqrt(keys.tau)
    low, high = np.maximum(root - keys.error, 0), root + keys.error
    if p == 2:
        return low**2, np.minimum(high**2, 1)
    if p > 2:
        lower, steep = low**p, (p / 2 - 1) * math.log(n)
        if steep < 700:
            upper = n ** (p / 2 - 1) * high**p
        else:  # beyond what a number holds
            with np.errstate(divide="ignore", over="ignore"):
                log = p * np.log(high)
                upper = np.exp(np.minimum(steep + log + _ROUNDED * (steep - log), 0))
    else:
        lower, upper = n ** (p / 2 - 1) * low**p, high**p * high.max() ** (2 - p)
    if log_v is not None:
        upper = np.minimum(upper, certificate(keys, log_v, p))
    tensor = tensor_certificate(keys, p)
    if tensor is not None:
        upper = np.minimum(upper, tensor)
    return lower * (1 - _ROUNDED), np.minimum(upper * (1 + _ROUNDED), 1)  # of the powers


def converge(keys: Keys, p: float, eta: float, steps: int, tol: float) -> tuple[Floats, float, int]:
    """Logarithms of Lewis weights (n,), their residual, and the steps that were taken."""
    n, r = keys.X.shape
    if n == 0:
        return np.zeros(0), 0.0, 0
    log_w, residual = np.full(n, math.log(r / n)), 0.0
    for step in range(steps + 1):
        log = log_s(keys.X, log_w, p)
        residual = float(abs(log - 2 / p * log_w).max(initial=0))
        if residual <= tol or step == steps:
            break
        log_w = (1 - eta) * log_w + eta * p / 2 * log
    return log_w, residual, step


def lewis_logs(keys: Keys, p: float) -> Floats | None:
    """Logarithms of weights, good enough for a certificate; None where leverage is exact."""
    return None if p == 2 else converge(keys, p, 4 / (p + 2), 100, 1e-3)[0]


def default_eta(p: float) -> float:
    """Step whose log-Jacobian contracts for this p."""
    return 2 / p if p >= 2 else 4 / (p + 2)
