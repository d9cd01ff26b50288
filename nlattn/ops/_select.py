"""The choice of a few keys, checked: how many, by what measure, or which."""

from __future__ import annotations

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Ints
from nlattn.engines.selected import SELECT, Selection, best, key_scores


def chosen_keys(
    fit: _check.Fit,
    *,
    index: object,
    keys: object,
    scores: object,
    select: object,
    scale: float | None,
    seed: object,
) -> Ints:
    """Keys of every slice of `k`, (slices, s) ascending; from `index` if that is given."""
    op, k = fit.op, fit["k"]
    m = k.shape[1]
    chosen = Selection(
        min(_check.integer(op, "keys", keys, low=1), m),
        _check.choice(op, "select", select, SELECT),
        k.shape[2] ** -0.5 if scale is None else _check.number(op, "scale", scale),
        _check.integer(op, "seed", seed),
    )
    if index is not None:
        if scores is not None:
            _check.fail(op, "scores", "has no place beside index, which says the keys")
        return _checked_index(fit, index)
    given = None if scores is None else _checked_scores(fit, scores)
    return best(key_scores(fit, chosen) if given is None else given, chosen.keys)


def _lead(fit: _check.Fit, name: str, shape: tuple[int, ...], last: str) -> tuple[int, ...]:
    """Leading axes of `k`, to which those of an array beside it must broadcast."""
    lead = fit.lead_of("k")
    if not (shape and _check.broadcasts(shape[:-1], lead)):
        listed = ", ".join(map(str, (*lead, last))) + ("" if lead else ",")
        _check.fail(fit.op, name, f"has shape {shape}, expected ({listed}), as the heads of k")
    return lead


def _checked_scores(fit: _check.Fit, scores: object) -> Floats:
    x = _check.array(fit.op, "scores", scores).astype(np.float64, copy=False)
    m = fit.dims["m"]
    lead = _lead(fit, "scores", x.shape, f"m={m}")
    if x.shape[-1] != m:
        _check.fail(fit.op, "scores", f"has shape {x.shape}, expected m={m} of them, from k")
    if np.isnan(x).any():
        where = [int(i) for i in np.argwhere(np.isnan(x))[0]]
        _check.fail(fit.op, f"scores{where}", "is nan, expected a number for each key")
    whole: Floats = np.broadcast_to(x, (*lead, m)).reshape(-1, m)
    return whole


def _checked_index(fit: _check.Fit, index: object) -> Ints:
    x = _check.integers(fit.op, "index", index)
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
