"""Dense softmax attention, one line per equation.

Paper: Vaswani et al., "Attention Is All You Need", 2017, section 3.2.1, eq. 1. Status: paper.
Options as in current practice: soft cap (Gemma 2), additive bias (T5, ALiBi), masks, causal
offset, windows, grouped queries. Arrays may be of any real or complex dtype; in complex arrays the
imaginary part is a perturbation, so maxima and comparisons are those of the real part.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nlattn.oracle.layout import any_layout
from nlattn.oracle.seen import product

Array = NDArray[Any]


class Stages(NamedTuple):
    """Every named stage of the computation, (..., n, m) unless said otherwise."""

    raw: Array
    """``scale q k.T``."""
    capped: Array
    """``softcap tanh(raw / softcap)``."""
    biased: Array
    """``capped + bias``."""
    masked: Array
    """-inf where a query may not attend."""
    seen: Array
    """Whether a query may attend to a key; what it may not see adds nothing, not even NaN."""
    weights: Array
    """Softmax over keys; 0 in a row that may attend to nothing."""
    out: Array
    """(..., n, e) ``weights v``."""
    lse: Array
    """(..., n) log of the sum of exponentials."""


def allowed(
    n: int,
    m: int,
    causal: bool = False,
    causal_offset: int = 0,
    window: tuple[int | None, int | None] | None = None,
) -> Array:
    """Which key each query may attend to by position, (n, m) bool."""
    i, j = np.arange(n)[:, None], np.arange(m)
    yes = np.ones((n, m), bool)
    if causal:
        yes &= j <= i + causal_offset
    if window is not None and window[0] is not None:
        yes &= i - window[0] <= j
    if window is not None and window[1] is not None:
        yes &= j <= i + window[1]
    return yes


@any_layout
def attention_stages(
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Array | None = None,
    mask: Array | None = None,
    causal: bool = False,
    causal_offset: int = 0,
    window: tuple[int | None, int | None] | None = None,
    gqa: bool = False,
    masked_rows: str = "zero",
) -> Stages:
    """All stages of softmax attention, in order; `Stages` says what each is."""
    if gqa:
        k, v = _repeat(k, q.shape[-3]), _repeat(v, q.shape[-3])
    scale = 1 / np.sqrt(q.real.dtype.type(q.shape[-1])) if scale is None else scale
    yes = allowed(q.shape[-2], k.shape[-2], causal, causal_offset, window)
    raw = scale * (q @ np.swapaxes(k, -1, -2))
    capped = raw if softcap is None else softcap * np.tanh(raw / softcap)
    biased = capped if bias is None else capped + bias
    yes = yes if mask is None else yes & mask
    yes = yes if bias is None else yes & ~np.isneginf(bias.real)
    yes = np.broadcast_to(yes, biased.shape)
    masked = np.where(yes, biased, -np.inf)
    top = np.max(masked.real, axis=-1, keepdims=True, initial=-np.inf)
    some = ~np.isneginf(masked.real)
    with np.errstate(invalid="ignore"):  # the softmax of inf is NaN
        shifted = np.where(some, masked, 0) - np.where(np.isneginf(top), 0, top)
    powers = np.where(some, np.exp(shifted), 0)
    total = powers.sum(-1, keepdims=True)
    none = total == 0
    weights = np.where(yes, powers / np.where(none, 1, total), 0)
    with np.errstate(divide="ignore"):
        lse = np.where(none, -np.inf, top + np.log(np.where(none, 1, total)))[..., 0]
    out = product(weights, v, yes)
    if masked_rows == "raise" and none.any():
        raise ValueError("a query may attend to no key")
    if masked_rows == "nan":
        out = np.where(none, np.nan, out)
    return Stages(raw, capped, biased, masked, yes, weights, out, lse)


@any_layout
def attention(q: Array, k: Array, v: Array, *, return_lse: bool = False, **options: Any) -> Any:
    """Softmax attention; options as for `attention_stages`."""
    stages = attention_stages(q, k, v, **options)
    return (stages.out, stages.lse) if return_lse else stages.out


@any_layout
def attention_vjp(
    q: Array,
    k: Array,
    v: Array,
    dout: Array,
    *,
    dlse: Array | None = None,
    masked_rows: str = "zero",
    **options: Any,
) -> tuple[Array, ...]:
    """Gradients (dq, dk, dv[, dbias]) of ``sum(dout out) + sum(dlse lse)``.

    ``dP = dout v.T``, ``dS = P (dP - sum_j P dP + dlse)``; S is scores after bias and mask.
    """
    stages = attention_stages(q, k, v, masked_rows=masked_rows, **options)
    heads = q.shape[-3] if options.get("gqa") else 0
    all_k, all_v = (_repeat(k, heads), _repeat(v, heads)) if heads else (k, v)
    scale, softcap = options.get("scale"), options.get("softcap")
    scale = 1 / np.sqrt(q.real.dtype.type(q.shape[-1])) if scale is None else scale
    P, yes = stages.weights, stages.seen
    P_T, yes_T = np.swapaxes(P, -1, -2), np.swapaxes(yes, -1, -2)
    dv = product(P_T, dout, yes_T)
    dP = np.where(yes, dout @ np.swapaxes(all_v, -1, -2), 0)
    dS = P * (dP - (P * dP).sum(-1, keepdims=True))
    if dlse is not None:
        dS = dS + P * dlse[..., None]
    draw = dS if softcap is None else dS * (1 - np.tanh(stages.raw / softcap) ** 2)
    draw = np.where(yes, draw, 0)
    dq = scale * product(draw, all_k, yes)
    dk = scale * product(np.swapaxes(draw, -1, -2), q, yes_T)
    gradients = [_unbroadcast(dq, q.shape), _unrepeat(dk, k.shape), _unrepeat(dv, v.shape)]
    if options.get("bias") is not None:
        gradients.append(_unbroadcast(dS, np.shape(options["bias"])))
    return tuple(gradients)


def _repeat(x: Array, heads: int) -> Array:
    """Each head of x as often as it takes to have `heads`."""
    return np.repeat(x, heads // x.shape[-3], axis=-3) if x.ndim > 2 else x


def _unbroadcast(gradient: Any, shape: tuple[int, ...]) -> Array:
    """Sum over the axes along which an array of `shape` was broadcast."""
    gradient = gradient.sum(tuple(range(gradient.ndim - len(shape))))
    stretched = tuple(a for a, size in enumerate(shape) if size == 1 != gradient.shape[a])
    total: Array = gradient.sum(stretched, keepdims=True)
    return total


def _unrepeat(gradient: Array, shape: tuple[int, ...]) -> Array:
    """`_unbroadcast`, after summing over the heads that share one of an array of `shape`."""
    if len(shape) > 2 and gradient.shape[-3] != shape[-3]:
        groups = (*gradient.shape[:-3], shape[-3], -1, *gradient.shape[-2:])
        gradient = gradient.reshape(groups).sum(-3)
    return _unbroadcast(gradient, shape)
