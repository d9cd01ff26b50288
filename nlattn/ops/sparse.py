"""Attention restricted to a support, and the supports themselves."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np

from nlattn import _check
from nlattn._modes import Beyond, LseBase, MaskedRows, Nonfinite, Weight
from nlattn._types import Bools, Floats, Ints, PerHead, Result, Support
from nlattn.engines import laws
from nlattn.engines.magnitude import ranged
from nlattn.engines.normalised import normalised_vjp
from nlattn.engines.support import checked_support
from nlattn.maps.sparse import SparseMap
from nlattn.ops._edges import SparseArguments, prepared
from nlattn.ops._scores import in_base
from nlattn.runtime import helpers

_WINDOW = 24  # bytes that a key of a window takes until the support is made


def support(indptr: Ints, indices: Ints, shape: tuple[int, ...]) -> Support:
    """The keys of every query as compressed rows, checked.

    Parameters
    ----------
    indptr : (rows + 1,) integers
        Row r holds ``indices[indptr[r]:indptr[r + 1]]``; rows of all slices, leading axes first.
    indices : (nnz,) integers
        Keys, ascending and unique in a row, counted inside the row's own slice.
    shape : tuple of int
        ``(*leading, n, m)``.

    Returns
    -------
    Support
        Read-only int64 `indptr` and int32 `indices`; not copied where the dtype fits.

    Raises
    ------
    ValueError
        The arrays do not describe rows of keys; the first bad row is named.
    TypeError
        They are no integers.

    Notes
    -----
    ``O(nnz)`` time.

    Examples
    --------
    >>> nlattn.support([0, 2, 3], [0, 4, 1], (2, 5)).indices
    array([0, 4, 1], dtype=int32)
    """
    return checked_support("support", Support(indptr, indices, shape))


def support_from_index(
    index: object,
    n_keys: int,
    *,
    beyond: Beyond = "raise",
    window: tuple[int, int] | None = None,
    causal: bool = False,
    causal_offset: int = 0,
    return_counts: bool = False,
    max_bytes: float = 4e9,
) -> Result:
    """The support whose row r holds the keys ``index[r]``, in any order, and those of a window.

    Parameters
    ----------
    index : (..., n, width) integers
        Keys of every query; negative ones mean none. One named twice counts once.
    n_keys : int
        Number of keys m.
    beyond : {"raise", "empty"}
        Whether a key from `n_keys` on is an error, or means none, too.
    window : (left, right), optional
        Query i has the keys from ``own - left`` to ``own + right``, too: own is i + causal_offset.
    causal, causal_offset : bool, int
        Keys above ``i + causal_offset`` are left out.
    return_counts : bool
        Also return how often each key was named, (nnz,), a window naming it once. Their logarithms
        are the `bias` with which `sparse_attention` counts a key as often as it is named.
    max_bytes : float
        Most bytes that windows may take.

    Returns
    -------
    Support, or (Support, counts)
        Of shape ``(..., n, m)``.

    Raises
    ------
    ValueError
        A key is not below `n_keys`.
    TypeError
        `index` holds no integers.
    MemoryError
        Above `max_bytes`.

    Notes
    -----
    ``O(n width log width)`` time, width with that of the window.

    Examples
    --------
    >>> s, counts = nlattn.support_from_index([[2, 0, 2, -1]], 3, return_counts=True)
    >>> s.indices, counts
    (array([0, 2], dtype=int32), array([1, 2]))
    """
    op = "support_from_index"
    m = _check.integer(op, "n_keys", n_keys, low=1, high=2**31 - 1)
    keys = _check.integers(op, "index", index)
    if keys.ndim < 2:
        _check.fail(op, "index", f"has shape {keys.shape}, expected (..., n, width)")
    shape = (*keys.shape[:-1], m)
    outside = keys >= m
    if _check.choice(op, "beyond", beyond, get_args(Beyond)) == "raise" and outside.any():
        where = _check.first_of(outside)
        _check.fail(
            op,
            f"index{where}",
            f"is {keys[tuple(where)]}, expected below {m}; beyond='empty' drops it",
        )
    keys = np.where(outside, -1, np.maximum(keys.astype(np.int64), -1)).astype(np.int32)
    ahead = _check.flag(op, "causal", causal)
    offset = _check.integer(op, "causal_offset", causal_offset)
    if offset and not ahead and window is None:
        _check.fail(op, f"causal_offset={offset}", "has no place without causal=True or a window")
    own = np.arange(shape[-2])[:, None] + offset
    if window is not None:
        left, right = (
            min(_check.integer(op, f"window[{i}]", side, low=0), m)
            for i, side in enumerate(_check.pair_of(op, "window", window, "(left, right)"))
        )
        needed = _WINDOW * math.prod(shape[:-1]) * (left + right + 1)
        what = f"windows of {left + right + 1} keys"
        _check.memory(op, needed, max_bytes, what, "use a smaller window, or attention(window=)")
        near = own + np.arange(-left, right + 1)
        near = np.where((near >= 0) & (near < m), near, -1).astype(np.int32)
        keys = np.concatenate([keys, np.broadcast_to(near, (*shape[:-1], near.shape[1]))], -1)
    if ahead:
        keys = np.where(keys <= own, keys, -1).astype(np.int32)
    rows = keys.reshape(math.prod(shape[:-1]), keys.shape[-1])
    keys = helpers.undisturbed(np.sort, rows, axis=1)
    kept = keys >= 0
    kept[:, 1:] &= keys[:, 1:] != keys[:, :-1]
    indptr = np.concatenate([[0], np.cumsum(kept.sum(1), dtype=np.int64)])
    found = Support(_check.frozen(indptr), _check.frozen(keys[kept]), shape)
    if not return_counts:
        return found
    places = np.flatnonzero(kept[keys >= 0])
    return found, np.diff(np.append(places, np.count_nonzero(keys >= 0)))


@ranged(laws.weight)
def sparse_attention(
    q: Floats,
    k: Floats,
    v: Floats,
    support: Support,
    *,
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
    masked_rows: MaskedRows = "zero",
    nonfinite: Nonfinite = "raise",
    return_lse: bool = False,
    lse_base: LseBase = "e",
) -> Result:
    """Attention over the keys S of each query: ``out[i] = sum_S f(s_ij) v[j] / Z_i``.

    Parameters
    ----------
    q, k, v : (..., n, d), (..., m, d), (..., m, e) arrays of one dtype, float32 or float64
        Queries, keys, values. Leading axes broadcast.
    support : Support
        Of shape ``(..., n, m)``; its leading axes broadcast to those of the arrays.
    weight : {"softmax", "gaussian", "abspow", "dot"}
        ``f = exp(scale q.k)``, ``exp(-|q - k|^2 / bandwidth^2)`` or ``|scale q.k|^power``, over
        their sum; or ``f = scale q.k`` over the number of keys.
    scale : float, optional
        ``1/sqrt(d)`` if omitted; not for "gaussian".
    bandwidth, power : float
        Positive.
    softcap : float, optional
        Of "softmax": scores become ``softcap tanh(s / softcap)``, before the bias.
    bias : (nnz,) array, optional
        Added to the scores of the support's edges, in its order: the logarithm of how often a key
        counts. For exponential weights, as are sinks.
    sinks : number, or array that broadcasts to the leading axes, optional
        A score of a key without a value, which is not scaled; -inf for none.
    qk_norm : float, optional
        Queries and keys are divided by ``sqrt(mean(x^2) + qk_norm)`` first.
    dropout_mask, dropout_scale : (nnz,) bool array, float
        Weights of edges where it is True count `dropout_scale` times in `out`, others do not.
    masked_rows : {"zero", "nan", "raise"}
        What a query without keys, or whose weights are all 0, gives.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities.
    return_lse, lse_base : bool, {"e", "2"}
        Also return ``log Z``, (..., n) float64; -inf for a query without keys.

    Returns
    -------
    (..., n, e) array, dtype of `q`

    Raises
    ------
    ValueError
        Shapes do not fit, the support is malformed, or a value is not finite.
    TypeError
        The dtypes differ, or are not floating.

    Notes
    -----
    ``nnz (d + e)`` multiply-adds, ``O(n e)`` memory. Source: [wang2018, eq. 2-4] for the weights.
    Status: ours.

    Examples
    --------
    >>> support = nlattn.support_from_index(rng.integers(0, 64, (64, 9)), 64)
    >>> nlattn.sparse_attention(q, k, v, support).shape
    (64, 8)
    """
    asked = SparseArguments(weight, scale, bandwidth, power, softcap, bias, sinks, qk_norm,
        dropout_mask, dropout_scale, masked_rows, nonfinite)  # fmt: skip
    arrays = {"q": (q, "n d"), "k": (k, "m d"), "v": (v, "m e")}
    edges, weights = prepared("sparse_attention", arrays, support, asked)
    unit = in_base("sparse_attention", lse_base)
    found = edges.attend(weights, return_lse)
    return (found[0], found[1] * unit) if return_lse else found


@ranged(laws.weight)
def sparse_attention_map(
    q: Floats,
    k: Floats,
    support: Support,
    *,
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
    masked_rows: MaskedRows = "zero",
    nonfinite: Nonfinite = "raise",
) -> SparseMap:
    """The map of one head's `sparse_attention`, from values (m, e) to outputs (n, e).

    Arguments as there, `q` (n, d), `k` (m, d) and a `support` of shape (n, m). A query without
    keys gives 0; ``masked_rows="nan"`` is refused, since a map holds no row for it. A sink takes
    its share of every row and has no column: rows sum to less than 1, and ``A.lse`` is with it.
    With a `dropout_mask` weights are those that count, and ``A.lse`` is that of all.

    Examples
    --------
    >>> support = nlattn.support_from_index(rng.integers(0, 64, (64, 9)), 64)
    >>> A = nlattn.sparse_attention_map(q, k, support)
    """
    asked = SparseArguments(weight, scale, bandwidth, power, softcap, bias, sinks, qk_norm,
        dropout_mask, dropout_scale, masked_rows, nonfinite)  # fmt: skip
    arrays = {"q": (q, "n d"), "k": (k, "m d")}
    edges, weights = prepared("sparse_attention_map", arrays, support, asked)
    return SparseMap(*edges.entries(weights))


@ranged(laws.weight)
def sparse_attention_vjp(
    q: Floats,
    k: Floats,
    v: Floats,
    support: Support,
    dout: Floats,
    *,
    dlse: Floats | None = None,
    lse_base: LseBase = "e",
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
    masked_rows: MaskedRows = "zero",
    nonfinite: Nonfinite = "raise",
) -> tuple[Floats, ...]:
    """Gradients (dq, dk, dv[, dbias][, dsinks]) of ``sum(dout * out) + sum(dlse * lse)``.

    The support is held fixed.

    Arguments as for `sparse_attention`, `dout` in the shape of its result and `dlse` (..., n).
    ``nnz (3 d + 3 e)`` multiply-adds, ``O(nnz)`` memory. dk and dv are gathered through the
    transposed support, queries ascending.

    Examples
    --------
    >>> support = nlattn.support_from_index(rng.integers(0, 64, (64, 9)), 64)
    >>> dq, dk, dv = nlattn.sparse_attention_vjp(q, k, v, support, np.ones_like(v))
    """
    asked = SparseArguments(weight, scale, bandwidth, power, softcap, bias, sinks, qk_norm,
        dropout_mask, dropout_scale, masked_rows, nonfinite)  # fmt: skip
    op = "sparse_attention_vjp"
    arrays = {"q": (q, "n d"), "k": (k, "m d"), "v": (v, "m e"), "dout": (dout, "n e")}
    unit = in_base(op, lse_base)
    if dlse is not None:
        arrays["dlse"] = (dlse, "n")
    edges, weights = prepared(op, arrays, support, asked)
    if dlse is not None:
        edges.fit.put("dlse", unit * edges.fit["dlse"])
    gradients = [*edges.vjp(weights, dlse is not None)]
    if qk_norm is not None:
        for place, x in enumerate((q, k)):
            gradients[place] = normalised_vjp(np.asarray(x), gradients[place], qk_norm)
    if sinks is not None:
        gradients[-1] = edges.fit.reduce_beside(gradients[-1], np.shape(sinks))
    return tuple(gradients)
