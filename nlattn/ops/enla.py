"""ENLA: linear attention of amplified unit vectors through random features; ENLCA's loss."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._modes import Nonfinite
from nlattn._types import Floats
from nlattn.engines import contrastive, laws
from nlattn.engines.factored_fit import set_fit
from nlattn.engines.factored_positive import Positive
from nlattn.engines.features import Random
from nlattn.engines.magnitude import ranged
from nlattn.maps.factored import FactoredMap
from nlattn.ops.features import at_least_0


@ranged(laws.unit)
def enla(
    q: Floats,
    k: Floats,
    v: Floats,
    *,
    projection: Floats,
    amplification: float | None = 6.0,
    floor: float = 5e-5,
    eps: float = 1e-4,
    nonfinite: Nonfinite = "raise",
) -> Floats:
    """ENLA: attention with ``exp(a cos(q_i, k_j))`` estimated by positive random features.

    Parameters
    ----------
    q, k, v : (..., n, d), (..., m, d), (..., m, e) arrays of one dtype, float32 or float64
        Queries, keys, values. Leading axes broadcast.
    projection : (r, d) array of the same dtype
        Of `orthogonal_features`, for example.
    amplification : float, optional
        a; queries and keys become ``sqrt(a) x / max(|x|, floor)``. None takes them as given.
    floor, eps : float
        Smallest length that is divided by; what is added to each feature.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities.

    Returns
    -------
    (..., n, e) array, dtype of `q`

    Raises
    ------
    ValueError
        Shapes do not fit, or a number is out of range.
    TypeError
        The dtypes differ, or are not floating.

    Notes
    -----
    ``(n + m) r (d + e)`` multiply-adds, ``O(r e)`` memory beyond the result. At a = 6 the estimate
    is poor for any practical r. Source: [xia2022, section 3.2]. Status: paper.

    Examples
    --------
    >>> projection = nlattn.orthogonal_features(8, 32, seed=0)
    >>> nlattn.enla(q, k, v, projection=projection).shape
    (64, 8)
    """
    fit = set_fit("enla", nonfinite, q=q, k=k, v=v, projection=projection)
    return _plan(fit, amplification, floor, eps).attend(fit)


@ranged(laws.unit)
def enla_map(
    q: Floats,
    k: Floats,
    *,
    projection: Floats,
    amplification: float | None = 6.0,
    floor: float = 5e-5,
    eps: float = 1e-4,
    query_grid: tuple[int, ...] | None = None,
    key_grid: tuple[int, ...] | None = None,
    nonfinite: Nonfinite = "raise",
) -> FactoredMap:
    """The map of one head's `enla`, from values (m, e) to outputs (n, e).

    Arguments as there. It holds ``phi(q)`` (n, r) over each row's sum, and ``phi(k)`` (m, r).

    Examples
    --------
    >>> A = nlattn.enla_map(q, k, projection=nlattn.orthogonal_features(8, 32, seed=0))
    >>> (A @ v).shape, (A.T @ v).shape
    ((64, 8), (64, 8))
    """
    fit = set_fit("enla_map", nonfinite, q=q, k=k, projection=projection)
    return FactoredMap(*_plan(fit, amplification, floor, eps).factors(fit), query_grid, key_grid)


@ranged(laws.unit)
def enla_vjp(
    q: Floats,
    k: Floats,
    v: Floats,
    dout: Floats,
    *,
    projection: Floats,
    amplification: float | None = 6.0,
    floor: float = 5e-5,
    eps: float = 1e-4,
    nonfinite: Nonfinite = "raise",
) -> tuple[Floats, Floats, Floats]:
    """Gradients (dq, dk, dv) of ``sum(dout * out)``; the projection gets none.

    Arguments as for `enla`. A vector shorter than `floor` gets ``sqrt(a) / floor`` times the
    gradient of its unit vector. About three times the forward pass.

    Examples
    --------
    >>> projection = nlattn.orthogonal_features(8, 32, seed=0)
    >>> dq, dk, dv = nlattn.enla_vjp(q, k, v, np.ones_like(v), projection=projection)
    """
    fit = set_fit("enla_vjp", nonfinite, q=q, k=k, v=v, dout=dout, projection=projection)
    return _plan(fit, amplification, floor, eps).vjp(fit)


@ranged(laws.unit)
def enlca_loss(
    q: Floats,
    k: Floats,
    *,
    amplification: float | None = 6.0,
    floor: float = 5e-5,
    positives: int = 15,
    negatives: tuple[int, int] = (50, 65),
    margin: float = 1.0,
    eps: float = 1e-6,
    parity: bool = False,
    nonfinite: Nonfinite = "raise",
) -> Floats:
    """Contrastive loss: ``mean_i max(0, margin - log(pos_i / (neg_i + eps)))``.

    Scores ``exp(a cos(q_i, k_j))`` of each row are sorted in descending order; pos is the mean of
    the first `positives`, neg that of the ranks ``negatives[0]`` to ``negatives[1] - 1``.

    Parameters
    ----------
    q, k : (..., n, d), (..., m, d) arrays of one dtype, float32 or float64
        Queries and keys. Leading axes broadcast.
    amplification, floor : float
        As for `enla`.
    positives : int
        Number of best keys.
    negatives : (int, int)
        First rank and the one after the last; fewer keys than that give fewer contrastive.
    margin, eps : float
        Of the hinge; added to neg.
    parity : bool
        With too few keys, return NaN as the published code does.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities.

    Returns
    -------
    (...,) array, dtype of `q`

    Raises
    ------
    ValueError
        There are not more keys than ``negatives[0]``, or shapes or ranks do not fit.
    TypeError
        The dtypes differ, or are not floating.

    Notes
    -----
    ``n m d`` multiply-adds, in row blocks: memory ``O(m)``. Source: [xia2022, eq. 12]. Status:
    author code.

    Examples
    --------
    >>> loss = nlattn.enlca_loss(q, k, positives=5, negatives=(20, 25))
    """
    fit = set_fit("enlca_loss", nonfinite, q=q, k=k)
    asked = LossArguments(amplification, floor, positives, negatives, margin, eps, parity)
    loss = _ranked(fit, asked)
    if loss is None:
        return fit.unfold(np.full(fit.batch, np.nan, fit.dtype))
    return fit.unfold(contrastive.loss(loss).astype(fit.dtype))


@ranged(laws.unit)
def enlca_loss_vjp(
    q: Floats,
    k: Floats,
    dout: Floats,
    *,
    amplification: float | None = 6.0,
    floor: float = 5e-5,
    positives: int = 15,
    negatives: tuple[int, int] = (50, 65),
    margin: float = 1.0,
    eps: float = 1e-6,
    parity: bool = False,
    nonfinite: Nonfinite = "raise",
) -> tuple[Floats, Floats]:
    """Gradients (dq, dk) of ``sum(dout * loss)``, the ranks held fixed; `dout` (...,).

    Arguments as for `enlca_loss`. Ties at a rank's border go to the lowest key. With ``parity``
    and too few keys both are NaN.

    Examples
    --------
    >>> dq, dk = nlattn.enlca_loss_vjp(q, k, 1.0, positives=5, negatives=(20, 25))
    """
    arrays = {"q": (q, "n d"), "k": (k, "m d"), "dout": (dout, "")}
    fit = _check.fit("enlca_loss_vjp", arrays, nonfinite=nonfinite)
    asked = LossArguments(amplification, floor, positives, negatives, margin, eps, parity)
    loss = _ranked(fit, asked)
    if loss is None:
        gradients = [np.full((fit.batch, *fit.shape(s)), np.nan) for s in ("n d", "m d")]
    else:
        gradients = list(contrastive.vjp(loss, fit["dout"][fit.slices("dout")[:, 0]]))
    return fit.reduce("q", gradients[0]), fit.reduce("k", gradients[1])


@ranged(laws.along(laws.unit))
def enla_jvp(
    q: Floats,
    k: Floats,
    v: Floats,
    dq: Floats,
    dk: Floats,
    dv: Floats,
    *,
    projection: Floats,
    amplification: float | None = 6.0,
    floor: float = 5e-5,
    eps: float = 1e-4,
    nonfinite: Nonfinite = "raise",
) -> Floats:
    """Change of `enla` along (dq, dk, dv), to first order, the projection held fixed.

    Arguments as there; changes have the shapes of their arrays. About three times the forward pass.

    Examples
    --------
    >>> projection = nlattn.orthogonal_features(8, 32, seed=0)
    >>> change = nlattn.enla_jvp(q, k, v, 1e-3 * q, 0 * k, 0 * v, projection=projection)
    """
    arrays = {"q": q, "k": k, "v": v, "dq": dq, "dk": dk, "dv": dv, "projection": projection}
    fit = set_fit("enla_jvp", nonfinite, **arrays)
    return _plan(fit, amplification, floor, eps).jvp(fit)


@ranged(laws.along(laws.unit))
def enlca_loss_jvp(
    q: Floats,
    k: Floats,
    dq: Floats,
    dk: Floats,
    *,
    amplification: float | None = 6.0,
    floor: float = 5e-5,
    positives: int = 15,
    negatives: tuple[int, int] = (50, 65),
    margin: float = 1.0,
    eps: float = 1e-6,
    parity: bool = False,
    nonfinite: Nonfinite = "raise",
) -> Floats:
    """Change (...,) of `enlca_loss` along (dq, dk), to first order, the ranks held fixed.

    Arguments as there; changes have the shapes of their arrays. Twice ``n m d`` multiply-adds.

    Examples
    --------
    >>> change = nlattn.enlca_loss_jvp(q, k, 1e-3 * q, 0 * k, positives=4, negatives=(8, 12))
    """
    fit = set_fit("enlca_loss_jvp", nonfinite, q=q, k=k, dq=dq, dk=dk)
    asked = LossArguments(amplification, floor, positives, negatives, margin, eps, parity)
    loss = _ranked(fit, asked)
    change = np.full(fit.batch, np.nan)
    if loss is not None:
        change = contrastive.jvp(loss, fit["dq"], fit["dk"], fit.slices("dq", "dk"))
    return fit.unfold(change.astype(fit.dtype))


def _plan(fit: _check.Fit, amplification: float | None, floor: float, eps: float) -> Positive:
    amplitude, floor = _amplitude(fit.op, amplification, floor)
    eps = at_least_0(fit.op, "eps", eps)
    projection = fit["projection"][0]
    return Positive(
        *(
            Random(projection, 1.0, eps, "neutral", joint, amplitude=amplitude, floor=floor)
            for joint in (False, True)
        )
    )


def _amplitude(op: str, amplification: float | None, floor: float) -> tuple[float, float]:
    floor = _check.number(op, "floor", floor, positive=True)
    if amplification is None:
        return 0.0, floor
    return float(np.sqrt(_check.number(op, "amplification", amplification, positive=True))), floor


class LossArguments(NamedTuple):
    """The options of `enlca_loss`, as they came."""

    amplification: float | None
    floor: float
    positives: int
    negatives: tuple[int, int]
    margin: float
    eps: float
    parity: bool


def _ranked(fit: _check.Fit, asked: LossArguments) -> contrastive.Ranks | None:
    op, m = fit.op, fit.dims["m"]
    amplitude, floor = _amplitude(op, asked.amplification, asked.floor)
    positives = _check.integer(op, "positives", asked.positives, low=1)
    ranks = "two ranks (first, after the last)"
    first, last = _check.pair_of(op, "negatives", asked.negatives, ranks)
    low = _check.integer(op, "negatives[0]", first, low=positives)
    high = _check.integer(op, "negatives[1]", last, low=low + 1)
    margin = _check.number(op, "margin", asked.margin)
    eps = at_least_0(op, "eps", asked.eps)
    if m <= low:
        if _check.flag(op, "parity", asked.parity):
            return None
        text = f"expected at least {low + 1} for the negatives at rank {low}"
        _check.fail(op, f"{m} positions,", f"{text}; parity=True gives NaN")
    if fit.dims["n"] == 0:
        _check.fail(op, "q", "has 0 rows, whose mean is not defined")
    slices = fit.slices("q", "k")
    shape = contrastive.RankNumbers(amplitude, floor, positives, low, min(high, m), margin, eps)
    return contrastive.Ranks(fit["q"], fit["k"], slices, shape)
