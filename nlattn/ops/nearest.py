"""The best keys of every query, proved: what a search of all keys finds, mostly without one."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np

from nlattn import _check
from nlattn._modes import NearestScore, Nonfinite
from nlattn._types import Bools, Field, Floats, Ints, Nearest
from nlattn.engines import laws, matches, nearest, scores
from nlattn.engines.magnitude import ranged
from nlattn.engines.patchmatch import features
from nlattn.kernels.matching import SAME, Plan
from nlattn.ops._scores import fold, truth_values

OP = "nearest_keys"
SCORES: tuple[NearestScore, ...] = get_args(NearestScore)


@ranged(laws.bounded)
def nearest_keys(
    q: Floats,
    k: Floats,
    *,
    topk: int = 1,
    score: NearestScore = "dot",
    scale: float | None = None,
    bandwidth: float = 1.0,
    start: Field | None = None,
    mask: Bools | None = None,
    causal: bool = False,
    nonfinite: Nonfinite = "raise",
    max_bytes: float = 4e9,
) -> Nearest:
    """Keys of the largest scores, proved: ``index[i] = argmax_j s(q[i], k[j])``.

    A tree of boxes over the keys says how large a score can be at all; keys that cannot be among
    the best are never scored. Where bounds prove nothing, all keys are tried.

    Parameters
    ----------
    q, k : (..., n, d), (..., m, d) arrays of one dtype
        Queries and keys. Leading axes broadcast.
    topk : int
        Keys wanted of each query, at most 64.
    score, scale, bandwidth : {"dot", "cosine", "neg_l2"}, float, float
        ``scale q.k`` (default scale ``1/sqrt(d)``), ``scale q.k/(|q||k|)`` (default 1),
        ``-|q - k|^2 / bandwidth^2``.
    start : Field, optional
        Matches to begin with, as from `patchmatch`: the better they are, the less is searched.
    mask : bool array that broadcasts to (..., n, m), optional
        True where a key may be taken.
    causal : bool
        Take no key after the query.

    Returns
    -------
    Nearest
        `index` and `score` (..., n, topk), best first, ties to the lowest key; `right`, whether
        the best key of `start` was a best one. ``work.per_query`` counts keys and boxes.

    Raises
    ------
    ValueError, TypeError, MemoryError
        Shapes, dtypes or an option do not fit; a value is not finite; above `max_bytes`.

    Notes
    -----
    Scores are those of `patchmatch`, bit by bit, and so are the lists of ``method="exact"``.
    At worst ``n m d`` multiply-adds. Source: [gray2001], [ram2012]. Status: ours.

    Examples
    --------
    >>> found = nlattn.nearest_keys(q, k, topk=2)
    >>> np.array_equal(found.index[:, 0], (q @ k.T).argmax(1))
    True
    """
    fit = _check.fit(OP, {"q": (q, "n d"), "k": (k, "m d")}, nonfinite=nonfinite)
    n, m, d = fit.shape("n m d")
    wanted = _check.integer(OP, "topk", topk, low=1, high=64)
    kind = scores.SCORES[_check.choice(OP, "score", score, SCORES)]
    factor = scores.factor(OP, score, d, scale, bandwidth)
    if max(n, m) >= 1 << 31:
        _check.fail(OP, "q" if n > m else "k", f"has {max(n, m)} rows, expected under 2^31")
    ahead = int(_check.flag(OP, "causal", causal))
    plan = Plan(1, n, 1, m, d, 1, kind, factor, SAME, ahead, 0, 0)
    needed = (
        fit.batch * n * wanted * (8 + fit.dtype.itemsize) + 5 * (n + m) * d * fit.dtype.itemsize
    )
    _check.memory(OP, needed, max_bytes, f"{wanted} keys of {fit.batch * n} queries", "split q")
    masks, table = fold(fit, "mask", truth_values(fit, mask))
    _check.memory(OP, n * m if masks.shape[1] > 1 else 0, max_bytes, "the mask", "split q")
    begun = _started(fit, start)

    index = np.full((fit.batch, n, wanted), -1, np.int32)
    value = np.full(index.shape, -np.inf, fit.dtype)
    counts = np.zeros((fit.batch, n, 3), np.int64)
    right = np.zeros((fit.batch, n), bool)
    q_rows, k_rows = (features(fit[name], score, 1) for name in ("q", "k"))
    for b, (a, c) in enumerate(fit.slices("q", "k")):
        keys, pairs = _allowed(None if mask is None else masks[table[b]], n, m)
        first = None if begun is None else begun[b]
        arrays = q_rows[a], k_rows[c], keys, pairs
        counts[b], found = nearest.search(*arrays, first, plan, index[b], value[b])
        if found is not None:
            right[b] = found
    seen = fit.unfold(counts[..., 0] + counts[..., 1], cast=False)
    return Nearest(
        fit.unfold(index.astype(np.int64), cast=False),
        fit.unfold(value, cast=False),
        nearest.work(counts, d, fit.dtype.itemsize, seen),
        None if start is None else fit.unfold(right, cast=False),
    )


def _allowed(mask: Bools | None, n: int, m: int) -> tuple[Bools, Bools]:
    """A slice's mask as one of keys or one of pairs, the other empty."""
    keys, pairs = np.empty(0, bool), np.empty((0, 0), bool)
    if mask is not None and len(mask) == 1:
        keys = np.broadcast_to(mask[0], m)
    elif mask is not None:
        pairs = np.broadcast_to(mask, (n, m))
    return _check.frozen(keys), _check.frozen(pairs)


def _started(fit: _check.Fit, start: Field | None) -> Ints | None:
    """Matches of a field for each slice, (batch, n, topk)."""
    if start is None:
        return None
    index, grid = matches.matches(OP, start)
    n, m = fit.shape("n m")
    lead, (height, width, best) = index.shape[:-3], index.shape[-3:]
    if height * width != n:
        _check.fail(OP, "start", f"has {height} x {width} queries, expected the {n} of q")
    if math.prod(grid) != m:
        _check.fail(OP, "start.key_grid", f"is {grid}, expected a product of the {m} keys")
    return index.reshape(-1, n, best)[_check.slices(OP, "start", lead, fit.lead)]
