"""What a sweep found, as data."""

from __future__ import annotations

import numpy as np

from nlattn._types import JsonObject
from nlattn.scaling import models, timing
from nlattn.scaling.judge import GrowthVerdict, judge
from nlattn.scaling.sweep import UNITS, Curve

_FEWEST = 3  # sizes from which laws are fitted


def subject(
    curve: Curve,
    claim: str,
    dense: Curve | None = None,
    predict: int | None = None,
    claim_memory: str | None = None,
) -> JsonObject:
    """Everything about one subject; `predict` is the n to foretell.

    Its verdict is that of work, counted or by law; where work is not known, that of time, or of
    instructions if time is undecided and they could be read.
    """
    verdicts = curve.verdicts(claim)
    times = _time(curve, claim)
    counted = verdicts.get("multiply_adds") or verdicts.get("scores")
    read = _instructions(curve, claim)
    by = {
        "work": counted,
        "time": times and times["verdict"],
        "instructions": read and read["verdict"],
    }
    known = {name: verdict for name, verdict in by.items() if verdict}
    decided = {name: v for name, v in known.items() if v.verdict != "undecided" or name == "work"}
    judged, main = next(iter((decided or known).items()), (None, None))
    return {
        "name": curve.name,
        "source": curve.how or None,
        "law": curve.law or None,
        "verdict": main.verdict if main else None,
        "judged": judged,
        "verdicts": verdicts,
        "sizes": [_size(curve, n) for n in sorted({*curve.work, *curve.seconds})],
        "time": times,
        "memory": _memory(curve, claim_memory or claim),
        "instructions": read,
        "crossover": None if dense is None else timing.crossover(curve.seconds, dense.seconds),
        "predicted": None if predict is None else _predicted(curve, predict),
    }


def _size(curve: Curve, n: int) -> JsonObject:
    work, seconds = curve.work.get(n), curve.seconds.get(n)
    return {
        "n": n,
        "work": None if work is None else {unit: getattr(work, unit) for unit in UNITS},
        "first_touch": curve.first.get(n),
        "seconds": None if seconds is None else timing.summary(seconds),
        "samples": seconds,
        "queries_timed": curve.queries.get(n, n),
        "peak_bytes": curve.peak.get(n),
        "instructions": curve.instructions.get(n),
        "quality": curve.quality.get(n),
    }


def medians(curve: Curve) -> tuple[list[int], list[float]]:
    """Sizes that were timed, and median seconds."""
    sizes = sorted(curve.seconds)
    return sizes, [float(np.median(curve.seconds[n])) for n in sizes]


def time_verdict(curve: Curve, claim: str) -> GrowthVerdict | None:
    """The judge's word on times, withheld where a jump is certain.

    Where samples spread, the fastest of each size must say the same as the medians.
    """
    sizes, seconds = medians(curve)
    if len(sizes) < _FEWEST:
        return None
    found = judge(sizes, seconds, claim)
    if found.cliffs:
        before, after, factor = found.cliffs[0]
        text = f"time jumps by {factor:.2f} between n = {before} and {after}"
        return found._replace(verdict="undecided", reason=text)
    restless = [n for n in sizes if timing.summary(curve.seconds[n]).unstable]
    fastest = [min(curve.seconds[n]) for n in sizes]
    if 2 * len(restless) > len(sizes) and judge(sizes, fastest, claim).verdict != found.verdict:
        text = f"samples spread by more than a tenth at {len(restless)} of {len(sizes)} sizes"
        return found._replace(verdict="undecided", reason=text)
    return found


def _time(curve: Curve, claim: str) -> JsonObject | None:
    if not curve.seconds:
        return None
    sizes, seconds = medians(curve)
    return {
        "compile": curve.compile,
        "verdict": time_verdict(curve, claim),
        "exponents": timing.local_exponents(curve.seconds),
        "laws": models.law_weights(sizes, seconds) if len(sizes) >= _FEWEST else None,
        "unstable": [n for n in sizes if timing.summary(curve.seconds[n]).unstable],
    }


def _instructions(curve: Curve, claim: str) -> JsonObject | None:
    sizes = sorted(curve.instructions)
    if len(sizes) < _FEWEST:
        return None
    amounts = [curve.instructions[n] for n in sizes]
    verdict = judge(sizes, amounts, claim, cliffs=False)
    return {"n": sizes[-1], "measured": amounts[-1], "verdict": verdict}


def _memory(curve: Curve, claim: str) -> JsonObject | None:
    """At the largest size: measured, and foretold by the smaller ones; and how it grows."""
    sizes = sorted(curve.peak)
    if len(sizes) < _FEWEST:
        return None
    peaks = [max(1, curve.peak[n]) for n in sizes]
    return {
        "n": sizes[-1],
        "measured": peaks[-1],
        "predicted": models.bytes_at(sizes[:-1], peaks[:-1], sizes[-1]),
        "verdict": judge(sizes, peaks, claim, cliffs=False),
        "laws": models.law_weights(sizes, peaks),
    }


def _predicted(curve: Curve, n: int) -> JsonObject:
    sizes, seconds = medians(curve)
    held = sorted(curve.peak)
    enough, known = len(sizes) >= _FEWEST, len(held) >= _FEWEST
    return {
        "n": n,
        "seconds": models.extrapolate(sizes, seconds, n) if enough else None,
        "bytes": models.bytes_at(held, [curve.peak[m] for m in held], n) if known else None,
    }
