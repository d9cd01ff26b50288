"""What is made of times: laws, exponents, crossings, predictions."""

from __future__ import annotations

import re

import numpy as np
import pytest

from nlattn.scaling import models, timing
from nlattn.scaling.growth import FAMILY, growth
from nlattn.scaling.report import subject, time_verdict
from nlattn.scaling.sweep import Curve

SIZES = [2**i for i in range(10, 19)]


def samples(law: str, noise: float = 0.02, cliff: int = 0) -> dict[int, list[float]]:
    rng = np.random.default_rng(0)
    jump = {n: 1.6 if cliff and n > cliff else 1.0 for n in SIZES}
    return {
        n: list(1e-7 * jump[n] * growth(law)(n) * np.exp(noise * rng.standard_normal(7)))
        for n in SIZES
    }


@pytest.mark.parametrize("law", FAMILY)
def test_the_law_that_made_the_times_is_believed_most(law: str) -> None:
    weights = models.law_weights(SIZES, [1e-7 * float(growth(law)(n)) for n in SIZES])
    assert weights[law] > 0.99
    assert sum(weights.values()) == pytest.approx(1)


def test_a_jump_does_not_change_the_law() -> None:
    cost = [n * (1.6 if n > 40_000 else 1.0) for n in SIZES]
    assert models.law_weights(SIZES, cost)["n"] > 0.99


@pytest.mark.parametrize("law", ["n", "n log n", "n^2"])
def test_what_comes_next_lies_in_the_interval(law: str) -> None:
    times = samples(law)
    medians = [float(np.median(times[n])) for n in SIZES]
    found = models.extrapolate(SIZES, medians, 2**20)
    truth = 1e-7 * float(growth(law)(2**20))
    assert found.low < truth < found.high
    assert found.high / found.low < 2.5
    assert found.value == pytest.approx(truth, rel=0.3)


def test_memory_is_foretold_by_its_parts() -> None:
    assert models.bytes_at([64, 128, 256], [1000 + 8 * n for n in (64, 128, 256)], 512) == 5096
    assert models.bytes_at([64, 128, 256], [4 * n * n for n in (64, 128, 256)], 512) == 4 * 512**2


def test_exponents_of_neighbours_with_intervals() -> None:
    for row in timing.local_exponents(samples("n^1.5")):
        found = row["exponent"]
        assert found.low <= found.value <= found.high
        assert found.value == pytest.approx(1.5, abs=0.1)


def test_where_two_curves_cross() -> None:
    rng = np.random.default_rng(1)
    linear = {n: list(n * 1e-3 * (1 + 0.01 * rng.random(5))) for n in SIZES}
    square = {n: list(n**2 * 1e-7 * (1 + 0.01 * rng.random(5))) for n in SIZES}
    found = timing.crossover(linear, square)
    assert found is not None
    assert found.low <= found.value <= found.high
    assert found.value == pytest.approx(10_000, rel=0.05)
    assert timing.crossover(square, linear).value == float("inf")
    assert timing.crossover(linear, {n: [x * 2 for x in t] for n, t in linear.items()}).high == 0
    assert timing.crossover(linear, {1024: [1.0]}) is None


def test_spread_samples_are_called_unstable() -> None:
    assert not timing.summary([1.0, 1.01, 1.02, 1.0, 1.01]).unstable
    assert timing.summary([1.0, 1.5, 1.0, 1.4, 2.0]).unstable


def test_short_calls_are_repeated_within_a_sample() -> None:
    calls = []
    timing.sample(lambda: calls.append(1), expected=1e-4)
    assert len(calls) == 100


def test_no_verdict_from_time_where_a_cliff_or_noise_forbids_it() -> None:
    def verdict(times: dict[int, list[float]]) -> tuple[str, str]:
        found = time_verdict(Curve("x", seconds=times), "n log n")
        assert found is not None
        return found.verdict, found.reason

    assert verdict(samples("n log n"))[0] == "consistent"
    assert verdict(samples("n^2"))[0] == "inconsistent"
    word, reason = verdict(samples("n^2", noise=0.001, cliff=20_000))
    assert word == "undecided"
    assert re.fullmatch(r"time jumps by 1\.6\d between n = 16384 and 32768", reason)
    assert verdict(samples("n^2", noise=0.3))[0] == "inconsistent"  # the fastest say so, too
    slow = (1.0, 1.2, 1.4, 1.6)  # medians grow as n^2, the fastest as n
    restless = {n: [1e-7 * n, *(1.5e-10 * n * n * s for s in slow)] for n in SIZES}
    word, reason = verdict(restless)
    assert word == "undecided"
    assert re.fullmatch(r"samples spread by more than a tenth at 9 of 9 sizes", reason)
    assert time_verdict(Curve("x", seconds={64: [1.0]}), "n") is None


def test_where_work_is_not_known_time_decides() -> None:
    found = subject(Curve("x", seconds=samples("n^2")), "n log n")
    assert (found["verdict"], found["judged"]) == ("inconsistent", "time")
    assert subject(Curve("x", seconds=samples("n")), "n log n")["verdict"] == "consistent"


def test_instructions_decide_where_time_does_not() -> None:
    read = {n: 3 * n * n + 900 for n in SIZES}
    curve = Curve("x", seconds=samples("n^2", noise=0.001, cliff=20_000), instructions=read)
    found = subject(curve, "n log n")
    assert found["time"]["verdict"].verdict == "undecided"
    assert (found["verdict"], found["judged"]) == ("inconsistent", "instructions")
    curve.seconds = samples("n^2")
    assert subject(curve, "n log n")["judged"] == "time"


def test_memory_has_a_verdict() -> None:
    curve = Curve("x", peak={n: 4 * n * n + 5000 for n in SIZES})
    found = subject(curve, "n^2", claim_memory="n log n")["memory"]
    assert found["verdict"].verdict == "inconsistent"
    assert found["laws"]["n^2"] > 0.9
    assert subject(curve, "n^2")["memory"]["verdict"].verdict == "consistent"


def test_a_subject_without_work_or_time_says_so() -> None:
    found = subject(Curve("x"), "n log n", None, 4096)
    assert found["verdict"] is found["judged"] is found["time"] is found["memory"] is None
    assert found["crossover"] is None
    assert found["predicted"] == {"n": 4096, "seconds": None, "bytes": None}
