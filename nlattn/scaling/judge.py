"""Does a cost grow no faster than a law? A verdict from counts, or times with noise and cliffs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nlattn._types import Floats
from nlattn.scaling.growth import GrowthRate, growth
from nlattn.scaling.outgrowing import GrowthPart, outgrowing

_RISK = 0.002  # of each end of an interval, if residuals are normal
_FLOOR = 1e-3  # log2 units: residuals below 0.07 % are the law's own bend, not noise
_RIVAL = 0.001  # how unlikely a cliff's place must be to be ruled out
_FEWEST = 5
_TRACE, _PART = 0.01, 0.1
"""Shares of the largest cost: from the first, what outgrows the law forbids "consistent"; from the
second it is "inconsistent", though the rest of the cost still hides it."""


class GrowthVerdict(NamedTuple):
    """What sizes and costs say of ``cost <= c law(n)``."""

    verdict: str
    """"consistent", "inconsistent" or "undecided"."""
    reason: str
    constant: float
    """The largest ``cost / law(n)``: the c that holds at every size."""
    excess: float
    """Exponent by which the cost outgrows the law; 0 for the law itself."""
    low: float
    high: float
    """Ends of its interval, over all places where a cliff may stand."""
    faster: float
    """What the excess would be if the cost grew as law(n) log n."""
    cliffs: tuple[tuple[int, int, float], ...]
    """Sizes between which the cost jumps, and its factor; for certain if there is one."""
    part: float = 0.0
    """Share of the largest cost that outgrows the law by a power of n; 0 if none is seen."""


class _Line(NamedTuple):
    """``z = a + slope x``, with a jump after point `place` if that is not None."""

    place: int | None
    slope: float
    error: float
    jump: float
    rest: float
    """Sum of squared residuals."""
    free: int
    """Degrees of freedom."""


def judge(
    n: Sequence[int], cost: Sequence[float], law: str | GrowthRate, *, cliffs: bool = True
) -> GrowthVerdict:
    """Judge whether `cost` grows no faster than `law` over the sizes `n`.

    Parameters
    ----------
    n : integers, at least 2
        Sizes; a geometric sequence over four octaves or more can be decided.
    cost : positive numbers
        Work or seconds at each size: for seconds, medians.
    law : str
        Such as "n log n".
    cliffs : bool
        Whether the cost may jump between two sizes, as times do at caches; counts do not.

    Returns
    -------
    GrowthVerdict
        "inconsistent" if the law itself is ruled out and a logarithm more fits better,
        "consistent" the other way round, else "undecided".

    Notes
    -----
    ``log2(cost / law)`` is fitted by a line in ``log2 n``, alone and with a jump at every place.
    The intervals of all lines that the residuals do not rule out are united. A verdict that the
    upper half of the sizes contradicts is withdrawn. So is "consistent" where a sum of laws shows
    a part of 1 % or more that outgrows this one (`parts`): from 10 % on it is "inconsistent", if
    the cost cannot jump.
    """
    f = law if isinstance(law, GrowthRate) else growth(law)
    sizes, costs = _points(n, cost)
    x, z = np.log2(sizes), np.log2(costs) - f.log2(sizes)
    constant = float(np.exp2(z.max()))
    if len(np.unique(x)) < _FEWEST or np.ptp(x) < (_FEWEST - 1) * (1 - 1e-9):
        text = f"{len(np.unique(x))} sizes over {np.ptp(x):.1f} octaves decide nothing"
        nan = float("nan")
        return GrowthVerdict("undecided", text, constant, nan, nan, nan, nan, ())
    faster = _slope_of_log(x)
    lines = _plausible(x, z, cliffs)
    low, high = _hull(lines)
    excess = lines[0].slope
    jumps = () if any(line.place is None for line in lines) else (_cliff(sizes, lines[0]),)
    verdict, reason = _decide(excess, low, high, faster)
    half = len(x) // 2
    tail_x, tail_z = x[half - 1 :], z[half - 1 :]
    if verdict != "undecided" and len(tail_x) > 3:
        tail = _hull(_plausible(tail_x, tail_z, cliffs))
        middle = _slope_of_log(tail_x) / 2
        if tail[0] > middle if verdict == "consistent" else tail[1] < middle:
            verdict, reason = "undecided", "the upper half of the sizes says otherwise"
    part = outgrowing(sizes, costs, f, _FLOOR)
    if part.share >= _TRACE and verdict != "inconsistent" and not (cliffs and jumps):
        sure = part.share >= _PART and not cliffs
        verdict, reason = "inconsistent" if sure else "undecided", _of_part(part, sizes)
    return GrowthVerdict(verdict, reason, constant, excess, low, high, faster, jumps, part.share)


def _of_part(part: GrowthPart, sizes: Floats) -> str:
    return f"{part.share:.0%} of the cost at n = {sizes[-1]:,.0f} grows as {part.law}"


def _points(n: Sequence[int], cost: Sequence[float]) -> tuple[Floats, Floats]:
    """Sizes, ascending, and their costs."""
    sizes, costs = np.asarray(n, np.float64), np.asarray(cost, np.float64)
    if sizes.ndim != 1 or sizes.shape != costs.shape or not len(sizes):
        raise ValueError(f"judge: {sizes.shape} sizes and {costs.shape} costs, expected as many")
    if sizes.min() < 2:
        raise ValueError(f"judge: n holds {sizes.min():g}, expected sizes from 2 up")
    if not (np.isfinite(costs).all() and (costs > 0).all()):
        raise ValueError("judge: cost holds what is not positive and finite")
    order = np.argsort(sizes, kind="stable")
    return sizes[order], costs[order]


def _slope_of_log(x: Floats) -> float:
    """Mean slope of ``log2 log2 n``: what one more logarithm adds to an exponent."""
    return float(np.polyfit(x, np.log2(x), 1)[0])


def _decide(excess: float, low: float, high: float, faster: float) -> tuple[str, str]:
    if high < faster and excess < faster / 2:
        return "consistent", f"one more logarithm would add {faster:.3f} to the exponent"
    if low > 0 and excess > faster / 2:
        return "inconsistent", f"the exponent exceeds the law's by {low:.3f} or more"
    return "undecided", "the interval holds the law and what is faster by a logarithm"


def _hull(lines: list[_Line]) -> tuple[float, float]:
    from scipy.special import stdtrit

    ends = [stdtrit(line.free, 1 - _RISK) * line.error for line in lines]
    low = min(line.slope - end for line, end in zip(lines, ends, strict=True))
    return float(low), float(max(l.slope + e for l, e in zip(lines, ends, strict=True)))


def _plausible(x: Floats, z: Floats, cliffs: bool) -> list[_Line]:
    """Lines that residuals do not rule out, the best first."""
    from scipy.special import fdtri

    places: list[int | None] = [None, *range(len(x) - 1 if cliffs else 0)]
    lines = sorted((_line(x, z, place) for place in places), key=lambda line: line.rest)
    best = lines[0]
    noise = max(best.rest / best.free, _FLOOR**2)
    most = best.rest + noise * fdtri(1, best.free, 1 - _RIVAL)
    return [line for line in lines if line.rest <= most]


def _line(x: Floats, z: Floats, place: int | None) -> _Line:
    columns = [np.ones_like(x), x]
    if place is not None:
        columns.append((np.arange(len(x)) > place).astype(np.float64))
    M: Floats = np.stack(columns, 1)
    inverse = np.linalg.inv(M.T @ M)
    found = inverse @ (M.T @ z)
    rest = float(((z - M @ found) ** 2).sum())
    free = len(x) - len(columns)
    error = float(np.sqrt(max(rest / free, _FLOOR**2) * inverse[1, 1]))
    return _Line(place, float(found[1]), error, float(found[2:].sum()), rest, free)


def _cliff(sizes: Floats, line: _Line) -> tuple[int, int, float]:
    assert line.place is not None
    return int(sizes[line.place]), int(sizes[line.place + 1]), float(np.exp2(line.jump))
