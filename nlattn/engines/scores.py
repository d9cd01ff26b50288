"""Scores by which keys are searched, by name: number of the kernels, factor, vectors."""

from __future__ import annotations

import numpy as np

from nlattn import _check
from nlattn._modes import Score, SoftmaxOrGaussian
from nlattn._types import Floats
from nlattn.kernels import scores

SCORES: dict[Score, int] = {
    "dot": scores.DOT,
    "cosine": scores.DOT,
    "neg_l2": scores.NEG_L2,
    "absdot": scores.ABSDOT,
}


_WEIGHTS: dict[SoftmaxOrGaussian, Score] = {"softmax": "dot", "gaussian": "neg_l2"}


def weighing(
    op: str, weight: SoftmaxOrGaussian, d: int, scale: float | None, bandwidth: float
) -> tuple[int, float]:
    """Number and factor of the scores whose exponentials are the weights."""
    score = _WEIGHTS[_check.choice(op, "weight", weight, tuple(_WEIGHTS))]
    return SCORES[score], factor(op, score, d, scale, bandwidth)


def factor(op: str, score: str, d: int, scale: float | None, bandwidth: float) -> float:
    """What sums over channels are multiplied by, from the options of a call."""
    width = _check.number(op, "bandwidth", bandwidth, positive=True)
    default = 1.0 if score == "cosine" else d**-0.5
    given = default if scale is None else _check.number(op, "scale", scale)
    return width**-2 if score == "neg_l2" else float(given)


def vectors(x: Floats, score: str) -> Floats:
    """What is multiplied: the cosine takes vectors of unit length."""
    if score != "cosine":
        return x
    top = abs(x).max(-1, keepdims=True, initial=0)  # powers of two spare squares their limits
    x = np.ldexp(x, -np.where(np.isfinite(top), np.frexp(top)[1], 0))
    length = np.sqrt((x * x).sum(-1, keepdims=True))
    with np.errstate(invalid="ignore"):  # infinities have no direction
        return np.divide(x, length, out=np.zeros_like(x), where=length > 0)
