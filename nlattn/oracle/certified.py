"""What certified attention must come near: exponential weights of all keys, and the guarantee.

Status: ours. With weights w, those used w', all at least 0, and ``sum |w' - w| <= t sum w`` in a
row, the means differ in each channel by at most t times the range of its values: subtract the
middle of the range from v; the two errors, of ``sum w' v`` and of the normaliser, are then each at
most ``t/2`` of it. Arrays may be of any real or complex dtype.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

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
    mask: Array | None = None,
    causal: bool = False,
) -> Array:
    """Exponents, (..., n, m); -inf where a query may not attend."""
    if weight == "gaussian":
        difference = q[..., :, None, :] - k[..., None, :, :]
        s = -(difference**2).sum(-1) / bandwidth**2
    else:
        factor = q.real.dtype.type(q.shape[-1]) ** -0.5 if scale is None else scale
        s = factor * (q @ np.swapaxes(k, -1, -2))
    return np.asarray(np.where(allowed(s, mask, causal), s, -np.inf))


def allowed(s: Array, mask: Array | None = None, causal: bool = False) -> Array:
    """Which keys each query may attend to, (..., n, m) as the scores."""
    n, m = s.shape[-2:]
    yes = np.ones((n, m), bool) if mask is None else np.broadcast_to(mask, (*mask.shape[:-2], n, m))
    return yes & (np.arange(m) <= np.arange(n)[:, None]) if causal else yes


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
    seen = allowed(s, options.get("mask"), options.get("causal", False))
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
    weight: str = "softmax",
    scale: float | None = None,
    bandwidth: float = 1.0,
    mask: Array | None = None,
    causal: bool = False,
) -> tuple[Array, Array, Array]:
    """Gradients of ``sum(dout * out)``, without leading axes that broadcast."""
    s = scores(q, k, weight, scale, bandwidth, mask, causal)
    seen = allowed(s, mask, causal)
    P = np.where(seen, weights(s)[0], 0)
    seen_T = np.swapaxes(seen, -1, -2)
    dP = np.where(seen, dout @ np.swapaxes(v, -1, -2), 0)
    ds = np.where(seen, P * (dP - (P * dP).sum(-1, keepdims=True)), 0)
    if weight == "gaussian":
        difference = q[..., :, None, :] - k[..., None, :, :]
        dd = np.where(seen[..., None], -2 / bandwidth**2 * ds[..., None] * difference, 0)
        dq, dk = dd.sum(-2), -dd.sum(-3)
    else:
        factor = q.real.dtype.type(q.shape[-1]) ** -0.5 if scale is None else scale
        dq = factor * product(ds, k, seen)
        dk = factor * product(np.swapaxes(ds, -1, -2), q, seen_T)
    return dq, dk, product(np.swapaxes(P, -1, -2), dout, seen_T)


def certified_attention_jvp(
    q: Array,
    k: Array,
    v: Array,
    dq: Array,
    dk: Array,
    dv: Array,
    *,
    tolerance: float = 1e-3,  # noqa: ARG001
    weight: str = "softmax",
    scale: float | None = None,
    bandwidth: float = 1.0,
    mask: Array | None = None,
    causal: bool = False,
    return_lse: bool = False,
) -> Array | tuple[Array, Array]:
    """Change of `out`, and of `lse`, as q, k, v move along dq, dk, dv."""
    s = scores(q, k, weight, scale, bandwidth, mask, causal)
    seen = allowed(s, mask, causal)
    P = np.where(seen, weights(s)[0], 0)
    if weight == "gaussian":
        apart = q[..., :, None, :] - k[..., None, :, :]
        moved = dq[..., :, None, :] - dk[..., None, :, :]
        ds = -2 / bandwidth**2 * (apart * moved).sum(-1)
    else:
        factor = q.real.dtype.type(q.shape[-1]) ** -0.5 if scale is None else scale
        ds = factor * (dq @ np.swapaxes(k, -1, -2) + q @ np.swapaxes(dk, -1, -2))
    ds = np.where(seen, ds, 0)
    mean = (P * ds).sum(-1, keepdims=True)
    out = product(np.where(seen, P * (ds - mean), 0), v, seen) + product(P, dv, seen)
    return (out, np.broadcast_to(mean[..., 0], out.shape[:-1])) if return_lse else out


def misplaced(used: Array, exact: Array) -> Array:
    """Share of a row's weight that other weights misplace."""
    total = exact.sum(-1)
    return np.asarray(np.abs(used - exact).sum(-1) / np.where(total == 0, 1, total))
