"""Attention to all keys, exact to a stated tolerance, without looking at most of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._modes import Nonfinite, SoftmaxOrGaussian
from nlattn._types import Array, Bools, Floats, Ints, Options, Result
from nlattn.engines import certified as engine
from nlattn.engines import certified_once, certified_rows, exhaustive, key_bias, laws
from nlattn.engines import certified_vjp as backward
from nlattn.engines.exhaustive import Slice
from nlattn.engines.key_bias import KeyBias
from nlattn.engines.magnitude import ranged
from nlattn.engines.random_search import Progress
from nlattn.engines.scores import weighing
from nlattn.maps.certified import CertifiedMap
from nlattn.ops._scores import alike, biases, fold, truth_values
from nlattn.ops.forward_mode import attention_jvp


@ranged(laws.weight)
def certified_attention(
    q: Floats,
    k: Floats,
    v: Floats,
    *,
    tolerance: float = 1e-3,
    weight: SoftmaxOrGaussian = "softmax",
    scale: float | None = None,
    bandwidth: float = 1.0,
    bias: Floats | None = None,
    mask: Bools | None = None,
    causal: bool = False,
    nonfinite: Nonfinite = "raise",
    return_lse: bool = False,
    return_missed: bool = False,
    progress: Progress = None,
    max_bytes: float = 4e9,
) -> Result:
    """Softmax attention to all keys, within `tolerance`: ``out[i] = sum_j softmax_j(s_ij) v[j]``.

    Keys whose box shows that they hold too little of a query's weight are left out. Where that
    saves nothing, as for random features, all is left to dense attention.

    Parameters
    ----------
    q, k, v : (..., n, d), (..., m, d), (..., m, e) arrays of one dtype, float32 or float64
        Queries, keys, values. Leading axes broadcast.
    tolerance : float
        Share of a row's weight that may be misplaced, in [0, 1); 0 is dense attention.
    weight, scale, bandwidth : {"softmax", "gaussian"}, float, float
        ``exp(scale q.k)``, scale ``1/sqrt(d)`` if omitted; or ``exp(-|q - k|^2 / bandwidth^2)``.
    bias : array that broadcasts to (..., 1, m), optional
        Added to the scores of each key; -inf hides it.
    mask, causal : bool array that broadcasts to (..., n, m), bool
        True where a query may attend; only keys up to the query. Without any, 0 and lse -inf.
    return_lse, return_missed : bool
        Also return (..., n) log-normalisers; and shares of each row that may be misplaced.
    progress : callable, optional
        Called with the parts of a head that are done, and all, some ten times a second.

    Returns
    -------
    (..., n, e) array, dtype of `q`; `lse` and `missed` are float64

    Raises
    ------
    ValueError, TypeError, MemoryError
        Shapes, dtypes or an option do not fit; a value is not finite; above `max_bytes`.

    Notes
    -----
    ``|out - exact| <= missed (max v - min v)`` in each channel, plus a spacing of `out`, and
    ``|lse - exact| <= -log(1 - missed)``, plus four of `lse`. Rounding is part of `missed`, which
    exceeds the tolerance only where float64 cannot keep it. Source: [gray2001]. Status: ours.

    Examples
    --------
    >>> out, missed = nlattn.certified_attention(q, k, v, tolerance=1e-3, return_missed=True)
    >>> bool(missed.max() <= 1e-3)
    True
    """
    op = "certified_attention"
    arrays = {"q": (q, "n d"), "k": (k, "m d"), "v": (v, "m e")}
    asked = CertifiedArguments(
        tolerance, weight, scale, bandwidth, bias, mask, causal, nonfinite, max_bytes
    )
    call = _call(op, arrays, asked)
    fit = call.fit
    out, lse, missed = fit.empty("n e"), fit.empty("n", float), fit.empty("n", float)
    for b, (*_, part) in enumerate(fit.slices("q", "k", "v")):
        found = certified_once.attend(call.slice(b), call.tolerance, fit["v"][part], progress)
        out[b], lse[b], missed[b] = found.out, found.lse, found.missed
    results = [fit.unfold(out)]
    results += [fit.unfold(lse, cast=False)] if return_lse else []
    results += [fit.unfold(missed, cast=False)] if return_missed else []
    return tuple(results) if len(results) > 1 else results[0]


@ranged(laws.weight)
def certified_attention_map(
    q: Floats,
    k: Floats,
    *,
    tolerance: float = 1e-3,
    weight: SoftmaxOrGaussian = "softmax",
    scale: float | None = None,
    bandwidth: float = 1.0,
    bias: Floats | None = None,
    mask: Bools | None = None,
    causal: bool = False,
    query_grid: tuple[int, ...] | None = None,
    key_grid: tuple[int, ...] | None = None,
    nonfinite: Nonfinite = "raise",
    max_bytes: float = 4e9,
) -> CertifiedMap:
    """The map of one head's `certified_attention`, options as there.

    ``A @ v`` and ``A.lse`` keep the tolerance, and ``A.missed`` says what was spent of it.
    ``A.topk`` is proved. Of each of ``A.rows``, which hold the keys that could not be left out, no
    more than twice the tolerance is misplaced; of ``A.T @ g`` no more than that times ``sum |g|``,
    and ``A.adjoint_bounds(g)`` has an interval for each key.

    Examples
    --------
    >>> A = nlattn.certified_attention_map(q, k, tolerance=1e-6)
    >>> np.allclose(A @ v, nlattn.attention(q, k, v), atol=1e-5)
    True
    """
    op = "certified_attention_map"
    arrays = {"q": (q, "n d"), "k": (k, "m d")}
    asked = CertifiedArguments(
        tolerance, weight, scale, bandwidth, bias, mask, causal, nonfinite, max_bytes
    )
    call = _call(op, arrays, asked)
    if call.fit.lead:
        _check.fail(op, "q, k", f"have leading axes {call.fit.lead}, expected one head (n, d)")
    return CertifiedMap(call.slice(0), call.tolerance, query_grid, key_grid)


@ranged(laws.weight)
def certified_attention_vjp(
    q: Floats,
    k: Floats,
    v: Floats,
    dout: Floats,
    *,
    tolerance: float = 1e-3,
    weight: SoftmaxOrGaussian = "softmax",
    scale: float | None = None,
    bandwidth: float = 1.0,
    bias: Floats | None = None,
    mask: Bools | None = None,
    causal: bool = False,
    nonfinite: Nonfinite = "raise",
) -> tuple[Floats, ...]:
    """Gradients (dq, dk, dv[, dbias]) of ``sum(dout * out)``, as for `certified_attention`.

    In float64, over the keys that cannot be left out: what is missed of `dq` is at most 1.5
    `tolerance` ``|scale|`` times the ranges of ``dout_i.v_j`` and of a channel of k; of dv, all
    keys together, twice `tolerance` times ``sum |dout|``. Where no key can be left out it is that
    of all keys. Bounds of dk, and why: docs/algorithms/certified.md.

    Examples
    --------
    >>> dq, dk, dv = nlattn.certified_attention_vjp(q, k, v, np.ones_like(v))
    """
    op = "certified_attention_vjp"
    arrays = {"q": (q, "n d"), "k": (k, "m d"), "v": (v, "m e"), "dout": (dout, "n e")}
    asked = CertifiedArguments(tolerance, weight, scale, bandwidth, bias, mask, causal, nonfinite)
    call = _call(op, arrays, asked)
    grounds = [call.ground(b) for b in range(len(call.fit.slices("q")))]
    fit, biased = call.fit, call.biases.size > 0
    dq, dk, dv = (fit.empty(spec, float) for spec in ("n d", "m d", "m e"))
    dbias = np.zeros(call.biases.shape)
    for b, (v_, g) in enumerate(fit.slices("v", "dout")):
        of_q, of_k, dv[b] = backward.vjp(grounds[b], fit["v"][v_], fit["dout"][g])
        if biased:
            of_q, of_k, db = call.biased(b).gradients(of_q, of_k)
            own = dbias[call.beside[b]]
            own += db if own.size == len(db) else db.sum()
        dq[b], dk[b] = of_q, of_k
    gradients = tuple(fit.reduce(name, x) for name, x in (("q", dq), ("k", dk), ("v", dv)))
    return (*gradients, dbias.reshape(call.given).astype(fit.out_dtype)) if biased else gradients


@ranged(laws.along(laws.weight))
@np.errstate(invalid="ignore", over="ignore")  # of numbers that are not finite
def certified_attention_jvp(
    q: Floats,
    k: Floats,
    v: Floats,
    dq: Floats,
    dk: Floats,
    dv: Floats,
    *,
    dbias: Floats | None = None,
    tolerance: float = 1e-3,
    weight: SoftmaxOrGaussian = "softmax",
    scale: float | None = None,
    bandwidth: float = 1.0,
    bias: Floats | None = None,
    mask: Bools | None = None,
    causal: bool = False,
    nonfinite: Nonfinite = "raise",
    return_lse: bool = False,
) -> Result:
    """Change of `certified_attention` along (dq, dk, dv[, dbias]), to first order.

    Arguments as there; changes have the shapes of their arrays. With `return_lse` also that of
    ``lse``. In float64, over the keys that cannot be left out: what is missed of the output is at
    most `tolerance` times the range of dv, and 1.5 times those of v and of a row's changes of
    scores; of ``lse`` at most `tolerance` times the latter.

    Examples
    --------
    >>> change = nlattn.certified_attention_jvp(q, k, v, 1e-3 * q, 0 * k, 0 * v)
    """
    op = "certified_attention_jvp"
    arrays = {"q": (q, "n d"), "k": (k, "m d"), "v": (v, "m e")}
    arrays |= {"dq": (dq, "n d"), "dk": (dk, "m d"), "dv": (dv, "m e")}
    asked = CertifiedArguments(tolerance, weight, scale, bandwidth, bias, mask, causal, nonfinite)
    call = _call(op, arrays, asked)
    grounds = [call.ground(b) for b in range(len(call.fit.slices("q")))]
    alike("certified_attention_jvp", "dbias", dbias, bias)
    if not any(ground.parts for ground in grounds):
        return _along_all(call, [x for x, _ in arrays.values()], dbias, asked, return_lse)
    fit, m, moved = call.fit, *call.fit.shape("m"), np.zeros(call.biases.shape)
    if dbias is not None:
        moved = fold(fit, "bias", _check.array(op, "dbias", dbias), (1, m))[0]
    out, lse = fit.empty("n e"), fit.empty("n", float)
    for b, (v_, *places) in enumerate(fit.slices("v", "dq", "dk", "dv")):
        along = zip(("dq", "dk", "dv"), places, strict=True)
        of_q, of_k, of_v = (fit[name][place].astype(np.float64) for name, place in along)
        if call.biases.size:
            of_q, of_k = call.biased(b).changes(of_q, of_k, moved[call.beside[b], 0])
        out[b], lse[b] = certified_rows.jvp(grounds[b], fit["v"][v_], (of_q, of_k, of_v))
    out, lse = fit.unfold(out), fit.unfold(lse, cast=False)
    return (out, lse) if return_lse else out


def _along_all(
    call: _Call, given: list[Floats], dbias: Floats | None, o: CertifiedArguments, lse: bool
) -> Result:
    """Change of dense attention in float64; distances are products of two more channels."""
    q, k, v, dq, dk, dv = (np.asarray(x).astype(np.float64) for x in given)
    factor = o.scale
    if o.weight != "softmax":
        factor = 2 * o.bandwidth**-2
        middle = exhaustive.centre(k.reshape(-1, k.shape[-1]))
        q, k = q - middle, k - middle
        for_q, for_k = np.ones((*q.shape[:-1], 1)), np.ones((*k.shape[:-1], 1))
        fall_q, fall_k = (-(x * dx).sum(-1, keepdims=True) for x, dx in ((q, dq), (k, dk)))
        high_q, high_k = (-(x * x).sum(-1, keepdims=True) / 2 for x in (q, k))
        dq, q = (np.concatenate(x, -1) for x in ((dq, 0 * for_q, fall_q), (q, for_q, high_q)))
        dk, k = (np.concatenate(x, -1) for x in ((dk, fall_k, 0 * for_k), (k, high_k, for_k)))
    named = {"bias": o.bias, "dbias": dbias}.items()
    wide = {n: None if b is None else np.asarray(b).astype(np.float64) for n, b in named}
    options: Options = {"mask": o.mask, "causal": o.causal, "nonfinite": o.nonfinite, **wide}
    out, of_lse = attention_jvp(q, k, v, dq, dk, dv, scale=factor, return_lse=True, **options)
    out = out.astype(call.fit.out_dtype)
    return (out, of_lse) if lse else out


class CertifiedArguments(NamedTuple):
    """The options of a call, as they came."""

    tolerance: float
    weight: SoftmaxOrGaussian
    scale: float | None
    bandwidth: float
    bias: Floats | None
    mask: Bools | None
    causal: bool
    nonfinite: Nonfinite
    max_bytes: float = 4e9


class _Call(NamedTuple):
    fit: _check.Fit
    tolerance: float
    kind: int
    factor: float
    masks: Array
    table: Ints
    masked: bool
    causal: bool
    biases: Floats
    """(any, 1, m or 1), or empty,"""
    beside: Ints
    """which of them belongs to each slice,"""
    given: tuple[int, ...]
    """and the shape in which they came."""

    def slice(self, b: int) -> Slice:
        """Arrays and options of one slice, keys with their bias."""
        return self.biased(b).slice if self.biases.size else self._plain(b)

    def biased(self, b: int) -> KeyBias:
        """One slice, and how gradients go through the bias of its keys."""
        m = self.fit.shape("m")
        return key_bias.add(self._plain(b), np.broadcast_to(self.biases[self.beside[b]][0], m))

    def _plain(self, b: int) -> Slice:
        (a, c), n, m = self.fit.slices("q", "k")[b], *self.fit.shape("n m")
        keys, pairs = np.empty(0, bool), np.empty((0, 0), bool)
        if self.masked:
            mask = self.masks[self.table[b]]
            if len(mask) == 1:
                keys = np.broadcast_to(mask[0], m)
            else:
                pairs = np.broadcast_to(mask, (n, m))
        q, k = self.fit["q"][a], self.fit["k"][c]
        masks = _check.frozen(keys), _check.frozen(pairs)
        return Slice(q, k, self.kind, self.factor, *masks, self.causal)

    def ground(self, b: int) -> engine.Ground:
        """What is known of one slice before there are values."""
        return engine.survey(self.slice(b), self.tolerance)


def _call(op: str, arrays: Mapping[str, tuple[object, str]], asked: CertifiedArguments) -> _Call:
    fit = _check.fit(op, arrays, nonfinite=asked.nonfinite)
    n, m, d = fit.shape("n m d")
    share = _check.share(op, "tolerance", asked.tolerance)
    kind, factor = weighing(op, asked.weight, d, asked.scale, asked.bandwidth)
    if asked.nonfinite == "propagate":
        share = share if all(np.isfinite(fit[name]).all() for name in fit.names) else 0.0
    masks, table = fold(fit, "mask", truth_values(fit, asked.mask))
    pairs = n * m if masks.shape[1] > 1 else 0
    needed = pairs + 24 * (n + m) * (d + 8)
    _check.memory(op, needed, asked.max_bytes, f"points and sums of {n} queries", "split q")
    ahead = _check.flag(op, "causal", asked.causal)
    some, beside, given = np.zeros(0), table, ()
    if asked.bias is not None:
        bias = biases(fit, asked.bias, asked.nonfinite)
        (some, beside), given = fold(fit, "bias", bias, (1, m)), bias.shape
        share = 0.0 if np.isnan(some).any() else share
    told = masks, table, asked.mask is not None, ahead
    return _Call(fit, share, kind, factor, *told, some, beside, given)
