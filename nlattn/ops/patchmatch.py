"""PatchMatch: which keys of a grid suit each query of a grid best."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from nlattn import _check
from nlattn._types import Bools, Field, Floats, Ints, Work
from nlattn.engines import random_search, tree_search
from nlattn.engines.random_search import Progress
from nlattn.kernels import exact, scores
from nlattn.kernels import patchmatch as kernels
from nlattn.kernels.matching import SAME, SHIFT, TILE, Plan, Round

OP = "patchmatch"
CANDIDATES = ("random", "tree")
SCORES = ("dot", "cosine", "neg_l2", "absdot")
_KINDS = {"dot": scores.DOT, "cosine": scores.DOT, "neg_l2": scores.NEG_L2, "absdot": scores.ABSDOT}
_PROPAGATE = {"same": SAME, "shift": SHIFT, "both": SAME | SHIFT}
_LINE = 64  # bytes of a cache line


def patchmatch(
    q: Floats,
    k: Floats,
    *,
    candidates: str = "random",
    iterations: int | None = None,
    topk: int = 1,
    propagate: str = "both",
    score: str = "dot",
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
    method: str = "buffered",
    stop_count: int | None = None,
    patience: int = 1,
    first_slice: int = 0,
    progress: Progress = None,
    nonfinite: str = "raise",
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
    method : {"buffered", "exact"}
        "exact" tries every key: ``n m`` scores.
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
    """
    fit = _check.fit(OP, {"q": (q, "Hq Wq d"), "k": (k, "Hk Wk d")}, nonfinite=nonfinite)
    by_trees = _check.choice(OP, "candidates", candidates, CANDIDATES) == "tree"
    if iterations is None:
        iterations = 1 if by_trees else 5
    rounds = _check.integer(OP, "iterations", iterations, low=0)
    fit.dims["topk"] = _check.integer(OP, "topk", topk, low=1, high=64)
    if by_trees and jumps is not None:
        _check.fail(OP, "jumps", "belongs to candidates='random'; trees ask the next neighbours")
    jumps = (8, 4, 2, 1) if jumps is None else jumps
    steps = [_check.integer(OP, "jumps", jump, low=1) for jump in jumps]
    forest = _check.integer(OP, "trees", trees, low=1, high=64)
    whole = _check.choice(OP, "method", method, ("buffered", "exact")) == "exact"
    width = _check.odd(OP, "patch", patch, "its centre is a pixel")
    quiet = None if stop_count is None else _check.integer(OP, "stop_count", stop_count, low=0)
    patience = _check.integer(OP, "patience", patience, low=1)
    plan = _plan(fit, score, scale, bandwidth, width, propagate, causal, seed, first_slice)
    identity = _check.flag(OP, "identity", identity)

    n, m = plan.Hq * plan.Wq, plan.Hk * plan.Wk
    if max(n, m) >= 1 << 31:
        _check.fail(OP, "q" if n > m else "k", f"has {max(n, m)} pixels, expected under 2^31")
    entry = 2 * (4 + fit.dtype.itemsize) + 8 + fit.dtype.itemsize
    needed = fit.batch * n * (entry * topk + 8)
    if by_trees:
        needed += tree_search.nbytes(n, m, forest, topk, fit.dtype.itemsize)
    _check.memory(OP, needed, max_bytes, f"{topk} matches of {fit.batch * n} queries", "tile q")

    masks, tables = _masks(fit, key_mask, mask)
    inputs = (_features(fit, "q", score, width), _features(fit, "k", score, width), tables, *masks)
    index = np.full((2, fit.batch, n, topk), -1, np.int32)
    value = np.full(index.shape, -np.inf, fit.dtype)
    tested = np.zeros((fit.batch, n), np.int64)
    state = (index, value, tested)
    side = 0
    changed: list[int] = []
    if whole:
        runs = fit.batch * -(-n // TILE)
        for first, last in random_search.calls(runs, TILE * m):
            step = Round(0, 0, 0, 0, 0, 0, first, last)
            exact.scan(*inputs, plan, step, *state)
            random_search.tell(progress, last, runs)
    elif fit.batch:
        kernels.begin(*inputs, _valid(masks[0], m, identity), plan, *state)
        calm = random_search.Calm(quiet, patience, changed)
        if by_trees:
            side = tree_search.search(inputs, plan, forest, rounds, progress, calm, state)
        else:
            side = random_search.search(inputs, plan, steps, rounds, progress, calm, state)
    total = int(tested.sum())
    terms = total * width**2 * plan.d
    work = Work(
        total,
        terms,
        2 * terms * fit.dtype.itemsize,
        fit.unfold(tested.reshape(fit.batch, plan.Hq, plan.Wq), cast=False),
        np.array(changed, np.int64),
    )
    shape = (fit.batch, plan.Hq, plan.Wq, topk)
    matches = fit.unfold(index[side].astype(np.int64).reshape(shape), cast=False)
    best = fit.unfold(value[side].reshape(shape), cast=False)
    return Field(matches, best, work, (plan.Hk, plan.Wk))


def _plan(
    fit: _check.Fit,
    score: str,
    scale: float | None,
    bandwidth: float,
    patch: int,
    propagate: str,
    causal: bool,
    seed: int,
    first_slice: int,
) -> Plan:
    _check.choice(OP, "score", score, SCORES)
    width = _check.number(OP, "bandwidth", bandwidth, positive=True)
    factor = 1.0 if score == "cosine" else fit.dims["d"] ** -0.5
    if scale is not None:
        factor = _check.number(OP, "scale", scale)
    bits = _check.integer(OP, "seed", seed, low=0, high=2**64 - 1)
    Hq, Wq, Hk, Wk, d = fit.shape("Hq Wq Hk Wk d")
    return Plan(
        Hq,
        Wq,
        Hk,
        Wk,
        d,
        patch,
        _KINDS[score],
        width**-2 if score == "neg_l2" else factor,
        _PROPAGATE[_check.choice(OP, "propagate", propagate, tuple(_PROPAGATE))],
        int(_check.flag(OP, "causal", causal)),
        bits - 2**64 if bits >= 2**63 else bits,
        _check.integer(OP, "first_slice", first_slice, low=0),
    )


def _features(fit: _check.Fit, name: str, score: str, patch: int) -> Floats:
    """Features as the kernels read them: padded for patches, of unit length for the cosine."""
    x = fit[name]
    if score == "cosine":
        length = np.sqrt((x * x).sum(-1, keepdims=True))
        x = np.divide(x, length, out=np.zeros_like(x), where=length > 0)
    if patch > 1:
        around = (patch // 2, patch // 2)
        x = np.pad(x, ((0, 0), around, around, (0, 0)), mode="reflect")
    return _on_lines(x.reshape(len(x), math.prod(x.shape[1:])), x.shape[-1])


def _on_lines(x: Floats, d: int) -> Floats:
    """Copy features that would straddle cache lines for no reason but where the array begins."""
    if d * x.itemsize % _LINE == 0 and x.ctypes.data % _LINE:
        buffer = np.empty(x.nbytes + _LINE, np.uint8)
        skip = -buffer.ctypes.data % _LINE
        x, given = buffer[skip : skip + x.nbytes].view(x.dtype).reshape(x.shape), x
        x[...] = given
    return _check.frozen(x)  # type: ignore[no-any-return]


def _masks(
    fit: _check.Fit, key_mask: Bools | None, mask: Bools | None
) -> tuple[tuple[Bools, Bools], Ints]:
    """Masks folded to one leading axis, and all arrays' slices; without a mask a row is empty."""
    n, m = math.prod(fit.shape("Hq Wq")), math.prod(fit.shape("Hk Wk"))
    columns, folded = [fit.index], []
    for name, value, spec, shape in (
        ("key_mask", key_mask, "Hk Wk", (m,)),
        ("mask", mask, "Hq Wq Hk Wk", (n, m)),
    ):
        if value is None:
            folded.append(np.empty((1,) + (0,) * len(shape), bool))
            columns.append(np.zeros((fit.batch, 1), np.int64))
            continue
        given = np.asarray(value)
        core, rank = fit.shape(spec), len(spec.split())
        if given.dtype != bool:
            raise TypeError(f"{OP}: {name} has dtype {given.dtype}, expected bool")
        if given.shape[-rank:] != core:
            _check.fail(OP, name, f"has shape {given.shape}, expected (..., {spec}) = {core}")
        lead = given.shape[:-rank]
        numbers = np.arange(math.prod(lead)).reshape(lead)
        try:
            columns.append(np.broadcast_to(numbers, fit.lead).reshape(-1, 1))
        except ValueError:
            _check.fail(OP, name, f"has leading axes {lead}, expected them to fit {fit.lead}")
        folded.append(given.reshape(-1, *shape))
    table = np.concatenate(columns, axis=1, dtype=np.int64)
    return (_check.frozen(folded[0]), _check.frozen(folded[1])), _check.frozen(table)


def _valid(key_mask: Bools, m: int, identity: bool) -> Ints:
    """Per key mask: whether the own place is tried, how many keys are valid, and which."""
    valid = np.zeros((len(key_mask), 2 + m), np.int32)
    valid[:, 0] = identity
    for row, mask in zip(valid, key_mask, strict=True):
        keys = np.flatnonzero(mask) if mask.size else np.arange(m)
        row[1] = len(keys)
        row[2 : 2 + len(keys)] = keys
    return _check.frozen(valid)  # type: ignore[no-any-return]
