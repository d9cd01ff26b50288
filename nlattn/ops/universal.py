"""Universal sets: all keys that some query could give a weight of eps, and few others."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._modes import Nonfinite
from nlattn._types import Bools, Floats, Ints, Support
from nlattn.engines import bracket, prefix_sets
from nlattn.engines.sensitivity import Keys, bounds, lewis_logs, tensor_columns


class UniversalSet(NamedTuple):
    """Keys, and what is certified of them.

    Examples
    --------
    >>> nlattn.universal_set(np.eye(3), eps=0.5).keys
    array([0, 1, 2], dtype=int32)
    """

    support: Support
    """(..., 1, m): the keys of the set; causal: (..., m, m), row i the set of the keys up to i."""
    upper: Floats
    """(..., m) bounds of the sensitivities; causal: among the keys up to each."""
    borderline: Bools
    """(..., m) keys whose bounds do not tell on which side of eps they are."""
    bound: Ints
    """(...) most keys that the set, or a row of it, can have by theory: at converged weights, and
    but for keys that rounding leaves uncertain."""

    @property
    def keys(self) -> Ints:
        """Keys of all sets together, ascending."""
        return np.unique(self.support.indices)


def universal_set(
    k: Floats,
    eps: float,
    *,
    p: float = 2.0,
    causal: bool = False,
    tight: bool = False,
    max_bytes: float = 4e9,
    nonfinite: Nonfinite = "raise",
) -> UniversalSet:
    """Every key j with ``|<q,k_j>|^p >= eps sum_l |<q,k_l>|^p`` for some query q, whatever it is.

    Parameters
    ----------
    k : (..., m, d) array, float32 or float64
        Keys. Leading axes are heads, each with a set of its own.
    eps : float
        Weight, above 0 and at most 1.
    p : float
        Exponent of the attention weights, positive.
    causal : bool
        Row i sees keys 0 to i: a set for every row. That of all keys lacks early keys.
    tight : bool
        Decide doubtful keys by `lp_sensitivity` (p >= 1), slow; not with `causal`.
    max_bytes : float
        Most bytes of a causal support.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities; a row that sees one keeps all its keys.

    Returns
    -------
    UniversalSet
        `support`, `upper`, `borderline` and `bound`; `keys`.

    Raises
    ------
    ValueError
        eps or p is outside its range, or a value is not finite.
    TypeError
        `k` is not floating.
    MemoryError
        A causal support exceeds `max_bytes`.

    Notes
    -----
    For p = 2 no smaller set will do. ``m d^2`` multiply-adds for p = 2, some 20 times as much
    else; causal: ``m r^2 (r + |U|)``. Source: [kannan2024]; certificates: docs/algorithms/lewis.md.
    Status: paper.

    Examples
    --------
    >>> found = nlattn.universal_set(k, eps=0.5)
    >>> keys = found.keys  # that may hold half of some query's attention
    """
    op = "universal_set"
    fit = _check.fit(op, {"k": (k, "m d")}, nonfinite=nonfinite)
    eps = checked_eps(op, eps)
    p = _check.number(op, "p", p, positive=True, low=1e-6)
    causal, tight = _check.flag(op, "causal", causal), _check.flag(op, "tight", tight)
    if tight and (causal or p < 1):
        _check.fail(op, "tight=True", f"needs p >= 1 and causal=False, got p={p}, causal={causal}")
    m = fit.dims["m"]
    upper, lower = fit.empty("m", np.float64), fit.empty("m", np.float64)
    rows: list[Ints] = []
    limits = np.empty(fit.batch, np.int64)
    held = 0
    for b, x in enumerate(fit["k"]):
        found: list[Ints]
        bad = ~np.isfinite(x).all(1)
        if bad.any() and not causal:
            lower[b], upper[b], limits[b] = np.nan, np.nan, m
            found = [np.arange(m)]
        elif bad.any():
            first = int(bad.argmax())
            before = Keys.of(_check.frozen(x[:first]))
            found, *ends = prefix_sets.sets(before, eps, p, max_bytes - held, op)
            for bound, end in zip((lower[b], upper[b]), ends, strict=True):
                bound[:first], bound[first:] = end, np.nan
            limits[b] = m
            found += [np.arange(i + 1) for i in range(first, m)]
        else:
            keys = Keys.of(x)
            limits[b] = limit(keys, eps, p, causal)
            if causal:
                found, lower[b], upper[b] = prefix_sets.sets(keys, eps, p, max_bytes - held, op)
            else:
                lower[b], upper[b] = chosen_bounds(keys, eps, p, tight)
                found = [np.flatnonzero(upper[b] >= eps)]
        rows += found
        held += 4 * sum(map(len, found))
    sizes = np.array([len(row) for row in rows], np.int64)
    indptr = _check.frozen(np.concatenate([[0], np.cumsum(sizes)]), np.int64)
    indices = _check.frozen(np.concatenate([*rows, np.empty(0, np.int64)]), np.int32)
    support = Support(indptr, indices, (*fit.lead, m if causal else 1, m))
    with np.errstate(invalid="ignore"):
        borderline = ~((upper < eps) | (lower >= eps))
    return UniversalSet(
        support,
        fit.unfold(upper, cast=False),
        fit.unfold(borderline, cast=False),
        limits.reshape(fit.lead),
    )


def checked_eps(op: str, eps: object) -> float:
    """`eps` as a float in (0, 1]."""
    value = _check.number(op, "eps", eps)
    if not 0 < value <= 1:
        _check.fail(op, f"eps={value}", "is outside (0, 1], expected the share of a row")
    return value


def chosen_bounds(keys: Keys, eps: float, p: float, tight: bool = False) -> tuple[Floats, Floats]:
    """Bounds (m,) of all sensitivities; with `tight`, doubtful ones from both sides."""
    low, high = bounds(keys, p, lewis_logs(keys, p))
    lower, upper = keys.spread_bounds(low, high)
    if tight:
        for i in np.flatnonzero((lower < eps) & (eps <= upper)):
            ends = bracket.bracket(keys, int(i), p, 1e-12, 300, eps)[:2]
            lower[i], upper[i] = max(lower[i], ends[0]), min(upper[i], ends[1])
    return lower, upper


def limit(keys: Keys, eps: float, p: float, causal: bool) -> int:
    """Most keys of a set: the sum of the bounds over eps."""
    n, r = keys.X.shape
    columns = tensor_columns(keys, p)
    if not causal:
        power = max(1.0, p / 2)
        plain = r**power if power * math.log(max(r, 1)) < 700 else math.inf
        most = min(plain, columns or math.inf) / eps
    elif columns:
        most = columns / eps
    else:  # those of leverage^(p/2), times n^(p/2-1) for p > 2, of at least eps
        share = math.log(eps) + min(1 - p / 2, 0) * math.log(n) if n else 0.0
        most = r * math.exp(min(-2 / p * share, 700.0)) if n else 0.0
    lost = int(keys.lost.sum())
    return math.floor(min(float(n), most * (1 + 1e-9))) + lost
