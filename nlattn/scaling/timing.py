"""Seconds of calls: how they are taken, and what their spread allows to be said."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from nlattn._types import Floats, JsonObject
from nlattn.scaling.models import Range

_LEAST = 0.01  # seconds of one sample: shorter calls are repeated within it
_UNSTABLE = 0.1  # spread over median from which a warning is due
_DRAWS = 1000


def once(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def sample(call: Callable[[], object], expected: float) -> float:
    """Seconds of a call, the mean of as many as fill a hundredth of a second."""
    loops = max(1, min(1000, int(_LEAST / max(expected, 1e-9))))
    return once(lambda: [call() for _ in range(loops)]) / loops


class Summary(NamedTuple):
    """Some samples."""

    median: float
    low: float
    """Lower quartile."""
    high: float
    unstable: bool
    """Whether half the samples spread by more than a tenth of the median."""


def summary(samples: Sequence[float]) -> Summary:
    """Median and quartiles."""
    low, middle, high = (float(x) for x in np.quantile(samples, [0.25, 0.5, 0.75]))
    return Summary(middle, low, high, high - low > _UNSTABLE * middle)


def local_exponents(samples: Mapping[int, Sequence[float]]) -> list[JsonObject]:
    """Between neighbouring sizes: the exponent of time, with a bootstrap interval of 95 %."""
    sizes = sorted(samples)
    drawn = {n: _medians(samples[n], i) for i, n in enumerate(sizes)}
    found = []
    for a, b in itertools.pairwise(sizes):
        octaves = np.log2(b / a)
        middle = np.log2(np.median(samples[b]) / np.median(samples[a])) / octaves
        low, high = np.quantile(np.log2(drawn[b] / drawn[a]) / octaves, [0.025, 0.975])
        found.append({"n": [a, b], "exponent": Range(float(middle), float(low), float(high))})
    return found


def crossover(
    ours: Mapping[int, Sequence[float]], dense: Mapping[int, Sequence[float]]
) -> Range | None:
    """Size from which ours is faster, with a bootstrap interval; None if the times do not say.

    Ends are 0 where ours is faster at every size measured, infinite where it is at none.
    """
    sizes = sorted(set(ours) & set(dense))
    if len(sizes) < 2:
        return None
    logs = np.log2(sizes)
    middle = np.log2([np.median(ours[n]) / np.median(dense[n]) for n in sizes])
    drawn = [np.log2(_medians(ours[n], 2 * n) / _medians(dense[n], 2 * n + 1)) for n in sizes]
    places = [_crossing(logs, row) for row in np.stack(drawn, 1)]
    low, high = np.quantile(places, [0.025, 0.975], method="nearest")
    return Range(_crossing(logs, middle), float(low), float(high))


def _crossing(logs: Floats, ratio: Floats) -> float:
    """Where the ratio falls below 1 for good, between the sizes by a line in logarithms."""
    slower = np.flatnonzero(ratio >= 0)
    if not len(slower):
        return 0.0
    i = int(slower[-1])
    if i == len(ratio) - 1:
        return float("inf")
    share = ratio[i] / (ratio[i] - ratio[i + 1])
    return float(np.exp2(logs[i] + share * (logs[i + 1] - logs[i])))


def _medians(samples: Sequence[float], seed: int) -> Floats:
    """Medians of samples drawn with replacement."""
    x = np.asarray(samples, np.float64)
    index = np.random.default_rng(seed).integers(0, len(x), (_DRAWS, len(x)))
    medians: Floats = np.median(x[index], axis=1)
    return medians
