"""The verdict on one case: error over bound, element by element."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from nlattn.conformance.case import Array, Case, dtype_of
from nlattn.conformance.truth.bounds import allowed, exact, plain
from nlattn.conformance.truth.rounding import precision

Status = Literal["pass", "close", "fail", "unsupported", "crash", "timeout"]
CLOSE = 4.0
"""Up to so many bounds a result is close: to be looked at, and no failure."""


@dataclass(frozen=True)
class Verdict:
    """What is to be said of one case."""

    case: str
    status: Status
    ratio: float = 0.0
    """Largest error over bound."""
    output: str = ""
    """Where that is: the result, the index in it, and what stands there."""
    index: tuple[int, ...] = ()
    got: float = math.nan
    want: float = math.nan
    bound: float = math.nan
    digits: float = math.nan
    """Correct decimal digits there."""
    rival: float = math.nan
    """Root mean square error over that of the plain transcription in the same dtype."""
    detail: str = ""
    diagnosis: str = ""
    seed: int = 0
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether the backend is to blame."""
        return self.status in ("fail", "crash", "timeout")


def judge(case: Case, got: Mapping[str, Any], factor: float = 1.0) -> Verdict:
    """Compare named results with the truth; `factor` widens the bound.

    Where the truth is NaN or infinite, so must the result be. A result that is further off than
    `CLOSE` bounds, but no further than twice the plain transcription, is close.
    """
    base = Verdict(case.name, "fail", math.inf, seed=case.seed)
    want = exact(case)
    found: dict[str, Array] = {}
    for name, x in want.items():
        try:
            y = np.asarray(got[name])
            if y.dtype.kind in "cOSUVmM" and y.dtype.name != "bfloat16":
                return replace(base, output=name, detail=f"{name} has dtype {y.dtype}")
            found[name] = y.astype(np.float64)
        except KeyError:
            return replace(base, output=name, detail=f"{name} is missing")
        if y.shape != x.shape:
            return replace(base, output=name, detail=f"{name} has shape {y.shape}, not {x.shape}")
    bounds = {name: factor * x for name, x in allowed(case).items()}
    verdict = replace(base, ratio=-1.0)
    for name in want:
        ratio = ratios(found[name], want[name], bounds[name])
        if not ratio.size:
            continue
        at = np.unravel_index(int(ratio.argmax()), ratio.shape)
        if ratio[at] > verdict.ratio:
            mine, true = float(found[name][at]), float(want[name][at])
            verdict = replace(
                verdict, ratio=float(ratio[at]), output=name, index=tuple(map(int, at)), got=mine,
                want=true, bound=float(bounds[name][at]), digits=digits(mine, true),
            )  # fmt: skip
    verdict = replace(verdict, ratio=max(verdict.ratio, 0.0), rival=rivalry(case, found, want))
    if verdict.ratio <= 1:
        return replace(verdict, status="pass")
    close = verdict.ratio <= CLOSE or verdict.rival <= 2
    return replace(verdict, status="close" if close else "fail")


def ratios(got: Array, want: Array, bound: Array) -> Array:
    """Error over bound, (0 where equal, infinite where one is not finite and the other differs)."""
    with np.errstate(all="ignore"):
        same = (got == want) | (np.isnan(got) & np.isnan(want))
        ratio = abs(got - want) / bound
    ratio = np.where(np.isfinite(got) & np.isfinite(want), ratio, np.inf)
    ratio = np.where(np.isinf(bound) & np.isfinite(want), 0.0, ratio)
    return np.asarray(np.where(same, 0.0, np.where(np.isnan(ratio), np.inf, ratio)))


def digits(got: float, want: float) -> float:
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
    for name, y in plain(case).items():
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
