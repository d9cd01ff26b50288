"""Partial results of attention over disjoint sets of keys, merged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import numpy as np

from nlattn import _check
from nlattn._modes import LseBase, Nonfinite
from nlattn._types import Floats
from nlattn.engines import merge as engine

_BASES: tuple[LseBase, ...] = get_args(LseBase)


def merge_attention(
    outs: Floats | Sequence[Floats],
    lses: Floats | Sequence[Floats],
    *,
    lse_base: LseBase = "e",
    nonfinite: Nonfinite = "raise",
) -> tuple[Floats, Floats]:
    """Attention over the union of disjoint sets of keys: ``out = sum_s exp(lse_s - lse) out_s``.

    Parameters
    ----------
    outs : (..., parts, n, e) array, or a sequence of arrays (..., n, e)
        Outputs of `attention` or `sparse_attention` over each set.
    lses : (..., parts, n) array, or a sequence of arrays (..., n)
        Their log normalisers, floating; -inf for an empty set, whose output does not count.
    lse_base : {"e", "2"}
        Base of all logarithms.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities.

    Returns
    -------
    out, lse : (..., n, e) array of the dtype of `outs`, (..., n) float64
        0 and -inf where all sets are empty. Merging merged results gives the same.

    Raises
    ------
    ValueError
        Shapes do not fit, or a value is not finite.
    TypeError
        The arrays are not floating.

    Notes
    -----
    ``parts n e`` multiply-adds, in float64. A sink belongs to one of the sets. Source: [rabe2021].

    Examples
    --------
    >>> a = nlattn.attention(q, k[:9], v[:9], return_lse=True)
    >>> b = nlattn.attention(q, k[9:], v[9:], return_lse=True)
    >>> out, lse = nlattn.merge_attention([a[0], b[0]], [a[1], b[1]])
    """
    x, z = _prepared("merge_attention", outs, lses, lse_base, nonfinite)
    out, lse = engine.merged(x, z)
    return out.astype(x.dtype), lse / _unit(lse_base)


def merge_attention_vjp(
    outs: Floats | Sequence[Floats],
    lses: Floats | Sequence[Floats],
    dout: Floats,
    *,
    dlse: Floats | None = None,
    lse_base: LseBase = "e",
    nonfinite: Nonfinite = "raise",
) -> tuple[Floats, Floats]:
    """Gradients (douts, dlses) of ``sum(dout * out) + sum(dlse * lse)``, with an axis of parts.

    Arguments as for `merge_attention`. An empty set has none.

    Examples
    --------
    >>> a = nlattn.attention(q, k[:9], v[:9], return_lse=True)
    >>> b = nlattn.attention(q, k[9:], v[9:], return_lse=True)
    >>> douts, dlses = nlattn.merge_attention_vjp([a[0], b[0]], [a[1], b[1]], np.ones_like(v))
    """
    op = "merge_attention_vjp"
    x, z = _prepared(op, outs, lses, lse_base, nonfinite)
    whole, unit = (*x.shape[:-3], *x.shape[-2:]), _unit(lse_base)
    g = _like(op, "dout", dout, whole, nonfinite)
    beside = np.zeros(whole[:-1])
    if dlse is not None:
        beside = _like(op, "dlse", dlse, whole[:-1], nonfinite) / unit
    douts, dlses = engine.vjp(x, z, g, beside)
    return douts.astype(x.dtype), unit * dlses


def merge_attention_jvp(
    outs: Floats | Sequence[Floats],
    lses: Floats | Sequence[Floats],
    douts: Floats | Sequence[Floats],
    dlses: Floats | Sequence[Floats],
    *,
    lse_base: LseBase = "e",
    nonfinite: Nonfinite = "raise",
) -> tuple[Floats, Floats]:
    """Changes of `out` and `lse` of `merge_attention` along douts and dlses, to first order.

    Arguments as there; changes have the shapes of their arrays, and those of an empty set do not
    count.

    Examples
    --------
    >>> outs, lses = np.stack([v, q]), np.zeros((2, 64))
    >>> change, lse = nlattn.merge_attention_jvp(outs, lses, outs, lses)
    """
    op = "merge_attention_jvp"
    x, z = _prepared(op, outs, lses, lse_base, nonfinite)
    dx, dz = _stacked(op, "douts", douts, -3), _stacked(op, "dlses", dlses, -2)
    for name, change, shape in (("douts", dx, x.shape), ("dlses", dz, z.shape)):
        if change.shape != shape:
            _check.fail(op, name, f"has shape {change.shape}, expected {shape}")
    some = ~np.isneginf(z)
    if nonfinite == "raise":
        _check.finite(op, "douts", np.where(some[..., None], dx, dx.dtype.type(0)))
        _check.finite(op, "dlses", np.where(some, dz, dz.dtype.type(0)))
    unit = _unit(lse_base)
    out, lse = engine.jvp(x, z, dx, unit * dz.astype(np.float64))
    return out.astype(x.dtype), lse / unit


def _unit(lse_base: str) -> float:
    """Of the logarithms, in natural ones."""
    return math.log(2) if lse_base == "2" else 1.0


def _prepared(
    op: str,
    outs: Floats | Sequence[Floats],
    lses: Floats | Sequence[Floats],
    lse_base: str,
    nonfinite: Nonfinite,
) -> tuple[Floats, Floats]:
    """Outputs (..., parts, n, e), and natural logarithms (..., parts, n) in float64."""
    _check.choice(op, "lse_base", lse_base, _BASES)
    _check.choice(op, "nonfinite", nonfinite, get_args(Nonfinite))
    x, z = _stacked(op, "outs", outs, -3), _stacked(op, "lses", lses, -2)
    if x.ndim < 3:
        _check.fail(op, "outs", f"has shape {x.shape}, expected (..., parts, n, e)")
    if z.shape != x.shape[:-1]:
        _check.fail(op, "lses", f"has shape {z.shape}, expected {x.shape[:-1]} as outs has")
    z = z.astype(np.float64) * _unit(lse_base)
    if nonfinite == "raise":
        bad = np.isnan(z) | np.isposinf(z)
        if bad.any():
            where = _check.first_of(bad)
            _check.fail(op, f"lses{where}", f"is {z[tuple(where)]}, expected finite values or -inf")
        _check.finite(op, "outs", np.where(np.isneginf(z)[..., None], x.dtype.type(0), x))
    return x, z


def _stacked(op: str, name: str, value: object, axis: int) -> Floats:
    """An array with an axis of parts, from one or from several without it."""
    if not isinstance(value, (list, tuple)):
        return _check.array(op, name, value)
    parts = [_check.array(op, f"{name}[{i}]", x) for i, x in enumerate(value)]
    if not parts:
        _check.fail(op, name, "is empty, expected at least one set")
    _check.one_dtype(op, {f"{name}[{i}]": x.dtype for i, x in enumerate(parts)})
    for i, x in enumerate(parts):
        if x.shape != parts[0].shape or x.ndim < -axis - 1:
            wanted = parts[0].shape if parts[0].ndim >= -axis - 1 else "(..., n, e)"
            _check.fail(op, f"{name}[{i}]", f"has shape {x.shape}, expected {wanted}")
    return np.stack(parts, axis)


def _like(
    op: str, name: str, value: object, shape: tuple[int, ...], nonfinite: Nonfinite
) -> Floats:
    x = _check.array(op, name, value)
    if x.shape != shape:
        _check.fail(op, name, f"has shape {x.shape}, expected {shape}")
    if nonfinite == "raise":
        _check.finite(op, name, x)
    return x.astype(np.float64)
