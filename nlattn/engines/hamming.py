"""Signs packed 64 to a word, and the nearest keys by Hamming distance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Ints, Support, Work
from nlattn.kernels import hamming as kernels


def packed(x: Floats) -> Ints:
    """(..., ceil(d / 64)) uint64 of numbers (..., d): a bit is set where the number is below 0."""
    words = math.ceil(x.shape[-1] / 64)
    bits = np.zeros((*x.shape[:-1], 64 * words), bool)
    np.less(x, 0, out=bits[..., : x.shape[-1]])
    return np.packbits(bits, axis=-1, bitorder="little").view("<u8").astype(np.uint64, copy=False)


def unpacked(words: Ints, channels: int, dtype: np.dtype[Any]) -> Floats:
    """-1 and +1 (..., channels)."""
    as_bytes = np.ascontiguousarray(words, "<u8").view(np.uint8)
    bits = np.unpackbits(as_bytes, axis=-1, bitorder="little", count=channels)
    x: Floats = 1 - 2 * bits.astype(dtype)
    return x


def signs(x: Floats) -> Floats:
    """-1 where a number is below 0, else +1: also for 0, -0 and NaN."""
    return np.where(x < 0, -1, 1).astype(x.dtype)


def nearest(q: Ints, k: Ints, channels: int, keys: int) -> Ints:
    """(n, N) int32 keys of every query (n, w), ascending, ties to the lowest; keys (m, w)."""
    index = np.empty((len(q), min(keys, len(k))), np.int32)
    if index.size:
        q_words, k_words = (_check.frozen(x).view(np.int64) for x in (q, k.T))
        kernels.nearest(math.ceil(len(q) / kernels.BLOCK), q_words, k_words, channels, index)
    return index


def support(
    q: Ints, k: Ints, lead: tuple[tuple[int, ...], ...], channels: int, keys: int
) -> tuple[Support, Work]:
    """The nearest keys of every query of all slices, and the work of finding them.

    Words `q` (slices, n, w) and `k` (slices, m, w), whose leading axes `lead` broadcast.
    """
    shape = np.broadcast_shapes(*lead)
    slices = [_check.slices("", "", own, shape) for own in lead]  # these do broadcast
    n, m = q.shape[1], k.shape[1]
    N = min(keys, m)
    index = np.empty((len(slices[0]), n, N), np.int32)
    for b, (of_q, of_k) in enumerate(zip(*slices, strict=True)):
        index[b] = nearest(q[of_q], k[of_k], channels, keys)
    rows = len(index) * n
    indptr = _check.frozen(np.arange(rows + 1) * N, np.int64)
    scores = rows * m
    moved = 8 * q.shape[2] * (rows + scores) + index.nbytes
    found = Support(indptr, _check.frozen(index.reshape(-1)), (*shape, n, m))
    return found, Work(scores, 0, moved, np.full(rows, m))
