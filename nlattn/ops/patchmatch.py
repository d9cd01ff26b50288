"""PatchMatch: which keys of a grid suit each query of a grid best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import numpy as np

from nlattn import _check
from nlattn._modes import Candidates, NearestScore, Nonfinite, Propagate, Score, SearchMethod
from nlattn._types import Bools, Field, Floats, Ints
from nlattn.engines import laws
from nlattn.engines import patchmatch as engine
from nlattn.engines.magnitude import ranged
from nlattn.engines.patchmatch import CANDIDATES, JUMPS, PROPAGATE, Masks, SearchOptions
from nlattn.engines.random_search import Progress
from nlattn.engines.scores import SCORES, factor

OP = "patchmatch"
METHODS: tuple[SearchMethod, ...] = get_args(SearchMethod)


@ranged(laws.score)
def patchmatch(
    q: Floats,
    k: Floats,
    *,
    candidates: Candidates = "random",
    iterations: int | None = None,
    topk: int = 1,
    propagate: Propagate = "both",
    score: Score = "dot",
    scale: float | None = None,
    bandwidth: float = 1.0,
    patch: int = 1,
    jumps: Sequence[int] | None = None,
    trees: int = 4,
    identity: bool = True,
    seed: int = 0,
    key_mask: Bools | None = None,
    mask: Bools | None = None,
    causal: bool = False,
    method: SearchMethod = "buffered",
    stop_count: int | None = None,
    patience: int = 1,
    first_slice: int = 0,
    progress: Progress = None,
    nonfinite: Nonfinite = "raise",
    max_bytes: float = 4e9,
) -> Field:
    """Keys of the largest scores: ``index[p] = argmax_j s(q[p], k[j])``, nearly.

    Each iteration tries the matches of four neighbours, at every distance of `jumps`, then random
    keys in boxes around the best match that shrink by halves; or with them all keys that share a
    leaf of a tree.

    Parameters
    ----------
    q, k : (..., Hq, Wq, d), (..., Hk, Wk, d) arrays of one dtype
        Features of the query and key grids. Leading axes broadcast and are searched one by one.
    candidates : {"random", "tree"}
        Random keys, as published, or leaves of `trees` trees over the keys, of at most 256 each:
        twenty times the scores, by matrix products, and far fewer queries missed.
    iterations, topk : int
        Rounds of search (5, with trees 1); keys kept of each query, at most 64.
    propagate : {"both", "same", "shift"}
        Whether a neighbour's match is tried as it is, moved by the way to the neighbour, or both.
    score : {"dot", "cosine", "neg_l2", "absdot"}
        ``scale q.k`` (default scale ``1/sqrt(d)``), ``scale q.k/(|q||k|)`` (default 1),
        ``-|q - k|^2 / bandwidth^2``, ``|scale q.k|``.
    patch : int
        Odd width; scores are summed over the patches around query and key, reflected at borders.
    jumps : sequence of int
        Distances of neighbours, (8, 4, 2, 1) if omitted; with trees neighbours are next to it.
    identity : bool
        Try each query's own place on the key grid at the start.
    key_mask, mask : (..., Hk, Wk), (..., Hq, Wq, Hk, Wk) bool, optional
        True where a key may be matched.
    causal : bool
        Match no key after the query in raster order.
    method : {"buffered", "exact", "certified"}
        "exact" tries every key: ``n m`` scores. "certified" finds the same, bit by bit, and leaves
        out what bounds exclude, see `nearest_keys`; not for "absdot".
    stop_count, patience : int
        Stop once at most `stop_count` matches changed, `patience` iterations in a row.
    first_slice : int
        Number of the first slice of the leading axes, if q is part of a larger batch.
    progress : callable, optional
        Called with rounds done and rounds in all.

    Returns
    -------
    Field
        ``work.per_query`` counts the candidates tested, ``work.scores`` all of them.

    Raises
    ------
    ValueError, TypeError, MemoryError
        Shapes, dtypes or an option do not fit; a value is not finite; above `max_bytes`.

    Notes
    -----
    At most ``1 + iterations (8 len(jumps) + log2(side) + 1)`` candidates a query, or
    ``2 + 256 trees (1 + 9 iterations)``. Bit-identical for any number of threads.
    Source: [barnes2009], [barnes2010], trees: [he2012]. Status: paper, in parallel form.

    Examples
    --------
    >>> field = nlattn.patchmatch(grid, grid[::-1], score="cosine")
    >>> field.index.shape  # the best key found for each query
    (16, 16, 1)
    """
    fit = _check.fit(OP, {"q": (q, "Hq Wq d"), "k": (k, "Hk Wk d")}, nonfinite=nonfinite)
    by_trees = _check.choice(OP, "candidates", candidates, CANDIDATES) == "tree"
    if iterations is not None:
        iterations = _check.integer(OP, "iterations", iterations, low=0)
    topk = _check.integer(OP, "topk", topk, low=1, high=64)
    if by_trees and jumps is not None:
        _check.fail(OP, "jumps", "belongs to candidates='random'; trees ask the next neighbours")
    steps = JUMPS if jumps is None else jumps
    options = SearchOptions(
        topk,
        _check.choice(OP, "score", score, tuple(SCORES)),
        factor(OP, score, fit.dims["d"], scale, bandwidth),
        _check.odd(OP, "patch", patch, "its centre is a pixel"),
        candidates,
        iterations,
        _check.choice(OP, "propagate", propagate, tuple(PROPAGATE)),
        tuple(_check.integer(OP, "jumps", jump, low=1) for jump in steps),
        _check.integer(OP, "trees", trees, low=1, high=64),
        _check.flag(OP, "identity", identity),
        _check.integer(OP, "seed", seed, low=0, high=2**64 - 1),
        _check.flag(OP, "causal", causal),
        _check.choice(OP, "method", method, METHODS) == "exact",
        method == "certified",
        None if stop_count is None else _check.integer(OP, "stop_count", stop_count, low=0),
        _check.integer(OP, "patience", patience, low=1),
        _check.integer(OP, "first_slice", first_slice, low=0),
    )
    if options.proved and score not in get_args(NearestScore):
        _check.fail(OP, "method", f"='certified' has no bounds of {score!r}; use 'exact'")
    n, m = (math.prod(fit.shape(grid)) for grid in ("Hq Wq", "Hk Wk"))
    if max(n, m) >= 1 << 31:
        _check.fail(OP, "q" if n > m else "k", f"has {max(n, m)} pixels, expected under 2^31")
    return engine.search(fit, options, _masks(fit, key_mask, mask), progress, max_bytes)


def _masks(fit: _check.Fit, key_mask: Bools | None, mask: Bools | None) -> Masks:
    """Masks folded to one leading axis; without a mask a row is empty."""
    n, m = math.prod(fit.shape("Hq Wq")), math.prod(fit.shape("Hk Wk"))
    columns: list[Ints] = []
    folded: list[Bools] = []
    for name, value, spec, shape in (
        ("key_mask", key_mask, "Hk Wk", (m,)),
        ("mask", mask, "Hq Wq Hk Wk", (n, m)),
    ):
        if value is None:
            folded.append(np.empty((1,) + (0,) * len(shape), bool))
            columns.append(np.zeros((fit.batch, 1), np.int64))
            continue
        given = _check.booleans(OP, name, value)
        core, rank = fit.shape(spec), len(spec.split())
        if given.shape[-rank:] != core:
            _check.fail(OP, name, f"has shape {given.shape}, expected (..., {spec}) = {core}")
        columns.append(_check.slices(OP, name, given.shape[:-rank], fit.lead)[:, None])
        folded.append(given.reshape(-1, *shape))
    table = np.concatenate(columns, axis=1, dtype=np.int64)
    return Masks(_check.frozen(folded[0]), _check.frozen(folded[1]), table)
