"""FAVOR+: softmax attention estimated through positive random features."""

from __future__ import annotations

from typing import NamedTuple, get_args

import numpy as np

from nlattn import _check
from nlattn._modes import Kernel, Nonfinite, Stabilizer, StabilizerGradient
from nlattn._types import Floats, Ints
from nlattn.engines import factored_causal, laws
from nlattn.engines.factored_fit import Hidden, key_sums, set_fit
from nlattn.engines.factored_positive import Positive
from nlattn.engines.factored_separate import Separate
from nlattn.engines.features import JointExp, Random, Relu, RowSoftmax
from nlattn.engines.magnitude import ranged
from nlattn.maps.factored import FactoredMap
from nlattn.ops.features import STABILIZERS, at_least_0, random_map

_KERNELS: tuple[Kernel, ...] = get_args(Kernel)
_RELU_EPS = 1e-3


@ranged(laws.kernel)
def favor_attention(
    q: Floats,
    k: Floats,
    v: Floats,
    *,
    projection: Floats | None = None,
    kernel: Kernel = "softmax",
    causal: bool = False,
    scale: float | None = None,
    eps: float = 1e-4,
    stabilizer: Stabilizer | None = None,
    denominator_eps: float = 1e-6,
    nonfinite: Nonfinite = "raise",
) -> Floats:
    """FAVOR+: ``out_i = phi(q_i).(sum_j phi(k_j) v_j.T) / phi(q_i).(sum_j phi(k_j))``.

    Parameters
    ----------
    q, k, v : (..., n, d), (..., m, d), (..., m, e) arrays of one dtype, float32 or float64
        Queries, keys, values. Leading axes, heads among them, broadcast.
    projection : (r, d) array of the same dtype
        Of `orthogonal_features`, for example; None with ``kernel="none"``.
    kernel : {"softmax", "relu", "none"}
        `positive_features`; ``relu(c P x) + 1e-3``; or softmax of q over channels and of k over
        positions (causal: ``exp(k)``).
    causal : bool
        Only keys ``j <= i``; needs ``m = n``.
    scale, eps, stabilizer : float, float, {"neutral", "max", "none"}
        As for `positive_features`; "max" if omitted, "neutral" when causal. With "max" later keys
        leak into causal outputs through the joint maximum.
    denominator_eps : float
        Causal: added to each component of the running sum of keys.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities.

    Returns
    -------
    (..., n, e) array, dtype of `q`

    Raises
    ------
    ValueError
        Shapes or options do not fit.
    TypeError
        The dtypes differ, or are not floating.

    Notes
    -----
    ``(n + m) r (d + e)`` multiply-adds, ``O(r e)`` memory beyond the result. Source:
    [choromanski2020, section 2]. Status: paper.

    Examples
    --------
    >>> projection = nlattn.orthogonal_features(8, 256, seed=0)
    >>> out = nlattn.favor_attention(q, k, v, projection=projection)  # near attention(q, k, v)
    """
    plan = _Plan.checked(
        _fit("favor_attention", nonfinite, projection, kernel, q=q, k=k, v=v),
        kernel=kernel,
        causal=causal,
        scale=scale,
        eps=eps,
        stabilizer=stabilizer,
    )
    if plan.causal:
        return plan.fit.unfold(factored_causal.attend(plan.causal_plan(denominator_eps)[0]))
    return plan.whole.attend(plan.fit)


@ranged(laws.kernel)
def favor_attention_map(
    q: Floats,
    k: Floats,
    *,
    projection: Floats | None = None,
    kernel: Kernel = "softmax",
    scale: float | None = None,
    eps: float = 1e-4,
    stabilizer: Stabilizer | None = None,
    query_grid: tuple[int, ...] | None = None,
    key_grid: tuple[int, ...] | None = None,
    nonfinite: Nonfinite = "raise",
) -> FactoredMap:
    """The map of one head's `favor_attention`, not causal, from values to outputs.

    Arguments as there. It holds ``phi(q)`` (n, r) over each row's sum, and ``phi(k)`` (m, r).

    Examples
    --------
    >>> projection = nlattn.orthogonal_features(8, 256, seed=0)
    >>> A = nlattn.favor_attention_map(q, k, projection=projection)
    """
    plan = _Plan.checked(
        _fit("favor_attention_map", nonfinite, projection, kernel, q=q, k=k),
        kernel=kernel,
        scale=scale,
        eps=eps,
        stabilizer=stabilizer,
    )
    return FactoredMap(*plan.whole.factors(plan.fit), query_grid, key_grid)


@ranged(laws.kernel)
def favor_attention_vjp(
    q: Floats,
    k: Floats,
    v: Floats,
    dout: Floats,
    *,
    projection: Floats | None = None,
    kernel: Kernel = "softmax",
    causal: bool = False,
    scale: float | None = None,
    eps: float = 1e-4,
    stabilizer: Stabilizer | None = None,
    stabilizer_gradient: StabilizerGradient = "exact",
    denominator_eps: float = 1e-6,
    nonfinite: Nonfinite = "raise",
) -> tuple[Floats, Floats, Floats]:
    """Gradients (dq, dk, dv) of ``sum(dout * out)``; the projection gets none.

    Arguments as for `favor_attention`. ``stabilizer_gradient="detached"`` leaves out the
    derivative of the maximum of ``stabilizer="max"``, on which the result depends through eps:
    that is what the published port does. About three times the forward pass.

    Examples
    --------
    >>> projection = nlattn.orthogonal_features(8, 256, seed=0)
    >>> dq, dk, dv = nlattn.favor_attention_vjp(q, k, v, np.ones_like(v), projection=projection)
    """
    plan = _Plan.checked(
        _fit("favor_attention_vjp", nonfinite, projection, kernel, q=q, k=k, v=v, dout=dout),
        kernel=kernel,
        causal=causal,
        scale=scale,
        eps=eps,
        stabilizer=stabilizer,
        stabilizer_gradient=stabilizer_gradient,
    )
    fit = plan.fit
    if not plan.causal:
        return plan.whole.vjp(fit)
    p, first = plan.causal_plan(denominator_eps)
    dout = fit["dout"][fit.slices("dout")[:, 0]]
    gradients = factored_causal.vjp(p, dout, first)
    return tuple(fit.reduce(name, x) for name, x in zip("qkv", gradients, strict=True))  # type: ignore[return-value]


@ranged(laws.along(laws.kernel))
def favor_attention_jvp(
    q: Floats,
    k: Floats,
    v: Floats,
    dq: Floats,
    dk: Floats,
    dv: Floats,
    *,
    projection: Floats | None = None,
    kernel: Kernel = "softmax",
    causal: bool = False,
    scale: float | None = None,
    eps: float = 1e-4,
    stabilizer: Stabilizer | None = None,
    stabilizer_gradient: StabilizerGradient = "exact",
    denominator_eps: float = 1e-6,
    nonfinite: Nonfinite = "raise",
) -> Floats:
    """Change of `favor_attention` along (dq, dk, dv), to first order, the projection held fixed.

    Arguments as there, and `stabilizer_gradient` as for the gradient; changes have the shapes of
    their arrays. About three times the forward pass.

    Examples
    --------
    >>> projection = nlattn.orthogonal_features(8, 32, seed=0)
    >>> change = nlattn.favor_attention_jvp(q, k, v, 1e-3 * q, 0 * k, 0 * v, projection=projection)
    """
    arrays = {"q": q, "k": k, "v": v, "dq": dq, "dk": dk, "dv": dv}
    plan = _Plan.checked(
        _fit("favor_attention_jvp", nonfinite, projection, kernel, **arrays),
        kernel=kernel,
        causal=causal,
        scale=scale,
        eps=eps,
        stabilizer=stabilizer,
        stabilizer_gradient=stabilizer_gradient,
    )
    fit = plan.fit
    if not plan.causal:
        return plan.whole.jvp(fit)
    p, first = plan.causal_plan(denominator_eps)
    moved_q, moved_k, moved_v = (
        [fit[name][i] for i in fit.slices(name)[:, 0]] for name in ("dq", "dk", "dv")
    )
    changes = moved_q, moved_k, moved_v
    return fit.unfold(factored_causal.jvp(p, changes, first))


def _fit(
    op: str, nonfinite: Nonfinite, projection: object, kernel: str, **arrays: object
) -> _check.Fit:
    _check.choice(op, "kernel", kernel, _KERNELS)
    if (projection is None) != (kernel == "none"):
        text = "is needed, (r, d) as of orthogonal_features" if projection is None else "is refused"
        _check.fail(op, "projection", f"{text} with kernel={kernel!r}")
    if projection is not None:
        arrays["projection"] = projection
    return set_fit(op, nonfinite, **arrays)


class _Plan(NamedTuple):
    """A checked call."""

    fit: _check.Fit
    whole: Positive | Separate
    """How all keys are attended to."""
    causal: bool

    @classmethod
    def checked(
        cls,
        fit: _check.Fit,
        *,
        kernel: str,
        scale: float | None,
        eps: float,
        stabilizer: str | None,
        causal: bool = False,
        stabilizer_gradient: StabilizerGradient = "exact",
    ) -> _Plan:
        op = fit.op
        if _check.flag(op, "causal", causal) and fit.dims["n"] != fit.dims["m"]:
            sizes = f"n={fit.dims['n']} queries and m={fit.dims['m']} keys"
            _check.fail(op, "causal=True", f"needs as many keys as queries, got {sizes}")
        _check.choice(op, "stabilizer_gradient", stabilizer_gradient, get_args(StabilizerGradient))
        stabilizer = stabilizer or ("neutral" if causal else "max")
        _check.choice(op, "stabilizer", stabilizer, STABILIZERS)
        if kernel == "none":
            whole: Positive | Separate = Separate.of(fit, soft=True)
            if causal:
                whole = Positive(RowSoftmax(), JointExp())
        elif kernel == "relu":
            c = fit.dims["d"] ** -0.25 if scale is None else _check.number(op, "scale", scale)
            relu = Relu(fit["projection"][0] * fit.dtype.type(c), _RELU_EPS)
            whole = Positive(relu, relu)
        else:
            moving = stabilizer_gradient == "exact"
            whole = Positive(
                *(
                    random_map(fit, scale, eps, stabilizer, joint=joint, moving=moving)
                    for joint in (False, True)
                )
            )
        return cls(fit, whole, causal)

    def causal_plan(
        self, denominator_eps: float
    ) -> tuple[factored_causal.Causal, list[Ints | None]]:
        """What the causal kernels take, and where each head's maximum moves."""
        fit = self.fit
        small = at_least_0(fit.op, "denominator_eps", denominator_eps)
        queries, keys = self.whole[:2]
        first: list[Ints | None] = [None] * fit.batch
        start = np.tile(keys.top(fit.dims["d"]), (fit.batch, 1))
        if isinstance(keys, Random) and keys.stabilizer == "max":
            sums = key_sums(fit, keys, Hidden.checked(fit, None))
            start = sums.top
            first = list(sums.first) if keys.moving else first
        arrays = fit["q"], fit["k"], fit["v"], fit.slices("q", "k", "v")
        return factored_causal.Causal(queries, keys, *arrays, start, small), first
