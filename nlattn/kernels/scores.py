"""The one score of a query and a key, for everything that decides by scores.

A sum over channels runs in sixteen lanes, folded pairwise, then the channels left over in order:
written out as vector instructions without fused multiply-adds, so that every caller, compiled or
not, on any machine, gets the same bits.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from nlattn._types import Floats, Scalar
from nlattn.runtime import jit
from nlattn.runtime.llvm_types import (
    ArrayKind,
    Builder,
    Context,
    Emit,
    Kind,
    Signature,
    Value,
    Values,
)

DOT, NEG_L2, ABSDOT = range(3)
_LANES = 16


def _sum_in_lanes(terms: Floats) -> Scalar:
    """Sum as the compiled code does, for a run without the JIT."""
    whole = len(terms) // _LANES * _LANES
    lanes = np.zeros(_LANES, terms.dtype)
    for start in range(0, whole, _LANES):
        lanes = lanes + terms[start : start + _LANES]
    while len(lanes) > 1:
        lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    total = lanes[0]
    for term in terms[whole:]:
        total = total + term
    return total


def additions(length: int) -> int:
    """Of how many additions a term of a sum of so many is part at most."""
    return min(length, length // _LANES + 4 + length % _LANES)


if numba.config.DISABLE_JIT:

    def fetch(a: Floats, i: int) -> None:
        """Have the cache lines from ``a[i]`` on read, for `terms` that follow soon."""

    def terms(kind: int, a: Floats, i: int, b: Floats, j: int, length: int) -> Scalar:
        """``sum_c a[i + c] b[j + c]`` of flat arrays, or of ``(a[i + c] - b[j + c])^2``."""
        x, y = a[i : i + length], b[j : j + length]
        return _sum_in_lanes((x - y) * (x - y) if kind == NEG_L2 else x * y)

else:  # pragma: no cover - the compiler runs it

    @intrinsic
    def fetch(typing: object, a: ArrayKind, i: Kind) -> tuple[Signature, Emit]:
        """Have the cache lines from ``a[i]`` on read, for `terms` that follow soon."""

        def emit(
            context: Context, builder: Builder, signature: Signature, arguments: Values
        ) -> Value:
            array = context.make_array(signature.args[0])(context, builder, arguments[0])
            place = builder.bitcast(builder.gep(array.data, [arguments[1]]), cgutils.voidptr_t)
            number = ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
            ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
            for line in (0, 64):
                at = builder.gep(place, [ir.IntType(64)(line)])
                builder.call(ask, [at, number(0), number(3), number(1)])
            return context.get_dummy_value()

        return numba.types.void(a, numba.types.int64), emit

    @intrinsic
    def terms(
        typing: object, kind: Kind, a: ArrayKind, i: Kind, b: ArrayKind, j: Kind, length: Kind
    ) -> tuple[Signature, Emit]:
        """``sum_c a[i + c] b[j + c]`` of flat arrays, or of ``(a[i + c] - b[j + c])^2``."""
        integer = numba.types.int64
        return a.dtype(integer, a, integer, b, integer, integer), _emit_terms

    def _emit_terms(
        context: Context, builder: Builder, signature: Signature, arguments: Values
    ) -> Value:
        """One loop for both: what is multiplied is selected, for a branch costs twice the time."""
        index = ir.IntType(64)
        scalar = context.get_data_type(signature.return_type)
        vector = ir.VectorType(scalar, _LANES)
        size = context.get_abi_sizeof(scalar)
        kind, first, i, second, j, length = arguments
        left = context.make_array(signature.args[1])(context, builder, first).data
        right = context.make_array(signature.args[3])(context, builder, second).data
        left, right = builder.gep(left, [i]), builder.gep(right, [j])
        squares = builder.icmp_signed("==", kind, index(NEG_L2))

        def term(at: Value, width: Value) -> Value:
            x, y = (
                builder.load(builder.bitcast(builder.gep(p, [at]), width.as_pointer()), align=size)
                for p in (left, right)
            )
            difference = builder.fsub(x, y)
            return builder.fmul(
                builder.select(squares, difference, x), builder.select(squares, difference, y)
            )

        lanes = cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * _LANES))
        blocks = builder.sdiv(length, index(_LANES))
        with cgutils.for_range(builder, blocks) as loop:
            value = term(builder.mul(loop.index, index(_LANES)), vector)
            builder.store(builder.fadd(builder.load(lanes), value), lanes)
        folded, width = builder.load(lanes), _LANES
        while width > 1:
            width //= 2
            folded = builder.fadd(
                *(
                    builder.shuffle_vector(
                        folded,
                        folded,
                        ir.Constant(
                            ir.VectorType(ir.IntType(32), width), list(range(at, at + width))
                        ),
                    )
                    for at in (0, width)
                )
            )
        total = cgutils.alloca_once_value(
            builder, builder.extract_element(folded, ir.IntType(32)(0))
        )
        done = builder.mul(blocks, index(_LANES))
        with cgutils.for_range(builder, builder.sub(length, done)) as loop:
            value = term(builder.add(done, loop.index), scalar)
            builder.store(builder.fadd(builder.load(total), value), total)
        return builder.load(total)


@jit.device(inline=True)
def finish(kind: int, factor: Scalar, total: Any) -> Any:
    """The score from its sum over channels."""
    total = total * (-factor if kind == NEG_L2 else factor)
    return abs(total) if kind == ABSDOT else total


@jit.device(inline=True)
def score(kind: int, factor: Scalar, q: Floats, k: Floats) -> Scalar:
    """Score of two vectors: ``factor q.k``, ``-factor |q - k|^2`` or ``|factor q.k|``."""
    return finish(kind, factor, terms(kind, q, 0, k, 0, len(q)))
