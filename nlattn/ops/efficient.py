"""Efficient Attention: keys are summed against values once, and every query reads the sum."""

from __future__ import annotations

from typing import get_args

import numpy as np

from nlattn import _check
from nlattn._modes import Nonfinite, Normalization
from nlattn._types import Bools, Floats
from nlattn.engines import laws
from nlattn.engines.factored_fit import Hidden, set_fit
from nlattn.engines.factored_separate import Separate
from nlattn.engines.magnitude import ranged
from nlattn.maps.factored import FactoredMap

_NORMALIZATIONS: tuple[Normalization, ...] = get_args(Normalization)


@ranged(laws.normalization)
def efficient_attention(
    q: Floats,
    k: Floats,
    v: Floats,
    *,
    normalization: Normalization = "softmax",
    mask: Bools | None = None,
    nonfinite: Nonfinite = "raise",
) -> Floats:
    """Efficient attention: ``out = Q (K.T v)``, Q and K normalised apart from each other.

    Parameters
    ----------
    q, k, v : (..., n, d), (..., m, d), (..., m, e) arrays of one dtype, float32 or float64
        Queries, keys, values. Leading axes, heads among them, broadcast.
    normalization : {"softmax", "scaling"}
        Softmax of each query over its channels and of each key channel over all positions; or
        both over the square root of the number of keys, in total ``q (k.T v) / m``. Keys that
        `mask` hides do not count.
    mask : bool array that broadcasts to (..., m), optional
        True where a key may be attended to. Without any key the output is 0.
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
    ``(n + m) d e`` multiply-adds, ``O(d e)`` memory beyond the result. Not an approximation of
    softmax attention, but another operator. Source: [shen2018, section 3]. Status: paper.

    Examples
    --------
    >>> out = nlattn.efficient_attention(q, k, v)
    >>> context = nlattn.efficient_context(k, v)  # (d, e), for all queries
    """
    fit = set_fit("efficient_attention", nonfinite, q=q, k=k, v=v)
    return _checked(fit, normalization, mask).attend(fit)


@ranged(laws.normalization)
def efficient_context(
    k: Floats,
    v: Floats,
    *,
    normalization: Normalization = "softmax",
    mask: Bools | None = None,
    nonfinite: Nonfinite = "raise",
) -> Floats:
    """``G = K.T v`` (..., d, e): what every query of `efficient_attention` reads.

    Arguments as there. With "scaling" it is ``k.T v / sqrt(m)``. ``m d e`` multiply-adds.

    Examples
    --------
    >>> nlattn.efficient_context(k, v).shape
    (8, 8)
    """
    fit = set_fit("efficient_context", nonfinite, k=k, v=v)
    context, sums = _checked(fit, normalization, mask).context(fit)
    if normalization == "scaling":
        context *= np.sqrt(sums.kept)[:, None, None]
    return fit.unfold(context.astype(fit.dtype))


@ranged(laws.normalization)
def efficient_attention_map(
    q: Floats,
    k: Floats,
    *,
    normalization: Normalization = "softmax",
    mask: Bools | None = None,
    query_grid: tuple[int, ...] | None = None,
    key_grid: tuple[int, ...] | None = None,
    nonfinite: Nonfinite = "raise",
) -> FactoredMap:
    """The map of one head's `efficient_attention`, from values (m, e) to outputs (n, e).

    It holds Q (n, d) and K (m, d). With "scaling" weights have any sign and there is no ``lse``.

    Examples
    --------
    >>> A = nlattn.efficient_attention_map(q, k)
    >>> np.allclose(A.rows([0, 7]).sum(1), 1)
    True
    """
    fit = set_fit("efficient_attention_map", nonfinite, q=q, k=k)
    return FactoredMap(*_checked(fit, normalization, mask).factors(fit), query_grid, key_grid)


@ranged(laws.normalization)
def efficient_attention_vjp(
    q: Floats,
    k: Floats,
    v: Floats,
    dout: Floats,
    *,
    normalization: Normalization = "softmax",
    mask: Bools | None = None,
    nonfinite: Nonfinite = "raise",
) -> tuple[Floats, Floats, Floats]:
    """Gradients (dq, dk, dv) of ``sum(dout * out)``; a masked key gets 0.

    Arguments as for `efficient_attention`. ``(3 n + 4 m) d e`` multiply-adds with the forward
    sums; normalised queries and keys are made again, block by block.

    Examples
    --------
    >>> dq, dk, dv = nlattn.efficient_attention_vjp(q, k, v, np.ones_like(v))
    """
    fit = set_fit("efficient_attention_vjp", nonfinite, q=q, k=k, v=v, dout=dout)
    return _checked(fit, normalization, mask).vjp(fit)


@ranged(laws.along(laws.normalization))
def efficient_attention_jvp(
    q: Floats,
    k: Floats,
    v: Floats,
    dq: Floats,
    dk: Floats,
    dv: Floats,
    *,
    normalization: Normalization = "softmax",
    mask: Bools | None = None,
    nonfinite: Nonfinite = "raise",
) -> Floats:
    """Change of `efficient_attention` along (dq, dk, dv), to first order.

    Arguments as there; changes have the shapes of their arrays. ``(3 n + 3 m) d e`` multiply-adds
    with the forward sums, ``O(d e)`` memory beyond the result.

    Examples
    --------
    >>> change = nlattn.efficient_attention_jvp(q, k, v, 1e-3 * q, 0 * k, 0 * v)
    """
    op = "efficient_attention_jvp"
    fit = set_fit(op, nonfinite, q=q, k=k, v=v, dq=dq, dk=dk, dv=dv)
    return _checked(fit, normalization, mask).jvp(fit)


def _checked(fit: _check.Fit, normalization: str, mask: object) -> Separate:
    _check.choice(fit.op, "normalization", normalization, _NORMALIZATIONS)
    return Separate.of(fit, Hidden.checked(fit, mask), soft=normalization == "softmax")
