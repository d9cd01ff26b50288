"""Matrix products on panels that stay in cache, as wide vector instructions.

``C = A B`` is made of register tiles: a few rows of A times one panel of B, `width` columns that
fill two vectors. The tile is written in LLVM's vector types, because a scalar loop is not kept in
registers by the compiler, and because the BLAS that SciPy ships takes its 256-bit path on CPUs
newer than itself: on a Zen 5 core this tile does 240 GFLOP/s in float32, that BLAS 117. Every
element is one chain of multiply-adds in ascending order, whatever the vector width.
"""

from __future__ import annotations

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from nlattn._types import Floats, Ints, Scalar
from nlattn.runtime import jit
from nlattn.runtime.llvm_types import (
    ArrayKind,
    Builder,
    Context,
    Emit,
    Signature,
    Value,
    Values,
)

_FEATURES = llvmlite.binding.get_host_cpu_features()
_WIDE = bool(_FEATURES.get("avx512f"))
_AVX2 = bool(_FEATURES.get("avx2"))
VECTOR_BYTES = 64 if _WIDE else 32 if _AVX2 else 16
VECTORS = 2
# 8 x 2 accumulators leave room for operands in 32 registers, 6 x 2 in the 16 of AVX2.
_ROWS = 6 if _AVX2 and not _WIDE else 8
SOME = 4
"""Rows of a tile of `distances_to`."""
PANEL_BYTES = VECTORS * VECTOR_BYTES


@jit.shared
def width(x: Floats) -> int:
    """Columns of a panel, for arrays of x's dtype."""
    return PANEL_BYTES // x.itemsize


@jit.shared
def aligned(size: int, like: Floats) -> Floats:
    """Uninitialised flat buffer on a cache line's boundary, so that no vector straddles two."""
    line = 64 // like.itemsize
    buffer = np.empty(size + line, like.dtype)
    skip = -(buffer.ctypes.data // like.itemsize) % line
    return buffer[skip : skip + size]


def _emitter(  # pragma: no cover - the compiler runs it
    rows: int, squares: bool = False, picked: str = ""
) -> Emit:
    """Code of ``c[r, :] = factor sum_k a[r, k] b[k, :]`` for `rows` rows and one panel.

    Or, with `squares`, of ``factor sum_k (b[k, :] - a[r, k])^2``. Of two more arguments, an index
    and where it begins, come the rows of A where "rows" are `picked`, or its columns. Picked rows
    are added to what stands in C, unless the factor is 0.
    """

    def emit(context: Context, builder: Builder, signature: Signature, arguments: Values) -> Value:
        a, a0, a_row, a_k, b, b0, b_k, c, c0, c_row, depth, factor, *index = arguments
        element = context.get_value_type(signature.args[4].dtype)
        size = context.get_abi_sizeof(element)
        lanes = VECTOR_BYTES // size
        vector, i32, i64 = ir.VectorType(element, lanes), ir.IntType(32), ir.IntType(64)
        first_lane = ir.Constant(ir.VectorType(i32, lanes), [0] * lanes)
        undefined, zero = ir.Constant(vector, ir.Undefined), ir.Constant(vector, None)

        def address(argument: int, value: Value, offset: Value) -> Value:
            array = context.make_array(signature.args[argument])(context, builder, value)
            return builder.gep(array.data, [offset])

        def part(pointer: Value, row: Value, v: int) -> Value:
            place = builder.gep(pointer, [builder.add(row, i64(v * lanes))])
            return builder.bitcast(place, vector.as_pointer())

        left, right, result = address(0, a, a0), address(4, b, b0), address(7, c, c0)
        places = address(12, *index) if picked else None

        def place(n: Value) -> Value:
            return builder.load(builder.gep(places, [n]))

        starts = [left] * rows
        if picked == "rows":
            starts = [builder.gep(left, [builder.mul(place(i64(r)), a_row)]) for r in range(rows)]
        before = builder.basic_block
        loop, after = builder.append_basic_block("k"), builder.append_basic_block("end")
        builder.branch(loop)
        builder.position_at_end(loop)
        k = builder.phi(i64)
        total = [[builder.phi(vector) for _ in range(VECTORS)] for _ in range(rows)]
        row, column = builder.mul(k, b_k), builder.mul(place(k) if picked == "columns" else k, a_k)
        panel = [builder.load(part(right, row, v), align=size) for v in range(VECTORS)]
        for start, chains in zip(starts, total, strict=True):
            scalar = builder.load(builder.gep(start, [column]))
            if scalar.type != element:
                scalar = builder.fpext(scalar, element)
            column = column if picked == "rows" else builder.add(column, a_row)
            spread = builder.insert_element(undefined, scalar, i32(0))
            spread = builder.shuffle_vector(spread, undefined, first_lane)
            for v, chain in enumerate(chains):
                left_v, right_v = spread, panel[v]
                if squares:
                    left_v = right_v = builder.fsub(panel[v], spread)
                product = builder.fmul(left_v, right_v, flags=["contract"])
                chains[v] = builder.fadd(product, chain, flags=["contract"])
                chain.add_incoming(zero, before)
                chain.add_incoming(chains[v], loop)
        following = builder.add(k, i64(1))
        k.add_incoming(i64(0), before)
        k.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)
        builder.position_at_end(after)
        alone = builder.fcmp_ordered("==", factor, factor.type(0.0))
        factor = builder.insert_element(undefined, factor, i32(0))
        factor = builder.shuffle_vector(factor, undefined, first_lane)
        for r, chains in enumerate(total):
            row = builder.mul(c_row, i64(r))
            for v, chain in enumerate(chains):
                where = part(result, row, v)
                if picked == "rows":
                    before = builder.select(alone, zero, builder.load(where, align=size))
                    builder.store(builder.fadd(before, chain), where, align=size)
                else:
                    builder.store(builder.fmul(chain, factor), where, align=size)
        return context.get_dummy_value()

    return emit


def _signature(a: ArrayKind, b: ArrayKind, c: ArrayKind, *index: ArrayKind) -> Signature:
    # pragma: no cover
    if any(not isinstance(x, numba.types.Array) or x.layout != "C" for x in (a, b, c, *index)):
        return None
    i = numba.types.int64
    return numba.types.void(
        a, i, i, i, b, i, i, c, i, i, i, c.dtype, *((*index, i) if index else ())
    )


@intrinsic
def _tile(  # type: ignore[no-untyped-def]
    _, a, a0, a_row, a_k, b, b0, b_k, c, c0, c_row, depth, factor
):  # pragma: no cover - the compiler runs it
    return _signature(a, b, c), _emitter(_ROWS)


@intrinsic
def _tail(  # type: ignore[no-untyped-def]
    _, a, a0, a_row, a_k, b, b0, b_k, c, c0, c_row, depth, factor
):  # pragma: no cover - the compiler runs it
    return _signature(a, b, c), _emitter(1)


@intrinsic
def _apart(  # type: ignore[no-untyped-def]
    _, a, a0, a_row, a_k, b, b0, b_k, c, c0, c_row, depth, factor
):  # pragma: no cover - the compiler runs it
    return _signature(a, b, c), _emitter(_ROWS, squares=True)


@intrinsic
def _one_apart(  # type: ignore[no-untyped-def]
    _, a, a0, a_row, a_k, b, b0, b_k, c, c0, c_row, depth, factor
):  # pragma: no cover - the compiler runs it
    return _signature(a, b, c), _emitter(1, squares=True)


def _compiled(  # pragma: no cover - compiled
    a: Floats,
    a0: int,
    a_row: int,
    a_k: int,
    b: Floats,
    b0: int,
    b_k: int,
    c: Floats,
    c0: int,
    c_row: int,
    rows: int,
    depth: int,
    factor: Scalar,
) -> None:
    whole = rows - rows % _ROWS
    for r in range(0, whole, _ROWS):
        _tile(a, a0 + r * a_row, a_row, a_k, b, b0, b_k, c, c0 + r * c_row, c_row, depth, factor)
    for r in range(whole, rows):
        _tail(a, a0 + r * a_row, a_row, a_k, b, b0, b_k, c, c0 + r * c_row, c_row, depth, factor)


def _interpreted(
    a: Floats,
    a0: int,
    a_row: int,
    a_k: int,
    b: Floats,
    b0: int,
    b_k: int,
    c: Floats,
    c0: int,
    c_row: int,
    rows: int,
    depth: int,
    factor: Scalar,
) -> None:
    r, k, l = np.arange(rows)[:, None], np.arange(depth), np.arange(width(b))
    left = a.reshape(-1)[a0 + r * a_row + k * a_k]
    right = b.reshape(-1)[b0 + k[:, None] * b_k + l]
    c.reshape(-1)[c0 + r * c_row + l] = left @ right * factor


scaled = _interpreted if numba.config.DISABLE_JIT else jit.device(_compiled)
"""``scaled(a, a0, a_row, a_k, b, b0, b_k, c, c0, c_row, rows, depth, factor)``: one panel of
C = factor A B.

Arrays are C-contiguous and addressed by flat offsets: element (r, k) of A is at
``a0 + r a_row + k a_k``, row k of the panel of B at ``b0 + k b_k``, row r of C's at
``c0 + r c_row``. ``depth >= 1``. Nothing is checked.
"""


@jit.device(once=True)
def multiply(
    a: Floats,
    a0: int,
    a_row: int,
    a_k: int,
    b: Floats,
    b0: int,
    b_k: int,
    c: Floats,
    c0: int,
    c_row: int,
    rows: int,
    depth: int,
) -> None:
    """As `scaled`, of factor 1."""
    scaled(a, a0, a_row, a_k, b, b0, b_k, c, c0, c_row, rows, depth, c.dtype.type(1))


def _compiled_distances(  # pragma: no cover - compiled
    a: Floats, a0: int, b: Floats, b0: int, c: Floats, c0: int, rows: int, depth: int
) -> None:
    w, one = width(c), c.dtype.type(1)
    whole = rows - rows % _ROWS
    for r in range(0, whole, _ROWS):
        _apart(a, a0 + r * depth, depth, 1, b, b0, w, c, c0 + r * w, w, depth, one)
    for r in range(whole, rows):
        _one_apart(a, a0 + r * depth, depth, 1, b, b0, w, c, c0 + r * w, w, depth, one)


def _interpreted_distances(
    a: Floats, a0: int, b: Floats, b0: int, c: Floats, c0: int, rows: int, depth: int
) -> None:
    w = width(c)
    left = a[a0 : a0 + rows * depth].reshape(rows, depth, 1)
    right = b[b0 : b0 + depth * w].reshape(depth, w)
    c[c0 : c0 + rows * w] = ((right - left) ** 2).sum(1).reshape(-1)


distances = _interpreted_distances if numba.config.DISABLE_JIT else jit.device(_compiled_distances)
"""``distances(a, a0, b, b0, c, c0, rows, depth)``: ``c[r, l] = sum_k (b[k, l] - a[r, k])^2``.

Arrays are flat; rows of `a` hold `depth` numbers, those of `b` and `c` a panel's width. From
differences: a small distance of long vectors keeps its digits.
"""


@intrinsic
def _apart_of(  # type: ignore[no-untyped-def]
    _, a, a0, a_row, a_k, b, b0, b_k, c, c0, c_row, depth, factor, index, i0
):  # pragma: no cover - the compiler runs it
    return _signature(a, b, c, index), _emitter(_ROWS, squares=True, picked="rows")


@intrinsic
def _one_apart_of(  # type: ignore[no-untyped-def]
    _, a, a0, a_row, a_k, b, b0, b_k, c, c0, c_row, depth, factor, index, i0
):  # pragma: no cover - the compiler runs it
    return _signature(a, b, c, index), _emitter(1, squares=True, picked="rows")


@intrinsic
def _tile_of(  # type: ignore[no-untyped-def]
    _, a, a0, a_row, a_k, b, b0, b_k, c, c0, c_row, depth, factor, index, i0
):  # pragma: no cover - the compiler runs it
    return _signature(a, b, c, index), _emitter(_ROWS, picked="columns")


@intrinsic
def _tail_of(  # type: ignore[no-untyped-def]
    _, a, a0, a_row, a_k, b, b0, b_k, c, c0, c_row, depth, factor, index, i0
):  # pragma: no cover - the compiler runs it
    return _signature(a, b, c, index), _emitter(1, picked="columns")


def _compiled_distances_of(  # pragma: no cover - compiled
    a: Floats, index: Ints, b: Floats, c: Floats, rows: int, depth: int, parts: int
) -> None:
    w, kind, step = width(c), c.dtype.type, -(-depth // parts)
    whole = rows - rows % _ROWS
    for k in range(0, depth, step):
        count, more = min(step, depth - k), kind(k > 0)
        for r in range(0, whole, _ROWS):
            _apart_of(a, k, depth, 1, b, k * w, w, c, r * w, w, count, more, index, r)
        for r in range(whole, rows):
            _one_apart_of(a, k, depth, 1, b, k * w, w, c, r * w, w, count, more, index, r)


def _interpreted_distances_of(
    a: Floats, index: Ints, b: Floats, c: Floats, rows: int, depth: int, parts: int
) -> None:
    some = a.reshape(-1, depth)[index[:rows]].reshape(-1)
    _interpreted_distances(some, 0, b, 0, c, 0, rows, depth)


@intrinsic
def _some_apart_of(  # type: ignore[no-untyped-def]
    _, a, a0, a_row, a_k, b, b0, b_k, c, c0, c_row, depth, factor, index, i0
):  # pragma: no cover - the compiler runs it
    return _signature(a, b, c, index), _emitter(SOME, squares=True, picked="rows")


def _compiled_distances_to(  # pragma: no cover - compiled
    a: Floats, index: Ints, b: Floats, b0: int, b_k: int, c: Floats, rows: int, depth: int
) -> None:
    w, none = width(c), c.dtype.type(0)
    for r in range(0, rows, SOME):
        _some_apart_of(a, 0, depth, 1, b, b0, b_k, c, r * w, w, depth, none, index, r)


def _interpreted_distances_to(
    a: Floats, index: Ints, b: Floats, b0: int, b_k: int, c: Floats, rows: int, depth: int
) -> None:
    w = width(c)
    right = b[b0 + np.arange(depth)[:, None] * b_k + np.arange(w)]
    left = a.reshape(-1, depth)[index[:rows], :, None]
    c[: rows * w] = ((right - left) ** 2).sum(1).reshape(-1)


def _compiled_totals_of(  # pragma: no cover - compiled
    a: Floats, index: Ints, columns: int, b: Floats, c: Floats, depth: int
) -> None:
    w, one = width(c), c.dtype.type(1)
    whole = columns - columns % _ROWS
    for r in range(0, whole, _ROWS):
        _tile_of(a, r, 1, columns, b, 0, w, c, r * w, w, depth, one, index, 0)
    for r in range(whole, columns):
        _tail_of(a, r, 1, columns, b, 0, w, c, r * w, w, depth, one, index, 0)


def _interpreted_totals_of(
    a: Floats, index: Ints, columns: int, b: Floats, c: Floats, depth: int
) -> None:
    w = width(c)
    right = b[: depth * w].reshape(depth, w)
    c[: columns * w] = (a.reshape(-1, columns)[index[:depth]].T @ right).reshape(-1)


_JIT = not numba.config.DISABLE_JIT
distances_of = jit.device(_compiled_distances_of) if _JIT else _interpreted_distances_of
"""``distances_of(a, index, b, c, rows, depth, parts)``: `distances` of the rows ``a[index[r]]``.

Some `parts` of the coordinates are summed apart: shorter sums round less.
"""
distances_to = jit.device(_compiled_distances_to) if _JIT else _interpreted_distances_to
"""``distances_to(a, index, b, b0, b_k, c, rows, depth)``: `distances` of the rows ``a[index[r]]``
from a panel whose row k is at ``b0 + k b_k``.

Tiles have `SOME` rows: what `index` and `c` hold of the last one beyond `rows` is any row's."""
totals_of = jit.device(_compiled_totals_of) if _JIT else _interpreted_totals_of
"""``totals_of(a, index, columns, b, c, depth)``: ``c[r, l] = sum_k a[index[k], r] b[k, l]``, of
rows of `columns` numbers; they may be of less precision than the others."""
