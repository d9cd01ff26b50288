"""Refined linear self-attention: the dot-product form computed in the order that is linear."""

from __future__ import annotations

import numpy as np

from nlattn._modes import Nonfinite
from nlattn._types import Floats
from nlattn.engines import laws
from nlattn.engines.factored_fit import set_fit
from nlattn.engines.factored_separate import Separate
from nlattn.engines.magnitude import ranged
from nlattn.maps.factored import FactoredMap


@ranged(laws.products)
def refined_self_attention(
    q: Floats, k: Floats, v: Floats, *, nonfinite: Nonfinite = "raise"
) -> Floats:
    """Dot-product attention without softmax: ``out[i] = (1/m) sum_j (q[i].k[j]) v[j] = M q[i]``.

    Parameters
    ----------
    q, k, v : (..., n, d), (..., m, d), (..., m, e) arrays of one dtype, float32 or float64
        Queries, keys, values. Leading axes broadcast.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities.

    Returns
    -------
    (..., n, e) array, dtype of `q`

    Raises
    ------
    ValueError
        The shapes do not fit, or a value is not finite.
    TypeError
        The dtypes differ, or are not floating.

    Notes
    -----
    ``(n + m) d e`` multiply-adds, ``O(d e)`` memory beyond the result. M is `channel_mixing`.
    Source: [wang2019]. Status: reconstruction.

    Examples
    --------
    >>> nlattn.refined_self_attention(q, k, v).shape
    (64, 8)
    """
    fit = set_fit("refined_self_attention", nonfinite, q=q, k=k, v=v)
    return Separate.of(fit).attend(fit)


@ranged(laws.products)
def channel_mixing(k: Floats, v: Floats, *, nonfinite: Nonfinite = "raise") -> Floats:
    """``M = (1/m) sum_j v[j] k[j].T`` (..., e, d): refined self-attention as a channel attention.

    Arguments as for `refined_self_attention`, whose result is ``q @ M.T``: one matrix for all
    positions, made of global second moments. ``m d e`` multiply-adds.

    Examples
    --------
    >>> nlattn.channel_mixing(k, v).shape
    (8, 8)
    """
    fit = set_fit("channel_mixing", nonfinite, k=k, v=v)
    context, _ = Separate.of(fit).context(fit)
    mixing = np.ascontiguousarray(np.swapaxes(context, -1, -2))
    return fit.unfold(mixing.astype(fit.dtype))


@ranged(laws.products)
def refined_self_attention_map(
    q: Floats,
    k: Floats,
    *,
    query_grid: tuple[int, ...] | None = None,
    key_grid: tuple[int, ...] | None = None,
    nonfinite: Nonfinite = "raise",
) -> FactoredMap:
    """The map ``q k.T / m`` of one head, from values (m, e) to outputs (n, e).

    It holds `q` and ``k / m``. Weights have any sign and there is no ``lse``.

    Examples
    --------
    >>> A = nlattn.refined_self_attention_map(q, k)
    """
    fit = set_fit("refined_self_attention_map", nonfinite, q=q, k=k)
    return FactoredMap(*Separate.of(fit).factors(fit), query_grid, key_grid)


@ranged(laws.products)
def refined_self_attention_vjp(
    q: Floats, k: Floats, v: Floats, dout: Floats, *, nonfinite: Nonfinite = "raise"
) -> tuple[Floats, Floats, Floats]:
    """Gradients (dq, dk, dv) of ``sum(dout * out)``, ``(2 n + 3 m) d e`` multiply-adds.

    Arguments as for `refined_self_attention`, `dout` in the shape of its result.

    Examples
    --------
    >>> gradients = nlattn.refined_self_attention_vjp(q, k, v, np.ones_like(v))
    """
    fit = set_fit("refined_self_attention_vjp", nonfinite, q=q, k=k, v=v, dout=dout)
    return Separate.of(fit).vjp(fit)


@ranged(laws.along(laws.products))
def refined_self_attention_jvp(
    q: Floats,
    k: Floats,
    v: Floats,
    dq: Floats,
    dk: Floats,
    dv: Floats,
    *,
    nonfinite: Nonfinite = "raise",
) -> Floats:
    """Change of `refined_self_attention` along (dq, dk, dv), ``(2 n + 3 m) d e`` multiply-adds.

    Changes have the shapes of their arrays.

    Examples
    --------
    >>> change = nlattn.refined_self_attention_jvp(q, k, v, 1e-3 * q, 0 * k, 0 * v)
    """
    op = "refined_self_attention_jvp"
    fit = set_fit(op, nonfinite, q=q, k=k, v=v, dq=dq, dk=dk, dv=dv)
    return Separate.of(fit).jvp(fit)
