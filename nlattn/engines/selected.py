"""Which few keys stand for all: scores of keys by several measures, and the best of them."""

from __future__ import annotations

from typing import NamedTuple, get_args

import numpy as np

from nlattn import _check
from nlattn._modes import KeyChoice
from nlattn._types import Floats, Ints
from nlattn.engines import dense, leverage
from nlattn.engines.draws import uniform

SELECT: tuple[KeyChoice, ...] = get_args(KeyChoice)


class Selection(NamedTuple):
    """Checked choice of how keys are selected."""

    keys: int
    """At most all."""
    select: str
    factor: float
    """Of the scores q.k, for "oracle"."""
    seed: int


def key_scores(fit: _check.Fit, chosen: Selection) -> Floats:
    """Score of every key of every slice of k, (slices, m) float64."""
    k = fit["k"]
    slices, m = k.shape[:2]
    if chosen.keys == m:
        return np.zeros((slices, m))
    if chosen.select == "leverage":
        return leverage.scores(k, leverage.factors(k, "qr", None)[0])
    if chosen.select == "norm":
        return np.asarray(np.einsum("bmd,bmd->bm", k, k, dtype=np.float64))
    if chosen.select == "random":
        return uniform(chosen.seed, np.arange(slices)[:, None], 0, np.arange(m), 0)
    return received(fit, chosen.factor)


def best(scores: Floats, count: int) -> Ints:
    """The keys of largest score in each row, ascending; ties go to the lowest."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    ascending: Ints = np.sort(order, axis=1)
    return ascending


def received(fit: _check.Fit, factor: float) -> Floats:
    """Softmax mass that each key gets from all queries that see it, (slices, m)."""
    q, k = fit["q"], fit["k"]
    mass: Floats = np.zeros(k.shape[:2])
    one = _check.frozen(np.ones((q.shape[1], 1), fit.dtype))
    none = _check.frozen(np.zeros((1, k.shape[1], 1), fit.dtype))
    for query, key in fit.slices("q", "k"):
        p = dense.dot_scores(q[query : query + 1], k[key : key + 1], factor)
        _, norm = dense.attend(p, none)
        mass[key] += dense.adjoint(p, norm, one)[:, 0]
    return mass
