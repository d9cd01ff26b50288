"""Subjects over a range of sizes: work counted, calls timed in random order, memory, quality."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from nlattn._types import JsonObject, Work
from nlattn.scaling import instructions, timing
from nlattn.scaling.judge import GrowthVerdict, judge
from nlattn.scaling.scene import Scene
from nlattn.scaling.subject import CostSubject

UNITS = ("scores", "multiply_adds", "bytes")
_CORNER = (9, 9)  # the grid on which everything is compiled
_LONG = 2.0  # seconds of a call from which a subject is timed on some of its queries, if it can be


def grids(first: tuple[int, int], last: tuple[int, int], count: int = 9) -> list[tuple[int, int]]:
    """`count` grids from one to the other, their sides in geometric sequence."""
    if first == last:
        return [first]
    sides = [np.geomspace(a, b, count) for a, b in zip(first, last, strict=True)]
    rows: list[tuple[int, int]] = []
    for height, width in zip(*sides, strict=True):
        grid = (round(height), round(width))
        if grid not in rows:
            rows.append(grid)
    return rows


@dataclass
class Curve:
    """What was found of one subject; tables are by n."""

    name: str
    how: str = ""
    """"count", "law" or, if its work is unknown, empty."""
    law: str = ""
    work: dict[int, Work] = field(default_factory=dict)
    compile: float | None = None
    """Seconds that the first call took more than the second."""
    first: dict[int, float] = field(default_factory=dict)
    """Seconds of the first call at a size, its arrays just made."""
    seconds: dict[int, list[float]] = field(default_factory=dict)
    """Samples of later calls."""
    queries: dict[int, int] = field(default_factory=dict)
    """How many queries were timed, where not all; seconds are scaled to all."""
    peak: dict[int, int] = field(default_factory=dict)
    """Most bytes that Python and NumPy held at once during a call, result included."""
    instructions: dict[int, int] = field(default_factory=dict)
    """Of a call, where the system lets them be read."""
    quality: dict[int, JsonObject] = field(default_factory=dict)

    def amounts(self, unit: str) -> tuple[list[int], list[int]]:
        """Sizes and their work."""
        sizes = sorted(self.work)
        return sizes, [getattr(self.work[n], unit) for n in sizes]

    def verdicts(self, claim: str) -> dict[str, GrowthVerdict]:
        """One for each unit of work that there is."""
        found = {}
        for unit in UNITS:
            sizes, amounts = self.amounts(unit)
            if sizes and min(amounts) > 0:
                found[unit] = judge(sizes, amounts, claim, cliffs=False)
        return found


class Sweep:
    """Subjects, scenes and how much time there is.

    Parameters
    ----------
    subjects : list of CostSubject
        What is swept.
    scenes : list of Scene
        Sizes.
    runs : int
        Samples of each time.
    budget : float
        Seconds after which nothing new is begun; what is expected to take longer is left out.
    seed : int
        Of the order.
    say : callable
        Told what is going on.
    """

    def __init__(
        self,
        subjects: Sequence[CostSubject],
        scenes: Sequence[Scene],
        *,
        runs: int = 5,
        budget: float = float("inf"),
        seed: int = 0,
        say: Callable[[str], object] = lambda _: None,
    ):
        self.subjects, self.scenes, self.runs, self._say = subjects, scenes, runs, say
        self.curves = {one.name: Curve(one.name) for one in subjects}
        self.left_out: list[tuple[str, int, str]] = []
        """Subject, n, and what was not done."""
        self._rng = np.random.default_rng(seed)
        self._end = time.monotonic() + budget

    def count(self) -> None:
        """Work of every subject at every size."""
        for one, scene in self._shuffled("work"):
            found = one.count(scene)
            if found is not None:
                curve = self.curves[one.name]
                curve.how, curve.law = found.how, found.law
                curve.work[scene.n] = found.work

    def compile(self) -> None:
        """Seconds that the first call of all takes more than the second; to be done first."""
        corner = Scene(_CORNER, self.scenes[0].channels, self.scenes[0].seed)
        for one in self.subjects:
            self._say(f"{one.name}: compile")
            call = one.call(corner)
            first = timing.once(call)
            self.curves[one.name].compile = max(0.0, first - timing.once(call))

    def time(self) -> None:
        """Touch each size once, then sample in rounds, each in an order of its own."""
        calls = {}
        smallest = min(self.scenes, key=lambda scene: scene.n)
        for one in self.subjects:
            calls[one.name, smallest.n] = self._touch(one, smallest)
        for one, scene in self._shuffled("first touch"):
            if scene is not smallest:
                calls[one.name, scene.n] = self._touch(one, scene)
        for number in range(self.runs):
            for one, scene in self._shuffled(f"run {number + 1} of {self.runs}"):
                curve = self.curves[one.name]
                if (one.name, scene.n) in calls:
                    expected = min(curve.seconds.get(scene.n, [curve.first[scene.n]]))
                    share = curve.queries.get(scene.n, scene.n) / scene.n
                    call = calls[one.name, scene.n]
                    taken = timing.sample(call, expected * share) / share
                    curve.seconds.setdefault(scene.n, []).append(taken)

    def _touch(self, one: CostSubject, scene: Scene) -> Callable[[], object]:
        """The call at one size, made once; of few queries if all would take long."""
        curve = self.curves[one.name]
        expected = self._expected(one, scene)
        rows = None
        if expected > _LONG and one.separable:
            rows = max(256, int(scene.n * _LONG / 4 / expected))
        call = one.call(scene, rows) if rows is not None and rows < scene.n else one.call(scene)
        share = 1.0
        if rows is not None and rows < scene.n:
            curve.queries[scene.n], share = rows, rows / scene.n
        curve.first[scene.n] = timing.once(call) / share
        return call

    def measure(self) -> None:
        """Memory, instructions and quality at every size."""
        for one, scene in self._shuffled("memory"):
            curve = self.curves[one.name]
            if scene.n not in curve.queries:
                call = one.call(scene)
                curve.peak[scene.n] = peak_bytes(call)
                read = instructions.of_call(call)
                if read is not None:
                    curve.instructions[scene.n] = read
        for one, scene in self._shuffled("quality"):
            found = one.quality(scene)
            if found is not None:
                self.curves[one.name].quality[scene.n] = found

    def _shuffled(self, what: str) -> Iterator[tuple[CostSubject, Scene]]:
        """Subjects and scenes in random order, as far as the budget goes."""
        pairs = [(one, scene) for one in self.subjects for scene in self.scenes]
        for i in self._rng.permutation(len(pairs)):
            one, scene = pairs[i]
            if time.monotonic() + self._cost(one, scene) > self._end:
                self.left_out.append((one.name, scene.n, what))
                continue
            self._say(f"{one.name}, n = {scene.n:,}: {what}")
            yield one, scene

    def _cost(self, one: CostSubject, scene: Scene) -> float:
        """Seconds until one call would be over; some queries stand for all."""
        curve = self.curves[one.name]
        share = curve.queries.get(scene.n, scene.n) / scene.n
        expected = self._expected(one, scene) * share
        return min(expected, _LONG) if one.separable else expected

    def _expected(self, one: CostSubject, scene: Scene) -> float:
        """Seconds of a call, from the nearest smaller size that was timed."""
        curve = self.curves[one.name]
        known = [n for n in curve.first if n <= scene.n]
        if not known:
            return 0.0
        n = max(known)
        growth = (scene.n / n) ** 2
        if n in curve.work and scene.n in curve.work:
            growth = curve.work[scene.n].multiply_adds / max(1, curve.work[n].multiply_adds)
        return min([curve.first[n], *curve.seconds.get(n, [])]) * growth


def peak_bytes(call: Callable[[], object]) -> int:
    """Most bytes that Python and NumPy held at once during a call, beyond what they held before."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
