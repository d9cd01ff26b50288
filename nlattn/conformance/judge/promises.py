"""What operators promise of results that are not determined: intervals, shares, residuals.

Where keys may be left out, the result says how much of the weight; where a sensitivity is bounded,
two ends hold after any number of steps; where an iteration may stop, its residual is below `tol`.
Of such a case the truth is the exact result, and what is judged is the promise.
"""

from __future__ import annotations

import numpy as np

from nlattn._types import Array, Arrays
from nlattn.conformance.case import Case
from nlattn.conformance.truth.bounds import wide
from nlattn.oracle.certified import misplaced, scores, weights
from nlattn.oracle.lewis import residual

EXACT = 1e-12
"""Tolerances from which on results are those of all keys, but for rounding."""


def _tolerance(case: Case) -> float:
    return float(case.options.get("tolerance", 1e-3))  # the operator's default


def promised(case: Case) -> bool:
    """Whether a case's results are judged by a promise."""
    some = case.options
    match case.spec.cases.promises if case.kind == "forward" else "":
        case "missed":
            return bool(_tolerance(case) > EXACT or some.get("return_missed"))
        case "bracket":
            return "steps" in some or "tol" in some
        case "residual":
            return "tol" in some
    return False


def room(case: Case, got: Arrays, bounds: Arrays) -> dict[str, Array]:
    """Bounds of each result, with what the promise allows, by what the backend says it missed."""
    if case.spec.cases.promises != "missed":
        return {name: np.full(np.shape(x), np.inf) for name, x in bounds.items()}
    most = _tolerance(case)
    said = np.asarray(got.get("missed", most), float)
    part = np.clip(np.where(np.isfinite(said), said, 0), 0, most)
    part = np.broadcast_to(part, case.arrays["q"].shape[:-1])
    v = np.asarray(case.arrays["v"], float)
    span = np.ptp(v, axis=-2) if v.shape[-2] else np.zeros((*v.shape[:-2], v.shape[-1]))
    found = dict(bounds)
    found["out"] = bounds["out"] + part[..., None] * span[..., None, :]
    if "lse" in bounds:
        found["lse"] = bounds["lse"] - np.log1p(-np.minimum(part, 1 - 1e-9))
    if "missed" in bounds:  # rounding is part of what is missed
        found["missed"] = np.full(np.shape(bounds["missed"]), most)
    return found


def broken(case: Case, want: Arrays, got: Arrays, bounds: Arrays) -> str:
    """How results break the promise, in words; empty if they keep it."""
    match case.spec.cases.promises:
        case "missed":
            return _missed(case, got, bounds)
        case "bracket":
            return _bracket(case, want, got, bounds)
        case "residual":
            return _residual(case, got["out"], bounds["out"])
    return ""


def _missed(case: Case, got: Arrays, bounds: Arrays) -> str:
    """Shares of the weight, seen by values of 0 and 1: ``w'_j / Z = out_j exp(lse' - lse)``."""
    most = _tolerance(case)
    said = np.broadcast_to(np.asarray(got.get("missed", most), float), case.arrays["q"].shape[:-1])
    if (said < 0).any():
        return "missed is negative"
    v = case.arrays["v"]
    ones = v.shape[-2] == v.shape[-1] and (v == np.eye(v.shape[-1])).all()
    if not ones:
        return ""
    arrays = wide(case.arrays)
    names = ("weight", "scale", "bandwidth", "causal")
    options = {n: case.options[n] for n in names if n in case.options}
    options |= {name: arrays[name] for name in ("bias", "mask") if name in arrays}
    P, lse = weights(scores(arrays["q"], arrays["k"], **options))
    seen, rounding = np.isfinite(lse), bounds["out"].sum(-1)
    if "lse" in got:
        factor = np.exp(np.where(seen, got["lse"] - np.where(seen, lse, 0), 0))
        rounding = rounding + np.where(seen, bounds["lse"], 0)
    else:
        factor = _likeliest(got["out"], P)
    share = misplaced(got["out"] * factor[..., None], P)
    over = share - said - rounding
    if not (over > 0).any():
        return ""
    at = tuple(map(int, np.unravel_index(int(over.argmax()), over.shape)))
    return (
        f"row {list(at)} misplaces {share[at]:.3g} of its weight, where "
        f"{'missed says' if 'missed' in got else 'the tolerance is'} {said[at]:.3g}"
    )


def _likeliest(out: Array, P: Array) -> Array:
    """Factors of rows that bring them nearest to exact weights: medians, weighted by the rows."""
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = np.where(out > 0, P / out, np.inf)
    order = np.argsort(parts, -1)
    sums = np.cumsum(np.take_along_axis(np.maximum(out, 0), order, -1), -1)
    at = (sums < sums[..., -1:] / 2).sum(-1, keepdims=True)
    found = np.take_along_axis(np.take_along_axis(parts, order, -1), at, -1)[..., 0]
    return np.where(np.isfinite(found), found, 1.0)


def _bracket(case: Case, want: Arrays, got: Arrays, bounds: Arrays) -> str:
    low, high = (np.asarray(got[n], float) for n in ("lower", "upper"))
    least, most = want["lower"] - bounds["lower"], want["upper"] + bounds["upper"]
    if not (np.isfinite(low) & np.isfinite(high)).all():
        return "ends are not finite"
    if (low > most).any():
        return f"lower is above the sensitivity, by {float((low - most).max()):.3g}"
    if (high < least).any():
        return f"upper is below the sensitivity, by {float((least - high).max()):.3g}"
    if "steps" not in case.options:
        wide_apart = high - low - case.options["tol"] - bounds["lower"] - bounds["upper"]
        if (wide_apart > 0).any():
            return f"the two ends are further apart than tol, by {float(wide_apart.max()):.3g}"
    return ""


def _residual(case: Case, w: Array, bound: Array) -> str:
    """Beside what rounding does, in logarithms."""
    k, p, tol = wide(case.arrays)["k"], float(case.options["p"]), case.options["tol"]
    for b in np.ndindex(k.shape[:-2]):
        own, some = np.asarray(w[b], float), k[b].any(-1)
        if not (np.isfinite(own).all() and (own[some] > 0).all() and not own[~some].any()):
            return "weights are no positive numbers, 0 for keys of zeros"
        rounding = float((bound[b][some] / own[some]).max(initial=0))
        far = float(residual(k[b], own, p))
        if far > tol + 4 * rounding:
            return f"has a residual of {far:.3g}, more than tol={tol:g}"
    return ""
