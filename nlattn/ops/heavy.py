"""Heavy attention: the entries of polynomial attention that are at least eps, and only those."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np

from nlattn import _check
from nlattn import _modes as modes
from nlattn._modes import Nonfinite
from nlattn._types import Bools, Floats, Support, Work
from nlattn.engines import heavy_range, prefix_sets
from nlattn.engines.normaliser import PowerSums
from nlattn.engines.sensitivity import Keys
from nlattn.kernels import heavy as kernels
from nlattn.kernels.gemm import width
from nlattn.maps.heavy import HeavyMap
from nlattn.ops.universal import UniversalSet, checked_eps, chosen_bounds
from nlattn.runtime import jit

NORMALISERS: tuple[modes.Normaliser, ...] = get_args(modes.Normaliser)
_BYTES = 1 << 26  # of one block of queries' entries


def heavy_attention(
    q: Floats,
    k: Floats,
    eps: float,
    *,
    p: float = 2.0,
    causal: bool = False,
    normaliser: modes.Normaliser = "auto",
    universal: UniversalSet | None = None,
    eta: float = 0.1,
    failure: float = 1e-3,
    seed: int = 0,
    max_bytes: float = 4e9,
    nonfinite: Nonfinite = "raise",
) -> HeavyMap:
    """All entries ``A_ij = |<q_i,k_j>|^p / sum_l |<q_i,k_l>|^p`` of at least eps, and no other.

    Parameters
    ----------
    q, k : (n, d), (m, d) arrays of one dtype, float32 or float64
        Queries and keys of one head.
    eps : float
        Least weight, above 0 and at most 1; entries within rounding, at most 1e-10 of it, are in.
    p : float
        Exponent, positive. No factor on scores changes a weight.
    causal : bool
        Query i sees keys 0 to i.
    normaliser : {"auto", "factor", "dense", "sampled"}
        Sum over all keys: by a factor of their Gram matrix (even p; causal, p = 2), one by one, or
        estimated from keys drawn by their bounds. "auto" is the cheaper of the first two.
    universal : UniversalSet, optional
        Of the same keys, p, and at most eps, as `universal_set` gives it; not with `causal`.
    eta, failure, seed : float, float, int
        Of "sampled": sums are within a factor ``1 +- eta``, each but with probability `failure`.
        Entries that may be eps are then in.
    max_bytes : float
        Most bytes of entries.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities. A query that has one has no entries, nor has one that
        sees a key that does.

    Returns
    -------
    HeavyMap, (n, m)
        A sparse map with `lse`, the logarithms of all sums, and `lse_interval`.

    Raises
    ------
    ValueError
        An option is outside its range, shapes do not fit, or a value is not finite.
    TypeError
        The dtypes differ, or are not floating.
    MemoryError
        There are too many entries.

    Notes
    -----
    ``n |U| d`` multiply-adds, those of `universal_set`, and ``n d^2`` (p = 2) or ``n m d`` for the
    sums; ``O((n + m) d + entries)`` memory, all float64. Source: [kannan2024]. Status: paper.

    Examples
    --------
    >>> found = nlattn.heavy_attention(q, k, eps=0.3)  # weights of at least 0.3, all of them
    """
    op = "heavy_attention"
    fit = _check.fit(op, {"q": (q, "n d"), "k": (k, "m d")}, nonfinite=nonfinite)
    _check.one_head(fit)
    eps = checked_eps(op, eps)
    p = _check.number(op, "p", p, positive=True, low=1e-6, high=1e6)
    causal = _check.flag(op, "causal", causal)
    n, m, d = fit.shape("n m d")
    choice = _check.choice(op, "normaliser", normaliser, NORMALISERS)
    if choice == "factor" and (p % 2 or (causal and p != 2)):
        text = f"needs an even p, and 2 if causal, got p={p}, causal={causal}"
        _check.fail(op, "normaliser='factor'", text)
    if choice == "sampled" and causal:
        _check.fail(op, "normaliser='sampled'", "needs causal=False")
    eta = _check.number(op, "eta", eta, positive=True)
    failure = _check.number(op, "failure", failure, positive=True)
    if eta >= 1 or failure >= 1:
        _check.fail(op, f"eta={eta}, failure={failure}", "are not both below 1")
    seed = _check.integer(op, "seed", seed, low=0)
    if universal is not None:
        _fits(op, universal, m, causal)
    k_, bad = fit["k"][0], ~np.isfinite(fit["k"][0]).all(1)
    lost = np.arange(n) >= bad.argmax() if causal and bad.any() else np.full(n, bad.any())
    if lost.all() and bad.any():
        return _collect(fit, np.zeros((0, d)), np.zeros(0, np.int64), np.full((4, n), np.nan), 1.0)
    if bad.any():  # later queries alone see it
        k_ = _check.frozen(np.where(np.logical_or.accumulate(bad)[:, None], 0, k_), fit.dtype)
    if heavy_range.far_apart(fit["q"][0], k_):
        found = heavy_range.entries(fit["q"][0], k_, eps, p, causal)
        found.lse[lost] = np.nan
        return _far(fit, found, lost)
    keys = Keys.of(k_)
    if causal:
        rows, _, upper = prefix_sets.sets(keys, eps, p, np.inf, op)
        chosen = np.unique(np.concatenate([*rows, np.zeros(0, np.int64)])).astype(np.int64)
    elif universal is not None:
        chosen, upper = universal.support.indices.astype(np.int64), universal.upper
    else:
        _, upper = chosen_bounds(keys, eps, p)
        chosen = np.flatnonzero(upper >= eps)
    sums = PowerSums(fit["q"][0], k_, keys, p, causal)
    if choice == "auto":
        choice = sums.cheaper(m)
    if choice == "factor" and keys.lost.any():
        choice = "dense"
    if choice == "sampled":
        eta = sums.sample(chosen, upper, eta, failure, seed)
    else:
        eta = 0.0
        sums.factored() if choice == "factor" else sums.dense()
    sums.norm[:, lost] = np.nan
    options = (p, eps / (1 + eta), causal)
    return _collect(
        fit, sums.scaled(chosen), chosen, sums.norm, sums.scale, options, eta, max_bytes
    )


def _collect(
    fit: _check.Fit,
    some: Floats,
    chosen: np.ndarray,
    norm: Floats,
    scale: float,
    options: tuple[float, float, bool] = (2.0, 1.0, False),
    eta: float = 0.0,
    max_bytes: float = np.inf,
) -> HeavyMap:
    """Scan blocks of queries, keep their entries, and make the map."""
    n, m, d = fit.shape("n m d")
    p, eps, causal = options
    most = max(1, min(len(chosen), int(min((1 + 1e-6) / eps, len(chosen))) + 1))
    step = max(64, _BYTES // (24 * most) // 64 * 64)
    some, chosen, norm = _check.frozen(some), _check.frozen(chosen, np.int64), _check.frozen(norm)
    settings = _check.frozen(np.array([p, eps, causal]))
    counts = np.zeros(n, np.int64)
    parts: list[list[Floats]] = [[], [], []]
    held = 0
    for start in range(0, n, step):
        count = counts[start : start + step]
        index = np.empty((len(count), most), np.int64)
        value, score = np.empty((2, len(count), most))
        arrays = (fit["q"][0], some, chosen, norm, settings, start, count, index, value, score)
        kernels.entries(jit.blocks(len(count), width(some)), *arrays)
        kept = np.arange(most) < count[:, None]
        held += int(count.sum()) * (4 + 2 * fit.dtype.itemsize)
        what = f"entries of the first {start + len(count)} of {n} queries"
        _check.memory(fit.op, held, max_bytes, what, "take a larger eps or fewer queries")
        with np.errstate(over="ignore"):
            parts[0].append(index[kept].astype(np.int32))
            parts[1].append(value[kept].astype(fit.dtype))
            parts[2].append((score[kept] / scale).astype(fit.dtype))
    empty = [np.empty(0, np.int32), np.empty(0, fit.dtype), np.empty(0, fit.dtype)]
    indices, weights, scores = (np.concatenate([e, *x]) for e, x in zip(empty, parts, strict=True))
    indptr = np.concatenate([[0], np.cumsum(counts)])
    support = Support(_check.frozen(indptr, np.int64), _check.frozen(indices), (n, m))
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.log(norm[0]) + norm[2] * math.log(2) - math.log(scale)
        lse = np.where(norm[1] == 0, -np.inf, np.log(norm[1]) + p * size)
    interval = np.stack([lse - math.log1p(eta), lse - math.log1p(-eta)], 1)
    u, nnz, bytes_ = len(chosen), len(indices), fit.dtype.itemsize
    work = Work(n * u, n * u * d, (n + u) * d * bytes_ + nnz * (4 + 2 * bytes_), np.full(n, u))
    return HeavyMap(support, weights, scores, lse, work, interval=interval)


def _far(fit: _check.Fit, found: heavy_range.Entries, lost: Bools) -> HeavyMap:
    """The map of entries that were found one by one."""
    n, m, d = fit.shape("n m d")
    kept = np.repeat(~lost, found.counts)
    indptr = np.concatenate([[0], np.cumsum(np.where(lost, 0, found.counts))])
    indices = _check.frozen(found.indices[kept], np.int32)
    support = Support(_check.frozen(indptr, np.int64), indices, (n, m))
    with np.errstate(over="ignore", under="ignore"):
        weights, scores = (x[kept].astype(fit.dtype) for x in (found.weights, found.scores))
    work = Work(n * m, n * m * d, (n + m) * d * fit.dtype.itemsize, np.full(n, m))
    interval = np.stack([found.lse, found.lse], 1)
    return HeavyMap(support, weights, scores, found.lse, work, interval=interval)


def _fits(op: str, universal: UniversalSet, m: int, causal: bool) -> None:
    if causal:
        _check.fail(op, "universal", "is for all keys, which causal=True does not let a query see")
    _check.instance(op, "universal", universal, UniversalSet, "a UniversalSet")
    if universal.support.shape != (1, m):
        shape = universal.support.shape
        _check.fail(op, "universal", f"has shape {shape}, expected (1, m) with m={m} from k")
