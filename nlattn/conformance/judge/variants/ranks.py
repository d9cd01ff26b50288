"""ENLCA's loss gone wrong: its hinge, and the ranks that it compares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nlattn._types import Array, Function, Result
from nlattn.conformance.judge.variants.base import Call, Run, Variant, after, option, step

_LOSS = ("ranks",)


def _unhinged(c: Call) -> Result:
    """The mean of what the hinge would cut: a margin so large that it cuts nothing, taken off."""
    far = 1e3
    return c.given(margin=c["margin"] + far)() - far


def _loss(change: Callable[[Array, Array, Array, float], Result]) -> Run:
    """``change(hinge, pos, neg, margin)`` in place of the hinge."""

    def wrong(_: Call, f: Function, scores: Array, *args: Any) -> Result:
        margin = args[2]
        hinge, pos, neg = f(scores, *args)
        return change(hinge, pos, neg, margin), pos, neg

    return step("_hinge", wrong)


def _geometric(
    _: Call, f: Function, scores: Array, positives: int, negatives: Any, margin: float, eps: float
) -> Result:
    _, pos, neg = f(scores, positives, negatives, margin, eps)
    logs = np.log(scores[..., negatives[0] : negatives[1]]).mean(-1)
    return margin - (np.log(pos) - logs), pos, neg


def _ascending(c: Call, f: Function, q: Array, k: Array, *args: object) -> Result:  # noqa: ARG001
    order, scores = f(q, -k, *args)
    return order, 1 / scores


def _ranks(first: int, last: int) -> Run:
    """Negatives from other ranks on, and up to others."""
    return option(negatives=lambda c: [c["negatives"][0] + first, c["negatives"][1] + last])


_RANKS = (
    ("with the negatives one rank too early", -1, -1),
    ("with the negatives one rank too late", 1, 1),
    ("with one negative too many, the next rank", 0, 1),
    ("without the last of the negatives", 0, -1),
    ("with one negative too many, the rank before", -1, 0),
    ("without the first of the negatives", 1, 0),
)

VARIANTS = (
    Variant(
        "summed over queries, not averaged", _LOSS, after(lambda c, out: out * c["q"].shape[-2])
    ),
    Variant("without the hinge", _LOSS, _unhinged),
    Variant("with the margin's sign turned", _LOSS, option(margin=lambda c: -c["margin"])),
    Variant("without the margin", _LOSS, option(margin=0.0)),
    Variant(
        "with logarithms in base 2",
        _LOSS,
        _loss(lambda hinge, pos, neg, margin: margin + (hinge - margin) / np.log(2)),
    ),
    Variant(
        "with logarithms in base 10",
        _LOSS,
        _loss(lambda hinge, pos, neg, margin: margin + (hinge - margin) / np.log(10)),
    ),
    Variant(
        "without the logarithm",
        _LOSS,
        _loss(lambda hinge, pos, neg, margin: margin - pos / (neg + 1e-6)),
    ),
    Variant(
        "with positives and negatives exchanged",
        _LOSS,
        _loss(lambda hinge, pos, neg, margin: 2 * margin - hinge),
    ),
    Variant(
        "with the mean of logarithms of the negatives, not of their scores",
        _LOSS,
        step("_hinge", _geometric),
    ),
    Variant("with the least scores first", _LOSS, step("_ranked", _ascending)),
    Variant(
        "without the best key, as if ranks were counted from 1",
        _LOSS,
        step("_ranked", lambda _, f, *args: tuple(x[..., 1:] for x in f(*args[:-1], args[-1] + 1))),
    ),
    Variant("with one positive too few", _LOSS, option(positives=lambda c: c["positives"] - 1)),
    Variant("with one positive too many", _LOSS, option(positives=lambda c: c["positives"] + 1)),
    *(Variant(name, _LOSS, _ranks(first, last)) for name, first, last in _RANKS),
    Variant(
        "with all later keys as negatives",
        _LOSS,
        option(negatives=lambda c: [c["negatives"][0], c["k"].shape[-2]]),
    ),
)
