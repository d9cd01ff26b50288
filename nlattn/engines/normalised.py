"""Rows of unit root mean square, as queries and keys are made before their product."""

from __future__ import annotations

import numpy as np

from nlattn._types import Floats


def normalised(x: Floats, eps: float) -> Floats:
    """``x / sqrt(mean(x^2) + eps)`` over channels, computed in float64."""
    y, _ = _parts(x, eps)
    return y.astype(x.dtype)


def normalised_vjp(x: Floats, g: Floats, eps: float) -> Floats:
    """Gradient of ``sum(g normalised(x))``: ``(g - y mean(g y)) / root``; 0 where g is."""
    y, root = _parts(x, eps)
    with np.errstate(over="ignore", invalid="ignore"):
        dx: Floats = ((g - y * (g * y).mean(-1, keepdims=True)) / root).astype(x.dtype)
    dx[(g == 0).all(-1)] = 0
    return dx


def _parts(x: Floats, eps: float) -> tuple[Floats, Floats]:
    """Normalised rows, and what they were divided by; squares are of numbers near 1."""
    wide = x.astype(np.float64)
    top = abs(wide).max(-1, keepdims=True)
    unit = np.where(top > 0, top, 1)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        part = wide / unit
        root = np.sqrt((part * part).mean(-1, keepdims=True) + eps / unit / unit)
        return part / root, root * unit
