"""What operators of linear attention share: checked arrays, masks, and their way to the kernels."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np

from nlattn import _check
from nlattn._types import Bools, Floats, Ints, Work
from nlattn.engines import factored
from nlattn.engines.factored import KeyGradient, KeySums
from nlattn.engines.features import Identity
from nlattn.runtime import threads

S = TypeVar("S")
R = TypeVar("R")


def set_fit(op: str, nonfinite: str, **arrays: object) -> _check.Fit:
    """Queries, keys, values, cotangents and a projection, whichever are given."""
    dims = {"q": "n d", "k": "m d", "v": "m e", "dout": "n e", "projection": "r d"}
    dims |= {f"d{name}": dims[name] for name in "qkv"}
    given = {name: (x, dims[name]) for name, x in arrays.items()}
    shared = ["projection"] if "projection" in arrays else []
    return _check.fit(op, given, nonfinite=nonfinite, shared=shared)


class Factors(NamedTuple):
    """What a factored map is made of: features of queries over their row's sum, and of keys."""

    left: Floats
    right: Floats
    lse: Floats | None
    work: Work


class Hidden(NamedTuple):
    """Keys that nobody may attend to."""

    mask: Bools | None
    """(parts, m), True where kept."""
    parts: Ints
    """(batch,) part of each slice."""

    @classmethod
    def checked(cls, fit: _check.Fit, mask: object) -> Hidden:
        """A boolean mask that broadcasts to (..., m)."""
        if mask is None:
            return cls(None, np.zeros(fit.batch, np.int64))
        m, given = fit.dims["m"], _check.booleans(fit.op, "mask", mask)
        lead = given.shape[:-1]
        if given.shape[-1:] != (m,) or not _check.broadcasts(lead, fit.lead):
            text = f"has shape {given.shape}, expected one that broadcasts to {(*fit.lead, m)}"
            _check.fail(fit.op, "mask", text)
        index = _check.slices(fit.op, "mask", lead, fit.lead)
        return cls(_check.frozen(given.reshape(math.prod(lead), m)), index)


def few_at_once(method: Callable[[S, _check.Fit], R]) -> Callable[[S, _check.Fit], R]:
    """Mark a method of several passes over queries and keys: of few rows it waits once."""

    @functools.wraps(method)
    def call(self: S, fit: _check.Fit) -> R:
        rows = fit.batch * max(fit.dims["n"], fit.dims["m"])
        return threads.few_at_once(rows, method, self, fit)

    return call


def key_sums(fit: _check.Fit, f: Identity, hidden: Hidden) -> KeySums:
    """One pass over keys and values; a map has no values, and gets sums of 1."""
    x = fit["k"]
    y: Floats = np.ones((1, x.shape[1], 1), fit.dtype)
    part: Ints = np.zeros((fit.batch, 1), np.int64)
    if "v" in fit:
        y, part = fit["v"], fit.slices("v")
    slices = np.column_stack([fit.slices("k"), part, hidden.parts])
    return factored.key_sums(f, x, y, slices, hidden.mask)


def read(
    fit: _check.Fit, f: Identity, context: Floats, norm: Floats | None = None
) -> tuple[Floats, Floats]:
    """``phi(q) context``, over ``phi(q).norm`` if given, and that one's logarithm."""
    context, norm = _cast(fit, context), None if norm is None else _cast(fit, norm)
    return factored.read(f, fit["q"], fit.slices("q")[:, 0], context, norm)


def write(
    fit: _check.Fit,
    f: Identity,
    name: str,
    top: Floats | None = None,
    factor: Floats | None = None,
    hidden: Hidden | None = None,
) -> Floats:
    """``factor phi(x)`` of every row of an array (batch, rows, r), relative to `top` (batch, r)."""
    x = fit[name]
    r = f.size(x.shape[2])
    top = np.zeros((fit.batch, r)) if top is None else top
    factor = np.ones((fit.batch, r)) if factor is None else factor
    mask = None if hidden is None or hidden.mask is None else hidden.mask[hidden.parts]
    scale = factor.astype(fit.dtype)
    return factored.write(f, x, fit.slices(name)[:, 0], top, scale, mask)


def queries_vjp(
    fit: _check.Fit, f: Identity, context: Floats, norm: Floats | None = None
) -> tuple[Floats, Floats, Floats]:
    """Gradients of queries (batch, n, d), context (batch, r, e) and norm (batch, r)."""
    context, norm = _cast(fit, context), None if norm is None else _cast(fit, norm)
    return factored.queries_vjp(f, fit["q"], fit["dout"], fit.slices("q", "dout"), context, norm)


def keys_vjp(fit: _check.Fit, f: Identity, hidden: Hidden, g: KeyGradient) -> tuple[Floats, Floats]:
    """Gradients of keys and values from those of the sums of ``scale phi(k)`` times (v, 1)."""
    slices = np.column_stack([fit.slices("k", "v"), hidden.parts])
    g = g._replace(
        scale=_cast(fit, g.scale), context=_cast(fit, g.context), norm=_cast(fit, g.norm)
    )
    return factored.keys_vjp(f, fit["k"], fit["v"], slices, g, hidden.mask)


def _cast(fit: _check.Fit, x: Floats) -> Floats:
    return x.astype(fit.dtype)
