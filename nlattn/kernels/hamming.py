"""Nearest keys by Hamming distance, on signs packed 64 to a word."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.extending import intrinsic

from nlattn._types import Ints
from nlattn.runtime import jit

BLOCK = 16
"""Queries of a task."""
_PART = 64  # keys that are looked over at once

if numba.config.DISABLE_JIT:

    def ones(word: int) -> int:
        """Number of ones among the 64 bits of an integer."""
        return int(np.uint64(np.int64(word).view(np.uint64))).bit_count()

else:  # pragma: no cover - the compiler runs it

    @intrinsic
    def ones(typing: Any, word: Any) -> Any:
        """Number of ones among the 64 bits of an integer."""

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.ctpop(arguments[0])

        return numba.types.int64(numba.types.int64), emit


@jit.device
def _distances(q: Ints, k: Ints, distance: Ints) -> None:
    """Bits in which one query (w,) differs from every key, (w, m)."""
    word = q[0]
    for j in range(k.shape[1]):
        distance[j] = ones(word ^ k[0, j])
    for c in range(1, len(q)):
        word = q[c]
        for j in range(k.shape[1]):
            distance[j] += ones(word ^ k[c, j])


@jit.device
def _within(distance: Ints, most: int) -> int:
    """How many distances are at most `most`."""
    count, limit = 0, np.uint16(most)
    for j in range(len(distance)):
        count += distance[j] <= limit
    return count


@jit.device
def _collect(distance: Ints, most: int, ties: int, index: Ints) -> None:
    """Keys nearer than `most`, and the first `ties` of those at it, ascending."""
    limit, found = np.uint16(most), 0
    for start in range(0, len(distance), _PART):
        end = min(start + _PART, len(distance))
        least = distance[start]
        for j in range(start, end):
            least = min(least, distance[j])
        if least > limit:
            continue
        for j in range(start, end):
            if distance[j] < limit:
                index[found] = j
                found += 1
            elif distance[j] == limit and ties > 0:
                index[found] = j
                found += 1
                ties -= 1


@jit.kernel
def nearest(task: int, q: Ints, k: Ints, channels: int, index: Ints) -> None:
    """The N nearest keys of every query, ascending; at equal distance the lower key is nearer.

    `q` (n, w) and `k` (w, m) words as int64, of `channels` < 2^16 signs. Result `index` (n, N),
    N <= m: the N-th distance is found by halving, then keys are listed in order.
    """
    n, N = index.shape
    distance = np.empty(k.shape[1], np.uint16)
    for i in range(task * BLOCK, min(task * BLOCK + BLOCK, n)):
        _distances(q[i], k, distance)
        low, high, nearer = 0, channels, 0  # nearer: how many are below low
        while low < high:
            middle = (low + high) // 2
            count = _within(distance, middle)
            if count >= N:
                high = middle
            else:
                low, nearer = middle + 1, count
        _collect(distance, low, N - nearer, index[i])
