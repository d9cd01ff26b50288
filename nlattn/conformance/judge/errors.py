"""Errors of results beside their bounds, their typical sizes, and the plain transcription's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from nlattn._types import Array
from nlattn.conformance.case import Case, dtype_of, scale_of
from nlattn.conformance.truth.arithmetic import Arithmetic, precision
from nlattn.conformance.truth.bounds import allowed, floating, transcribed

MANY = 256
"""Numbers that are enough to differ: long arrays of bfloat16 hold each of theirs many times."""


class Errors(NamedTuple):
    """Errors of one result, over their typical sizes."""

    elements: int
    far: float
    spread: float
    bias: float
    """Relative error in common, by least squares."""
    doubt: float
    """Its standard deviation if errors are independent, or if those of a row are not: they share
    what rounding does to its normaliser."""
    level: float = math.inf
    """Root of the mean square of results, each over its typical error."""


def errors(got: Array, want: Array, each: Array) -> Errors:
    """What errors have in common; elements that are not finite, and exact zeros, do not count."""
    known = np.isfinite(got) & np.isfinite(want) & np.isfinite(each) & (each > 0)
    known &= each > 1e-3 * each[known].max(initial=0.0)  # of what nearly vanishes errors say little
    x, error, size = want[known], got[known] - want[known], each[known]
    if not error.size:
        return Errors(0, 0.0, 0.0, 0.0, math.inf)
    parts, scale = error / size, x / size
    weight = float((scale**2).sum())
    bias = float((parts * scale).sum() / weight) if weight else 0.0
    doubt = math.inf
    if weight:
        left, whole = np.zeros(want.shape), np.zeros(want.shape)
        left[known], whole[known] = (parts - bias * scale) * scale, scale**2
        doubt = uncertainty(left, whole, same_rows(want)) / weight
    far, spread = float(abs(parts).max()), float(np.sqrt((parts**2).mean()))
    return Errors(error.size, far, spread, bias, doubt, math.sqrt(weight / error.size))


def same_rows(x: Array) -> Array:
    """For each row of an array the number of the set of rows that are equal to it, (rows,)."""
    rows = np.where(np.isfinite(x), x, 0).reshape(-1, x.shape[-1] if x.ndim else 1)
    key = (rows * np.cos(np.arange(rows.shape[-1]))).sum(-1)  # equal rows have equal sums
    size = max(float(abs(key).max(initial=0)), 1e-300)
    return np.unique(np.round(key / size, 11), return_inverse=True)[1].reshape(-1)


def uncertainty(left: Array, whole: Array, alike: Array) -> float:
    """Standard deviation of a sum of errors `left` whose squares are `whole` on average.

    Each element has an error of its own, or each row one; equal rows have the same errors.
    """
    rows = [x.sum(-1).reshape(-1) if x.ndim else x.reshape(-1) for x in (left, whole)]
    shared = np.bincount(alike, rows[0])
    alone = np.bincount(alike, rows[1]) * np.bincount(alike)
    return float(np.sqrt(max(alone.sum(), (shared**2).sum())))


def agreeing_digits(got: float, want: float) -> float:
    """Decimal digits in which two numbers agree, 0 to 17."""
    if got == want:
        return 17.0
    error = abs(got - want) / abs(want) if want else math.inf
    return min(17.0, max(0.0, -math.log10(error))) if 0 < error < math.inf else 0.0


def rivalry(case: Case, got: Mapping[str, Array], want: Mapping[str, Array]) -> float:
    """Largest ratio of root mean square errors, got's over the plain transcription's.

    Both are raised by half a spacing of the largest result: less no dtype can promise.
    """
    unit, worst = precision(dtype_of(case.dtype)).unit, 0.0
    for name, y in transcribed(case).items():
        x = want[name]
        some = np.isfinite(x)
        if not some.any():
            continue
        floor = unit * float(abs(x[some]).max())
        with np.errstate(all="ignore"):
            mine, other = (float(np.sqrt(((z - x)[some] ** 2).mean())) for z in (got[name], y))
        both = (mine + floor, (other if math.isfinite(other) else 0.0) + floor)
        ratio = both[0] / both[1] if both[1] else (math.inf if mine else 1.0)
        worst = max(worst, math.inf if math.isnan(ratio) else ratio)
    return worst


def usable(
    case: Case, want: Mapping[str, Array], bounds: Mapping[str, Array], how: Arithmetic
) -> dict[str, Array]:
    """Bounds that say something: where rounding may do anything, what the plain transcription does.

    There a result must be as near as four times that one's error, or as what products of sums' own
    precision allow; where that one overflows, too, nothing is known. Of sets, an infinite bound is
    of a key that may be in or out.
    """
    if case.spec.cases.result == "set" or all(np.isfinite(x).all() for x in bounds.values()):
        return dict(bounds)
    exactly = bounds if how.factors is None else allowed(case, replace(how, factors=None))
    unit, found, unsure = precision(dtype_of(case.dtype)).unit, {}, False
    if how.factors is not None and how.factors.unit > unit:  # of float32
        unit = how.factors.unit
        arrays = {n: cut(x, unit) if x.dtype.kind == "f" else x for n, x in case.arrays.items()}
        case, unsure = replace(case, arrays=arrays), case.kind == "vjp"  # other sums, other winners
    for name, y in transcribed(case).items():
        x = want[name]
        size = float(abs(x[np.isfinite(x)]).max(initial=0))
        with np.errstate(all="ignore"):
            near = 4 * abs(y - x) + 16 * unit * size
            near = np.where(np.isfinite(exactly[name]), np.maximum(near, exactly[name]), near)
        near = np.where(np.isfinite(y) & ~unsure, near, np.inf)
        found[name] = np.where(np.isfinite(bounds[name]), bounds[name], near)
    return found


def cut(x: Array, unit: float) -> Array:
    """Numbers without the bits that a format of this unit drops."""
    mantissa, exponent = np.frexp(x)
    step = x.dtype.type(unit / 2)
    return np.asarray(np.ldexp(np.trunc(mantissa / step) * step, exponent).astype(x.dtype))


def exponents(case: Case) -> float:
    """How far below their maximum the scores are that results are made of, on average.

    What a constant such as ``log2 e`` loses, all weights lose so many times. Masks and biases are
    left aside.
    """
    if not (case.spec.softmax and case.spec.softmax.own and {*"qkv"} <= {*case.arrays}):
        return 0.0
    q, k, v = (case.arrays[n].astype(float) for n in "qkv")
    if case.options.get("gqa"):
        k, v = (np.repeat(x, q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    if not k.size:
        return 0.0
    with np.errstate(all="ignore"):  # NaN that is hidden
        s = q @ np.swapaxes(k, -1, -2) * scale_of(case.options, q)
        below = s.max(-1, keepdims=True) - s
        part = np.exp(-below) * abs(v).sum(-1)[..., None, :]
        return float((part * below).sum() / max(part.sum(), 1e-300))


def varied(case: Case) -> bool:
    """Whether a case's numbers differ, so that its errors are independent of each other."""
    arrays = [x for x in case.arrays.values() if floating(x) and x.size > 3]
    if case.codes is not None:  # few numbers differ, but weights that are computed do
        arrays = []
    rows = [x.size // max(x.shape[-1], 1) for n, x in case.arrays.items() if n in ("q", "k")]
    if {"q", "k"} <= {*case.arrays}:
        top = [abs(case.arrays[n].astype(float)).max(initial=0) for n in ("q", "k")]
        given = case.options.get("scale")
        top[0] *= abs(given) if isinstance(given, (int, float)) else 1.0
        if top[0] * top[1] * case.arrays["q"].shape[-1] < precision(dtype_of(case.dtype)).unit:
            return False  # all weights of a row round to one number, with one error
    if min(rows, default=8) < 8:  # what goes wrong in one row goes wrong in all that it touches
        return False
    if any(0 in x.strides for x in arrays):  # heads of the same numbers
        return False
    return all(len(np.unique(x.astype(np.float64))) > min(x.size / 2, MANY) for x in arrays)
