"""The options of dense attention, checked and made into what its kernels read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nlattn import _check
from nlattn._check import Fit
from nlattn._types import Bools, Floats, Ints
from nlattn.engines.dense import FAR
from nlattn.kernels.panel import Scores


def prepare(
    fit: Fit,
    *,
    scale: float | None,
    softcap: float | None,
    bias: Floats | None,
    mask: Bools | None,
    causal: bool,
    causal_offset: int,
    window: tuple[int | None, int | None] | None,
    nonfinite: str,
) -> Scores:
    """Scores of the arrays in `fit` under these options."""
    op = fit.op
    d = fit.dims["d"]
    scale = d**-0.5 if scale is None else _check.number(op, "scale", scale)
    cap = 0.0 if softcap is None else _check.number(op, "softcap", softcap, positive=True)
    low, high = band(op, causal, causal_offset, window)
    slices = np.zeros((fit.batch, 5), np.int64)
    columns = min(3, len(fit.index[0])) if fit.batch else 0
    slices[:, :columns] = fit.index[:, :columns]
    a_bias = _bias(fit, bias, nonfinite)
    a_mask = truth_values(fit, mask)
    folded_bias, slices[:, 3] = fold(fit, "bias", a_bias)
    folded_mask, slices[:, 4] = fold(fit, "mask", a_mask)
    return Scores(
        fit["q"],
        fit["k"],
        folded_bias,
        folded_mask,
        _check.frozen(slices),
        fit.dtype.type(scale),
        fit.dtype.type(cap),
        low,
        high,
        bias is not None,
        mask is not None,
    )


def band(op: str, causal: object, offset: object, window: object) -> tuple[int, int]:
    """Bounds of ``key - query``."""
    shift = _check.integer(op, "causal_offset", offset)
    if not _check.flag(op, "causal", causal):
        if shift:
            _check.fail(op, f"causal_offset={shift}", "has no meaning without causal=True")
        shift = FAR
    left = right = FAR
    if window is not None:
        sides = [
            FAR if side is None else _check.integer(op, f"window[{i}]", side, low=0)
            for i, side in enumerate(_check.pair_of(op, "window", window, "(left, right)"))
        ]
        left, right = sides
    return max(-left, -FAR), max(-FAR, min(shift, right, FAR))


def _bias(fit: Fit, bias: object, nonfinite: str) -> Any:
    op = fit.op
    if bias is None:
        return np.zeros((1, 1), fit.dtype)
    x = _check.array(op, "bias", bias)
    _check.one_dtype(op, {"q": fit.out_dtype, "bias": x.dtype})
    if nonfinite == "raise":
        bad = np.isnan(x) | (x == np.inf)
        if bad.any():
            where = [int(i) for i in np.argwhere(bad)[0]]
            _check.fail(op, f"bias{where}", f"is {x[tuple(where)]}, expected finite values or -inf")
    return x


def truth_values(fit: Fit, mask: object) -> Any:
    if mask is None:
        return np.ones((1, 1), np.bool_)
    x = _check.booleans(fit.op, "mask", mask)
    # An axis that was broadcast is read once.
    shared = [slice(0, 1) if step == 0 else slice(None) for step in x.strides]
    return x[tuple(shared)] if x.size else x


def fold(fit: Fit, name: str, x: Any) -> tuple[Any, Ints]:
    """One leading axis, size-1 axes kept, and the slice that belongs to each head."""
    scores = (*fit.lead, fit.dims["n"], fit.dims["m"])
    try:
        fits = np.broadcast_shapes(x.shape, scores) == scores
    except ValueError:
        fits = False
    if not fits:
        _check.fail(fit.op, name, f"has shape {x.shape}, expected one that broadcasts to {scores}")
    x = x.reshape((1,) * (len(scores) - x.ndim) + x.shape)
    lead = x.shape[:-2]
    table = _check.slices(fit.op, name, lead, fit.lead)
    dtype = np.bool_ if name == "mask" else fit.dtype
    return _check.frozen(x, dtype).reshape((math.prod(lead), *x.shape[-2:])), table
