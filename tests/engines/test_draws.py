"""Random numbers over whole arrays, and how many of them keep a promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nlattn.engines import draws, sketch


def test_normal_numbers_are_normal() -> None:
    """Moments of 200,000: one uniform for angle and radius would give a variance of 1.11."""
    x = draws.normal(3, np.arange(200_000))
    assert abs(x.mean()) < 0.01  # 4 standard errors
    assert abs(x.var() - 1) < 0.013
    assert abs((x**4).mean() - 3) < 0.09
    assert abs((x**3).mean()) < 0.04
    assert abs((x > 1.959964).mean() - 0.025) < 0.0015


def test_uniform_numbers_of_other_fields_are_others() -> None:
    a, b = (draws.uniform(3, np.arange(100_000), field) for field in (0, 1))
    assert 0 < a.min() <= a.max() <= 1
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.013
    assert abs(a.mean() - 0.5) < 0.004
    assert abs(a.var() - 1 / 12) < 0.001
    assert (draws.uniform(4, np.arange(9)) != draws.uniform(3, np.arange(9))).all()


@pytest.mark.parametrize("n", [1, 100, 10**6])
@pytest.mark.parametrize("eta", [0.1, 0.5])
def test_as_many_directions_as_the_tails_of_n_lengths_need(n: int, eta: float) -> None:
    r = sketch.directions_needed(n, eta, 0.01)
    tails = [2 * n * math.exp(-k * (eta**2 / 4 - eta**3 / 6)) for k in (r - 1, r)]
    assert tails[1] <= 0.01 < tails[0]


def test_as_many_rows_as_markov_s_inequality_needs() -> None:
    r = sketch.rows_needed("countsketch", 1000, 6, 0.2, 0.05)
    assert (36 + 6) / (r * 0.04) <= 0.05 < (36 + 6) / ((r - 1) * 0.04)
    few, more, sharp = (
        sketch.rows_needed("srht", n, 6, theta, 0.05)
        for n, theta in ((1000, 0.2), (10**6, 0.2), (1000, 0.1))
    )
    assert few < more
    assert abs(sharp - 4 * few) <= 4


def test_hashes_are_splitmix64_of_the_fields() -> None:
    """In Python's integers, one step for the seed and one for each field."""

    def step(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    for seed in (0, 7, 2**64 - 1, 2**64 + 7):
        want = step(step(step(seed % 2**64) ^ 5) ^ 123456789)
        assert int(draws.hashes(seed, 5, 123456789)) == want
        assert draws.uniform(seed, 5, 123456789) == 1 - (want >> 11) / 2**53


def test_rows_of_a_hadamard_transform_are_those_of_the_lemma() -> None:
    each = 0.05 / 3
    spread = math.sqrt(6) + math.sqrt(8 * math.log(1000 / each))
    r = sketch.rows_needed("srht", 1000, 6, 0.2, 0.05)
    assert r - 1 < 6 / 0.04 * spread**2 * math.log(6 / each) <= r
