"""Attention restricted to a support, and the supports themselves."""

from __future__ import annotations

from typing import Any

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Support
from nlattn.engines import laws
from nlattn.engines.magnitude import ranged
from nlattn.engines.sparse import Edges, WeightFunction
from nlattn.engines.support import checked_support
from nlattn.maps.sparse import SparseMap


def support(indptr: Any, indices: Any, shape: tuple[int, ...]) -> Support:
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
    """
    return checked_support("support", Support(indptr, indices, shape))


def support_from_index(index: Any, n_keys: int) -> Support:
    """The support whose row r holds the keys ``index[r]``, in any order; -1 means none.

    Parameters
    ----------
    index : (..., n, width) integers
        Keys of every query. One named twice counts once.
    n_keys : int
        Number of keys m.

    Returns
    -------
    Support
        Of shape ``(..., n, m)``.

    Raises
    ------
    ValueError
        A key is below -1 or not below `n_keys`.
    TypeError
        `index` holds no integers.

    Notes
    -----
    ``O(n width log width)`` time.
    """
    op = "support_from_index"
    m = _check.integer(op, "n_keys", n_keys, low=1, high=2**31 - 1)
    keys = _check.integers(op, "index", index)
    if keys.ndim < 2:
        _check.fail(op, "index", f"has shape {keys.shape}, expected (..., n, width)")
    outside = (keys < -1) | (keys >= m)
    if outside.any():
        where = [int(i) for i in np.argwhere(outside)[0]]
        _check.fail(op, f"index{where}", f"is {keys[tuple(where)]}, expected -1 to {m - 1}")
    keys = np.sort(keys.reshape(-1, keys.shape[-1]).astype(np.int32), axis=1)
    kept = keys >= 0
    kept[:, 1:] &= keys[:, 1:] != keys[:, :-1]
    indptr = np.concatenate([[0], np.cumsum(kept.sum(1), dtype=np.int64)])
    return Support(_check.frozen(indptr), _check.frozen(keys[kept]), (*np.shape(index)[:-1], m))


@ranged(laws.weight)
def sparse_attention(
    q: Floats,
    k: Floats,
    v: Floats,
    support: Support,
    *,
    weight: str = "softmax",
    scale: float | None = None,
    bandwidth: float = 1.0,
    power: float = 2.0,
    masked_rows: str = "zero",
    nonfinite: str = "raise",
    return_lse: bool = False,
) -> Any:
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
    masked_rows : {"zero", "nan", "raise"}
        What a query without keys, or whose weights are all 0, gives.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities.
    return_lse : bool
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
    """
    fit = _check.fit(
        "sparse_attention", {"q": (q, "n d"), "k": (k, "m d"), "v": (v, "m e")}, nonfinite=nonfinite
    )
    weights = WeightFunction.checked(fit, weight, scale, bandwidth, power, masked_rows)
    return Edges(fit, support).attend(weights, return_lse)


@ranged(laws.weight)
def sparse_attention_map(
    q: Floats,
    k: Floats,
    support: Support,
    *,
    weight: str = "softmax",
    scale: float | None = None,
    bandwidth: float = 1.0,
    power: float = 2.0,
    masked_rows: str = "zero",
    nonfinite: str = "raise",
) -> SparseMap:
    """The map of one head's `sparse_attention`, from values (m, e) to outputs (n, e).

    Arguments as there, `q` (n, d), `k` (m, d) and a `support` of shape (n, m). A query without
    keys gives 0; ``masked_rows="nan"`` is refused, since a map holds no row for it.
    """
    op = "sparse_attention_map"
    fit = _check.fit(op, {"q": (q, "n d"), "k": (k, "m d")}, nonfinite=nonfinite)
    _check.one_head(fit)
    weights = WeightFunction.checked(fit, weight, scale, bandwidth, power, masked_rows)
    return SparseMap(*Edges(fit, support).entries(weights))


@ranged(laws.weight)
def sparse_attention_vjp(
    q: Floats,
    k: Floats,
    v: Floats,
    support: Support,
    dout: Floats,
    *,
    dlse: Floats | None = None,
    weight: str = "softmax",
    scale: float | None = None,
    bandwidth: float = 1.0,
    power: float = 2.0,
    masked_rows: str = "zero",
    nonfinite: str = "raise",
) -> tuple[Floats, Floats, Floats]:
    """Gradients (dq, dk, dv) of ``sum(dout * out) + sum(dlse * lse)``, the support held fixed.

    Arguments as for `sparse_attention`, `dout` in the shape of its result and `dlse` (..., n).
    ``nnz (3 d + 3 e)`` multiply-adds, ``O(nnz)`` memory. dk and dv are gathered through the
    transposed support, queries ascending.
    """
    arrays = {"q": (q, "n d"), "k": (k, "m d"), "v": (v, "m e"), "dout": (dout, "n e")}
    if dlse is not None:
        arrays["dlse"] = (dlse, "n")
    fit = _check.fit("sparse_attention_vjp", arrays, nonfinite=nonfinite)
    weights = WeightFunction.checked(fit, weight, scale, bandwidth, power, masked_rows)
    return Edges(fit, support).vjp(weights, dlse is not None)
