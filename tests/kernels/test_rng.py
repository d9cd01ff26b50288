"""Keyed random numbers against known answers."""

from __future__ import annotations

import numpy as np
import pytest

from nlattn.kernels import rng
from nlattn.oracle import patchmatch as oracle
from nlattn.runtime import jit

KNOWN = {
    (0, 0, 0, 0, 0): 0x78AE5A9A6B5FD45E,
    (0, 0, 0, 0, 1): 0xA5D3758B95B92366,
    (0, 0, 0, 1, 0): 0x2D6527BA78AF243F,
    (0, 0, 1, 0, 0): 0x3CEEA767ACC0E20D,
    (0, 1, 0, 0, 0): 0xF9AC6E337C2F0F1E,
    (1, 0, 0, 0, 0): 0x348C3D1AF8BEC8E5,
    (12345, 3, 2, 1599, 7): 0x543003D7CD9D1E83,
}


@jit.function
def draw(fields: np.ndarray, limit: np.ndarray, bits: np.ndarray, below: np.ndarray) -> None:
    for i in range(len(fields)):
        state = rng.start(np.uint64(fields[i, 0]))
        for f in range(1, fields.shape[1]):
            state = rng.absorb(state, fields[i, f])
        bits[i] = state
        below[i] = rng.bounded(state, limit[i])


def run(fields: np.ndarray, limit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    bits, below = np.empty(len(fields), np.uint64), np.empty(len(fields), np.int64)
    draw(np.asarray(fields, np.int64), np.asarray(limit, np.int64), bits, below)
    return bits, below


def test_known_answers() -> None:
    bits, _ = run(np.array(list(KNOWN)), np.ones(len(KNOWN)))
    assert [int(b) for b in bits] == list(KNOWN.values())


def test_same_numbers_as_the_oracle() -> None:
    random = np.random.default_rng(0)
    fields = random.integers(0, 2**40, (50, 5))
    fields[:5, 0] = -1  # a seed of 64 ones
    limit = random.integers(1, 2**31, 50)
    bits, below = run(fields, limit)
    for row, b, u, m in zip(fields.tolist(), bits, below, limit.tolist(), strict=True):
        h = oracle.key(row[0] % 2**64, *row[1:])
        assert int(b) == h
        assert int(u) == oracle.bounded(h, m)


@pytest.mark.jit
def test_bounded_numbers_are_uniform() -> None:
    n = 100_000
    fields = np.zeros((n, 5), np.int64)
    fields[:, 3] = np.arange(n)
    _, below = run(fields, np.full(n, 10))
    counts = np.bincount(below, minlength=10)
    chi2 = ((counts - n / 10) ** 2 / (n / 10)).sum()
    assert chi2 < 27.88  # nine degrees of freedom: exceeded by chance once in a thousand seeds
