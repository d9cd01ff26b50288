"""Which few keys stand for all: scores of keys by several measures, and the best of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Ints
from nlattn.engines import leverage
from nlattn.engines.draws import uniform
from nlattn.engines.support import integers
from nlattn.ops.dense import attention_map

SELECT = ("leverage", "norm", "random", "oracle")


def chosen_keys(
    fit: _check.Fit,
    *,
    index: Any,
    keys: object,
    scores: Any,
    select: object,
    scale: float | None,
    seed: object,
) -> Ints:
    """Keys of every slice of `k`, (slices, s) ascending; from `index` if that is given."""
    op, k = fit.op, fit["k"]
    slices, m = k.shape[:2]
    count = min(_check.integer(op, "keys", keys, low=1), m)
    kind = _check.choice(op, "select", select, SELECT)
    draw = _check.integer(op, "seed", seed)
    if scale is not None:
        _check.number(op, "scale", scale)
    if index is not None:
        if scores is not None:
            _check.fail(op, "scores", "has no place beside index, which says the keys")
        return _checked_index(fit, index)
    if scores is not None:
        scores = _checked_scores(fit, scores)
    elif count == m:
        scores = np.zeros((slices, m))
    elif kind == "leverage":
        scores = leverage.scores(k, leverage.factors(k, "qr", None)[0])
    elif kind == "norm":
        scores = np.einsum("bmd,bmd->bm", k, k, dtype=np.float64)
    elif kind == "random":
        scores = uniform(draw, np.arange(slices)[:, None], 0, np.arange(m), 0)
    else:
        scores = received(fit, scale)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    ascending: Ints = np.sort(best, axis=1)
    return ascending


def received(fit: _check.Fit, scale: float | None) -> Floats:
    """Softmax mass that each key gets from all queries that see it, (slices, m)."""
    mass: Floats = np.zeros(fit["k"].shape[:2])
    one = np.ones(fit.dims["n"], fit.dtype)
    for query, key in fit.index[:, :2]:
        A = attention_map(fit["q"][query], fit["k"][key], scale=scale, nonfinite="propagate")
        mass[key] += A.T @ one
    return mass


def _lead(fit: _check.Fit, name: str, shape: tuple[int, ...], last: str) -> tuple[int, ...]:
    """Leading axes of `k`, to which those of an array beside it must broadcast."""
    lead = fit.lead_of("k")
    try:
        fits = bool(shape) and np.broadcast_shapes(shape[:-1], lead) == lead
    except ValueError:
        fits = False
    if not fits:
        listed = ", ".join(map(str, (*lead, last))) + ("" if lead else ",")
        _check.fail(fit.op, name, f"has shape {shape}, expected ({listed}), as the heads of k")
    return lead


def _checked_scores(fit: _check.Fit, scores: Any) -> Floats:
    x = _check.array(fit.op, "scores", scores).astype(np.float64, copy=False)
    m = fit.dims["m"]
    lead = _lead(fit, "scores", x.shape, f"m={m}")
    if x.shape[-1] != m:
        _check.fail(fit.op, "scores", f"has shape {x.shape}, expected m={m} of them, from k")
    if np.isnan(x).any():
        where = [int(i) for i in np.argwhere(np.isnan(x))[0]]
        _check.fail(fit.op, f"scores{where}", "is nan, expected an order of the keys")
    whole: Floats = np.broadcast_to(x, (*lead, m)).reshape(-1, m)
    return whole


def _checked_index(fit: _check.Fit, index: Any) -> Ints:
    x = integers(fit.op, "index", index)
    lead, m = _lead(fit, "index", x.shape, "s"), fit.dims["m"]
    outside = (x < 0) | (x >= m)
    if outside.any():
        where = [int(i) for i in np.argwhere(outside)[0]]
        _check.fail(fit.op, f"index{where}", f"is {x[tuple(where)]}, expected 0 to {m - 1}")
    x = np.sort(x.astype(np.int64), axis=-1)
    if (np.diff(x) == 0).any():
        where = [int(i) for i in np.argwhere(np.diff(x) == 0)[0]]
        _check.fail(fit.op, "index", f"holds key {x[tuple(where)]} twice, expected each key once")
    whole: Ints = np.broadcast_to(x, (*lead, x.shape[-1])).reshape(-1, x.shape[-1])
    return whole
