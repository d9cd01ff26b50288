"""Signs packed 64 to a word, and the nearest keys by Hamming distance."""

from __future__ import annotations

import math
from typing import NamedTuple

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


def unpacked(words: Ints, channels: int, dtype: np.dtype) -> Floats:
    """-1 and +1 (..., channels)."""
    as_bytes = np.ascontiguousarray(words, "<u8").view(np.uint8)
    bits = np.unpackbits(as_bytes, axis=-1, bitorder="little", count=channels)
    x: Floats = 1 - 2 * bits.astype(dtype)
    return x


def signs(x: Floats) -> Floats:
    """-1 where a number is below 0, else +1: also for 0, -0 and NaN."""
    return np.where(x < 0, x.dtype.type(-1), x.dtype.type(1))


def nearest(q: Ints, k: Ints, channels: int, keys: int) -> Ints:
    """(n, N) int32 keys of every query (n, w), ascending, ties to the lowest; keys (m, w)."""
    index = np.empty((len(q), min(keys, len(k))), np.int32)
    if index.size:
        q_words, k_words = (_check.frozen(x).view(np.int64) for x in (q, k.T))
        kernels.nearest(math.ceil(len(q) / kernels.BLOCK), q_words, k_words, channels, index)
    return index


class Words(NamedTuple):
    """Packed queries and keys of all slices, and which of each a slice of the result has."""

    q: Ints
    """(slices, n, w)."""
    k: Ints
    """(slices, m, w)."""
    lead: tuple[tuple[int, ...], tuple[int, ...]]
    """Leading axes of both."""
    channels: int


def attend(fit: _check.Fit, words: Words, found: Support, scale: float) -> tuple[Floats, Floats]:
    """Outputs (batch, n, e), and log normalisers (batch, n), of the keys that were found."""
    out, lse = fit.empty("n e"), fit.empty("n", np.float64)
    n = found.shape[-2]
    keys = len(found.indices) // max(1, math.prod(found.shape[:-1]))
    if not out.size or not keys:
        out[:], lse[:] = 0, -np.inf
        return out, lse
    index = found.indices.reshape(-1, n, keys)
    q, k = (_check.frozen(x).view(np.int64) for x in words[:2])
    places = _check.slices("", "", found.shape[:-2], fit.lead)  # these do broadcast
    table = _check.frozen(np.exp(-2 * scale * np.arange(words.channels + 1)))
    shift, total = np.empty(n, np.int64), np.empty(n)
    count = math.ceil(n / kernels.BLOCK)
    for b, (i, j, of_v) in enumerate(fit.slices("q", "k", "v")):
        some = q[i], k[j], index[places[b]], fit["v"][of_v], table
        kernels.attend(count, *some, out[b], shift, total)
        lse[b] = scale * (words.channels - 2 * shift) + np.log(total)
    return out, lse


def support(words: Words, keys: int) -> tuple[Support, Work]:
    """The nearest keys of every query of all slices, and the work of finding them."""
    q, k, lead, channels = words
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
