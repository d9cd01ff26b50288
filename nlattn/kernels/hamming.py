"""Nearest keys by Hamming distance, on signs packed 64 to a word, and attention to them."""

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from nlattn._types import Floats, Ints
from nlattn.runtime import jit
from nlattn.runtime.llvm_types import Builder, Context, Emit, Kind, Signature, Value, Values

BLOCK = 16
"""Queries of a task."""
PART = 64
"""Keys that are compared at once; rows of distances are filled up to whole parts."""

if numba.config.DISABLE_JIT:

    def ones(word: int) -> int:
        """Number of ones among the 64 bits of an integer."""
        return int(np.int64(word).view(np.uint64)).bit_count()

    def first(word: int) -> int:
        """Place of the lowest one among the bits of an integer that is not 0."""
        bits = int(np.int64(word).view(np.uint64))
        return (bits & -bits).bit_length() - 1

    def within(distance: Ints, start: int, most: int) -> int:
        """Bit j is set where ``distance[start + j] <= most``, of `PART` distances."""
        near = distance[start : start + PART] <= most
        return np.packbits(near, bitorder="little").view(np.int64)[0]

else:  # pragma: no cover - the compiler runs it

    @intrinsic
    def ones(typing: object, word: Kind) -> tuple[Signature, Emit]:
        """Number of ones among the 64 bits of an integer."""

        def emit(
            context: Context, builder: Builder, signature: Signature, arguments: Values
        ) -> Value:
            return builder.ctpop(arguments[0])

        return numba.types.int64(numba.types.int64), emit

    @intrinsic
    def first(typing: object, word: Kind) -> tuple[Signature, Emit]:
        """Place of the lowest one among the bits of an integer that is not 0."""

        def emit(
            context: Context, builder: Builder, signature: Signature, arguments: Values
        ) -> Value:
            return builder.cttz(arguments[0], ir.IntType(1)(1))

        return numba.types.int64(numba.types.int64), emit

    @intrinsic
    def within(typing: object, distance: Kind, start: Kind, most: Kind) -> tuple[Signature, Emit]:
        """Bit j is set where ``distance[start + j] <= most``, of `PART` distances."""

        def emit(
            context: Context, builder: Builder, signature: Signature, arguments: Values
        ) -> Value:
            number, size = ir.IntType(16), ir.IntType(32)
            part = ir.VectorType(number, PART)
            data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
            place = builder.bitcast(builder.gep(data, [arguments[1]]), part.as_pointer())
            limit = builder.insert_element(
                ir.Constant(part, ir.Undefined), builder.trunc(arguments[2], number), size(0)
            )
            order = ir.Constant(ir.VectorType(size, PART), [0] * PART)
            limits = builder.shuffle_vector(limit, limit, order)
            near = builder.icmp_unsigned("<=", builder.load(place, align=2), limits)
            return builder.bitcast(near, ir.IntType(64))

        integer = numba.types.int64
        return integer(distance, integer, integer), emit


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
def _count(distance: Ints, most: int) -> int:
    """How many distances are at most `most`."""
    count = 0
    for start in range(0, len(distance), PART):
        count += ones(within(distance, start, most))
    return count


@jit.device
def _collect(distance: Ints, most: int, ties: int, index: Ints) -> None:
    """Keys nearer than `most`, and the first `ties` of those at it, ascending."""
    found, N = 0, len(index)
    for start in range(0, len(distance), PART):
        near = within(distance, start, most)
        while near != 0 and found < N:
            j = start + first(near)
            near &= near - 1
            if distance[j] == most:
                if ties == 0:
                    continue
                ties -= 1
            index[found] = j
            found += 1


@jit.kernel
def nearest(task: int, q: Ints, k: Ints, channels: int, index: Ints) -> None:
    """The N nearest keys of every query, ascending; at equal distance the lower key is nearer.

    `q` (n, w) and `k` (w, m) words as int64, of `channels` < 2^16 - 1 signs. Result `index` (n, N),
    N <= m: the N-th distance is found between bounds that start from the query before's, then keys
    are listed in order.
    """
    n, N = index.shape
    m = k.shape[1]
    distance = np.full((m + PART - 1) // PART * PART, 0xFFFF, np.uint16)
    guess = channels // 2
    for i in range(task * BLOCK, min(task * BLOCK + BLOCK, n)):
        _distances(q[i], k, distance[:m])
        low, high, nearer = 0, channels, 0  # nearer: how many are below low
        reach, middle = 1, guess
        while low < high:
            count = _count(distance, middle)
            if count >= N:
                high = middle
                middle = max(low, middle - reach)
            else:
                low, nearer = middle + 1, count
                middle = min(high - 1, middle + reach)
            reach *= 2
            if reach > 8:
                middle = (low + high) // 2
        guess = low
        _collect(distance, low, N - nearer, index[i])


@jit.kernel
def attend(
    task: int, q: Ints, k: Ints, index: Ints, v: Floats, table: Floats, out: Floats, shift: Ints,
    total: Floats,
) -> None:  # fmt: skip
    """Softmax over the chosen keys, times their values.

    `q` (n, w), `k` (m, w) words; `index` (n, N), N > 0; `table[t] = exp(-2 scale t)`. Results `out`
    (n, e), the least distance `shift` (n,) and the sum of weights `total` (n,) relative to it.
    """
    n, N = index.shape
    distance, acc = np.empty(N, np.int64), np.empty(v.shape[1], np.float64)
    for i in range(task * BLOCK, min(task * BLOCK + BLOCK, n)):
        least = 1 << 20
        for t in range(N):
            bits = 0
            for c in range(q.shape[1]):
                bits += ones(q[i, c] ^ k[index[i, t], c])
            distance[t] = bits
            least = min(least, bits)
        Z = 0.0
        for a in range(len(acc)):
            acc[a] = 0.0
        for t in range(N):
            weight = table[distance[t] - least]
            Z += weight
            row = v[index[i, t]]
            for a in range(len(acc)):
                acc[a] += weight * row[a]
        for a in range(len(acc)):
            out[i, a] = acc[a] / Z
        shift[i], total[i] = least, Z
