"""Forward mode: how the outputs of attention move as its arrays do."""

from __future__ import annotations

import numpy as np

from nlattn import _check
from nlattn._modes import About, LseBase, Nonfinite, Weight
from nlattn._types import Bools, Floats, Ints, PerHead, Result, Support
from nlattn.engines import forward_mode, laws, neighbourhood
from nlattn.engines.magnitude import ranged
from nlattn.engines.normalised import normalised_vjp
from nlattn.ops._band import Positions
from nlattn.ops._edges import SparseArguments, edge_terms, prepared
from nlattn.ops._scores import ScoreArguments, alike, fold, in_base, per_head, prepare
from nlattn.ops.neighbourhood import Flags, PerAxis, moving, on_grid, on_neighbours


@ranged(laws.along(laws.softmax))
def attention_jvp(
    q: Floats,
    k: Floats,
    v: Floats,
    dq: Floats,
    dk: Floats,
    dv: Floats,
    *,
    dbias: Floats | None = None,
    dsinks: PerHead | None = None,
    dalibi: PerHead | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Floats | None = None,
    mask: Bools | None = None,
    mask_block: int | tuple[int, int] | None = None,
    causal: bool = False,
    causal_offset: int | Ints | str = 0,
    window: tuple[int | None, int | None] | None = None,
    window_about: About = "query",
    key_lengths: int | Ints | None = None,
    query_lengths: int | Ints | None = None,
    cu_seqlens_q: Ints | None = None,
    cu_seqlens_k: Ints | None = None,
    sinks: PerHead | None = None,
    alibi: PerHead | None = None,
    qk_norm: float | None = None,
    dropout_mask: Bools | None = None,
    dropout_scale: float = 1.0,
    gqa: bool = False,
    nonfinite: Nonfinite = "raise",
    return_lse: bool = False,
    lse_base: LseBase = "e",
) -> Result:
    """Change of `attention` along (dq, dk, dv[, dbias][, dsinks][, dalibi]), to first order.

    Arguments as there; changes have the shapes of their arrays. With `return_lse` also that of
    ``lse``, float64. ``3 n m (d + e)`` multiply-adds in one pass, three times those of `attention`;
    ``O(n e)`` memory. A row without keys does not change.

    Examples
    --------
    >>> zero = np.zeros_like(q)
    >>> along_v = nlattn.attention_jvp(q, k, v, zero, zero, v)
    >>> np.allclose(along_v, nlattn.attention(q, k, v))  # linear in the values
    True
    """
    op = "attention_jvp"
    arrays = {"q": (q, "n d"), "k": (k, "m d"), "v": (v, "m e")}
    changes = {"dq": (dq, "n d"), "dk": (dk, "m d"), "dv": (dv, "m e")}
    fit = _check.fit(op, {**arrays, **changes}, nonfinite=nonfinite, gqa=gqa)
    where = Positions(
        causal, causal_offset, window, window_about, key_lengths, query_lengths, cu_seqlens_q,
        cu_seqlens_k,
    )  # fmt: skip
    asked = ScoreArguments(
        scale, softcap, bias, mask, mask_block, sinks, alibi, dropout_mask, dropout_scale, qk_norm
    )
    p = prepare(fit, where, asked, nonfinite)
    unit = in_base(op, lse_base)
    alike(op, "dbias", dbias, bias)
    alike(op, "dsinks", dsinks, sinks)
    alike(op, "dalibi", dalibi, alibi)
    if qk_norm is not None:  # the derivative is its own transpose
        for name in "qk":
            fit.put(f"d{name}", normalised_vjp(fit[name], fit[f"d{name}"], qk_norm))
    moved_bias = None if dbias is None else fold(fit, "bias", _check.array(op, "dbias", dbias))[0]
    moved_sinks = None if dsinks is None else per_head(fit, "dsinks", dsinks, nonfinite)
    moved_slopes = None if dalibi is None else per_head(fit, "dalibi", dalibi, nonfinite)
    x = forward_mode.changes(p, fit, moved_bias, moved_sinks, moved_slopes)
    out, lse = forward_mode.attention(p, fit["v"], x)
    if not return_lse:
        return fit.unfold(out)
    return fit.unfold(out), fit.unfold(lse * unit, cast=False)


@ranged(laws.along(laws.weight))
def sparse_attention_jvp(
    q: Floats,
    k: Floats,
    v: Floats,
    support: Support,
    dq: Floats,
    dk: Floats,
    dv: Floats,
    *,
    dbias: Floats | None = None,
    dsinks: PerHead | None = None,
    weight: Weight = "softmax",
    scale: float | None = None,
    bandwidth: float = 1.0,
    power: float = 2.0,
    softcap: float | None = None,
    bias: Floats | None = None,
    sinks: PerHead | None = None,
    qk_norm: float | None = None,
    dropout_mask: Bools | None = None,
    dropout_scale: float = 1.0,
    nonfinite: Nonfinite = "raise",
    return_lse: bool = False,
    lse_base: LseBase = "e",
) -> Result:
    """Change of `sparse_attention` along (dq, dk, dv[, dbias][, dsinks]), the support held fixed.

    Arguments as there; with `return_lse` also the change of ``log Z``, float64. ``nnz (3 d + 2 e)``
    multiply-adds, ``O(nnz)`` memory.

    Examples
    --------
    >>> support = nlattn.support_from_index(rng.integers(0, 64, (64, 9)), 64)
    >>> along = nlattn.sparse_attention_jvp(q, k, v, support, q, k, v)
    """
    op = "sparse_attention_jvp"
    arrays = {"q": (q, "n d"), "k": (k, "m d"), "v": (v, "m e")}
    changes = {"dq": (dq, "n d"), "dk": (dk, "m d"), "dv": (dv, "m e")}
    asked = SparseArguments(weight, scale, bandwidth, power, softcap, bias, sinks, qk_norm,
        dropout_mask, dropout_scale, "zero", nonfinite)  # fmt: skip
    edges, weights = prepared(op, {**arrays, **changes}, support, asked)
    fit, unit = edges.fit, in_base(op, lse_base)
    if qk_norm is not None:  # the derivative is its own transpose
        for name, x, dx in (("dq", q, dq), ("dk", k, dk)):
            moved = normalised_vjp(np.asarray(x), np.asarray(dx), qk_norm)
            fit.put(name, moved.reshape(fit[name].shape))
    alike(op, "dbias", dbias, bias)
    alike(op, "dsinks", dsinks, sinks)
    moved_bias, _ = edge_terms(edges, dbias, None, nonfinite)
    moved_sinks = None if dsinks is None else per_head(fit, "dsinks", dsinks, nonfinite)
    out, lse = forward_mode.on_edges(edges, weights, moved_bias, moved_sinks)
    return forward_mode.unfolded(edges, out, lse * unit, return_lse)


@ranged(laws.along(laws.softmax))
def neighbourhood_attention_jvp(
    q: Floats,
    k: Floats,
    v: Floats,
    dq: Floats,
    dk: Floats,
    dv: Floats,
    *,
    window: PerAxis,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    causal: Flags = False,
    scale: float | None = None,
    nonfinite: Nonfinite = "raise",
    return_lse: bool = False,
) -> Result:
    """Change of `neighbourhood_attention` along (dq, dk, dv), to first order.

    Arguments as there. ``n window (3 d + 2 e)`` multiply-adds, ``O(n e)`` memory.

    Examples
    --------
    >>> along = nlattn.neighbourhood_attention_jvp(grid, grid, grid, grid, grid, grid, window=5)
    """
    op = "neighbourhood_attention_jvp"
    given = {"q": q, "k": k, "v": v, "dq": dq, "dk": dk, "dv": dv}
    fit, axes, p = on_neighbours(op, given, window, stride, dilation, causal, scale, nonfinite)
    out, lse = neighbourhood.jvp(p, axes, moving(fit, p))
    result = on_grid(fit, axes, out)
    return (result, on_grid(fit, axes, lse, cast=False)) if return_lse else result
