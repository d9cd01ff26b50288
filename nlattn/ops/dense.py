"""Dense softmax attention: every query against every key, without an n x m array."""

from __future__ import annotations

from typing import get_args

import numpy as np

from nlattn import _check
from nlattn._modes import About, LseBase, MaskedRows, Nonfinite
from nlattn._types import Bools, Floats, Ints, PerHead, Result
from nlattn.engines import dense as engine
from nlattn.engines import laws
from nlattn.engines.forward_mode import slopes_vjp
from nlattn.engines.magnitude import ranged
from nlattn.engines.normalised import normalised_vjp
from nlattn.kernels.panel import Scores
from nlattn.maps.dense import DenseMap
from nlattn.ops._band import Positions
from nlattn.ops._scores import ScoreArguments, in_base, prepare

_MASKED_ROWS: tuple[MaskedRows, ...] = get_args(MaskedRows)


@ranged(laws.softmax)
def attention(
    q: Floats,
    k: Floats,
    v: Floats,
    *,
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
    masked_rows: MaskedRows = "zero",
    nonfinite: Nonfinite = "raise",
    return_lse: bool = False,
    lse_base: LseBase = "e",
) -> Result:
    """Softmax attention: ``out[i] = sum_j softmax_j(scale q[i].k[j]) v[j]``.

    Parameters
    ----------
    q, k, v : (..., n, d), (..., m, d), (..., m, e) arrays of one dtype, float32 or float64
        Queries, keys, values. Leading axes broadcast.
    scale : float, optional
        Factor on the scores; ``1/sqrt(d)`` if omitted.
    softcap : float, optional
        Scores become ``softcap tanh(s / softcap)``, before bias and mask.
    bias : array that broadcasts to (..., n, m), optional
        Added to the scores; -inf hides a key as a mask does.
    mask, mask_block : bool array that broadcasts to (..., n, m), int or (int, int), optional
        True where a query may attend; with `mask_block`, of blocks of so many queries and keys.
    causal, causal_offset : bool, int, integers that broadcast to the leading axes or "bottom-right"
        Key j is allowed for query i when ``j <= i + causal_offset``. "bottom-right" aligns the last
        query to the last key: the offset is `key_lengths` less `query_lengths`.
    window, window_about : (left, right), {"query", "offset"}
        Key j is allowed when ``i - left <= j <= i + right``; None leaves a side open. About
        "offset" it is ``i + causal_offset`` in place of i.
    key_lengths, query_lengths : integers that broadcast to the leading axes, optional
        Keys from there on are absent; queries give 0, and ``lse = -inf``.
    cu_seqlens_q, cu_seqlens_k : (sequences + 1,) integers, optional
        Where packed sequences start, and where the last one ends; each sees its own keys alone, and
        positions begin anew. Without `cu_seqlens_k` keys are packed as queries are.
    sinks : number, or array that broadcasts to the leading axes, optional
        A score of a key without a value, neither scaled nor capped; -inf for none.
    alibi : number, or array that broadcasts to the leading axes, optional
        Slopes: ``-slope |i + causal_offset - j|`` is added to the scores.
    qk_norm : float, optional
        Queries and keys are divided by ``sqrt(mean(x^2) + qk_norm)`` first.
    dropout_mask, dropout_scale : bool array that broadcasts to (..., n, m), float
        Weights where it is True count `dropout_scale` times in `out`, others do not.
    gqa : bool
        The heads of `q` (axis -3) may be a multiple of those of `k` and `v`.
    masked_rows : {"zero", "nan", "raise"}
        What a query that may attend to nothing gives.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities; "propagate" lets them reach the rows that see them.
    return_lse, lse_base : bool, {"e", "2"}
        Also return the log of each row's normaliser, (..., n) float64; -inf for a masked row.

    Returns
    -------
    (..., n, e) array, dtype of `q`

    Raises
    ------
    ValueError
        Shapes do not fit, or a value is not finite.
    TypeError
        The dtypes differ, or are not floating.

    Notes
    -----
    ``n m (d + e)`` multiply-adds, ``O(n e)`` memory. Source: [vaswani2017, eq. 1]. Status: paper.

    Examples
    --------
    >>> nlattn.attention(q, k, v, causal=True, window=(15, 0)).shape
    (64, 8)
    """
    fit = _check.fit(
        "attention",
        {"q": (q, "n d"), "k": (k, "m d"), "v": (v, "m e")},
        nonfinite=nonfinite,
        gqa=gqa,
    )
    where = Positions(
        causal,
        causal_offset,
        window,
        window_about,
        key_lengths,
        query_lengths,
        cu_seqlens_q,
        cu_seqlens_k,
    )
    asked = ScoreArguments(
        scale, softcap, bias, mask, mask_block, sinks, alibi, dropout_mask, dropout_scale, qk_norm
    )
    p = prepare(fit, where, asked, nonfinite)
    _check.choice(fit.op, "masked_rows", masked_rows, _MASKED_ROWS)
    unit = in_base(fit.op, lse_base)
    out, norm = engine.attend(p, fit["v"])
    if masked_rows == "raise":
        _refuse_masked(fit, p, norm)
    if masked_rows == "nan":
        out[engine.empty_rows(p, norm)] = np.nan
    result = fit.unfold(out)
    if not return_lse:
        return result
    return result, fit.unfold(engine.log_normaliser(norm) * unit, cast=False)


@ranged(laws.softmax)
def attention_map(
    q: Floats,
    k: Floats,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Floats | None = None,
    mask: Bools | None = None,
    causal: bool = False,
    causal_offset: int | str = 0,
    window: tuple[int | None, int | None] | None = None,
    window_about: About = "query",
    key_lengths: int | None = None,
    query_lengths: int | None = None,
    sinks: PerHead | None = None,
    alibi: PerHead | None = None,
    qk_norm: float | None = None,
    dropout_mask: Bools | None = None,
    query_grid: tuple[int, ...] | None = None,
    key_grid: tuple[int, ...] | None = None,
    nonfinite: Nonfinite = "raise",
) -> DenseMap:
    """The map of one head's `attention`, from values (m, e) to outputs (n, e).

    Options as there. `query_grid` and `key_grid` say how queries and keys lie in raster order.
    The map holds `q` and `k` and computes what it is asked for; a masked row is 0. A sink takes its
    share of every row and has no column: rows sum to less than 1, and ``A.lse`` is with it. What is
    beyond `key_lengths` and `query_lengths` has weight 0. Dropped weights are no softmax's, and
    refused: `sparse_attention_map` holds any.

    Examples
    --------
    >>> A = nlattn.attention_map(q, k)
    >>> weights, keys = A.topk(3)
    >>> np.allclose(A @ v, nlattn.attention(q, k, v))
    True
    """
    fit = _check.fit("attention_map", {"q": (q, "n d"), "k": (k, "m d")}, nonfinite=nonfinite)
    _check.one_head(fit)
    if dropout_mask is not None:
        text = "has no place in a map of all keys, whose rows are a softmax's"
        _check.fail(fit.op, "dropout_mask", f"{text}; sparse_attention_map takes one")
    lengths = key_lengths, query_lengths
    where = Positions(causal, causal_offset, window, window_about, *lengths)
    asked = ScoreArguments(
        scale=scale,
        softcap=softcap,
        bias=bias,
        mask=mask,
        sinks=sinks,
        alibi=alibi,
        qk_norm=qk_norm,
    )
    p = prepare(fit, where, asked, nonfinite)
    return DenseMap(p, query_grid, key_grid)


@ranged(laws.softmax)
def attention_vjp(
    q: Floats,
    k: Floats,
    v: Floats,
    dout: Floats,
    *,
    dlse: Floats | None = None,
    lse_base: LseBase = "e",
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
    alibi_gradient: bool = False,
    qk_norm: float | None = None,
    dropout_mask: Bools | None = None,
    dropout_scale: float = 1.0,
    gqa: bool = False,
    masked_rows: MaskedRows = "zero",
    nonfinite: Nonfinite = "raise",
) -> Result:
    """Gradients of ``sum(dout * out) + sum(dlse * lse)``: (dq, dk, dv), then dbias and dsinks.

    These two only with `bias` and with `sinks`, and last, with `alibi_gradient`, that of the slopes
    `alibi`. Arguments as for `attention`, `dout` in the shape
    of its result and `dlse` (..., n). Gradients have the shapes of their arrays. The forward pass
    is computed again, then ``n m (3 d + 2 e)`` multiply-adds (with a bias ``d + e`` more); memory
    ``O(n e + m (d + e))`` per head. Source: [dao2022, appendix B.2].

    Examples
    --------
    >>> dq, dk, dv = nlattn.attention_vjp(q, k, v, dout=np.ones_like(v))
    >>> np.allclose(dv.sum(0), len(q))  # the weights of each query sum to 1
    True
    """
    arrays = {"q": (q, "n d"), "k": (k, "m d"), "v": (v, "m e"), "dout": (dout, "n e")}
    if dlse is not None:
        arrays["dlse"] = (dlse, "n")
    fit = _check.fit("attention_vjp", arrays, nonfinite=nonfinite, gqa=gqa)
    where = Positions(
        causal,
        causal_offset,
        window,
        window_about,
        key_lengths,
        query_lengths,
        cu_seqlens_q,
        cu_seqlens_k,
    )
    asked = ScoreArguments(
        scale, softcap, bias, mask, mask_block, sinks, alibi, dropout_mask, dropout_scale, qk_norm
    )
    p = prepare(fit, where, asked, nonfinite)
    _check.choice(fit.op, "masked_rows", masked_rows, _MASKED_ROWS)
    unit = in_base(fit.op, lse_base)
    out, norm = engine.attend(p, fit["v"])
    if masked_rows == "raise":
        _refuse_masked(fit, p, norm)
    delta = np.einsum("bne,bne->bn", out, fit["dout"])
    if dlse is not None:
        delta -= fit["dlse"] * fit.dtype.type(unit)
    dq, dk, dv = engine.vjp(p, fit["v"], fit["dout"], norm, delta)
    if qk_norm is not None:
        dq = normalised_vjp(fit["q"][p.slices[:, 0]], dq, qk_norm)
        dk = normalised_vjp(fit["k"][p.slices[:, 1]], dk, qk_norm)
    gradients = [fit.reduce("q", dq), fit.reduce("k", dk), fit.reduce("v", dv)]
    if bias is not None:
        dbias = engine.bias_vjp(p, fit["v"], fit["dout"], norm, delta)
        gradients.append(dbias.reshape(np.shape(bias)).astype(fit.out_dtype, copy=False))
    if sinks is not None:
        gradients.append(fit.reduce_beside(engine.sink_vjp(p, norm, delta), np.shape(sinks)))
    if _check.flag(fit.op, "alibi_gradient", alibi_gradient):
        if alibi is None:
            _check.fail(fit.op, "alibi_gradient=True", "has no place without alibi")
        dslopes = slopes_vjp(p, fit["v"], fit["dout"], norm, delta)
        gradients.append(fit.reduce_beside(dslopes, np.shape(alibi)))
    return tuple(gradients)


def _refuse_masked(fit: _check.Fit, p: Scores, norm: Floats) -> None:
    """ValueError that names the first query without a key."""
    masked = engine.empty_rows(p, norm)
    if masked.any():
        lead = np.unravel_index(int(masked.argmax()), (*fit.lead, fit.dims["n"]))
        where = tuple(int(i) for i in lead)
        text = "may attend to no key; masked_rows='zero' gives it 0"
        _check.fail(fit.op, f"query {where}", text)
