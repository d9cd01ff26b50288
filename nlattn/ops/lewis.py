"""Lewis weights, and certified bounds of what a key can receive from any query."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np

from nlattn import _check
from nlattn._modes import Nonfinite
from nlattn._types import Floats, Ints
from nlattn.engines import bracket
from nlattn.engines.sensitivity import Keys, bounds, converge, default_eta, log_s

_TOL, _STEPS = 1e-12, 1000

_MOST = 1e7  # iterates to average; each takes m d^2


class LewisWeights(NamedTuple):
    """Weights, and how far they are from the fixed point."""

    weights: Floats
    """(..., m) float64, sum to the rank of the keys at the fixed point; 0 for a key of zeros."""
    residual: Floats
    """(...) largest ``|log(tau_i(W^(1/2 - 1/p) K) / w_i)|``."""
    iterations: Ints
    """(...) steps taken."""


class _Ends(NamedTuple):
    lower: Floats
    upper: Floats


class Bracket(_Ends):
    """Lower and upper bounds of sensitivities, float64: a pair."""

    iterations: Ints
    """(...) steps taken; not one of the pair."""

    @classmethod
    def of(cls, lower: Floats, upper: Floats, iterations: Ints) -> Bracket:
        """The pair, with the number of its steps."""
        ends = cls(lower, upper)
        ends.iterations = iterations
        return ends


def lewis_weights(
    k: Floats,
    p: float,
    *,
    eta: float | None = None,
    average: float | None = None,
    tol: float = _TOL,
    steps: int = _STEPS,
    nonfinite: Nonfinite = "raise",
) -> LewisWeights:
    """Lewis weights: the fixed point ``w_i = tau_i(W^(1/2 - 1/p) K)``.

    Parameters
    ----------
    k : (..., m, d) array, float32 or float64
        Keys.
    p : float
        Exponent of the attention weights, positive.
    eta : float, optional
        Damping; ``2/p`` for p >= 2, else ``4/(p + 2)``. At ``eta=1`` p >= 4 does not converge.
    average : float, optional
        For p >= 2: the mean of the first ``ceil(ln(m/r) / ln(1 + average))`` iterates of
        ``eta=2/p``, instead of the last of many.
    tol, steps : float, int
        Stop at this residual, or after so many steps; slow convergence is no error.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities; a head that has one gets NaN.

    Returns
    -------
    LewisWeights
        `weights`, `residual` and `iterations`.

    Raises
    ------
    ValueError
        p is not positive, or a value is not finite.
    TypeError
        `k` is not floating.

    Notes
    -----
    Steps of ``log w <- (1 - eta) log w + eta p/2 log s(w)``, ``s_i(w) = k_i^T (K^T W^(1-2/p) K)^+
    k_i``; ``3 m d^2`` multiply-adds each, ``O(m d)`` memory. Source: [cohen2015]; damping, and the
    bound of the average: docs/algorithms/lewis.md. Status: paper.

    Examples
    --------
    >>> found = nlattn.lewis_weights(k, p=1.0)
    >>> round(float(found.weights.sum()), 6)  # the rank
    8.0
    """
    op = "lewis_weights"
    fit = _check.fit(op, {"k": (k, "m d")}, nonfinite=nonfinite)
    p = _check.number(op, "p", p, positive=True, low=1e-6)
    eta = default_eta(p) if eta is None else _check.number(op, "eta", eta, positive=True)
    tol = _check.number(op, "tol", tol)
    steps = _check.integer(op, "steps", steps, low=0)
    if average is not None:
        average = _check.number(op, "average", average, positive=True)
        if p < 2:
            _check.fail(op, f"average={average}", f"needs p of at least 2, got p={p}")

    def solve(x: Floats) -> tuple[Floats, float, int]:
        keys = Keys.of(x)
        if average is None:
            log_w, residual, count = converge(keys, p, eta, steps, tol)
        else:
            log_w, residual, count = _averaged(keys, p, average)
        return keys.spread(np.exp(log_w)), residual, count

    results = [_finite(x, solve, (np.full(len(x), np.nan), np.nan, 0)) for x in fit["k"]]
    weights = fit.empty("m", np.float64)
    for b, (w, _, _) in enumerate(results):
        weights[b] = w
    residual = np.array([r for _, r, _ in results], np.float64).reshape(fit.lead)
    counts = np.array([c for _, _, c in results], np.int64).reshape(fit.lead)
    return LewisWeights(fit.unfold(weights, cast=False), residual, counts)


def sensitivity_bounds(
    k: Floats, p: float, *, weights: Floats | None = None, nonfinite: Nonfinite = "raise"
) -> Bracket:
    """Bounds of ``sigma_i = sup_y |<k_i,y>|^p / sum_l |<k_l,y>|^p`` for every key.

    Parameters
    ----------
    k : (..., m, d) array, float32 or float64
        Keys.
    p : float
        Exponent of the attention weights, positive.
    weights : (..., m) float64 array, optional
        The upper bound holds for any positive weights; those of `lewis_weights` make it small,
        and are computed if omitted. Read where the key is not 0.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities; a head that has one gets NaN.

    Returns
    -------
    Bracket
        `lower` and `upper`, (..., m) float64 within [0, 1], rounding included. For p = 2 both are
        leverage, but for rounding. Its `iterations` (...) are the steps that `weights` took.

    Raises
    ------
    ValueError
        p or a weight is not positive, shapes do not fit, or a value is not finite.
    TypeError
        `k` or `weights` is not floating.

    Notes
    -----
    The elementwise best of three certificates: from `weights`, from weights of 1, and for even p
    the leverage of all monomials of degree p/2, if there are at most 256. ``m d^2`` multiply-adds
    each, ``O(m d)`` memory. Source: [kannan2024] for sensitivities. Status: ours.

    Examples
    --------
    >>> lower, upper = nlattn.sensitivity_bounds(k, p=1.0)
    """
    op = "sensitivity_bounds"
    fit = _check.fit(op, {"k": (k, "m d")}, nonfinite=nonfinite)
    p = _check.number(op, "p", p, positive=True, low=1e-6)
    given = None if weights is None else _positive(op, fit, weights)
    lower, upper = fit.empty("m", np.float64), fit.empty("m", np.float64)
    count = fit.empty("", np.int64)
    for b, x in enumerate(fit["k"]):

        def solve(x: Floats, b: int = b) -> tuple[Floats, Floats, int]:
            keys, steps = Keys.of(x), 0
            if given is not None:
                log_v = np.log(given[b][keys.some])
            elif p == 2:
                log_v = None  # leverage is exact
            else:
                log_v, _, steps = converge(keys, p, 4 / (p + 2), _STEPS, _TOL)
            return *keys.spread_bounds(*bounds(keys, p, log_v)), steps

        unknown = np.full(len(x), np.nan)
        lower[b], upper[b], count[b] = _finite(x, solve, (unknown, unknown, 0))
    return Bracket.of(*(fit.unfold(x, cast=False) for x in (lower, upper, count)))


def lp_sensitivity(
    k: Floats,
    i: int,
    p: float,
    *,
    tol: float = 1e-9,
    steps: int = 300,
    nonfinite: Nonfinite = "raise",
) -> Bracket:
    """The sensitivity of one key, between a query that attains `lower` and a dual `upper`.

    Parameters
    ----------
    k : (..., m, d) array, float32 or float64
        Keys.
    i : int
        The key, in all heads.
    p : float
        Exponent of the attention weights, at least 1.
    tol, steps : float, int
        Stop when ``upper - lower <= tol``, or after so many steps; both ends always hold.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities; a head that has one gets NaN.

    Returns
    -------
    Bracket
        `lower` and `upper`, (...) float64 within [0, 1]. Its `iterations` (...) are the steps of
        the method: 0 for p = 2, those of the simplex method for p = 1.

    Raises
    ------
    ValueError
        p is below 1, there is no key i, or a value is not finite.
    TypeError
        `k` is not floating.

    Notes
    -----
    Newton's method on ``min |Ky|_p^p, <k_i,y> = 1`` (p > 1), or a linear programme (p = 1).
    ``m d^2`` multiply-adds a step, ``O(m d)`` memory. Status: ours.

    Examples
    --------
    >>> nlattn.lp_sensitivity(np.eye(2), 0, p=3.0).upper
    array(1.)
    """
    op = "lp_sensitivity"
    fit = _check.fit(op, {"k": (k, "m d")}, nonfinite=nonfinite)
    p = _check.number(op, "p", p, positive=True, low=1e-6)
    if p < 1:
        _check.fail(op, f"p={p}", "is not convex, expected at least 1; use sensitivity_bounds")
    i = _check.integer(op, "i", i, low=0, high=fit.dims["m"] - 1)
    tol = _check.number(op, "tol", tol)
    steps = _check.integer(op, "steps", steps, low=0)
    found = [
        _finite(x, lambda x: bracket.bracket(Keys.of(x), i, p, tol, steps), (np.nan, np.nan, 0))
        for x in fit["k"]
    ]
    ends = np.array(found, np.float64).reshape(*fit.lead, 3)
    steps_taken = ends[..., 2].astype(np.int64)
    return Bracket.of(ends[..., 0].copy(), ends[..., 1].copy(), steps_taken)


def _averaged(keys: Keys, p: float, average: float) -> tuple[Floats, float, int]:
    n, r = keys.X.shape
    if n == 0:
        return np.zeros(0), 0.0, 0
    wanted = math.log(n / r) / math.log1p(average)
    if wanted > _MOST:
        text = f"takes {wanted:.1e} steps, expected at least {average * wanted / _MOST:.1e}"
        _check.fail("lewis_weights", f"average={average}", f"{text}, which takes {_MOST:.0e}")
    count = max(1, math.ceil(wanted))
    log_w, total = np.full(n, math.log(r / n)), np.full(n, r / n)
    for _ in range(count - 1):
        log_w = (1 - 2 / p) * log_w + log_s(keys.X, log_w, p)
        total += np.exp(log_w)
    mean = np.log(total / count)
    return mean, float(abs(log_s(keys.X, mean, p) - 2 / p * mean).max()), count - 1


def _positive(op: str, fit: _check.Fit, weights: Floats) -> Floats:
    w = _check.array(op, "weights", weights)
    shape = (*fit.lead, fit.dims["m"])
    if w.shape != shape:
        _check.fail(op, "weights", f"has shape {w.shape}, expected {shape} from k")
    flat = w.reshape(fit.batch, -1).astype(np.float64)
    bad = fit["k"].any(2) & ~((flat > 0) & (flat < np.inf))
    if bad.any():
        where = [int(x) for x in np.argwhere(bad.reshape(shape))[0]]
        text = f"is {w[tuple(where)]}, expected a positive number for a key that is not 0"
        _check.fail(op, f"weights{where}", text)
    return np.asarray(np.where(flat > 0, flat, 1))


R = TypeVar("R")


def _finite(x: Floats, solve: Callable[[Floats], R], otherwise: R) -> R:
    """``solve(x)``, or `otherwise` for keys that are not all finite."""
    with np.errstate(all="ignore"):
        return solve(x) if np.isfinite(x).all() else otherwise
