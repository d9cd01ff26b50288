"""Non-local means with the four pairwise functions of non-local neural networks."""

from __future__ import annotations

from typing import get_args

import numpy as np

from nlattn import _check
from nlattn._modes import Nonfinite, Pairwise
from nlattn._types import Floats, Result, Work
from nlattn.engines import concatenation, dense, forward_mode, laws
from nlattn.engines.factored_separate import Separate
from nlattn.engines.magnitude import ranged
from nlattn.kernels.panel import Scores
from nlattn.maps.base import AttentionMap
from nlattn.maps.concatenation import ConcatenationMap
from nlattn.maps.dense import DenseMap
from nlattn.maps.factored import FactoredMap
from nlattn.ops._band import Positions
from nlattn.ops._scores import ScoreArguments, prepare
from nlattn.ops.certified import certified_attention, certified_attention_map

PAIRWISE: tuple[Pairwise, ...] = get_args(Pairwise)


@ranged(laws.pairwise)
def nonlocal_mean(
    q: Floats,
    k: Floats,
    v: Floats,
    *,
    pairwise: Pairwise = "embedded_gaussian",
    scale: float = 1.0,
    weight: Floats | None = None,
    tolerance: float = 0.0,
    nonfinite: Nonfinite = "raise",
) -> Floats:
    """Non-local mean: ``out[i] = sum_j A[i, j] v[j]``.

    Parameters
    ----------
    q, k, v : (..., n, d), (..., m, d), (..., m, e) arrays of one dtype, float32 or float64
        Queries, keys, values. Leading axes broadcast.
    pairwise : {"gaussian", "embedded_gaussian", "dot_product", "concatenation"}
        A is the softmax of ``scale q.k`` over keys (the first two), ``q.k / m``, or
        ``relu(w_q.q + w_k.k) / m``.
    scale : float
        Of the softmax forms only; 1, not ``1/sqrt(d)``.
    weight : (2 d,) array
        ``w_q`` and ``w_k``; for "concatenation" only, which needs it.
    tolerance : float
        Of the softmax forms only: share of a row's weight that may be misplaced, in [0, 1); above
        0 most keys are never looked at, see `certified_attention`.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities.

    Returns
    -------
    (..., n, e) array, dtype of `q`

    Raises
    ------
    ValueError
        Shapes do not fit, a value is not finite, or an option is not for this `pairwise`.
    TypeError
        The dtypes differ, or are not floating.

    Notes
    -----
    ``n m (d + e)`` multiply-adds for the softmax forms, ``(n + m) d e`` for "dot_product",
    ``(n + m) (d + e)`` and ``(n + m) log m`` comparisons for "concatenation"; memory linear in n
    and m. Source: [wang2018, eq. 1-6]. Status: paper.

    Examples
    --------
    >>> nlattn.nonlocal_mean(q, k, v, pairwise="gaussian").shape
    (64, 8)
    """
    call = _Call("nonlocal_mean", q, k, pairwise, scale, weight, nonfinite, v=(v, "m e"))
    fit = call.fit
    if (share := call.share(tolerance, pairwise)) > 0:
        return np.asarray(
            certified_attention(q, k, v, tolerance=share, scale=call.scale, nonfinite=nonfinite)
        )
    if pairwise == "dot_product":
        return Separate.of(fit).attend(fit)
    if pairwise == "concatenation":
        return fit.unfold(concatenation.attend(fit))
    return fit.unfold(dense.attend(call.scores(), fit["v"])[0])


@ranged(laws.pairwise)
def nonlocal_mean_map(
    q: Floats,
    k: Floats,
    *,
    pairwise: Pairwise = "embedded_gaussian",
    scale: float = 1.0,
    weight: Floats | None = None,
    tolerance: float = 0.0,
    query_grid: tuple[int, ...] | None = None,
    key_grid: tuple[int, ...] | None = None,
    nonfinite: Nonfinite = "raise",
) -> AttentionMap:
    """The map of one head's `nonlocal_mean`, from values (m, e) to outputs (n, e).

    Options as there. `query_grid` and `key_grid` say how queries and keys lie in raster order. The
    softmax forms hold `q` and `k`, "dot_product" `q` and ``k / m``, "concatenation" a number for
    each query and key; the last two are not normalised and have no ``lse``.

    Examples
    --------
    >>> A = nlattn.nonlocal_mean_map(q, k, pairwise="dot_product")
    >>> np.allclose(A @ v, (q @ k.T) @ v / len(k))
    True
    """
    call = _Call("nonlocal_mean_map", q, k, pairwise, scale, weight, nonfinite)
    fit = call.fit
    _check.one_head(fit)
    if (share := call.share(tolerance, pairwise)) > 0:
        return certified_attention_map(
            q, k, tolerance=share, scale=call.scale, query_grid=query_grid, key_grid=key_grid,
            nonfinite=nonfinite,
        )  # fmt: skip
    if pairwise == "dot_product":
        return FactoredMap(*Separate.of(fit).factors(fit), query_grid, key_grid)
    if pairwise == "concatenation":
        a, b = concatenation.Numbers.of(fit)[:2]
        numbers = fit["q"].size + fit["k"].size
        work = Work(0, numbers, numbers * fit.dtype.itemsize + a.nbytes + b.nbytes)
        return ConcatenationMap(a[0], b[0], fit.dtype, work, query_grid, key_grid)
    return DenseMap(call.scores(), query_grid, key_grid)


@ranged(laws.pairwise)
def nonlocal_mean_vjp(
    q: Floats,
    k: Floats,
    v: Floats,
    dout: Floats,
    *,
    pairwise: Pairwise = "embedded_gaussian",
    scale: float = 1.0,
    weight: Floats | None = None,
    nonfinite: Nonfinite = "raise",
) -> Result:
    """Gradients (dq, dk, dv) of ``sum(dout * out)``; for "concatenation" also dweight (2 d,).

    Arguments as for `nonlocal_mean`, `dout` in the shape of its result. The softmax forms compute
    ``n m (3 d + 2 e)`` multiply-adds beyond the forward pass; the others are linear in n and m.
    The slope of relu at 0 is 0.

    Examples
    --------
    >>> dq, dk, dv = nlattn.nonlocal_mean_vjp(q, k, v, np.ones_like(v), pairwise="dot_product")
    """
    arrays = {"v": (v, "m e"), "dout": (dout, "n e")}
    call = _Call("nonlocal_mean_vjp", q, k, pairwise, scale, weight, nonfinite, **arrays)
    fit = call.fit
    if pairwise == "dot_product":
        return Separate.of(fit).vjp(fit)
    if pairwise == "concatenation":
        return concatenation.vjp(fit)
    p = call.scores()
    out, norm = dense.attend(p, fit["v"])
    delta = np.einsum("bne,bne->bn", out, fit["dout"])
    dq, dk, dv = dense.vjp(p, fit["v"], fit["dout"], norm, delta)
    return fit.reduce("q", dq), fit.reduce("k", dk), fit.reduce("v", dv)


@ranged(laws.along(laws.pairwise))
def nonlocal_mean_jvp(
    q: Floats,
    k: Floats,
    v: Floats,
    dq: Floats,
    dk: Floats,
    dv: Floats,
    *,
    dweight: Floats | None = None,
    pairwise: Pairwise = "embedded_gaussian",
    scale: float = 1.0,
    weight: Floats | None = None,
    nonfinite: Nonfinite = "raise",
) -> Floats:
    """Change of `nonlocal_mean` along (dq, dk, dv[, dweight]), to first order.

    Arguments as there; changes have the shapes of their arrays. The softmax forms compute
    ``n m (3 d + 2 e)`` multiply-adds beyond the forward pass; the others are linear in n and m.

    Examples
    --------
    >>> change = nlattn.nonlocal_mean_jvp(q, k, v, 1e-3 * q, 0 * k, 0 * v)
    """
    op = "nonlocal_mean_jvp"
    arrays = {"v": (v, "m e"), "dq": (dq, "n d"), "dk": (dk, "m d"), "dv": (dv, "m e")}
    if dweight is not None:
        if weight is None:
            _check.fail(op, "dweight", "is given without weight, expected None")
        arrays["dweight"] = (dweight, "2d")
    call = _Call(op, q, k, pairwise, scale, weight, nonfinite, **arrays)
    fit = call.fit
    if pairwise == "dot_product":
        return Separate.of(fit).jvp(fit)
    if pairwise == "concatenation":
        return fit.unfold(concatenation.jvp(fit))
    return fit.unfold(forward_mode.of_call(call.scores(), fit)[0])


class _Call:
    """Checked arguments of one call."""

    def __init__(
        self,
        op: str,
        q: Floats,
        k: Floats,
        pairwise: str,
        scale: float,
        weight: Floats | None,
        nonfinite: Nonfinite,
        **others: tuple[Floats, str],
    ):
        _check.choice(op, "pairwise", pairwise, PAIRWISE)
        self.scale = _check.number(op, "scale", scale)
        if pairwise in ("dot_product", "concatenation") and self.scale != 1:
            text = f"has no place in pairwise={pairwise!r}; multiply q by it"
            _check.fail(op, f"scale={self.scale}", text)
        arrays = {"q": (q, "n d"), "k": (k, "m d"), **others}
        if pairwise == "concatenation":
            if weight is None:
                _check.fail(
                    op, "weight", "is missing, expected (2 d,) with pairwise='concatenation'"
                )
            arrays["weight"] = (weight, "2d")
        elif weight is not None:
            _check.fail(op, "weight", f"has no place in pairwise={pairwise!r}, expected None")
        self.fit = _check.fit(
            op, arrays, nonfinite=nonfinite, shared=[n for n in arrays if n.endswith("weight")]
        )
        d = self.fit.dims["d"]
        if weight is not None and self.fit.dims["2d"] != 2 * d:
            text = f"has shape ({self.fit.dims['2d']},), expected ({2 * d},): twice d={d} from q"
            _check.fail(op, "weight", text)

    def share(self, tolerance: float, pairwise: str) -> float:
        """Share of the weights that may be misplaced."""
        share = _check.share(self.fit.op, "tolerance", tolerance)
        if share and pairwise in ("dot_product", "concatenation"):
            text = f"has no place in pairwise={pairwise!r}, whose sums are exact"
            _check.fail(self.fit.op, f"tolerance={share}", text)
        return share

    def scores(self) -> Scores:
        """Scores of the softmax forms."""
        return prepare(self.fit, Positions(), ScoreArguments(self.scale), "propagate")
