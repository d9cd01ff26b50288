"""Softmax attention once more, by the engine of dense attention."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nlattn import _check
from nlattn._modes import Nonfinite
from nlattn._types import Floats
from nlattn.engines import dense as engine
from nlattn.kernels.panel import Scores
from nlattn.maps.dense import DenseMap


def soft_mean(
    q: Floats, k: Floats, v: Floats, *, scale: float | None = None, nonfinite: Nonfinite = "raise"
) -> Floats:
    """Softmax attention: ``out[i] = sum_j softmax_j(scale q[i].k[j]) v[j]``.

    Parameters
    ----------
    q, k, v : (..., n, d), (..., m, d), (..., m, e) arrays of one dtype, float32 or float64
        Queries, keys, values. Leading axes broadcast.
    scale : float, optional
        Factor on the scores; ``1/sqrt(d)`` if omitted.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities.

    Returns
    -------
    (..., n, e) array, dtype of `q`

    Raises
    ------
    ValueError
        Shapes do not fit, or a value is not finite.

    Notes
    -----
    ``n m (d + e)`` multiply-adds. Source: [vaswani2017, eq. 1]. Status: paper.
    """
    arrays = {"q": (q, "n d"), "k": (k, "m d"), "v": (v, "m e")}
    fit = _check.fit("soft_mean", arrays, nonfinite=nonfinite)
    out = fit.empty("n e")
    for head, (p, at) in enumerate(_heads(fit, scale)):
        out[head] = engine.attend(p, fit["v"][at])[0]
    return fit.unfold(out)


def soft_mean_map(
    q: Floats, k: Floats, *, scale: float | None = None, nonfinite: Nonfinite = "raise"
) -> DenseMap:
    """The map of one head's `soft_mean`."""
    fit = _check.fit("soft_mean_map", {"q": (q, "n d"), "k": (k, "m d")}, nonfinite=nonfinite)
    _check.one_head(fit)
    factor = fit.dims["d"] ** -0.5 if scale is None else _check.number(fit.op, "scale", scale)
    return DenseMap(engine.dot_scores(fit["q"], fit["k"], factor), None, None)


def soft_mean_vjp(
    q: Floats,
    k: Floats,
    v: Floats,
    dout: Floats,
    *,
    scale: float | None = None,
    nonfinite: Nonfinite = "raise",
) -> tuple[Floats, Floats, Floats]:
    """Gradients (dq, dk, dv) of ``sum(dout * out)``."""
    arrays = {"q": (q, "n d"), "k": (k, "m d"), "v": (v, "m e"), "dout": (dout, "n e")}
    fit = _check.fit("soft_mean_vjp", arrays, nonfinite=nonfinite)
    dq, dk, dv = fit.empty("n d"), fit.empty("m d"), fit.empty("m e")
    for head, (p, at) in enumerate(_heads(fit, scale)):
        v_own, dout_own = fit["v"][at], fit["dout"][head : head + 1]
        out, norm = engine.attend(p, v_own)
        delta = np.einsum("bne,bne->bn", out, dout_own)
        parts = engine.vjp(p, v_own, dout_own, norm, delta)
        for gradient, part in zip((dq, dk, dv), parts, strict=True):
            gradient[head] = part[0]
    return fit.reduce("q", dq), fit.reduce("k", dk), fit.reduce("v", dv)


def _heads(fit: _check.Fit, scale: float | None) -> Iterator[tuple[Scores, slice]]:
    """Scores of every head, and which slice of the values is its own."""
    factor = fit.dims["d"] ** -0.5 if scale is None else _check.number(fit.op, "scale", scale)
    for q, k, v in fit.slices("q", "k", "v"):
        scores = engine.dot_scores(fit["q"][q : q + 1], fit["k"][k : k + 1], factor)
        yield scores, slice(v, v + 1)
