"""What a case's results are, and how far from them rounding may lead.

Truth is the float64 oracle. The bound is what the same oracle may lose in the case's precision
(`rounding.py`), plus what the truth itself may have lost. Where results solve an equation, the
bound is one of its condition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from nlattn.conformance.case import Array, Case, dtype_of, named, native
from nlattn.conformance.eight_bit import dequantised
from nlattn.conformance.large_call import RasterRows, neighbours, rows_of
from nlattn.conformance.truth.analysis import analysed
from nlattn.conformance.truth.arithmetic import Arithmetic, Precision, precision
from nlattn.conformance.truth.heads import apart, together
from nlattn.conformance.truth.rounding import INEXACT, Operand, Rounded
from nlattn.conformance.truth.transcription import transcription
from nlattn.ops.sampled import sampled_truth

_DOUBLE = precision(np.dtype(np.float64))
KEPT = 512
"""Cases whose truth and bounds are kept: all of a function and dtype, for who judges several
backends by the same cases."""


@lru_cache(maxsize=KEPT)
def exact(case: Case) -> dict[str, Array]:
    """Results of the float64 oracle by name; of a large call those of `sampled_truth`."""
    if case.whole:
        return sampled(case)
    case = dequantised(case)
    with np.errstate(all="ignore"):
        result = named(case, transcription(case.function, wide(case.arrays), case.options))
    return {name: np.asarray(x, np.float64) for name, x in result.items()}


def sampled(case: Case) -> dict[str, Array]:
    """Rows and columns of a large call, at the places of the case."""
    if "H" in case.whole:
        return _sampled_grid(case)
    arrays = rows_of(case)
    places = {n: case.whole.get(n, {"at": range(len(case.arrays[x]))}) for n, x in ("nq", "mk")}
    given = {name: x for name, x in arrays.items() if "." not in name}
    if "support.indptr" in arrays:
        given["support"] = native(arrays)["support"]
    given |= {name: x for name, x in case.options.items() if name != "return_lse"}
    queries, keys = (list(places[n]["at"]) for n in "nm")
    found = sampled_truth(**given, queries=queries, keys=keys if case.kind == "vjp" else ())
    return {name: np.asarray(getattr(found, name)) for name in case.outputs}


def _sampled_grid(case: Case) -> dict[str, Array]:
    """The same of a grid, whose places are numbered in raster order."""
    places, support = neighbours(case)
    given: dict[str, Any] = {name: RasterRows(x) for name, x in rows_of(case).items()}
    keys = places if case.kind == "vjp" else ()
    found = sampled_truth(**given, support=support, queries=places, keys=keys)
    grid = case.arrays["q"].shape[:2]
    return {name: np.reshape(getattr(found, name), (*grid, -1)) for name in case.outputs}


@lru_cache(maxsize=KEPT)
def transcribed(case: Case) -> dict[str, Array]:
    """Results of the oracle in the case's dtype; in 16 bits computed in float32, rounded once."""
    case = dequantised(case)
    dtype = dtype_of(case.dtype)
    if dtype == np.float64:
        return exact(case)
    arrays = {n: x.astype(np.float32) if floating(x) else x for n, x in case.arrays.items()}
    with np.errstate(all="ignore"):
        result = named(case, transcription(case.function, arrays, case.options))
        return {name: np.asarray(x).astype(dtype).astype(float) for name, x in result.items()}


@lru_cache(maxsize=2 * KEPT)
def allowed(case: Case, how: Arithmetic | None = None) -> dict[str, Array]:
    """Bound of each element's error; by default in the arithmetic that its dtype suggests."""
    how = how or Arithmetic.of(case.dtype)
    case = dequantised(case)
    if case.spec.cases.result == "index":
        return {name: np.full(x.shape, 0.1) for name, x in exact(case).items()}
    if case.spec.cases.bound != "analysis":
        return conditioned(case, how)
    arrays = {
        name: Rounded(x, _flushed(x, how.results)) if floating(x) else x
        for name, x in wide(case.arrays).items()
    }
    if case.spec.cases.factored and all((x == 1).all() for x in case.arrays.values()):
        unit = 4 * how.results.unit  # weights are quotients of small integers: they may equal eps
        return {name: unit * abs(x) for name, x in exact(case).items()}
    if how.factors and "dout" in arrays:  # kernels take ``P dP`` from dout and an output in 16 bits
        arrays["dout"].error += INEXACT
    with analysed(how, case.kind in ("vjp", "jvp")), np.errstate(all="ignore"):
        result = named(case, transcription(case.function, arrays, case.options))
        each = apart(case, arrays) if how.results != how.sums else None
        more = named(case, transcription(case.function, *each)) if each else {}
        for name, x in more.items():
            x = together(x, np.shape(arrays[name[1:]]))
            result[name].error = np.maximum(result[name].error, x.error)
    if isinstance(lse := result.get("lse"), Rounded):  # of a count alone it is a logarithm, too
        lost = how.total(2 * how.unit, how.unit * abs(lse.value))
        lse.error = np.where((lse.error == 0) & (lse.value != 0), lost, lse.error)
    return {
        name: _stored(x, how) if isinstance(x, Rounded) else 0.0 * x for name, x in result.items()
    }


def typical(case: Case, how: Arithmetic | None = None) -> dict[str, Array]:
    """Size that each element's error has where roundings are independent of each other."""
    return allowed(case, replace(how or Arithmetic.of(case.dtype), typical=True))


def _stored(x: Rounded, how: Arithmetic) -> Array:
    """The error of a result, rounded to its dtype, beside a truth that has errors of its own."""
    error = how.total(x.error, how.results.tiny if how.typical else 0.0)
    if how.results != how.sums:
        unit = how.results.unit / 3**0.5 if how.typical else how.results.unit
        size = abs(x.value)
        error = how.total(error, unit * size, how.results.tiny * (size != 0))
        error = np.where(size + error <= how.results.huge, error, np.inf)
    return np.asarray(how.total(error, error * (_DOUBLE.unit / how.results.unit)))


def wide(arrays: Mapping[str, Array]) -> dict[str, Operand]:
    """Floating arrays as float64, contiguous; others as they are."""
    return {n: np.array(x, np.float64) if floating(x) else x for n, x in arrays.items()}


def floating(x: Array) -> bool:
    """Whether an array is floating; bfloat16 is of a kind of its own."""
    return bool(x.dtype.kind == "f" or x.dtype.name == "bfloat16")


def _flushed(x: Array, now: Precision) -> Array:
    """What is lost of subnormal inputs where these count as 0."""
    return np.where(abs(x) < now.tiny, abs(x), 0.0)


def conditioned(case: Case, how: Arithmetic) -> dict[str, Array]:
    """Bounds of leverage and what is built from it: ``u (sqrt(m) + d) cond^2``, per element.

    The square is what solving by the Gram matrix costs. An exponent p multiplies relative errors.
    """
    want, k, now = exact(case), wide(case.arrays)["k"], how.sums
    p = float(case.options.get("p", 2.0))
    loss = np.zeros(k.shape[:-2])
    for b in np.ndindex(k.shape[:-2]):
        loss[b] = _loss(k[b], now, condition(k[b], want, p, b))
    if case.spec.cases.result == "set":
        if case.options.get("causal"):
            return {"out": _unsure_prefixes(case, k, now, p)}
        return {"out": _unsure(case, k, loss, p)}
    each = {}
    for name, x in want.items():
        share = loss[..., None] if x.ndim > loss.ndim else loss
        root = case.spec.cases.bound == "root of condition"
        size = np.sqrt(abs(x)) + share if root else p * abs(x)
        own = case.spec.cases.slack + 1e-11 * (not root) + how.results.unit
        each[name] = share * size + own * abs(x) + how.results.tiny
    return each


def condition(k: Array, want: Mapping[str, Array], p: float, b: tuple[int, ...]) -> float:
    """Squared condition of keys, columns brought to one size; for p not 2 also of weighted keys."""
    rows = k[k.any(-1)]
    rows = rows / np.where(rows.any(0), abs(rows).max(0, initial=0), 1)
    worst = 1.0
    weights = [np.ones(len(rows))]
    if p != 2 and "out" in want and want["out"].shape == k.shape[:-1]:
        own = np.maximum(want["out"][b][k.any(-1)], np.finfo(float).tiny)
        weights.append(own ** (0.5 - 1 / p))
    for w in weights:
        sizes = np.linalg.svd(w[:, None] * rows, compute_uv=False)
        kept = sizes[sizes > 1e-10 * sizes.max(initial=0)]
        worst = max(worst, float(kept[0] / kept[-1]) ** 2 if len(kept) else 1.0)
    return worst


def _unsure(case: Case, k: Array, loss: Array, p: float) -> Array:
    """0 where a key must be in or out, infinite where its bounds do not tell.

    A key must be in if some query gives it a weight of eps: one is looked for.
    """
    low, high = transcription("sensitivity_bounds", {"k": k}, {"p": p})
    eps = case.options["eps"]
    alone = np.zeros(k.shape[:-1], bool)
    if k.shape[-1] == 1:  # a key that no other shares its line with has 1, whoever computes it
        alone = k[..., 0] != 0
        alone &= alone.sum(-1, keepdims=True) == 1
    if p != 2:
        if case.options.get("causal"):  # bounds of prefixes may be any: a key too many is no fault
            high = np.full_like(high, np.inf)
        low = low.copy()
        for b in np.ndindex(k.shape[:-2]):
            low[b] = np.maximum(low[b], received(k[b], p))
    low, high = (x * (1 + sign * p * loss[..., None]) for x, sign in ((low, -1), (high, 1)))
    if p != 2 and case.options.get("tight"):
        high = high.copy()
        for at in map(tuple, np.argwhere((low < eps) & (high >= eps))):
            own = transcription("lp_sensitivity", {"k": k[at[:-1]]}, {"i": int(at[-1]), "p": p})
            low[at], high[at] = own[0] * (1 - 1e-9), own[1] * (1 + 1e-9)
    unsure = (low < eps) & (high >= eps) & ~alone
    return np.where(unsure, np.inf, 0.1)


def received(k: Array, p: float) -> Array:
    """Weights (m,) that some query gives to keys (m, d): at most their sensitivities, and near.

    Of all y with ``k_j.y = 1`` that with the least ``sum |k.y|^p``, by reweighted least squares.
    """
    found = np.zeros(len(k))
    size = max(float(abs(k).max(initial=0)), 1e-300)
    rows = k / size
    for j in np.flatnonzero(k.any(-1)):
        w = np.ones(len(k))
        for _ in range(40):
            y = np.linalg.pinv((w[:, None] * rows).T @ rows, hermitian=True) @ rows[j]
            z = abs(rows @ y)
            if not z[j] > 0:
                break
            z /= z[j]
            found[j] = max(found[j], 1 / float((z**p).sum()))
            w = (w * np.maximum(z, 1e-6) ** (p - 2)) ** 0.5
    return found


def _unsure_prefixes(case: Case, k: Array, now: Precision, p: float) -> Array:
    """The same for the keys up to each key, (..., m, m)."""
    m = k.shape[-2]
    found = np.full((*k.shape[:-1], m), 0.1)
    for *b, i in np.ndindex(k.shape[:-1]):
        part = k[tuple(b)][: i + 1]
        loss = np.array(_loss(part, now, condition(part, {}, p, ())))
        found[(*b, i)][: i + 1] = _unsure(case, part, loss, p)
    return found


def _loss(k: Array, now: Precision, squared: float) -> float:
    """Relative error of the leverage of k (m, d) of this squared condition."""
    return float(16 * now.unit * (k.shape[-2] ** 0.5 + k.shape[-1]) * squared + _DOUBLE.unit)


def ratios(got: Array, want: Array, bound: Array) -> Array:
    """Error over bound, 0 where equal, infinite where one is not finite and the other differs.

    Where the bound is infinite nothing is known, and the ratio is 0 whatever stands there.
    """
    with np.errstate(all="ignore"):
        same = (got == want) | (np.isnan(got) & np.isnan(want))
        ratio = abs(got - want) / bound
    ratio = np.where(np.isfinite(got) & np.isfinite(want), ratio, np.inf)
    ratio = np.where(np.isinf(bound) & np.isfinite(want), 0.0, ratio)
    return np.asarray(np.where(same, 0.0, np.where(np.isnan(ratio), np.inf, ratio)))
