"""Hamming attention: softmax over the keys whose signs agree most with the query's."""

from __future__ import annotations

from typing import NamedTuple, get_args

import numpy as np

from nlattn import _check
from nlattn._modes import Nonfinite, StraightThrough
from nlattn._types import Floats, Result, Signs, Work
from nlattn.engines import forward_mode, laws
from nlattn.engines import hamming as engine
from nlattn.engines.magnitude import ranged
from nlattn.engines.sparse import Edges, WeightFunction
from nlattn.maps.sparse import SparseMap

THROUGH: tuple[StraightThrough, ...] = get_args(StraightThrough)
_CHANNELS = 2**16 - 2  # distances are held in 16 bits, of which the last value is none


def pack_signs(x: Floats, *, nonfinite: Nonfinite = "raise") -> Signs:
    """Signs of vectors (..., n, d), 64 to a word: a bit is set where a number is below 0.

    0, -0 and NaN (with ``nonfinite="propagate"``) count as positive. The bits beyond d are 0.
    `hamming_attention` takes the result in place of the numbers, in 1/32 of float32's memory.

    Examples
    --------
    >>> bits = nlattn.pack_signs(q)
    >>> bits.channels
    8
    """
    fit = _check.fit("pack_signs", {"x": (x, "n d")}, nonfinite=nonfinite)
    words = engine.packed(fit["x"])
    return Signs(words.reshape(*fit.lead, *words.shape[1:]), fit.dims["d"])


@ranged(laws.signs)
def hamming_attention(
    q: Floats | Signs,
    k: Floats | Signs,
    v: Floats,
    *,
    keys: int = 32,
    scale: float | None = None,
    nonfinite: Nonfinite = "raise",
    return_lse: bool = False,
) -> Result:
    """Softmax of ``scale sign(q).sign(k)`` over the `keys` keys N where it is largest, times v.

    Parameters
    ----------
    q, k : (..., n, d), (..., m, d) arrays of the dtype of `v`, or Signs as from `pack_signs`
        Queries and keys, of which the signs count alone: +1 for 0 and -0. At most 65534 channels.
    v : (..., m, e) array, float32 or float64
        Values. Leading axes broadcast.
    keys : int
        How many keys each query attends to; of equal scores the lowest index comes first.
    scale : float, optional
        Positive factor on the scores, ``1/sqrt(d)`` if omitted.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities; the sign of NaN is +1.
    return_lse : bool
        Also return the log of each row's normaliser over N, (..., n) float64.

    Returns
    -------
    (..., n, e) array, dtype of `v`

    Raises
    ------
    ValueError
        Shapes do not fit, a value is not finite, or packed signs have bits beyond their channels.
    TypeError
        The dtypes differ, or are not floating.

    Notes
    -----
    ``n m d / 64`` words compared by xor and a count of ones, ``n keys (d + e)`` multiply-adds,
    ``O(n (keys + e))`` memory. Source: [horton2025]. Status: reconstruction.

    Examples
    --------
    >>> signs = np.sign(q), np.sign(k)
    >>> nlattn.hamming_attention(*signs, v, keys=8).shape
    (64, 8)
    """
    call = _Call.of("hamming_attention", q, k, keys, scale, nonfinite, v=(v, "m e"))
    fit = call.edges.fit
    wanted = _check.flag(fit.op, "return_lse", return_lse)
    out, lse = engine.attend(fit, call.words, call.edges.support, call.weights.factor)
    return (fit.unfold(out), fit.unfold(lse, cast=False)) if wanted else fit.unfold(out)


@ranged(laws.signs)
def hamming_attention_map(
    q: Floats | Signs,
    k: Floats | Signs,
    *,
    keys: int = 32,
    scale: float | None = None,
    query_grid: tuple[int, ...] | None = None,
    key_grid: tuple[int, ...] | None = None,
    nonfinite: Nonfinite = "raise",
) -> SparseMap:
    """The map of one head's `hamming_attention`, from values (m, e) to outputs (n, e).

    Arguments as there; of packed signs a map in float32. It holds the support, its weights and
    scores, ``O(n keys)`` numbers.

    Examples
    --------
    >>> A = nlattn.hamming_attention_map(np.sign(q), np.sign(k), keys=8)
    """
    call = _Call.of("hamming_attention_map", q, k, keys, scale, nonfinite)
    _check.one_head(call.edges.fit)
    made = call.edges.entries(call.weights, call.work)
    return SparseMap(*made[:5], query_grid, key_grid)


@ranged(laws.signs)
def hamming_attention_vjp(
    q: Floats | Signs,
    k: Floats | Signs,
    v: Floats,
    dout: Floats,
    *,
    dlse: Floats | None = None,
    keys: int = 32,
    scale: float | None = None,
    straight_through: StraightThrough = "identity",
    nonfinite: Nonfinite = "raise",
) -> tuple[Floats, Floats, Floats]:
    """Gradients (dq, dk, dv) of ``sum(dout * out) + sum(dlse * lse)``, the keys N held fixed.

    Arguments as for `hamming_attention`. ``dq = scale (dS sign(k)) s'(q)`` and likewise dk, with
    s' = 1 ("identity"), s'(x) = 1 where |x| <= 1, else 0 ("clip"), or 0 ("none"), which is the
    sign's own derivative. Of packed signs, the gradients by these.

    Examples
    --------
    >>> signs = np.sign(q), np.sign(k)
    >>> dq, dk, dv = nlattn.hamming_attention_vjp(*signs, v, np.ones_like(v), keys=8)
    """
    op = "hamming_attention_vjp"
    through = _check.choice(op, "straight_through", straight_through, THROUGH)
    arrays = {"v": (v, "m e"), "dout": (dout, "n e")}
    if dlse is not None:
        arrays["dlse"] = (dlse, "n")
    call = _Call.of(op, q, k, keys, scale, nonfinite, **arrays)
    dq, dk, dv = call.edges.vjp(call.weights, dlse is not None)
    if through == "none":
        return np.zeros_like(dq), np.zeros_like(dk), dv
    if through == "clip":
        for x, dx in ((q, dq), (k, dk)):
            if not isinstance(x, Signs):
                dx[abs(np.asarray(x)) > 1] = 0
    return dq, dk, dv


@ranged(laws.along(laws.signs))
def hamming_attention_jvp(
    q: Floats | Signs,
    k: Floats | Signs,
    v: Floats,
    dq: Floats,
    dk: Floats,
    dv: Floats,
    *,
    keys: int = 32,
    scale: float | None = None,
    straight_through: StraightThrough = "identity",
    nonfinite: Nonfinite = "raise",
    return_lse: bool = False,
) -> Result:
    """Change of `hamming_attention` along (dq, dk, dv), the keys N held fixed.

    Arguments as there and as for `hamming_attention_vjp`, whose transpose it is: of q and k what
    is let straight through the signs moves. With `return_lse` also the change of ``lse``.

    Examples
    --------
    >>> change = nlattn.hamming_attention_jvp(q, k, v, 1e-3 * q, 0 * k, 0 * v, keys=8)
    """
    op = "hamming_attention_jvp"
    through = _check.choice(op, "straight_through", straight_through, THROUGH)
    moved = []
    for name, x, dx in (("dq", q, dq), ("dk", k, dk)):
        dx = _check.array(op, name, dx)
        if through == "none":
            dx = np.zeros_like(dx)
        elif through == "clip" and not isinstance(x, Signs) and np.shape(x) == dx.shape:
            dx = np.where(abs(np.asarray(x)) > 1, dx.dtype.type(0), dx)
        moved.append((dx, "n d" if name == "dq" else "m d"))
    arrays = {"v": (v, "m e"), "dq": moved[0], "dk": moved[1], "dv": (dv, "m e")}
    call = _Call.of(op, q, k, keys, scale, nonfinite, **arrays)
    found = forward_mode.on_edges(call.edges, call.weights)
    return forward_mode.unfolded(call.edges, *found, return_lse)


class _Call(NamedTuple):
    """Signs as numbers on the edges to the nearest keys."""

    edges: Edges
    weights: WeightFunction
    work: Work
    words: engine.Words

    @classmethod
    def of(
        cls,
        op: str,
        q: object,
        k: object,
        keys: object,
        scale: object,
        nonfinite: Nonfinite,
        **arrays: tuple[Floats, str],
    ) -> _Call:
        """Check everything, and find the nearest keys."""
        count = _check.integer(op, "keys", keys, low=1)
        given = {"q": q, "k": k}
        floats = {n: (x, f"{r} d") for (n, x), r in zip(given.items(), "nm", strict=True)
                  if not isinstance(x, Signs)}  # fmt: skip
        if floats or arrays:
            dtype = _check.fit(op, {**floats, **arrays}, nonfinite=nonfinite).out_dtype
        else:
            dtype = np.dtype(np.float32)
        signs = {n: _signs(op, n, x, dtype) for n, x in given.items()}
        numbers = {n: (x, f"{r} d") for (n, x), r in zip(signs.items(), "nm", strict=True)}
        fit = _check.fit(op, {**numbers, **arrays}, nonfinite="propagate")
        d = fit.dims["d"]
        if d > _CHANNELS:
            _check.fail(op, "q", f"has {d} channels, expected at most {_CHANNELS}")
        q_words, k_words = (
            x.words.reshape(-1, *x.words.shape[-2:])
            if isinstance(x, Signs)
            else engine.packed(fit[n])
            for n, x in given.items()
        )
        words = engine.Words(q_words, k_words, (fit.lead_of("q"), fit.lead_of("k")), d)
        support, work = engine.support(words, count)
        factor = None if scale is None else _check.number(op, "scale", scale, positive=True)
        return cls(Edges(fit, support), WeightFunction.checked(fit, scale=factor), work, words)


def _signs(op: str, name: str, x: object, dtype: np.dtype) -> Floats:
    """-1 and +1 in the shape and dtype of the numbers."""
    if not isinstance(x, Signs):
        numbers: Floats = engine.signs(_check.array(op, name, x))
        return numbers
    channels = _check.integer(op, f"{name}.channels", x.channels, low=1, high=_CHANNELS)
    words = np.asarray(x.words)
    if words.dtype != np.uint64:
        _check.fail_type(op, f"{name}.words", f"has dtype {words.dtype}, expected uint64")
    wanted = -(-channels // 64)
    if words.ndim < 2 or words.shape[-1] != wanted:
        text = f"has shape {words.shape}, expected (..., {wanted}) for {channels} channels"
        _check.fail(op, f"{name}.words", text)
    if channels % 64 and (words[..., -1] >> np.uint64(channels % 64)).any():
        _check.fail(op, f"{name}.words", f"has bits beyond {channels} channels, expected 0 there")
    return engine.unpacked(words, channels, dtype)
