"""The verdict on one case: error over bound, element by element."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from nlattn.conformance.case import Array, Case
from nlattn.conformance.eight_bit import dequantised
from nlattn.conformance.judge.bias import Lean
from nlattn.conformance.judge.errors import (
    agreeing_digits,
    errors,
    exponents,
    rivalry,
    usable,
    varied,
)
from nlattn.conformance.judge.promises import broken, promised, room
from nlattn.conformance.judge.selection import judge_selection
from nlattn.conformance.truth.arithmetic import Arithmetic, precision
from nlattn.conformance.truth.bounds import allowed, exact, ratios, transcribed, typical

Status = Literal["pass", "suspicious", "fail", "unsupported", "crash", "timeout"]
UNLIKELY = 6.0
"""Typical errors beyond which one of a right backend lies with a chance of 2e-9."""
SPREAD = 1.75
"""Typical errors that the root of the mean square may be; right backends reach 0.9."""
SPREAD_OF_GRADIENTS = 3.0
"""The same of gradients, whose terms automatic differentiation adds in an order of its own: where
they cancel, right backends reach 2."""
HOLLOW = 4.0
"""Up to so many times its own errors the truth, in float64, may be nothing else."""
SHARED = 4.0
"""Roundings that all elements may share, such as those of ``1/sqrt(d)``; more, where exponents are
larger: those of ``scale log2 e`` and of its product move each weight by as many times its own."""
LEAK = "NaN of masked keys reaches the result: 0 times NaN is NaN, and so is NaN less infinity"
_DOUBLE = precision(np.dtype(np.float64))
_EXCUSE = 2.0
"""How often the plain transcription's error is excused, where that is beyond a bound itself."""


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
    spread: float = 0.0
    """Root of the mean square of errors, each over its typical size; 0 where bounds suffice."""
    bias: float = 0.0
    """Relative error that all elements share."""
    lean: Lean | None = field(default=None, compare=False)
    """What the errors of a forward case have in common, to be pooled over cases."""
    ran: str = ""
    """What computed it, where the backend chooses: such as a kernel of a library."""

    @property
    def failed(self) -> bool:
        """Whether the backend is to blame."""
        return self.status in ("fail", "crash", "timeout")


def judge(
    case: Case, got: Mapping[str, Array], factor: float = 1.0, how: Arithmetic | None = None
) -> Verdict:
    """Compare named results with the truth; `factor` widens bounds, `how` is the arithmetic.

    Where the truth is NaN or infinite, so must the result be. An element beyond its bound fails the
    case, and so do errors that are all too large, or all alike, to be what rounding makes. An
    element within its bound that rounding hardly ever takes so far is suspicious.
    """
    how = how or Arithmetic.of(case.dtype)
    case = dequantised(case)
    base = Verdict(case.name, "fail", math.inf, seed=case.seed)
    want = exact(case)
    found: dict[str, Array] = {}
    for name, x in want.items():
        if name not in got:
            return replace(base, output=name, detail=f"{name} is missing")
        try:
            y = np.asarray(got[name])
            if y.dtype.kind in "cOSUVmM" and y.dtype.name != "bfloat16":
                return replace(base, output=name, detail=f"{name} has dtype {y.dtype}")
            with np.errstate(invalid="ignore"):  # NaN that signals
                found[name] = y.astype(np.float64)
        except (TypeError, ValueError) as error:
            return replace(base, output=name, detail=f"{name} is no array of numbers: {error}")
        if y.shape != x.shape:
            return replace(base, output=name, detail=f"{name} has shape {y.shape}, not {x.shape}")
    if case.spec.cases.result == "index":
        return _chosen(base, case, want["out"], found["out"])
    if not promised(case) and all(
        np.array_equal(y, want[n], equal_nan=True) for n, y in found.items()
    ):
        return replace(base, status="pass", ratio=0.0)
    bounds = usable(case, want, {n: factor * x for n, x in allowed(case, how).items()}, how)
    if promised(case):
        said = broken(case, want, found, bounds)
        verdict = _worst(base, found, want, room(case, found, bounds))
        kept = not said and verdict.ratio <= 1
        return replace(verdict, status="pass" if kept else "fail", detail=said)
    verdict = _worst(base, found, want, bounds)
    verdict = replace(verdict, rival=rivalry(case, found, want))
    if verdict.ratio > 1 and _leaks(case, found, want, bounds):
        return replace(verdict, status="suspicious", detail=LEAK)
    if verdict.ratio > 1:
        others = {
            name: ratios(y, want[name], bounds[name]) for name, y in transcribed(case).items()
        }
        theirs = max(float(x.max(initial=0)) for x in others.values())
        excused = math.isfinite(verdict.ratio) and verdict.ratio <= _EXCUSE * theirs
        return replace(verdict, status="suspicious" if excused else "fail")
    if verdict.rival <= 1 or case.spec.cases.factored or not varied(case):
        return replace(verdict, status="pass")
    each = {name: factor * x for name, x in typical(case, how).items()}
    return _pattern(replace(verdict, status="pass"), case, found, want, each, how)


def _chosen(base: Verdict, case: Case, want: Array, got: Array) -> Verdict:
    """The verdict on a table of keys; another choice of equal keys is suspicious."""
    if np.array_equal(got, want):
        return replace(base, status="pass", ratio=0.0)
    causal = {n: case.options[n] for n in ("causal", "causal_offset") if n in case.options}
    whole = np.array_equal(got, np.trunc(got)) and (got >= -1).all()
    table = got.astype(np.int64) if whole else np.full(got.shape, -1)
    found = judge_selection(case.arrays["scores"].astype(np.float64), table, **causal)
    last = np.sort(got < 0, -1)
    if found.right and found.ordered and not found.lowest and np.array_equal(got < 0, last):
        return replace(base, status="suspicious", ratio=0.0, detail=found.detail)
    at = tuple(map(int, np.argwhere(got != want)[0]))
    detail = found.detail or "-1 stands before keys"
    return replace(base, output="out", index=at, got=got[at], want=want[at], detail=detail)


def _summed_once(case: Case) -> bool:
    """Whether rows of gradients share sums over all keys, and the errors of these."""
    form = case.spec.softmax
    other = form is None or any(case.options.get(n, ok[0]) not in ok for n, ok in form.only.items())
    return case.kind == "vjp" and other


def _leaks(
    case: Case, got: Mapping[str, Array], want: Mapping[str, Array], bounds: Mapping[str, Array]
) -> bool:
    """Whether nothing is wrong but NaN, where masked keys or values hold it, too.

    A mask that is added to scores does not take it away, nor does a product of weights and values.
    """
    some = [case.arrays[n].astype(np.float64) for n in ("k", "v") if n in case.arrays]
    if "mask" not in case.arrays or all(np.isfinite(x).all() for x in some):
        return False
    return all(
        (np.isnan(got[n]) | (ratios(got[n], x, bounds[n]) <= 1)).all() for n, x in want.items()
    )


def _worst(
    base: Verdict, got: Mapping[str, Array], want: Mapping[str, Array], bounds: Mapping[str, Array]
) -> Verdict:
    """The verdict with the largest error over its bound, and where that is."""
    worst = replace(base, ratio=-1.0)
    for name in want:
        ratio = ratios(got[name], want[name], bounds[name])
        if not ratio.size or ratio.max() <= worst.ratio:
            continue
        at = np.unravel_index(int(ratio.argmax()), ratio.shape)
        mine, true = float(got[name][at]), float(want[name][at])
        worst = replace(
            worst, ratio=float(ratio[at]), output=name, index=tuple(map(int, at)), got=mine,
            want=true, bound=float(bounds[name][at]), digits=agreeing_digits(mine, true),
        )  # fmt: skip
    return replace(worst, ratio=max(worst.ratio, 0.0))


def _pattern(
    verdict: Verdict, case: Case, got: Mapping[str, Array], want: Mapping[str, Array],
    each: Mapping[str, Array], how: Arithmetic,
) -> Verdict:  # fmt: skip
    """What the errors of all elements say together, each result beside the plain transcription."""
    alike = how.results == how.sums and _summed_once(case)
    deep = exponents(case)
    shared = how.common * (SHARED + (2 * deep if deep > SHARED else 0.0))
    farthest, spread, lean = 0.0, 0.0, None
    cut = how.common > how.results.unit  # factors that are cut off are all too small
    most = SPREAD_OF_GRADIENTS if case.kind in ("vjp", "jvp") or cut else SPREAD
    for name, y in transcribed(case).items():
        mine, other = (errors(z, want[name], each[name]) for z in (got[name], y))
        if not other.far > UNLIKELY:
            farthest = max(farthest, mine.far)
        if lean is None and case.kind == "forward":
            lean = Lean.of(got[name], want[name], each[name], mine, shared)
        own = most * _DOUBLE.unit / how.results.unit  # the truth's own error, over a typical one
        hollow = mine.level < HOLLOW * own
        truth = mine.level if hollow else own
        if mine.elements >= 8:
            spread = max(spread, mine.spread)
            if mine.spread > max(math.hypot(most, truth), _EXCUSE * other.spread):
                said = (
                    f"errors of {name} are {mine.spread:.3g} times as large as roundings make "
                    f"them, in the root of the mean square of {mine.elements} elements"
                )
                return replace(verdict, status="fail", spread=mine.spread, detail=said)
        if hollow or mine.elements < 16:
            continue
        doubt = mine.doubt * (np.sqrt(want[name][..., 0].size) if alike else 1.0)
        least = shared + (own / mine.level) ** 2 + UNLIKELY * doubt
        if abs(mine.bias) > max(least, _EXCUSE * abs(other.bias)):
            said = (
                f"{name} is too {'large' if mine.bias > 0 else 'small'} by {abs(mine.bias):.2g} of "
                f"itself, where roundings average out to {doubt:.2g}"
            )
            return replace(verdict, status="fail", spread=spread, bias=mine.bias, detail=said)
    verdict = replace(verdict, spread=spread, lean=lean)
    if farthest > UNLIKELY:
        said = f"an element is {farthest:.3g} typical errors off, where {UNLIKELY:g} are unlikely"
        return replace(verdict, status="suspicious", detail=said)
    return verdict
