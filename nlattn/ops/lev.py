"""LevAttention: softmax attention on the few keys of largest leverage, one set for all queries."""

from __future__ import annotations

import numpy as np

from nlattn import _check
from nlattn._modes import KeyChoice, Nonfinite
from nlattn._types import Floats, Ints, Result
from nlattn.engines import laws
from nlattn.engines.magnitude import ranged
from nlattn.maps.selected import SelectedMap
from nlattn.ops._select import chosen_keys
from nlattn.ops.dense import attention, attention_map, attention_vjp
from nlattn.ops.forward_mode import attention_jvp


def lev_keys(
    q: Floats,
    k: Floats,
    *,
    keys: int = 32,
    scores: Floats | None = None,
    select: KeyChoice = "leverage",
    scale: float | None = None,
    seed: int = 0,
    gqa: bool = False,
    nonfinite: Nonfinite = "raise",
) -> Ints:
    """The `keys` keys of largest score, for each head of `k`; ties go to the lowest index.

    Arguments as for `lev_attention`; `q` is looked at by ``select="oracle"`` alone. Returns
    (..., min(keys, m)) int64, ascending, with the leading axes of `k`.

    Examples
    --------
    >>> nlattn.lev_keys(q, k, keys=4).shape
    (4,)
    """
    fit = _check.fit("lev_keys", {"q": (q, "n d"), "k": (k, "m d")}, nonfinite=nonfinite, gqa=gqa)
    index = chosen_keys(
        fit, index=None, keys=keys, scores=scores, select=select, scale=scale, seed=seed
    )
    return index.reshape((*fit.lead_of("k"), index.shape[1]))


@ranged(laws.softmax)
def lev_attention(
    q: Floats,
    k: Floats,
    v: Floats,
    *,
    keys: int = 32,
    scores: Floats | None = None,
    select: KeyChoice = "leverage",
    index: Ints | None = None,
    scale: float | None = None,
    seed: int = 0,
    gqa: bool = False,
    nonfinite: Nonfinite = "raise",
    return_lse: bool = False,
) -> Result:
    """Softmax attention on a few keys U: ``out[i] = sum_U softmax_U(scale q[i].k[j]) v[j]``.

    Parameters
    ----------
    q, k, v : (..., n, d), (..., m, d), (..., m, e) arrays of one dtype, float32 or float64
        Queries, keys, values. Leading axes broadcast.
    keys : int
        How many keys of each head of `k` are attended to: those of largest score.
    scores : (..., m) array, optional
        Scores of the keys, instead of `select`.
    select : {"leverage", "norm", "random", "oracle"}
        What keys are chosen by: `leverage_scores`; squared norms; chance; the mass that dense
        attention gives them, which takes ``n m d``.
    index : (..., s) integers, optional
        The keys themselves, as `lev_keys` gives them, instead of all of the above.
    scale : float, optional
        Factor on the scores q.k; ``1/sqrt(d)`` if omitted.
    seed : int
        Of ``select="random"``.
    gqa : bool
        The heads of `q` (axis -3) may be a multiple of those of `k` and `v`, and share their keys.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities.
    return_lse : bool
        Also return the log of each row's normaliser over U, (..., n) float64.

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
    ``2 m d^2 + n keys (d + e)`` multiply-adds, ``O(n e + d^2)`` memory. How much of dense attention
    U holds is not bounded: a heuristic. Source: [kannan2024]. Status: reconstruction.

    Examples
    --------
    >>> nlattn.lev_attention(q, k, v, keys=16).shape
    (64, 8)
    """
    arrays = {"q": (q, "n d"), "k": (k, "m d"), "v": (v, "m e")}
    fit = _check.fit("lev_attention", arrays, nonfinite=nonfinite, gqa=gqa)
    chosen = chosen_keys(
        fit, index=index, keys=keys, scores=scores, select=select, scale=scale, seed=seed
    )
    out, lse = attention(
        *_gathered(fit, chosen), scale=scale, gqa=gqa, nonfinite="propagate", return_lse=True
    )
    out = out.astype(fit.out_dtype, copy=False)
    return (out, lse) if return_lse else out


@ranged(laws.softmax)
def lev_attention_map(
    q: Floats,
    k: Floats,
    *,
    keys: int = 32,
    scores: Floats | None = None,
    select: KeyChoice = "leverage",
    index: Ints | None = None,
    scale: float | None = None,
    seed: int = 0,
    query_grid: tuple[int, ...] | None = None,
    key_grid: tuple[int, ...] | None = None,
    nonfinite: Nonfinite = "raise",
) -> SelectedMap:
    """The map of one head's `lev_attention`, from values (m, e) to outputs (n, e).

    Arguments as there; `query_grid` and `key_grid` say how queries and keys lie in raster order.
    The map holds `q`, the selected keys and their index, ``O(n d)`` numbers.

    Examples
    --------
    >>> A = nlattn.lev_attention_map(q, k, keys=16)
    >>> int((A.to_dense() > 0).any(0).sum())
    16
    """
    op = "lev_attention_map"
    fit = _check.fit(op, {"q": (q, "n d"), "k": (k, "m d")}, nonfinite=nonfinite)
    _check.one_head(fit)
    chosen = chosen_keys(
        fit, index=index, keys=keys, scores=scores, select=select, scale=scale, seed=seed
    )[0]
    dense = attention_map(fit["q"][0], fit["k"][0][chosen], scale=scale, nonfinite="propagate")
    return SelectedMap(dense, chosen, fit.dims["m"], query_grid, key_grid)


@ranged(laws.softmax)
def lev_attention_vjp(
    q: Floats,
    k: Floats,
    v: Floats,
    dout: Floats,
    *,
    dlse: Floats | None = None,
    keys: int = 32,
    scores: Floats | None = None,
    select: KeyChoice = "leverage",
    index: Ints | None = None,
    scale: float | None = None,
    seed: int = 0,
    gqa: bool = False,
    nonfinite: Nonfinite = "raise",
) -> tuple[Floats, Floats, Floats]:
    """Gradients (dq, dk, dv) of ``sum(dout * out) + sum(dlse * lse)``, the keys U held fixed.

    Arguments as for `lev_attention`, `dout` in the shape of its result and `dlse` (..., n). Exact
    for the keys that were chosen; 0 for all others, whose scores no derivative sees.

    Examples
    --------
    >>> dq, dk, dv = nlattn.lev_attention_vjp(q, k, v, np.ones_like(v), keys=16)
    """
    arrays = {"q": (q, "n d"), "k": (k, "m d"), "v": (v, "m e"), "dout": (dout, "n e")}
    if dlse is not None:
        arrays["dlse"] = (dlse, "n")
    fit = _check.fit("lev_attention_vjp", arrays, nonfinite=nonfinite, gqa=gqa)
    chosen = chosen_keys(
        fit, index=index, keys=keys, scores=scores, select=select, scale=scale, seed=seed
    )
    dq, dk_U, dv_U = attention_vjp(
        *_gathered(fit, chosen),
        fit.unfold(fit["dout"], cast=False),
        dlse=None if dlse is None else fit.unfold(fit["dlse"], cast=False),
        scale=scale,
        gqa=gqa,
        nonfinite="propagate",
    )
    dk, dv = (np.zeros(fit[name].shape, fit.dtype) for name in "kv")
    pairs = _pairs(fit)
    for b, dx in enumerate(dk_U.reshape(len(dk), *dk_U.shape[-2:])):
        dk[b, chosen[b]] = dx
    for (_, key, value), dx in zip(pairs, dv_U.reshape(len(pairs), *dv_U.shape[-2:]), strict=True):
        dv[value, chosen[key]] += dx
    gradients = dq, dk.reshape(fit.given("k")), dv.reshape(fit.given("v"))
    return tuple(x.astype(fit.out_dtype, copy=False) for x in gradients)  # type: ignore[return-value]


@ranged(laws.along(laws.softmax))
def lev_attention_jvp(
    q: Floats,
    k: Floats,
    v: Floats,
    dq: Floats,
    dk: Floats,
    dv: Floats,
    *,
    keys: int = 32,
    scores: Floats | None = None,
    select: KeyChoice = "leverage",
    index: Ints | None = None,
    scale: float | None = None,
    seed: int = 0,
    gqa: bool = False,
    nonfinite: Nonfinite = "raise",
    return_lse: bool = False,
) -> Result:
    """Change of `lev_attention` along (dq, dk, dv), to first order, the keys U held fixed.

    Arguments as there; changes have the shapes of their arrays, and those of keys outside U do not
    count. With `return_lse` also that of ``lse``.

    Examples
    --------
    >>> change = nlattn.lev_attention_jvp(q, k, v, 1e-3 * q, 0 * k, 0 * v, keys=8)
    """
    specs = {"q": "n d", "k": "m d", "v": "m e"}
    arrays = {n: (x, specs[n]) for n, x in zip(specs, (q, k, v), strict=True)}
    arrays |= {f"d{n}": (x, specs[n]) for n, x in zip(specs, (dq, dk, dv), strict=True)}
    fit = _check.fit("lev_attention_jvp", arrays, nonfinite=nonfinite, gqa=gqa)
    chosen = chosen_keys(
        fit, index=index, keys=keys, scores=scores, select=select, scale=scale, seed=seed
    )
    given = *_gathered(fit, chosen), *_gathered(fit, chosen, "d")
    out, lse = attention_jvp(*given, scale=scale, gqa=gqa, nonfinite="propagate", return_lse=True)
    out = out.astype(fit.out_dtype, copy=False)
    return (out, lse) if return_lse else out


def _pairs(fit: _check.Fit) -> Ints:
    """Slices of q, k, v for each slice of the gathered values: v's own if k has the same."""
    if fit.lead_of("k") == fit.lead_of("v"):
        return np.repeat(np.arange(len(fit["k"]))[:, None], 3, axis=1)
    return fit.index[:, :3]


def _gathered(fit: _check.Fit, chosen: Ints, change: str = "") -> tuple[Floats, Floats, Floats]:
    """Queries, and the chosen keys and their values, with leading axes that fit each other."""
    s, (q, k, v) = chosen.shape[1], (change + name for name in "qkv")
    keys = np.take_along_axis(fit[k], chosen[..., None], 1)
    pairs = _pairs(fit)
    values = fit[v][pairs[:, 2, None], chosen[pairs[:, 1]]]
    same = fit.lead_of("k") == fit.lead_of("v")
    lead = fit.lead_of("v") if same else fit.lead
    return (
        fit[q].reshape(fit.given(q)),
        keys.reshape((*fit.lead_of(k), s, fit.dims["d"])),
        values.reshape((*lead, s, fit.dims["e"])),
    )
