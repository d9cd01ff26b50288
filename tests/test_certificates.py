"""Certificates in exact arithmetic, some instances; ``python -m tests.certificates`` tries more."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

import nlattn
from tests import certificates
from tests.conftest import NO_JIT

PART = 9 if NO_JIT else 36


@pytest.mark.parametrize("first", range(0, 3 * PART, PART))
def test_nothing_is_certified_that_is_false(first: int) -> None:
    wrong = [
        (name, words, keys.tolist())
        for number in range(first, first + PART)
        for name, words, keys in certificates.tried(number, 3)
        if name != certificates.UNTOLD
    ]
    assert not wrong


def test_best_queries_are_exact() -> None:
    K = [[2, 0, 4], [0, 3, 0], [1, 0, 2], [0, 0, 0]]
    best, det = certificates.solved(K)
    assert best[3] is None
    for row, q, leverage in zip(
        K, best, (Fraction(4, 5), Fraction(1), Fraction(1, 5)), strict=False
    ):
        assert q is not None
        assert certificates.dots(q, [row]) == [leverage * det]
        powers, total = certificates.weights(certificates.dots(q, K), 2)
        assert Fraction(max(powers), total) >= leverage
    assert certificates.pivots([[1, 2, 3], [2, 4, 5], [0, 0, 0]]) == [0, 2]


def test_comparisons_are_exact() -> None:
    assert certificates.reaches(3 * 10**400, 10**401, 0.3) == (Fraction(3, 10) >= 0.3)
    assert certificates.reaches(1, 2, 0.5)
    assert not certificates.reaches(10**400 - 1, 2 * 10**400, 0.5)
    assert not certificates.reaches(0, 0, 0.5)
    assert certificates.below(0.0, 1, 10**400)
    assert not certificates.below(0.25, 1, 4)
    assert certificates.above(0.25 + 2.0**-50, 1, 4)
    assert not certificates.above(0.25 + 2.0**-54, 1, 4)
    assert certificates.ratio(10**400, 1) == float("inf")


def test_a_direction_that_rounding_may_have_made_is_not_seen() -> None:
    K = np.ones((40, 2))
    K[7, 1] += 2.0**-52
    assert not certificates.told(K, certificates.integers(K)[0])
    assert nlattn.universal_set(K, 0.9).keys.size == 0
    K[7, 1] += 2.0**-40
    assert certificates.told(K, certificates.integers(K)[0])
    assert nlattn.universal_set(K, 0.9).keys.tolist() == [7]


def test_keys_below_all_digits_of_others_are_kept() -> None:
    K = np.array([[1e200, 1e200, 0], [1e-200, -2e-200, 0], [3e-290, 0, 1e-290]])
    assert nlattn.universal_set(K, 1.0).keys.tolist() == [0, 1, 2]
    causal = nlattn.universal_set(K, 1.0, causal=True).support
    assert np.diff(causal.indptr).tolist() == [1, 2, 3]
    A = nlattn.heavy_attention(np.array([[1.0, -1, 0], [0, 0, 1]]), K, 0.5)
    assert A.rows([0, 1]).tolist() == [[0, 1, 0], [0, 0, 1]]
    assert nlattn.LeverageStream(3, 1.0).update(K).result().index.tolist() == [0, 1, 2]
