"""Bounds of sensitivities gone wrong: ends mixed up, factors of either end left out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nlattn._types import Array, Function, Result
from nlattn.conformance.judge.variants.base import Call, Run, several, step


def _sides(change: Callable[[Call, Array, Array], Result]) -> Run:
    return lambda c: change(c, *c())


def _leverage(c: Call) -> Array:
    return np.asarray(Call("leverage_scores", {"k": c["k"]}, {})())


def _p(c: Call) -> float:
    return float(c.get("p", 2.0))


def _certificate(change: Callable[[Array, Array, float], Array], *, high: bool) -> Run:
    """Another bound from the weights; that from weights of 1 stays."""

    def wrong(_: Call, f: Function, s_v: Array, v: Array, p: float) -> Result:
        return f(s_v, v, p) if (v == 1).all() else change(s_v, v, p)

    def run(c: Call) -> Result:
        if (_p(c) > 2) != high or _p(c) == 2:
            raise ValueError
        return step("certificate", wrong)(c)

    return run


def _without_count(c: Call) -> Result:
    if _p(c) >= 2:
        raise ValueError
    return _leverage(c) ** (_p(c) / 2), c()[1]


VARIANTS = several(
    ("two ends",),
    {
        "with the two ends exchanged": _sides(lambda c, low, high: (high, low)),
        "with the lower end for both": _sides(lambda c, low, high: (low, low)),
        "with the upper end for both": _sides(lambda c, low, high: (high, high)),
        "with leverage as the lower bound": _sides(lambda c, low, high: (_leverage(c), high)),
        "with 1 as the upper bound": _sides(lambda c, low, high: (low, np.ones_like(high))),
        "without the factor (sum of weights)^(p/2 - 1) in the upper bound": _certificate(
            lambda s, v, p: s ** (p / 2), high=True
        ),
        "without the factor of the largest quotient in the upper bound": _certificate(
            lambda s, v, p: s ** (p / 2), high=False
        ),
        "without the factor m^(p/2 - 1) in the lower bound": _without_count,
        "with the weights' bound alone as the upper one, not the least of all": step(
            "certificate",
            lambda c, f, s, v, p: np.ones_like(s) if (v == 1).all() else f(s, v, p),
        ),
    },
)
