"""What is applied to scores or to their sums, gone wrong: a relu, a hinge, a floor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nlattn._types import Array
from nlattn.conformance.judge.variants.base import Call, Run, Variant, needs, several, step
from nlattn.conformance.judge.variants.linear import _normaliser

_PLAIN = ("pairwise",)
Change = Callable[[Array], Array]


def _changed(pairwise: str, change: Change) -> Run:
    """Scores of one kind changed before they become weights."""

    def run(c: Call) -> Any:
        if c["pairwise"] != pairwise:
            raise ValueError
        return step("weights", lambda _, f, s, kind: f(change(s), kind))(c)

    return needs("pairwise", run)


def _plain(change: Change) -> Run:
    """In place of the relu of a sum."""
    return needs("weight", step("weights", lambda _, f, s, kind: change(s) / s.shape[-1]))


def _of_positive(s: Array) -> Array:
    count = (s.real > 0).sum(-1, keepdims=True)
    return np.where(s.real > 0, s, 0) / np.maximum(count, 1)


def _leaky(slope: float) -> Change:
    return lambda s: np.where(s.real > 0, s, slope * s)


def _hinge_of_the_mean(c: Call) -> Any:
    far = 1e3  # so large a margin that the hinge cuts nothing
    mean = c.given(margin=c["margin"] + far)() - far
    return np.where(mean.real > 0, mean, 0)


def _normaliser_held(A: Array, D: Array) -> Any:
    return A * D / D.real, D


OTHERS = (
    Variant(
        "without the gradient of the normaliser",
        ("positive features", "amplified features"),
        _normaliser(_normaliser_held),
    ),
    Variant(
        "without the last feature",
        ("positive features", "amplified features"),
        lambda c: c.given(projection=c["projection"][:-1])(),
    ),
    Variant("with the hinge after the mean", ("ranks",), _hinge_of_the_mean),
    Variant(
        "with the floor added to lengths, not their least",
        ("amplified features", "ranks"),
        step("_length", lambda c, f, x: f(x) + c.get("floor", 5e-5)),
    ),
)
VARIANTS = OTHERS + several(
    _PLAIN,
    {
        "with a relu on the products": _changed(
            "dot_product", lambda s: np.where(s.real > 0, s, 0)
        ),
        "with the products' sizes": _changed("dot_product", lambda s: np.where(s.real > 0, s, -s)),
        **{f"with a relu that leaks {x:g}": _plain(_leaky(x)) for x in (0.01, 0.05, 0.1, 0.2)},
        "with the size in place of the relu": _plain(_leaky(-1.0)),
        "with the square of the relu": _plain(lambda s: np.where(s.real > 0, s * s, 0)),
        "divided by the number of positive weights, not of keys": needs(
            "weight", step("weights", lambda _, __, s, kind: _of_positive(s))
        ),
        "with a smooth relu": _plain(lambda s: np.log(1 + np.exp(s))),
    },
)
