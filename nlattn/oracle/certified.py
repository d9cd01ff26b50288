"""What certified attention must come near: exponential weights of all keys, and the guarantee.

Status: ours. With weights w, those used w', all at least 0, and ``sum |w' - w| <= t sum w`` in a
row, the means differ in each channel by at most t times the range of its values: subtract the
middle of the range from v; the two errors, of ``sum w' v`` and of the normaliser, are then each at
most ``t/2`` of it. Arrays may be of any real or complex dtype.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from nlattn.oracle.seen import product

if TYPE_CHECKING:
    from typing import Unpack

Array = np.ndarray


def scores(
    q: Array,
    k: Array,
    weight: str = "softmax",
    scale: float | None = None,
    bandwidth: float = 1.0,
    bias: Array | None = None,
    mask: Array | None = None,
    causal: bool = False,
) -> Array:
    """Exponents, (..., n, m); -inf where a query may not attend, and for keys whose `bias` it is.

    The bias broadcasts to (..., 1, m).
    """
    if weight == "gaussian":
        difference = q[..., :, None, :] - k[..., None, :, :]
        s = -(difference**2).sum(-1) / bandwidth**2
    else:
        s = _factor(q, scale) * (q @ np.swapaxes(k, -1, -2))
    s = s if bias is None else s + bias
    return np.asarray(np.where(allowed(s, bias, mask, causal), s, -np.inf))


def allowed(
    s: Array, bias: Array | None = None, mask: Array | None = None, causal: bool = False
) -> Array:
    """Which keys each query may attend to, (..., n, m) as the scores."""
    n, m = s.shape[-2:]
    yes = np.ones((n, m), bool) if mask is None else np.broadcast_to(mask, (*mask.shape[:-2], n, m))
    yes = yes if bias is None else yes & ~np.isneginf(bias.real)
    return yes & (np.arange(m) <= np.arange(n)[:, None]) if causal else yes


def _seen(s: Array, options: ScoreOptions) -> Array:
    return allowed(s, options.get("bias"), options.get("mask"), options.get("causal", False))


def _factor(q: Array, scale: float | None) -> Any:
    return q.real.dtype.type(q.shape[-1]) ** -0.5 if scale is None else scale


def _steep(options: ScoreOptions) -> float:
    """Change of a Gaussian's exponent with half the squared distance."""
    return -2 / options.get("bandwidth", 1.0) ** 2


def weights(s: Array) -> tuple[Array, Array]:
    """Softmax of each row and its log-normaliser; 0 and -inf for a row without keys."""
    top = np.max(s.real, axis=-1, keepdims=True, initial=-np.inf)
    some, level = ~np.isneginf(s.real), np.where(np.isneginf(top), 0, top)
    powers = np.where(some, np.exp(np.where(some, s, level) - level), 0)
    total = powers.sum(-1, keepdims=True)
    none = total == 0
    with np.errstate(divide="ignore"):
        lse = np.where(none, -np.inf, top + np.log(np.where(none, 1, total)))[..., 0]
    return powers / np.where(none, 1, total), lse


class ScoreOptions(TypedDict, total=False):
    """Options of `scores`."""

    weight: str
    scale: float | None
    bandwidth: float
    bias: Array | None
    mask: Array | None
    causal: bool


def certified_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    tolerance: float = 1e-3,  # noqa: ARG001  this is what it is a tolerance of
    return_lse: bool = False,
    return_missed: bool = False,
    **options: Unpack[ScoreOptions],
) -> Array | tuple[Array, ...]:
    """``out[i] = sum_j softmax_j(s_ij) v[j]``; options as for `scores`. Nothing is missed."""
    s = scores(q, k, **options)
    P, lse = weights(s)
    seen = _seen(s, options)
    out = product(np.where(seen, P, 0), v, seen)
    lse = np.broadcast_to(lse, out.shape[:-1])
    more = [lse] * return_lse + [np.zeros(lse.shape)] * return_missed
    return (out, *more) if more else out


def certified_attention_vjp(
    q: Array,
    k: Array,
    v: Array,
    dout: Array,
    *,
    tolerance: float = 1e-3,  # noqa: ARG001
    **options: Unpack[ScoreOptions],
) -> tuple[Array, ...]:
    """Gradients (dq, dk, dv[, dbias]) of ``sum(dout * out)``, without axes that broadcast."""
    s = scores(q, k, **options)
    seen = _seen(s, options)
    P = np.where(seen, weights(s)[0], 0)
    seen_T = np.swapaxes(seen, -1, -2)
    dP = np.where(seen, dout @ np.swapaxes(v, -1, -2), 0)
    ds = np.where(seen, P * (dP - (P * dP).sum(-1, keepdims=True)), 0)
    if options.get("weight") == "gaussian":
        difference = q[..., :, None, :] - k[..., None, :, :]
        dd = np.where(seen[..., None], _steep(options) * ds[..., None] * difference, 0)
        dq, dk = dd.sum(-2), -dd.sum(-3)
    else:
        factor = _factor(q, options.get("scale"))
        dq = factor * product(ds, k, seen)
        dk = factor * product(np.swapaxes(ds, -1, -2), q, seen_T)
    dv = product(np.swapaxes(P, -1, -2), dout, seen_T)
    biased = options.get("bias") is not None
    return (dq, dk, dv, ds.sum(-2, keepdims=True)) if biased else (dq, dk, dv)


def certified_attention_jvp(
    q: Array,
    k: Array,
    v: Array,
    dq: Array,
    dk: Array,
    dv: Array,
    *,
    dbias: Array | None = None,
    tolerance: float = 1e-3,  # noqa: ARG001
    return_lse: bool = False,
    **options: Unpack[ScoreOptions],
) -> Array | tuple[Array, Array]:
    """Change of `out`, and of `lse`, as q, k, v (bias) move along dq, dk, dv (dbias)."""
    s = scores(q, k, **options)
    seen = _seen(s, options)
    P = np.where(seen, weights(s)[0], 0)
    if options.get("weight") == "gaussian":
        apart = q[..., :, None, :] - k[..., None, :, :]
        moved = dq[..., :, None, :] - dk[..., None, :, :]
        ds = _steep(options) * (apart * moved).sum(-1)
    else:
        factor = _factor(q, options.get("scale"))
        ds = factor * (dq @ np.swapaxes(k, -1, -2) + q @ np.swapaxes(dk, -1, -2))
    ds = np.where(seen, ds if dbias is None else ds + dbias, 0)
    mean = (P * ds).sum(-1, keepdims=True)
    out = product(np.where(seen, P * (ds - mean), 0), v, seen) + product(P, dv, seen)
    return (out, np.broadcast_to(mean[..., 0], out.shape[:-1])) if return_lse else out


def misplaced(used: Array, exact: Array) -> Array:
    """Share of a row's weight that other weights misplace."""
    total = exact.sum(-1)
    return np.asarray(np.abs(used - exact).sum(-1) / np.where(total == 0, 1, total))
