"""Leverage from a factorisation: its error is as large as it says, or said to be unknown."""

from __future__ import annotations

import numpy as np
import pytest

import nlattn
from nlattn.engines.whitened import factor

PAIR = [[1.797e308, -1.797e308], [1.797e308, -1.797e308], [1.25e187, 3e175]]


def test_nothing_is_certified_in_a_direction_that_longer_keys_round():
    """Two equal keys leave rounding in the other direction, 1e16 times a third key's length."""
    whitening = factor(np.array(PAIR))
    truth = np.array([0.5, 0.5, 1.0])  # the third is the only one out of their line
    assert np.all(abs(np.sqrt(whitening.tau) - np.sqrt(truth)) <= whitening.error)


@pytest.mark.parametrize("p", [2.0, 4.0])
def test_its_weight_is_within_the_bounds(p: float):
    bounds = nlattn.sensitivity_bounds(np.array(PAIR), p)
    assert bounds.upper[2] == 1.0  # a query along (1, 1) sees it alone


def test_graded_keys_are_certified_to_their_last_digits():
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((400, 8)) * 10.0 ** rng.uniform(-8, 8, (400, 1))
    assert factor(keys).error.max() < 1e-12
