"""The options of dense attention, checked and made into what its kernels read."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from nlattn import _check
from nlattn._check import Fit
from nlattn._modes import Nonfinite
from nlattn._types import Array, Bools, Floats, Ints, PerHead
from nlattn.engines.normalised import normalised
from nlattn.kernels.panel import Scores
from nlattn.ops._band import Positions


class ScoreArguments(NamedTuple):
    """The options of the scores of a call, as they came, beside its `Positions`."""

    scale: float | None = None
    softcap: float | None = None
    bias: Floats | None = None
    mask: Bools | None = None
    mask_block: int | tuple[int, int] | None = None
    sinks: PerHead | None = None
    alibi: PerHead | None = None
    dropout_mask: Bools | None = None
    dropout_scale: float = 1.0
    qk_norm: float | None = None


def prepare(fit: Fit, where: Positions, asked: ScoreArguments, nonfinite: Nonfinite) -> Scores:
    """Scores of the arrays in `fit` under these options."""
    op, d, n, m = fit.op, fit.dims["d"], fit.dims["n"], fit.dims["m"]
    scale, softcap, bias, mask, mask_block, sinks, alibi, dropout_mask, dropout_scale, qk_norm = (
        asked
    )
    scale = d**-0.5 if scale is None else _check.number(op, "scale", scale)
    cap = 0.0 if softcap is None else _check.number(op, "softcap", softcap, positive=True)
    factor = _check.number(op, "dropout_scale", dropout_scale)
    if dropout_mask is None and factor != 1:
        _check.fail(op, f"dropout_scale={factor}", "has no place without a dropout_mask")
    rows, columns = _blocks(op, mask, mask_block)
    slices = np.zeros((fit.batch, 7), np.int64)
    named = min(3, len(fit.index[0])) if fit.batch else 0
    slices[:, :named] = fit.index[:, :named]
    folded_bias, folded_mask, folded_kept = _absent(fit.dtype), _absent(np.bool_), _absent(np.bool_)
    if bias is not None:
        folded_bias, slices[:, 3] = fold(fit, "bias", biases(fit, bias, nonfinite))
    if mask is not None:
        blocks = -(-n // rows), -(-m // columns)
        folded_mask, slices[:, 4] = fold(fit, "mask", truth_values(fit, mask), blocks)
    if dropout_mask is not None:
        kept = truth_values(fit, dropout_mask, "dropout_mask")
        folded_kept, slices[:, 5] = fold(fit, "dropout_mask", kept)
    band, slices[:, 6] = where.band(fit, alibi is not None)
    logits = np.zeros((fit.batch, 2), fit.dtype)
    logits[:, 0] = -np.inf if sinks is None else per_head(fit, "sinks", sinks, nonfinite)
    logits[:, 1] = 0 if alibi is None else per_head(fit, "alibi", alibi, nonfinite)
    q, k = fit["q"], fit["k"]
    if qk_norm is not None:
        eps = _check.number(op, "qk_norm", qk_norm, positive=True)
        q, k = (_check.frozen(normalised(x, eps)) for x in (q, k))
    return Scores(
        q,
        k,
        folded_bias,
        folded_mask,
        folded_kept,
        band,
        _check.frozen(logits),
        _check.frozen(slices),
        fit.dtype.type(scale),
        fit.dtype.type(cap),
        fit.dtype.type(factor),
        rows,
        columns,
        bias is not None,
        mask is not None,
        dropout_mask is not None,
    )


@functools.cache
def _absent(dtype: DTypeLike) -> Array:
    """What stands for a bias or a mask that is not given."""
    return _check.frozen(
        np.ones((1, 1, 1), dtype) if dtype is np.bool_ else np.zeros((1, 1, 1), dtype)
    )


def in_base(op: str, lse_base: str) -> float:
    """What a natural logarithm is multiplied by."""
    return 1 / math.log(2) if _check.choice(op, "lse_base", lse_base, ("e", "2")) == "2" else 1.0


def per_head(fit: Fit, name: str, value: object, nonfinite: Nonfinite) -> Floats:
    """One number for each head, (batch,); -inf stands for no sink."""
    op = fit.op
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = np.asarray(_check.as_float(op, name, value), fit.out_dtype)
    x = _check.array(op, name, value)
    _check.one_dtype(op, {"q": fit.out_dtype, name: x.dtype})
    table = _check.slices(op, name, x.shape, fit.lead)
    numbers: Floats = x.reshape(-1).astype(fit.dtype)
    bad = ~np.isfinite(x) & ~((x == -np.inf) & (name == "sinks"))
    if nonfinite == "raise" and bad.any():
        expected = "expected finite values" + (" or -inf" if name == "sinks" else "")
        _check.fail(
            op, f"{name}{_check.first_of(bad) if x.ndim else ''}", f"is {x[bad][0]}, {expected}"
        )
    return numbers[table]


def _blocks(op: str, mask: object, block: object) -> tuple[int, int]:
    """Queries and keys of a block of the mask."""
    if block is None:
        return 1, 1
    if mask is None:
        _check.fail(op, f"mask_block={_check.quoted(block)}", "has no place without a mask")
    return _check.pair(op, "mask_block", block, 1)


def biases(fit: Fit, bias: object, nonfinite: Nonfinite) -> Floats:
    """What is added to scores, finite or -inf."""
    op = fit.op
    x = _check.array(op, "bias", bias)
    _check.one_dtype(op, {"q": fit.out_dtype, "bias": x.dtype})
    if nonfinite == "raise":
        bad = np.isnan(x) | (x == np.inf)
        if bad.any():
            where = [int(i) for i in np.argwhere(bad)[0]]
            _check.fail(op, f"bias{where}", f"is {x[tuple(where)]}, expected finite values or -inf")
    return x


def truth_values(fit: Fit, mask: object, name: str = "mask") -> Array:
    if mask is None:
        return np.ones((1, 1), np.bool_)
    x = _check.booleans(fit.op, name, mask)
    # An axis that was broadcast is read once.
    shared = [slice(0, 1) if step == 0 else slice(None) for step in x.strides]
    return x[tuple(shared)] if x.size else x


def fold(fit: Fit, name: str, x: Array, pairs: tuple[int, int] | None = None) -> tuple[Array, Ints]:
    """One leading axis, size-1 axes kept, and the slice that belongs to each head."""
    scores = (*fit.lead, *(pairs or fit.shape("n m")))
    if not _check.broadcasts(x.shape, scores):
        _check.fail(fit.op, name, f"has shape {x.shape}, expected one that broadcasts to {scores}")
    x = x.reshape((1,) * (len(scores) - x.ndim) + x.shape)
    lead = x.shape[:-2]
    table = _check.slices(fit.op, name, lead, fit.lead)
    dtype = fit.dtype if name == "bias" else np.bool_
    return _check.frozen(x, dtype).reshape((math.prod(lead), *x.shape[-2:])), table


def alike(op: str, name: str, change: PerHead | None, array: PerHead | None) -> None:
    """Refuse a change of what is not there, or of another shape."""
    if change is not None and (array is None or np.shape(change) != np.shape(array)):
        there = "nothing" if array is None else f"{np.shape(array)}"
        _check.fail(op, name, f"has shape {np.shape(change)}, expected {there} as {name[1:]} has")
