"""Dense softmax attention: every query against every key, without an n x m array."""

from __future__ import annotations

from typing import Any

import numpy as np

from nlattn import _check
from nlattn._types import Bools, Floats
from nlattn.engines import dense as engine
from nlattn.engines import laws
from nlattn.engines.magnitude import ranged
from nlattn.maps.dense import DenseMap
from nlattn.ops._scores import prepare

_MASKED_ROWS = ("zero", "nan", "raise")


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
    causal: bool = False,
    causal_offset: int = 0,
    window: tuple[int | None, int | None] | None = None,
    gqa: bool = False,
    masked_rows: str = "zero",
    nonfinite: str = "raise",
    return_lse: bool = False,
) -> Any:
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
    mask : bool array that broadcasts to (..., n, m), optional
        True where a query may attend.
    causal, causal_offset : bool, int
        Key j is allowed for query i when ``j <= i + causal_offset``.
    window : (left, right), optional
        Key j is allowed when ``i - left <= j <= i + right``; None leaves a side open.
    gqa : bool
        The heads of `q` (axis -3) may be a multiple of those of `k` and `v`.
    masked_rows : {"zero", "nan", "raise"}
        What a query that may attend to nothing gives.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities; "propagate" lets them reach the rows that see them.
    return_lse : bool
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
    """
    fit = _check.fit(
        "attention",
        {"q": (q, "n d"), "k": (k, "m d"), "v": (v, "m e")},
        nonfinite=nonfinite,
        gqa=gqa,
    )
    p = prepare(
        fit,
        scale=scale,
        softcap=softcap,
        bias=bias,
        mask=mask,
        causal=causal,
        causal_offset=causal_offset,
        window=window,
        nonfinite=nonfinite,
    )
    _check.choice(fit.op, "masked_rows", masked_rows, _MASKED_ROWS)
    out, norm = engine.attend(p, fit["v"])
    if masked_rows == "raise":
        _refuse_masked(fit, norm)
    if masked_rows == "nan":
        out[norm[1] == 0] = np.nan
    result = fit.unfold(out)
    return (result, fit.unfold(engine.log_normaliser(norm), cast=False)) if return_lse else result


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
    causal_offset: int = 0,
    window: tuple[int | None, int | None] | None = None,
    query_grid: tuple[int, ...] | None = None,
    key_grid: tuple[int, ...] | None = None,
    nonfinite: str = "raise",
) -> DenseMap:
    """The map of one head's `attention`, from values (m, e) to outputs (n, e).

    Options as there. `query_grid` and `key_grid` say how queries and keys lie in raster order.
    The map holds `q` and `k` and computes what it is asked for; a masked row is 0.
    """
    fit = _check.fit("attention_map", {"q": (q, "n d"), "k": (k, "m d")}, nonfinite=nonfinite)
    _check.one_head(fit)
    p = prepare(
        fit,
        scale=scale,
        softcap=softcap,
        bias=bias,
        mask=mask,
        causal=causal,
        causal_offset=causal_offset,
        window=window,
        nonfinite=nonfinite,
    )
    return DenseMap(p, query_grid, key_grid)


@ranged(laws.softmax)
def attention_vjp(
    q: Floats,
    k: Floats,
    v: Floats,
    dout: Floats,
    *,
    dlse: Floats | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Floats | None = None,
    mask: Bools | None = None,
    causal: bool = False,
    causal_offset: int = 0,
    window: tuple[int | None, int | None] | None = None,
    gqa: bool = False,
    masked_rows: str = "zero",
    nonfinite: str = "raise",
) -> Any:
    """Gradients (dq, dk, dv) of ``sum(dout * out) + sum(dlse * lse)``; with `bias` also dbias.

    Arguments as for `attention`, `dout` in the shape of its result and `dlse` (..., n). Gradients
    have the shapes of their arrays. The forward pass is computed again, then
    ``n m (3 d + 2 e)`` multiply-adds (with a bias ``d + e`` more); memory ``O(n e + m (d + e))``
    per head. Source: [dao2022, appendix B.2].
    """
    arrays = {"q": (q, "n d"), "k": (k, "m d"), "v": (v, "m e"), "dout": (dout, "n e")}
    if dlse is not None:
        arrays["dlse"] = (dlse, "n")
    fit = _check.fit("attention_vjp", arrays, nonfinite=nonfinite, gqa=gqa)
    p = prepare(
        fit,
        scale=scale,
        softcap=softcap,
        bias=bias,
        mask=mask,
        causal=causal,
        causal_offset=causal_offset,
        window=window,
        nonfinite=nonfinite,
    )
    _check.choice(fit.op, "masked_rows", masked_rows, _MASKED_ROWS)
    out, norm = engine.attend(p, fit["v"])
    if masked_rows == "raise":
        _refuse_masked(fit, norm)
    delta = np.einsum("bne,bne->bn", out, fit["dout"])
    if dlse is not None:
        delta -= fit["dlse"]
    dq, dk, dv = engine.vjp(p, fit["v"], fit["dout"], norm, delta)
    gradients = fit.reduce("q", dq), fit.reduce("k", dk), fit.reduce("v", dv)
    if bias is None:
        return gradients
    dbias = engine.bias_vjp(p, fit["v"], fit["dout"], norm, delta)
    return (*gradients, dbias.reshape(np.shape(bias)).astype(fit.out_dtype, copy=False))


def _refuse_masked(fit: _check.Fit, norm: Floats) -> None:
    """ValueError that names the first query without a key."""
    masked = norm[1] == 0
    if masked.any():
        lead = np.unravel_index(int(masked.argmax()), (*fit.lead, fit.dims["n"]))
        where = tuple(int(i) for i in lead)
        text = "may attend to no key; masked_rows='zero' gives it 0"
        _check.fail(fit.op, f"query {where}", text)
