"""Dense softmax attention, one line per equation.

Paper: Vaswani et al., "Attention Is All You Need", 2017, section 3.2.1, eq. 1. Status: paper.
Options as in current practice: soft cap (Gemma 2), additive bias (T5), linear bias (ALiBi), masks,
causal offset, windows, lengths, sinks (GPT-OSS), normalised queries and keys, given dropout,
grouped queries. Arrays may be of any real or complex dtype; in complex arrays the imaginary part is
a perturbation, so maxima and comparisons are those of the real part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypedDict

import numpy as np

from nlattn.oracle.layout import any_layout
from nlattn.oracle.seen import product

if TYPE_CHECKING:
    from typing import Unpack

Array = np.ndarray
LOG_2 = float(np.log(2))


class Stages(NamedTuple):
    """Every named stage of the computation, (..., n, m) unless said otherwise."""

    raw: Array
    """``scale q k.T``."""
    capped: Array
    """``softcap tanh(raw / softcap)``."""
    biased: Array
    """``capped + bias - alibi |i + offset - j|``."""
    masked: Array
    """-inf where a query may not attend."""
    seen: Array
    """Whether a query may attend to a key; what it may not see adds nothing, not even NaN."""
    weights: Array
    """Softmax over keys and the sink; 0 in a row that may attend to nothing."""
    out: Array
    """(..., n, e) ``weights v``."""
    lse: Array
    """(..., n) log of the sum of exponentials."""
    sink: Array | None = None
    """(..., n, 1) weight of the sink."""


def positions(
    n: int,
    m: int,
    causal_offset: int | str | Array = 0,
    key_lengths: Array | None = None,
    query_lengths: Array | None = None,
    cu_seqlens_q: Array | None = None,
    cu_seqlens_k: Array | None = None,
) -> tuple[Array, Array, Array, Array]:
    """Place of each query among the keys, with the offset and without; who exists; which pairs do.

    Offsets and lengths are one, or one for each head: results (..., n, 1) thrice, (..., n, m). Of
    packed sequences each begins anew.
    """
    i, j = np.arange(n)[:, None], np.arange(m)[None]
    keys = np.asarray(m if key_lengths is None else key_lengths)[..., None, None]
    queries = np.asarray(n if query_lengths is None else query_lengths)[..., None, None]
    place, there, pairs = i, i < queries, j < keys
    if cu_seqlens_q is not None:
        cu_k = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
        own = np.searchsorted(cu_seqlens_q, i, side="right") - 1
        there = own < len(cu_seqlens_q) - 1
        own = np.minimum(own, len(cu_seqlens_q) - 2)
        start, keys = cu_k[own], np.diff(cu_k)[own]
        queries, place = np.diff(cu_seqlens_q)[own], i - cu_seqlens_q[own] + start
        pairs = (start <= j) & (j < start + keys)
    corner = isinstance(causal_offset, str) and causal_offset == "bottom-right"
    offset = keys - queries if corner else np.asarray(causal_offset)[..., None, None]
    return place + offset, place, there, there & pairs


def allowed(
    n: int,
    m: int,
    causal: bool = False,
    causal_offset: int | str | Array = 0,
    window: tuple[int | None, int | None] | None = None,
    window_about: str = "query",
    **lengths: Unpack[Lengths],
) -> Array:
    """Which key each query may attend to by position, (..., n, m) bool; see `positions`."""
    j = np.arange(m)
    own, place, _, yes = positions(n, m, causal_offset, **lengths)
    if causal:
        yes = yes & (j <= own)
    centre = own if window_about == "offset" else place
    if window is not None and window[0] is not None:
        yes = yes & (centre - window[0] <= j)
    if window is not None and window[1] is not None:
        yes = yes & (j <= centre + window[1])
    return yes


class Lengths(TypedDict, total=False):
    """How long sequences are; see `positions`."""

    key_lengths: Array | None
    query_lengths: Array | None
    cu_seqlens_q: Array | None
    cu_seqlens_k: Array | None


class StageOptions(Lengths, total=False):
    """Options of `attention_stages`."""

    scale: float | None
    softcap: float | None
    bias: Array | None
    mask: Array | None
    mask_block: int | tuple[int, int] | None
    causal: bool
    causal_offset: int | str | Array
    window: tuple[int | None, int | None] | None
    window_about: str
    sinks: Array | None
    alibi: Array | None
    qk_norm: float | None
    dropout_mask: Array | None
    dropout_scale: float
    gqa: bool


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
    mask_block: int | tuple[int, int] | None = None,
    causal: bool = False,
    causal_offset: int | str | Array = 0,
    window: tuple[int | None, int | None] | None = None,
    window_about: str = "query",
    key_lengths: Array | None = None,
    query_lengths: Array | None = None,
    cu_seqlens_q: Array | None = None,
    cu_seqlens_k: Array | None = None,
    sinks: Array | None = None,
    alibi: Array | None = None,
    qk_norm: float | None = None,
    dropout_mask: Array | None = None,
    dropout_scale: float = 1.0,
    gqa: bool = False,
    masked_rows: str = "zero",
) -> Stages:
    """All stages of softmax attention, in order; `Stages` says what each is."""
    if gqa:
        k, v = _repeat(k, q.shape[-3]), _repeat(v, q.shape[-3])
    if qk_norm is not None:
        q, k = rms_normalised(q, qk_norm), rms_normalised(k, qk_norm)
    n, m = q.shape[-2], k.shape[-2]
    scale = 1 / np.sqrt(q.real.dtype.type(q.shape[-1])) if scale is None else scale
    lengths = {"key_lengths": key_lengths, "query_lengths": query_lengths}
    lengths |= {"cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k}
    yes = allowed(n, m, causal, causal_offset, window, window_about, **lengths)
    raw = scale * (q @ np.swapaxes(k, -1, -2))
    capped = raw if softcap is None else softcap * np.tanh(raw / softcap)
    biased = capped if bias is None else capped + bias
    own, _, exists, _ = positions(n, m, causal_offset, **lengths)
    if alibi is not None:
        far = abs(own - np.arange(m)).astype(q.real.dtype)
        biased = biased - np.asarray(alibi)[..., None, None] * far
    if mask is not None:
        yes = yes & (mask if mask_block is None else _of_pairs(mask, mask_block, n, m))
    yes = yes if bias is None else yes & ~np.isneginf(bias.real)
    yes = np.broadcast_to(yes, np.broadcast_shapes(yes.shape, biased.shape))
    masked = np.where(yes, biased, -np.inf)
    top = np.max(masked.real, axis=-1, keepdims=True, initial=-np.inf)
    if sinks is not None:
        logit = np.where(exists, np.asarray(sinks)[..., None, None], -np.inf)
        top = np.maximum(top, logit.real)
    floor = np.where(np.isneginf(top), 0, top)
    some = ~np.isneginf(masked.real)
    with np.errstate(invalid="ignore"):  # the softmax of inf is NaN
        shifted = np.where(some, masked, 0) - floor
    powers = np.where(some, np.exp(shifted), 0)
    total = powers.sum(-1, keepdims=True)
    sink = None
    if sinks is not None:
        power = np.where(np.isneginf(logit.real), 0, np.exp(np.where(exists, logit, 0) - floor))
        total = total + power
        sink = power / np.where(total == 0, 1, total)
    none = total == 0
    weights = np.where(yes, powers / np.where(none, 1, total), 0)
    with np.errstate(divide="ignore"):
        lse = np.where(none, -np.inf, top + np.log(np.where(none, 1, total)))[..., 0]
    kept, used = weights, yes
    if dropout_mask is not None:
        kept, used = np.where(dropout_mask, weights, 0) * dropout_scale, yes & dropout_mask
    out = product(kept, v, used)
    lse = np.broadcast_to(lse, out.shape[:-1])
    none = none & exists
    if masked_rows == "raise" and none.any():
        raise ValueError("a query may attend to no key")
    if masked_rows == "nan":
        out = np.where(none, np.nan, out)
    return Stages(raw, capped, biased, masked, yes, weights, out, lse, sink)


@any_layout
def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    return_lse: bool = False,
    lse_base: str = "e",
    **options: Unpack[StageOptions],
) -> Array | tuple[Array, Array]:
    """Softmax attention; options as for `attention_stages`."""
    stages = attention_stages(q, k, v, **options)
    if not return_lse:
        return stages.out
    return stages.out, stages.lse / LOG_2 if lse_base == "2" else stages.lse


@any_layout
def attention_vjp(
    q: Array,
    k: Array,
    v: Array,
    dout: Array,
    *,
    dlse: Array | None = None,
    lse_base: str = "e",
    masked_rows: str = "zero",
    alibi_gradient: bool = False,
    **options: Unpack[StageOptions],
) -> tuple[Array, ...]:
    """Gradients (dq, dk, dv[, dbias][, dsinks][, dalibi]) of ``sum(dout out) + sum(dlse lse)``.

    ``dP = dout v.T``, ``dS = P (dP - sum_j P dP + dlse)``; S is scores after bias and mask. Where
    weights are dropped, dP is too; a sink has ``dP = 0``.
    """
    stages = attention_stages(q, k, v, masked_rows=masked_rows, **options)
    heads = q.shape[-3] if options.get("gqa") else 0
    all_k, all_v = (_repeat(k, heads), _repeat(v, heads)) if heads else (k, v)
    scale, softcap, eps = options.get("scale"), options.get("softcap"), options.get("qk_norm")
    scale = 1 / np.sqrt(q.real.dtype.type(q.shape[-1])) if scale is None else scale
    unit_q, unit_k = (x if eps is None else rms_normalised(x, eps) for x in (q, all_k))
    P, yes = stages.weights, stages.seen
    kept, used, dP = P, yes, np.where(yes, dout @ np.swapaxes(all_v, -1, -2), 0)
    if (drawn := options.get("dropout_mask")) is not None:
        factor = options.get("dropout_scale", 1.0)
        kept, dP = (np.where(drawn, x, 0) * factor for x in (P, dP))
        used = yes & drawn
    dv = product(np.swapaxes(kept, -1, -2), dout, np.swapaxes(used, -1, -2))
    yes_T = np.swapaxes(yes, -1, -2)
    mean = (P * dP).sum(-1, keepdims=True)
    if dlse is not None:
        mean = mean - dlse[..., None] / (LOG_2 if lse_base == "2" else 1)
    dS = np.where(yes, P * (dP - mean), 0)
    draw = dS if softcap is None else dS * (1 - np.tanh(stages.raw / softcap) ** 2)
    draw = np.where(yes, draw, 0)
    dq = scale * product(draw, unit_k, yes)
    dk = scale * product(np.swapaxes(draw, -1, -2), unit_q, yes_T)
    if eps is not None:
        dq, dk = rms_normalised_vjp(q, dq, eps), rms_normalised_vjp(all_k, dk, eps)
    gradients = [_unbroadcast(dq, q.shape), _unrepeat(dk, k.shape), _unrepeat(dv, v.shape)]
    if (bias := options.get("bias")) is not None:
        gradients.append(_unbroadcast(dS, np.shape(bias)))
    if (sinks := options.get("sinks")) is not None:
        dsink = -np.where(stages.sink == 0, 0, stages.sink * mean).sum((-1, -2))
        gradients.append(_unbroadcast(dsink, np.shape(sinks)))
    if alibi_gradient and (alibi := options.get("alibi")) is not None:
        dalibi = -(dS * _distances(dS, options)).sum((-1, -2))
        gradients.append(_unbroadcast(dalibi, np.shape(alibi)))
    return tuple(gradients)


def _distances(dS: Array, options: StageOptions) -> Array:
    """``|i + offset - j|`` of every pair."""
    n, m = dS.shape[-2:]
    own, *_ = positions(
        n,
        m,
        options.get("causal_offset", 0),
        key_lengths=options.get("key_lengths"),
        query_lengths=options.get("query_lengths"),
        cu_seqlens_q=options.get("cu_seqlens_q"),
        cu_seqlens_k=options.get("cu_seqlens_k"),
    )
    return np.asarray(abs(own - np.arange(m)))


@any_layout
def attention_jvp(
    q: Array,
    k: Array,
    v: Array,
    dq: Array,
    dk: Array,
    dv: Array,
    *,
    dbias: Array | None = None,
    dsinks: Array | None = None,
    dalibi: Array | None = None,
    return_lse: bool = False,
    lse_base: str = "e",
    **options: Unpack[StageOptions],
) -> Array | tuple[Array, Array]:
    """Change of `out`, and of `lse`, as q, k, v (bias, sinks, alibi) move along dq, dk, dv.

    ``dS = scale (dq k.T + q dk.T)``, ``dP = P (dS - sum_j P dS)``, ``dP v + P dv``.
    """
    stages = attention_stages(q, k, v, **options)
    if options.get("gqa"):
        k, v, dk, dv = (_repeat(x, q.shape[-3]) for x in (k, v, dk, dv))
    scale, softcap, eps = options.get("scale"), options.get("softcap"), options.get("qk_norm")
    scale = 1 / np.sqrt(q.real.dtype.type(q.shape[-1])) if scale is None else scale
    if eps is not None:  # the derivative is its own transpose
        dq, dk = rms_normalised_vjp(q, dq, eps), rms_normalised_vjp(k, dk, eps)
        q, k = rms_normalised(q, eps), rms_normalised(k, eps)
    P, yes = stages.weights, stages.seen
    dS = scale * (dq @ np.swapaxes(k, -1, -2) + q @ np.swapaxes(dk, -1, -2))
    dS = dS if softcap is None else dS * (1 - np.tanh(stages.raw / softcap) ** 2)
    if dalibi is not None:
        dS = dS - np.asarray(dalibi)[..., None, None] * _distances(dS, options)
    dS = np.where(yes, dS if dbias is None else dS + dbias, 0)
    mean = (P * dS).sum(-1, keepdims=True)
    if dsinks is not None:
        mean = mean + stages.sink * np.asarray(dsinks)[..., None, None]
    kept, dP = P, P * (dS - mean)
    if (drawn := options.get("dropout_mask")) is not None:
        factor = options.get("dropout_scale", 1.0)
        kept, dP = (np.where(drawn, x, 0) * factor for x in (P, dP))
        yes = yes & drawn
    out = product(dP, v, yes) + product(kept, dv, yes)
    lse = np.broadcast_to(mean[..., 0], out.shape[:-1]) / (LOG_2 if lse_base == "2" else 1)
    return (out, lse) if return_lse else out


def rms_normalised(x: Array, eps: float) -> Array:
    """``x / sqrt(mean(x^2) + eps)``, the mean over channels."""
    normalised: Array = x / np.sqrt((x * x).sum(-1, keepdims=True) / x.shape[-1] + eps)
    return normalised


def rms_normalised_vjp(x: Array, g: Array, eps: float) -> Array:
    """Gradient of ``sum(g rms_normalised(x))``: ``(g - y mean(g y)) / root``.

    0 where g is: of a row that nobody sees, which may be NaN.
    """
    root = np.sqrt((x * x).sum(-1, keepdims=True) / x.shape[-1] + eps)
    y = x / root
    gradient: Array = (g - y * ((g * y).sum(-1, keepdims=True) / x.shape[-1])) / root
    size = abs(g).sum(-1, keepdims=True)
    return np.where((size.real > 0) | ~np.isfinite(size), gradient, 0)


def _of_pairs(mask: Array, block: int | tuple[int, int], n: int, m: int) -> Array:
    """A mask of blocks of queries and keys, the last ones cut off, as one of pairs."""
    rows, columns = (block, block) if isinstance(block, int) else block
    if mask.shape[-2] != 1:
        mask = np.repeat(mask, rows, -2)[..., :n, :]
    return np.repeat(mask, columns, -1)[..., :m] if mask.shape[-1] != 1 else mask


def _repeat(x: Array, heads: int) -> Array:
    """Each head of x as often as it takes to have `heads`."""
    return np.repeat(x, heads // x.shape[-3], axis=-3) if x.ndim > 2 else x


def _unbroadcast(gradient: Array, shape: tuple[int, ...]) -> Array:
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
