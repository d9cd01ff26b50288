"""Batch normalisation over all axes but the channels: with kept statistics, and with the batch's.

Means and variances are accumulated in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn._types import Floats
from nlattn.layers._conv import total


class Statistics(NamedTuple):
    """Mean and variance of every channel, float64."""

    mean: Floats
    variance: Floats
    size: int = 0
    """How many values each is taken over; 0 for statistics that were kept."""


class NormGradients(NamedTuple):
    """Gradients of batch normalisation."""

    x: Floats
    scale: Floats
    shift: Floats


def statistics(x: Floats) -> Statistics:
    """Mean and biased variance over all axes of x but the last."""
    axes, size = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    mean = x.mean(axes, dtype=np.float64)
    return Statistics(mean, ((x - mean) ** 2).mean(axes), size)


def moved(kept: Statistics, batch: Statistics, momentum: float = 0.1) -> Statistics:
    """Running statistics after a batch, whose variance counts unbiased."""
    unbiased = batch.variance * (batch.size / (batch.size - 1))
    mean = (1 - momentum) * kept.mean + momentum * batch.mean
    return Statistics(mean, (1 - momentum) * kept.variance + momentum * unbiased)


def normalise(x: Floats, s: Statistics, eps: float, scale: Floats, shift: Floats) -> Floats:
    """``scale (x - mean) / sqrt(variance + eps) + shift``, in the dtype of x."""
    return (_unit(x, s, eps) * scale + shift).astype(x.dtype)


def normalise_vjp(x: Floats, s: Statistics, eps: float, scale: Floats, dy: Floats) -> NormGradients:
    """Gradients of `normalise`; through the statistics too if they are the batch's (`size`)."""
    unit = _unit(x, s, eps)
    dunit = dy * scale.astype(np.float64)
    if s.size:
        axes = tuple(range(x.ndim - 1))
        dunit = dunit - dunit.mean(axes) - unit * (dunit * unit).mean(axes)
    dx = dunit / np.sqrt(s.variance + eps)
    return NormGradients(dx.astype(x.dtype), total(dy * unit).astype(x.dtype), total(dy))


def _unit(x: Floats, s: Statistics, eps: float) -> Floats:
    with np.errstate(all="ignore"):
        unit: Floats = (x - s.mean) / np.sqrt(s.variance + eps)
    return unit
