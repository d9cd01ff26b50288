"""Random projections of tall arrays, in blocks of rows: they nearly keep a Gram matrix."""

from __future__ import annotations

import math

import numpy as np

from nlattn import _check
from nlattn._types import Floats
from nlattn.engines.draws import hashes

_BLOCK = 1 << 12
_BUCKET, _SIGN, _ROW = 1, 2, 3


def countsketch(k: Floats, scale: Floats, rows: int, seed: int) -> Floats:
    """``S (k scale)`` (rows, d): every key is added to one row of the result, with a sign."""
    n, d = k.shape
    out: Floats = np.zeros((rows, d))
    for start in range(0, n, _BLOCK):
        number = np.arange(start, min(start + _BLOCK, n))
        bucket = hashes(seed, _BUCKET, number) % np.uint64(rows)
        sign = 1.0 - 2.0 * (hashes(seed, _SIGN, number) >> np.uint64(63))
        order = np.argsort(bucket, kind="stable")
        met, first = np.unique(bucket[order], return_index=True)
        signed = k[start : start + _BLOCK] * scale * sign[:, None]
        out[met.astype(np.int64)] += np.add.reduceat(signed[order], first)
    return out


def srht(k: Floats, scale: Floats, rows: int, seed: int) -> Floats:
    """``sqrt(N / rows) P H D (k scale)`` (rows, d): signs, Hadamard transform, rows at random.

    H is orthonormal of order N, the power of two from n up: N d numbers are held.
    """
    n, d = k.shape
    size = 1 << max(0, n - 1).bit_length()
    x: Floats = np.zeros((size, d))
    sign = 1.0 - 2.0 * (hashes(seed, _SIGN, np.arange(n)) >> np.uint64(63))
    x[:n] = k * scale * sign[:, None]
    half = 1
    while half < size:
        pairs = x.reshape(-1, 2, half, d)
        total = pairs[:, 0] + pairs[:, 1]
        pairs[:, 1] = pairs[:, 0] - pairs[:, 1]
        pairs[:, 0] = total
        half *= 2
    chosen = np.argsort(hashes(seed, _ROW, np.arange(size)), kind="stable")[:rows]
    return np.asarray(x[np.sort(chosen)] / np.sqrt(min(rows, size)))


def rows_needed(kind: str, n: int, d: int, theta: float, failure: float) -> int:
    """Rows that keep all squared lengths in d dimensions within ``1 +- theta``, but for `failure`.

    CountSketch: ``E |U^T S^T S U - 1|_F^2 <= (d^2 + d) / rows``, and Markov's inequality. Hadamard:
    [boutsidis2013, lemma 4.1].
    """
    if kind == "countsketch":
        return math.ceil((d * d + d) / (theta * theta * failure))
    each = failure / 3
    spread = math.sqrt(d) + math.sqrt(8 * math.log(max(n, 2) / each))
    return math.ceil(6 / theta**2 * spread**2 * math.log(d / each))


def directions_needed(n: int, eta: float, failure: float) -> int:
    """Gaussian directions that keep n squared lengths within ``1 +- eta``, but for `failure`.

    Tails of chi-squared: ``2 exp(-r (eta^2 / 4 - eta^3 / 6))`` each, added up.
    """
    return math.ceil(math.log(2 * max(n, 1) / failure) / (eta**2 / 4 - eta**3 / 6))


def checked_memory(op: str, n: int, d: int, max_bytes: float) -> None:
    """Refuse a Hadamard transform that does not fit."""
    size = 1 << max(0, n - 1).bit_length()
    remedy = "use sketch='countsketch', which takes keys in blocks"
    _check.memory(op, 2 * size * d * 8, max_bytes, f"two of {size} x {d} float64", remedy)
