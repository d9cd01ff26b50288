"""Sums over the taps of overlapping windows, as wide vector instructions.

``out[r, l] = sum_k weight[k] x[offset[k] + r step + l]``: lanes l run along a row of the
image, channels included, so that a tap is one load at any alignment and one multiply-add; four rows
share each weight. `correlate` is the transpose, towards the weights. Vector types as in `gemm`, for
its reason: a scalar loop is not kept in registers.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from nlattn._types import Floats, Ints
from nlattn.kernels.gemm import VECTOR_BYTES, width
from nlattn.runtime import jit
from nlattn.runtime.llvm_types import Builder, Context, Emit, Kind, Signature, Value, Values

_ROWS = 4
_VECTORS = 2  # of a panel, whose width is gemm's
TAPS = 8
"""Taps that `correlate` takes at once."""


class _Code:  # pragma: no cover - the compiler runs it
    """What both emitters need of a builder."""

    def __init__(self, context: Context, builder: Builder, signature: Signature):
        self.context, self.builder, self.signature = context, builder, signature
        element = context.get_value_type(signature.args[0].dtype)
        self.size = context.get_abi_sizeof(element)
        bits = context.get_value_type(numba.types.int64)
        self.lanes = VECTOR_BYTES // self.size
        self.vector, self.i64 = ir.VectorType(element, self.lanes), bits

    def address(self, argument: int, value: Value, offset: Value) -> Value:
        kind = self.signature.args[argument]
        array = self.context.make_array(kind)(self.context, self.builder, value)
        return self.builder.gep(array.data, [offset])

    def place(self, pointer: Value, v: int) -> Value:
        moved = self.builder.gep(pointer, [self.i64(v * self.lanes)])
        return self.builder.bitcast(moved, self.vector.as_pointer())

    def load(self, pointer: Value, v: int = 0) -> Value:
        return self.builder.load(self.place(pointer, v), align=self.size)

    def store(self, value: Value, pointer: Value, v: int = 0) -> None:
        self.builder.store(value, self.place(pointer, v), align=self.size)

    def spread(self, scalar: Value) -> Value:
        i32 = ir.IntType(32)
        undefined = ir.Constant(self.vector, ir.Undefined)
        first = ir.Constant(ir.VectorType(i32, self.lanes), [0] * self.lanes)
        one = self.builder.insert_element(undefined, scalar, i32(0))
        return self.builder.shuffle_vector(one, undefined, first)

    def muladd(self, a: Value, b: Value, c: Value) -> Value:
        product = self.builder.fmul(a, b, flags=["contract"])
        return self.builder.fadd(product, c, flags=["contract"])

    def loop(
        self, count: Value, start: list[Value], body: Callable[[Value, list[Value]], list[Value]]
    ) -> list[Value]:
        """``for k in range(count): state = body(k, state)`` from the state `start`."""
        builder = self.builder
        before = builder.basic_block
        head, inner, after = (builder.append_basic_block(n) for n in ("head", "body", "end"))
        builder.branch(head)
        builder.position_at_end(head)
        k = builder.phi(self.i64)
        k.add_incoming(self.i64(0), before)
        state = []
        for value in start:
            state.append(builder.phi(value.type))
            state[-1].add_incoming(value, before)
        builder.cbranch(builder.icmp_signed("<", k, count), inner, after)
        builder.position_at_end(inner)
        new = body(k, state)
        k.add_incoming(builder.add(k, self.i64(1)), builder.basic_block)
        for phi, value in zip(state, new, strict=True):
            phi.add_incoming(value, builder.basic_block)
        builder.branch(head)
        builder.position_at_end(after)
        return state


def _emit_sums(rows: int) -> Emit:  # pragma: no cover - the compiler runs it
    def emit(context: Context, builder: Builder, signature: Signature, arguments: Values) -> Value:
        x, base, step, offsets, k0, w0, count, o0, o_step = arguments
        code = _Code(context, builder, signature)
        source, target = code.address(0, x, base), code.address(0, x, o0)
        offset, weight = code.address(3, offsets, k0), code.address(0, x, w0)

        def body(k: Value, state: list[Value]) -> list[Value]:
            w = code.spread(builder.load(builder.gep(weight, [k])))
            row, new = builder.gep(source, [builder.load(builder.gep(offset, [k]))]), []
            for r in range(rows):
                if r:
                    row = builder.gep(row, [step])
                for v in range(_VECTORS):
                    new.append(code.muladd(w, code.load(row, v), state[r * _VECTORS + v]))
            return new

        zero = ir.Constant(code.vector, None)
        total = code.loop(count, [zero] * (rows * _VECTORS), body)
        for r in range(rows):
            for v in range(_VECTORS):
                code.store(total[r * _VECTORS + v], target, v)
            target = builder.gep(target, [o_step])
        return context.get_dummy_value()

    return emit


def _emit_dots(
    context: Context, builder: Builder, signature: Signature, arguments: Values
) -> Value:
    # pragma: no cover - the compiler runs it
    x, base, offsets, k0, g0, count, o0 = arguments
    code = _Code(context, builder, signature)
    offset, left, target = (
        code.address(2, offsets, k0),
        code.address(0, x, g0),
        code.address(0, x, o0),
    )
    sources = [
        code.address(0, x, builder.add(base, builder.load(builder.gep(offset, [code.i64(q)]))))
        for q in range(TAPS)
    ]

    def body(k: Value, state: list[Value]) -> list[Value]:
        at = builder.mul(k, code.i64(code.lanes))
        c = code.load(builder.gep(left, [at]))
        return [
            code.muladd(c, code.load(builder.gep(source, [at])), total)
            for source, total in zip(sources, state, strict=True)
        ]

    total = code.loop(count, [code.load(target, q) for q in range(TAPS)], body)
    for q in range(TAPS):
        code.store(total[q], target, q)
    return context.get_dummy_value()


def _plain(*arrays: Kind) -> bool:  # pragma: no cover - the compiler runs it
    return all(isinstance(x, numba.types.Array) and x.layout == "C" for x in arrays)


_i = numba.types.int64


@intrinsic
def _four(_, x, base, step, offsets, k0, w0, count, o0, o_step):  # type: ignore[no-untyped-def]  # pragma: no cover
    if not _plain(x, offsets):
        return None
    return numba.types.void(x, _i, _i, offsets, _i, _i, _i, _i, _i), _emit_sums(_ROWS)


@intrinsic
def _one(_, x, base, step, offsets, k0, w0, count, o0, o_step):  # type: ignore[no-untyped-def]  # pragma: no cover
    if not _plain(x, offsets):
        return None
    return numba.types.void(x, _i, _i, offsets, _i, _i, _i, _i, _i), _emit_sums(1)


@intrinsic
def _dots(_, x, base, offsets, k0, g0, count, o0):  # type: ignore[no-untyped-def]  # pragma: no cover
    if not _plain(x, offsets):
        return None
    return numba.types.void(x, _i, offsets, _i, _i, _i, _i), _emit_dots


def _sums_compiled(  # pragma: no cover - compiled
    x: Floats,
    base: int,
    step: int,
    offsets: Ints,
    k0: int,
    w0: int,
    count: int,
    to: int,
    to_step: int,
    rows: int,
    lanes: int,
) -> None:
    whole = rows - rows % _ROWS
    for l in range(0, lanes, width(x)):
        for r in range(0, whole, _ROWS):
            at = to + l + r * to_step
            _four(x, base + l + r * step, step, offsets, k0, w0, count, at, to_step)
        for r in range(whole, rows):
            at = to + l + r * to_step
            _one(x, base + l + r * step, step, offsets, k0, w0, count, at, to_step)


def _sums_interpreted(
    x: Floats,
    base: int,
    step: int,
    offsets: Ints,
    k0: int,
    w0: int,
    count: int,
    to: int,
    to_step: int,
    rows: int,
    lanes: int,
) -> None:
    l, r = np.arange(-(-lanes // width(x)) * width(x)), np.arange(rows)[:, None]
    total = np.zeros((rows, len(l)), x.dtype)
    for k in range(count):
        total += x[w0 + k] * x[base + offsets[k0 + k] + r * step + l]
    x[to + r * to_step + l] = total


def _correlate_compiled(  # pragma: no cover - compiled
    x: Floats,
    base: int,
    step: int,
    offsets: Ints,
    k0: int,
    count: int,
    g0: int,
    g_step: int,
    rows: int,
    lanes: int,
    room: int,
    to: int,
) -> None:
    one = width(x) // _VECTORS
    vectors = -(-lanes // one)
    for k in range(0, count, TAPS):
        for i in range(TAPS * one):
            x[room + i] = 0
        for r in range(rows):
            _dots(x, base + r * step, offsets, k0 + k, g0 + r * g_step, vectors, room)
        for q in range(min(TAPS, count - k)):
            total = 0.0
            for i in range(one):
                total += x[room + q * one + i]
            x[to + k + q] = total


def _correlate_interpreted(
    x: Floats,
    base: int,
    step: int,
    offsets: Ints,
    k0: int,
    count: int,
    g0: int,
    g_step: int,
    rows: int,
    lanes: int,
    room: int,
    to: int,
) -> None:
    one = width(x) // _VECTORS
    l, r = np.arange(-(-lanes // one) * one), np.arange(rows)[:, None]
    for k in range(count):
        moved = base + offsets[k0 + k] + r * step + l
        x[to + k] = (x[g0 + r * g_step + l] * x[moved]).sum()


_JIT = not numba.config.DISABLE_JIT
sums = jit.device(_sums_compiled) if _JIT else _sums_interpreted
"""``sums(x, base, step, offsets, k0, w0, count, to, to_step, rows, lanes)`` within one flat buffer:
``x[to + r to_step + l] = sum_k x[w0 + k] x[base + offsets[k0 + k] + r step + l]``, lanes rounded up
to whole panels, which the buffer must have room for. Nothing is checked."""

correlate = jit.device(_correlate_compiled) if _JIT else _correlate_interpreted
"""``correlate(x, base, step, offsets, k0, count, g0, g_step, rows, lanes, room, to)``:
``x[to + k] = sum_(r, l) x[g0 + r g_step + l] x[base + offsets[k0 + k] + r step + l]``, lanes
rounded up to whole vectors, where the first factor must be 0; there are offsets for whole groups of
`TAPS`, and four panels at `room`."""
