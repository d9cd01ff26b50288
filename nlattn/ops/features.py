"""Random features whose inner products estimate ``exp(q.k)``, and attention with given features."""

from __future__ import annotations

from typing import get_args

import numpy as np

from nlattn import _check
from nlattn._modes import Nonfinite, Norms, Role, Stabilizer
from nlattn._types import Floats
from nlattn.engines import factored, factored_fit
from nlattn.engines.features import Identity, Random
from nlattn.runtime import helpers

_NORMS: tuple[Norms, ...] = get_args(Norms)
STABILIZERS: tuple[Stabilizer, ...] = get_args(Stabilizer)

_MOST = 1 << 29


def orthogonal_features(d: int, r: int, seed: int, *, norms: Norms = "chi") -> Floats:
    """Random directions for `favor_attention`: rows orthogonal in blocks of d, each block Haar.

    Parameters
    ----------
    d, r : int
        Channels of queries and keys; number of features.
    seed : int
        Of the Gaussians; the same seed gives the same array.
    norms : {"chi", "sqrt_d"}
        Length of each row: that of an independent d-dimensional Gaussian, or ``sqrt(d)``.

    Returns
    -------
    (r, d) float64 array

    Raises
    ------
    ValueError
        A size is below 1, or `norms` is unknown.
    TypeError
        A size or the seed is no integer.

    Notes
    -----
    The columns of QR's Q take the sign of R's diagonal: without it Q is not Haar-distributed and
    kernel estimates are 24 % low at d = 4. ``r d^2`` operations. Source: [choromanski2020,
    section 2.4; mezzadri2007]. Status: ours.

    Examples
    --------
    >>> nlattn.orthogonal_features(8, 32, seed=0).shape
    (32, 8)
    """
    op = "orthogonal_features"
    d, r = (_check.integer(op, name, x, low=1) for name, x in (("d", d), ("r", r)))
    if d * max(d, r) > _MOST:
        _check.fail(
            op, f"d={d}, r={r}", f"are more than {_MOST} numbers, 4 GB; draw fewer features"
        )
    _check.choice(op, "norms", norms, _NORMS)
    rng = np.random.default_rng(_check.integer(op, "seed", seed, low=0))
    blocks = []
    for _ in range(-(-r // d)):
        q, triangle = helpers.undisturbed(np.linalg.qr, rng.standard_normal((d, d)))
        blocks.append((q * np.sign(np.diag(triangle))).T)
    directions = np.concatenate(blocks)[:r]
    lengths = np.full(r, np.sqrt(d))
    if norms == "chi":
        lengths = np.linalg.norm(rng.standard_normal((r, d)), axis=1)
    projection: Floats = directions * lengths[:, None]
    return projection


def positive_features(
    x: Floats,
    projection: Floats,
    *,
    scale: float | None = None,
    eps: float = 1e-4,
    stabilizer: Stabilizer = "neutral",
    role: Role = "query",
    nonfinite: Nonfinite = "raise",
) -> Floats:
    """``phi = r**-0.5 (exp(t - M) + eps)`` with ``t = c P x - |c x|^2 / 2``.

    Parameters
    ----------
    x : (..., n, d) array, float32 or float64
        Queries or keys.
    projection : (r, d) array of the same dtype
        P, for instance of `orthogonal_features`.
    scale : float, optional
        c; ``d**-0.25`` if omitted, so that ``phi(q).phi(k)`` estimates ``exp(q.k / sqrt(d))``.
    eps : float
        At least 0.
    stabilizer : {"neutral", "max", "none"}
        M: the largest of t and log eps, and eps is over ``exp(M)`` too; the largest ``c P x``; 0.
    role : {"query", "key"}
        Whether M belongs to each row, or to all rows and features of a slice.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities.

    Returns
    -------
    (..., n, r) array, dtype of `x`

    Raises
    ------
    ValueError
        Shapes or options do not fit.
    TypeError
        The dtypes differ, or are not floating.

    Notes
    -----
    ``n r d`` multiply-adds. Source: [choromanski2020, lemma 1]. Status: paper; "neutral": ours.

    Examples
    --------
    >>> projection = nlattn.orthogonal_features(8, 32, seed=0)
    >>> bool((nlattn.positive_features(q, projection) > 0).all())
    True
    """
    op = "positive_features"
    given = {"x": (x, "n d"), "projection": (projection, "r d")}
    fit = _check.fit(op, given, nonfinite=nonfinite, shared=["projection"])
    _check.choice(op, "role", role, get_args(Role))
    joint = role == "key"
    f = random_map(fit, scale, eps, stabilizer, joint=joint)
    top = None
    if joint:
        ones = np.ones((1, fit.dims["n"], 1), fit.dtype)
        slices = np.column_stack([fit.slices("x"), np.zeros((fit.batch, 2), np.int64)])
        top = factored.key_sums(f, fit["x"], ones, slices).top
    factor = np.full((fit.batch, fit.dims["r"]), fit.dims["r"] ** -0.5)
    return fit.unfold(factored_fit.write(fit, f, "x", top, factor))


def linear_attention(
    phi_q: Floats, phi_k: Floats, v: Floats, *, nonfinite: Nonfinite = "raise"
) -> Floats:
    """``out_i = phi_q[i].(sum_j phi_k[j] v[j].T) / phi_q[i].(sum_j phi_k[j])`` for given features.

    Features (..., n, r) and (..., m, r), values (..., m, e). ``(n + m) r e`` multiply-adds.

    Examples
    --------
    >>> nlattn.linear_attention(np.exp(q), np.exp(k), v).shape
    (64, 8)
    """
    given = {"phi_q": (phi_q, "n r"), "phi_k": (phi_k, "m r"), "v": (v, "m e")}
    fit = _check.fit("linear_attention", given, nonfinite=nonfinite)
    slices = np.column_stack([fit.slices("phi_k", "v"), np.zeros(fit.batch, np.int64)])
    sums = factored.key_sums(Identity(), fit["phi_k"], fit["v"], slices)
    context, norm = (x.astype(fit.dtype) for x in (sums.values, sums.features))
    index = fit.slices("phi_q")[:, 0]
    out, _ = factored.read(Identity(), fit["phi_q"], index, context, norm)
    return fit.unfold(out)


def random_map(
    fit: _check.Fit,
    scale: float | None,
    eps: float,
    stabilizer: str,
    *,
    joint: bool,
    moving: bool = False,
) -> Random:
    """The checked feature map of one call, `projection` being among its arrays."""
    op, d = fit.op, fit.dims["d"]
    c = d**-0.25 if scale is None else _check.number(op, "scale", scale)
    _check.choice(op, "stabilizer", stabilizer, STABILIZERS)
    eps = at_least_0(op, "eps", eps)
    projection = fit["projection"][0] * fit.dtype.type(c)
    return Random(projection, c, eps, stabilizer, joint, moving and stabilizer == "max")


def at_least_0(op: str, name: str, value: float) -> float:
    """`value` as a float that is not negative."""
    return _check.number(op, name, value, low=0)
