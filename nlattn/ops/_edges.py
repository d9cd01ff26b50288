"""The options of attention on a support, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._modes import MaskedRows, Nonfinite, Weight
from nlattn._types import Array, Bools, Floats, PerHead, Support
from nlattn.engines.normalised import normalised
from nlattn.engines.sparse import Edges, WeightFunction
from nlattn.ops._scores import per_head


class SparseArguments(NamedTuple):
    """The options of a call, as they came."""

    weight: Weight
    scale: float | None
    bandwidth: float
    power: float
    softcap: float | None
    bias: Floats | None
    sinks: PerHead | None
    qk_norm: float | None
    dropout_mask: Bools | None
    dropout_scale: float
    masked_rows: MaskedRows
    nonfinite: Nonfinite


def prepared(
    op: str, arrays: Mapping[str, tuple[object, str]], support: Support, asked: SparseArguments
) -> tuple[Edges, WeightFunction]:
    """The edges of a call, and how they are weighed."""
    fit = _check.fit(op, arrays, nonfinite=asked.nonfinite)
    if "v" not in arrays:
        _check.one_head(fit)
    if asked.qk_norm is not None:
        eps = _check.number(op, "qk_norm", asked.qk_norm, positive=True)
        for name in "qk":
            fit.put(name, normalised(fit[name], eps))
    edges = Edges(fit, support)
    beside = edge_terms(edges, asked.bias, asked.sinks, asked.nonfinite)
    factor = _check.number(op, "dropout_scale", asked.dropout_scale)
    kept = None
    if asked.dropout_mask is not None:
        drawn = _check.booleans(op, "dropout_mask", asked.dropout_mask)
        _of_edges(edges, "dropout_mask", drawn)
        kept = np.where(drawn, factor, 0.0)
    elif factor != 1:
        _check.fail(op, f"dropout_scale={factor}", "has no place without a dropout_mask")
    rule = asked.weight, asked.scale, asked.bandwidth, asked.power, asked.masked_rows
    return edges, WeightFunction.checked(fit, *rule, *beside, asked.softcap, kept)


def _of_edges(edges: Edges, name: str, x: Array) -> None:
    """Refuse what has not one entry for each edge."""
    count = len(edges.support.indices)
    if x.shape != (count,):
        text = f"has shape {x.shape}, expected ({count},), one for each edge of the support"
        _check.fail(edges.op, name, text)


def edge_terms(
    edges: Edges, bias: object, sinks: object, nonfinite: Nonfinite
) -> tuple[Floats | None, Floats | None]:
    """A number for each edge, (nnz,), and one for each head, (batch,) float64."""
    fit = edges.fit
    if bias is not None:
        bias = _check.array(fit.op, "bias", bias)
        _check.one_dtype(fit.op, {"q": fit.out_dtype, "bias": bias.dtype})
        _of_edges(edges, "bias", bias)
        bad = np.isnan(bias) | (bias == np.inf)
        if nonfinite == "raise" and bad.any():
            where = _check.first_of(bad)
            _check.fail(
                fit.op, f"bias{where}", f"is {bias[bad][0]}, expected finite values or -inf"
            )
    if sinks is not None:
        sinks = per_head(fit, "sinks", sinks, nonfinite).astype(np.float64)
    return bias, sinks
