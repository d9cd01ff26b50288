"""Partial results of attention over disjoint sets of keys, merged, and the gradient of that.

[rabe2021, section 3]; a set is an output and its log normaliser. Status: paper.
"""

from __future__ import annotations

import numpy as np

from nlattn.oracle.layout import any_layout

Array = np.ndarray
LOG_2 = float(np.log(2))


def _shares(lses: Array) -> tuple[Array, Array]:
    """Share of each set in all weights, (..., parts, n), and the normaliser of all, (..., n)."""
    top = lses.real.max(-2, keepdims=True, initial=-np.inf)
    none = np.isneginf(top)
    there = ~np.isneginf(lses.real)
    powers = np.where(there, np.exp(np.where(there, lses, 0) - np.where(none, 0, top)), 0)
    total = powers.sum(-2, keepdims=True)
    lse = np.where(none, -np.inf, top + np.log(np.where(none, 1, total)))
    return powers / np.where(none, 1, total), lse[..., 0, :]


@any_layout
def merge_attention(outs: Array, lses: Array, *, lse_base: str = "e") -> tuple[Array, Array]:
    """``out = sum_s exp(lse_s - lse) out_s``: outs (..., parts, n, e), lses (..., parts, n)."""
    unit = LOG_2 if lse_base == "2" else 1.0
    shares, lse = _shares(lses * unit)
    terms = np.where(shares[..., None] == 0, 0, shares[..., None] * outs)
    return terms.sum(-3), lse / unit


@any_layout
def merge_attention_vjp(
    outs: Array, lses: Array, dout: Array, *, dlse: Array | None = None, lse_base: str = "e"
) -> tuple[Array, Array]:
    """Gradients (douts, dlses): ``p_s dout`` and ``p_s (dout . (out_s - out) + dlse)``."""
    unit = LOG_2 if lse_base == "2" else 1.0
    shares, _ = _shares(lses * unit)
    out, _ = merge_attention(outs, lses, lse_base=lse_base)
    there = shares != 0
    moved = np.where(there[..., None], outs - out[..., None, :, :], 0)
    inner = unit * (dout[..., None, :, :] * moved).sum(-1)
    if dlse is not None:
        inner = inner + dlse[..., None, :]
    return shares[..., None] * dout[..., None, :, :], np.where(there, shares * inner, 0)


@any_layout
def merge_attention_jvp(
    outs: Array, lses: Array, douts: Array, dlses: Array, *, lse_base: str = "e"
) -> tuple[Array, Array]:
    """Changes of out and lse along douts and dlses; those of an empty set do not count."""
    unit = LOG_2 if lse_base == "2" else 1.0
    shares, _ = _shares(lses * unit)
    there = shares != 0
    moved = np.where(there, dlses, 0)
    mean = (shares * moved).sum(-2)
    dshares = unit * shares * (moved - mean[..., None, :])
    terms = np.where(there[..., None], dshares[..., None] * outs + shares[..., None] * douts, 0)
    return terms.sum(-3), mean
