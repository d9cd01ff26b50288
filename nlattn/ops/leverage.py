"""Leverage scores of keys: the most of a query's quadratic attention that each can receive."""

from __future__ import annotations

import warnings
from typing import get_args

import numpy as np

from nlattn import _check
from nlattn._modes import LeverageMethod, Nonfinite, Sketch
from nlattn._types import Floats, Result
from nlattn.engines import laws
from nlattn.engines import leverage as engine
from nlattn.engines import sketch as sketches
from nlattn.engines.draws import normal
from nlattn.engines.magnitude import ranged


@ranged(laws.keys)
def leverage_scores(
    k: Floats,
    *,
    method: LeverageMethod = "qr",
    rcond: float | None = None,
    return_rank: bool = False,
    nonfinite: Nonfinite = "raise",
) -> Result:
    """Leverage scores of keys: ``tau_j = k_j^T (K^T K)^+ k_j``, whose sum is the rank of K.

    Parameters
    ----------
    k : (..., n, d) array, float32 or float64
        Keys. Leading axes are heads, each with scores of its own.
    method : {"qr", "svd", "gram"}
        Factor of K. Errors are about ``u kappa``; of "gram", the fastest, ``u kappa^2``.
    rcond : float, optional
        Pivots or singular values up to this times the largest count as 0; ``max(n, d) u`` if
        omitted. Keys that were rounded to float32 have noise at 1e-7 of their size.
    return_rank : bool
        Also return the rank of each head, (...) int64.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities; they make all scores of their head NaN.

    Returns
    -------
    (..., n) float64 array

    Raises
    ------
    ValueError
        A key is not finite, or `rcond` is below what `method` can see.
    TypeError
        The dtype is not floating.

    Notes
    -----
    ``2 n d^2`` multiply-adds; memory beyond the result ``O(d^2)`` and blocks of rows, all float64.
    Where "gram" cannot tell the rank, "qr" is used and a warning given; so it is when keys are
    independent, since all scores are then 1. Source: [drineas2012, section 1.1]. Status: paper.

    Examples
    --------
    >>> scores = nlattn.leverage_scores(k)
    >>> round(float(scores.sum()), 6)  # the rank
    8.0
    """
    op = "leverage_scores"
    _check.choice(op, "method", method, engine.METHODS)
    rcond = _checked_rcond(op, rcond, method)
    fit = _check.fit(op, {"k": (k, "n d")}, nonfinite=nonfinite)
    keys = fit["k"]
    found, doubtful = engine.factors(keys, method, rcond)
    if doubtful:
        text = "method='gram' cannot tell the rank, method='qr' was used; rcond= sets a limit"
        warnings.warn(f"{op}: {text}", RuntimeWarning, stacklevel=2)
    ranks = np.array([0 if f is None else f.rank for f in found], np.int64)
    n, d = fit.shape("n d")
    if 1 < n <= d and n in ranks:
        text = f"{n} independent keys in {d} channels have score 1 each: scores tell nothing"
        warnings.warn(f"{op}: {text}", RuntimeWarning, stacklevel=2)
    scores = fit.unfold(np.clip(engine.scores(keys, found), 0, 1), cast=False)
    return (scores, fit.unfold(ranks, cast=False)) if return_rank else scores


@ranged(laws.keys)
def approximate_leverage_scores(
    k: Floats,
    *,
    delta: float = 0.5,
    failure: float = 0.1,
    sketch: Sketch = "countsketch",
    rows: int | None = None,
    directions: int | None = None,
    seed: int = 0,
    rcond: float | None = None,
    max_bytes: float = 4e9,
    nonfinite: Nonfinite = "raise",
) -> Floats:
    """Leverage scores of keys within a factor ``1 +- delta``, from a random sketch: a filter.

    Parameters
    ----------
    k : (..., n, d) array, float32 or float64
        Keys. Leading axes are heads, each with a sketch of its own.
    delta, failure : float
        All n scores of a head lie within ``(1 +- delta) tau`` with probability ``1 - failure``;
        both in (0, 1). Half of `failure` goes to the sketch, half to the directions.
    sketch : {"countsketch", "srht"}
        Random signs added up in random rows; or a Hadamard transform of random signs, sampled.
    rows, directions : int, optional
        Rows of the sketch and Gaussian directions that lengths are measured in, in place of the
        numbers that the promise takes, which are cautious. ``directions=0`` measures exactly.
    seed : int
        Of the sketch and the directions.
    rcond, nonfinite
        As for `leverage_scores`.
    max_bytes : float
        Most bytes of the array that "srht" transforms.

    Returns
    -------
    (..., n) float64 array, not clipped and not rescaled

    Raises
    ------
    ValueError
        A key is not finite, or `delta` or `failure` is out of range.
    MemoryError
        The Hadamard transform does not fit.

    Notes
    -----
    With ``theta = delta / 3``: ``(d^2 + d) / (theta^2 failure / 2)`` rows or [boutsidis2013, lemma
    4.1], and ``log(4 n / failure) / (theta^2 / 4 - theta^3 / 6)`` directions. Where these are no
    fewer than n or d, nothing is sketched there. To find all keys with ``tau >= eps``, keep what
    has ``(1 - delta) eps`` here and score that exactly, before anything is rescaled.
    Source: [drineas2012, section 3], [clarkson2013]. Status: paper.

    Examples
    --------
    >>> near = nlattn.approximate_leverage_scores(k, delta=0.5)
    """
    op = "approximate_leverage_scores"
    for name, value in (("delta", delta), ("failure", failure)):
        if _check.number(op, name, value, positive=True) >= 1:
            _check.fail(op, f"{name}={value:g},", "expected less than 1")
    _check.choice(op, "sketch", sketch, get_args(Sketch))
    limit = _checked_rcond(op, rcond, "qr")
    key = _check.integer(op, "seed", seed)
    fit = _check.fit(op, {"k": (k, "n d")}, nonfinite=nonfinite)
    n, d = fit.shape("n d")
    theta = delta / 3
    height = sketches.rows_needed(sketch, n, d, theta, failure / 2)
    height = height if rows is None else _check.integer(op, "rows", rows, low=1)
    across = sketches.directions_needed(n, theta, failure / 2)
    across = across if directions is None else _check.integer(op, "directions", directions, low=0)
    if sketch == "srht" and height < n:
        sketches.checked_memory(op, n, d, max_bytes)
    keys = fit["k"]
    found: list[engine.Factor | None] = []
    for b, scale in enumerate(engine.channel_scales(keys)):
        part = keys[b : b + 1]
        if np.isfinite(scale).all() and height < n:
            project = sketches.countsketch if sketch == "countsketch" else sketches.srht
            part = _check.frozen(project(keys[b], scale, height, key ^ b)[None])
            plain = engine.factors(part, "qr", max(n, d) * engine.UNIT if limit is None else limit)
            f = plain[0][0]
            f = None if f is None else f._replace(scale=scale * f.scale)
        else:
            f = engine.factors(part, "qr", limit)[0][0]
        if f is not None and 0 < across < f.rank:
            spread = normal(key ^ b, 4, np.arange(f.rank)[:, None], np.arange(across))
            f = f._replace(inverse=f.inverse @ spread / across**0.5, rank=across)
        found.append(f)
    scores: Floats = fit.unfold(engine.scores(keys, found), cast=False)
    return scores


def _checked_rcond(op: str, rcond: object, method: str) -> float | None:
    if rcond is None:
        return None
    value = _check.number(op, "rcond", rcond)
    low = engine.UNIT**0.5 if method == "gram" else 0.0
    if not low <= value < 1:
        remedy = "; use method='qr' for smaller ones" if method == "gram" else ""
        text = f"expected from {low:.3g} to less than 1 with method={method!r}{remedy}"
        _check.fail(op, f"rcond={value:g},", text)
    return value
