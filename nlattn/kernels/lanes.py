"""Loops over the rows of a panel of scores, in whole vectors that stay in registers.

Written in LLVM's vector types like the tiles of `gemm`: from loops over lanes the compiler makes
vectors of half the width, and stores sums after every row, since arrays might overlap. Row j is the
`width` numbers from ``s0 + j step``; nothing is checked.
"""

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from nlattn._types import Floats, Scalar
from nlattn.kernels import exp as scalar
from nlattn.kernels.gemm import VECTOR_BYTES, VECTORS, width
from nlattn.runtime.llvm_types import Builder, Context, Signature, Value, Values

_CHAIN = 16  # weights added in one chain: equal ones round alike, so long chains drift


def _rows(s: Floats, s0: int, step: int, count: int) -> Floats:
    """A view of the rows."""
    return np.lib.stride_tricks.as_strided(
        s[s0:], (count, width(s)), (step * s.itemsize, s.itemsize)
    )


def _highest(s: Floats, count: int, top: Floats) -> None:
    rows = _rows(s, 0, width(s), count)
    top[:] = np.fmax(top, np.fmax.reduce(rows, 0, initial=-np.inf))


def _exponentials(s: Floats, count: int, shift: Floats, total: Floats) -> None:
    rows = _rows(s, 0, width(s), count)
    rows[:] = np.exp(rows - shift)
    total += rows.sum(0)


def _exponents(s: Floats, count: int, sharp: Floats, shift: Floats, top: Floats) -> None:
    rows = _rows(s, 0, width(s), count)
    rows[:] = rows * sharp - shift
    top[:] = np.fmax(top, np.fmax.reduce(rows, 0, initial=-np.inf))


def _slopes(
    s: Floats,
    ds: Floats,
    s0: int,
    step: int,
    count: int,
    top: Floats,
    inverse: Floats,
    mean: Floats,
) -> None:
    weights, slopes = _rows(s, s0, step, count), _rows(ds, s0, step, count)
    weights[:] = np.exp(weights - top) * inverse
    slopes[:] = weights * (slopes - mean)


_SIZE, _LANE = ir.IntType(64), ir.IntType(32)


class Lanes:  # pragma: no cover - the compiler runs it
    """Writes code on the vectors of a row."""

    def __init__(self, context: Context, builder: Builder, signature: Signature) -> None:
        self.context, self.builder, self.signature = context, builder, signature
        element = context.get_value_type(signature.args[0].dtype)
        self.align = context.get_abi_sizeof(element)
        self.count = VECTOR_BYTES // self.align
        self.vector = ir.VectorType(element, self.count)
        self.bits = ir.VectorType(ir.IntType(8 * self.align), self.count)

    def every(self, number: Value) -> Value:
        """A vector of one number."""
        return ir.Constant(self.vector, [float(number)] * self.count)

    def whole(self, number: int) -> Value:
        """A vector of one integer."""
        return ir.Constant(self.bits, [number] * self.count)

    def row(self, argument: int, value: Value, first: Value = None) -> list[Value]:
        """Pointers to the vectors of a row of an array, which is an argument."""
        array = self.context.make_array(self.signature.args[argument])
        data = array(self.context, self.builder, value).data
        if first is not None:
            data = self.builder.gep(data, [first])
        places = [self.builder.gep(data, [_SIZE(v * self.count)]) for v in range(VECTORS)]
        return [self.builder.bitcast(place, self.vector.as_pointer()) for place in places]

    def load(self, places: list[Value]) -> list[Value]:
        """Vectors at some places."""
        return [self.builder.load(place, align=self.align) for place in places]

    def store(self, values: list[Value], places: list[Value]) -> None:
        """Put vectors where they belong."""
        for value, place in zip(values, places, strict=True):
            self.builder.store(value, place, align=self.align)

    def registers(self, values: list[Value]) -> list[Value]:
        """Variables that begin as `values`."""
        return [cgutils.alloca_once_value(self.builder, value) for value in values]

    def spread(self, scalar: Value) -> Value:
        """A vector of one scalar."""
        first = self.builder.insert_element(
            ir.Constant(self.vector, ir.Undefined), scalar, _LANE(0)
        )
        lanes = ir.Constant(ir.VectorType(_LANE, self.count), [0] * self.count)
        return self.builder.shuffle_vector(first, first, lanes)

    def larger(self, a: Value, b: Value) -> Value:
        """Lane by lane; of NaN and b, b."""
        return self.builder.select(self.builder.fcmp_ordered(">", a, b), a, b)

    def smaller(self, a: Value, b: Value) -> Value:
        """Lane by lane; of NaN and b, b."""
        return self.builder.select(self.builder.fcmp_ordered("<", a, b), a, b)

    def muladd(self, a: Value, b: Value, c: Value) -> Value:
        """``a b + c``, fused where the CPU can."""
        product = self.builder.fmul(a, b, flags=["contract"])
        return self.builder.fadd(product, c, flags=["contract"])

    def exp(self, x: Value) -> Value:
        """As `exp.exp`, step by step."""
        b, single = self.builder, self.align == 4
        names = ("ZERO", "LOG2E", "ROUND", "HIGH", "LOW")
        zero, log2e, magic, high, low = (
            float(getattr(scalar, f"{name}{32 if single else 64}")) for name in names
        )
        mantissa, bias = (23, 127) if single else (52, 1023)
        first, *others = scalar.P32 if single else scalar.P64
        x = b.select(b.fcmp_ordered("<", x, self.every(zero)), self.every(zero), x)
        shifted = self.muladd(x, self.every(log2e), self.every(magic))
        k = b.fsub(shifted, self.every(magic))
        r = self.muladd(k, self.every(-low), self.muladd(k, self.every(-high), x))
        p = self.every(first)
        for coefficient in others:
            p = self.muladd(p, r, self.every(coefficient))
        p = b.fadd(self.muladd(p, b.fmul(r, r), r), self.every(1))
        power = b.shl(b.bitcast(shifted, self.bits), self.whole(mantissa))
        power = b.add(power, self.whole(bias << mantissa))
        return b.fmul(p, b.bitcast(power, self.vector))


@intrinsic
def _compiled_highest(_, s, count, top):  # type: ignore[no-untyped-def]  # pragma: no cover
    def emit(context: Context, builder: Builder, signature: Signature, arguments: Values) -> Value:
        on = Lanes(context, builder, signature)
        s_, count_, top_ = arguments
        found = on.registers(on.load(on.row(2, top_)))
        with cgutils.for_range(builder, count_, intp=_SIZE) as loop:
            first = builder.mul(loop.index, _SIZE(VECTORS * on.count))
            for x, register in zip(on.load(on.row(0, s_, first)), found, strict=True):
                best = builder.load(register)
                above = builder.fcmp_ordered(">", x, best)
                builder.store(builder.select(above, x, best), register)
        on.store([builder.load(x) for x in found], on.row(2, top_))
        return context.get_dummy_value()

    return numba.types.void(s, numba.types.int64, top), emit


@intrinsic
def _compiled_exponentials(  # type: ignore[no-untyped-def]
    _, s, count, shift, total
):  # pragma: no cover - the compiler runs it
    def emit(context: Context, builder: Builder, signature: Signature, arguments: Values) -> Value:
        on = Lanes(context, builder, signature)
        s_, count_, shift_, total_ = arguments
        shifts = on.load(on.row(2, shift_))
        totals = on.registers(on.load(on.row(3, total_)))
        chains = on.registers([on.every(0)] * VECTORS)
        chain = _SIZE(_CHAIN)
        with cgutils.for_range_slice(builder, _SIZE(0), count_, chain, _SIZE) as (begin, _):
            for register in chains:
                builder.store(on.every(0), register)
            end = builder.add(begin, chain)
            end = builder.select(builder.icmp_signed("<", end, count_), end, count_)
            with cgutils.for_range_slice(builder, begin, end, _SIZE(1), _SIZE) as (j, _):
                places = on.row(0, s_, builder.mul(j, _SIZE(VECTORS * on.count)))
                powers = [
                    on.exp(builder.fsub(x, shift))
                    for x, shift in zip(on.load(places), shifts, strict=True)
                ]
                on.store(powers, places)
                for power, register in zip(powers, chains, strict=True):
                    builder.store(builder.fadd(builder.load(register), power), register)
            for register, whole in zip(chains, totals, strict=True):
                builder.store(builder.fadd(builder.load(whole), builder.load(register)), whole)
        on.store([builder.load(x) for x in totals], on.row(3, total_))
        return context.get_dummy_value()

    return numba.types.void(s, numba.types.int64, shift, total), emit


@intrinsic
def _compiled_exponents(  # type: ignore[no-untyped-def]
    _, s, count, sharp, shift, top
):  # pragma: no cover - the compiler runs it
    def emit(context: Context, builder: Builder, signature: Signature, arguments: Values) -> Value:
        on = Lanes(context, builder, signature)
        s_, count_, *given = arguments
        sharps, shifts, tops = (on.load(on.row(n, x)) for n, x in enumerate(given, 2))
        found = on.registers(tops)
        with cgutils.for_range(builder, count_, intp=_SIZE) as loop:
            places = on.row(0, s_, builder.mul(loop.index, _SIZE(VECTORS * on.count)))
            rows = zip(on.load(places), sharps, shifts, strict=True)
            new = [builder.fsub(builder.fmul(x, a), b) for x, a, b in rows]
            on.store(new, places)
            for x, register in zip(new, found, strict=True):
                builder.store(on.larger(x, builder.load(register)), register)
        on.store([builder.load(x) for x in found], on.row(4, given[2]))
        return context.get_dummy_value()

    return numba.types.void(s, numba.types.int64, sharp, shift, top), emit


@intrinsic
def _compiled_slopes(  # type: ignore[no-untyped-def]
    _, s, ds, s0, step, count, top, inverse, mean
):  # pragma: no cover - the compiler runs it
    def emit(context: Context, builder: Builder, signature: Signature, arguments: Values) -> Value:
        on = Lanes(context, builder, signature)
        s_, ds_, s0_, step_, count_, top_, inverse_, mean_ = arguments
        given = [on.load(on.row(n, x)) for n, x in ((5, top_), (6, inverse_), (7, mean_))]
        with cgutils.for_range(builder, count_, intp=_SIZE) as loop:
            first = builder.add(s0_, builder.mul(loop.index, step_))
            weights, slopes = on.row(0, s_, first), on.row(1, ds_, first)
            for v, (top, inverse, mean) in enumerate(zip(*given, strict=True)):
                s_v, ds_v = (on.load([x[v]])[0] for x in (weights, slopes))
                weight = builder.fmul(on.exp(builder.fsub(s_v, top)), inverse)
                on.store([weight], [weights[v]])
                on.store([builder.fmul(weight, builder.fsub(ds_v, mean))], [slopes[v]])
        return context.get_dummy_value()

    i = numba.types.int64
    return numba.types.void(s, ds, i, i, i, top, inverse, mean), emit


def _within(s: Floats, s0: int, limits: Floats) -> int:
    return sum(1 << l for l in range(width(s)) if s[s0 + l] <= limits[l])


@intrinsic
def _compiled_within(_, s, s0, limits):  # type: ignore[no-untyped-def]  # pragma: no cover
    def emit(context: Context, builder: Builder, signature: Signature, arguments: Values) -> Value:
        on = Lanes(context, builder, signature)
        s_, s0_, limits_ = arguments
        found = _SIZE(0)
        pairs = zip(on.load(on.row(0, s_, s0_)), on.load(on.row(2, limits_)), strict=True)
        for v, (x, limit) in enumerate(pairs):
            bits = builder.bitcast(builder.fcmp_ordered("<=", x, limit), ir.IntType(on.count))
            found = builder.or_(found, builder.shl(builder.zext(bits, _SIZE), _SIZE(v * on.count)))
        return found

    return numba.types.int64(s, numba.types.int64, limits), emit


def _below(s: Floats, s0: int, limit: Scalar) -> int:
    return sum(1 << l for l in range(width(s)) if s[s0 + l] <= limit)


@intrinsic
def _compiled_below(_, s, s0, limit):  # type: ignore[no-untyped-def]  # pragma: no cover
    def emit(context: Context, builder: Builder, signature: Signature, arguments: Values) -> Value:
        on = Lanes(context, builder, signature)
        s_, s0_, limit_ = arguments
        found, limits = _SIZE(0), on.spread(limit_)
        for v, x in enumerate(on.load(on.row(0, s_, s0_))):
            bits = builder.bitcast(builder.fcmp_ordered("<=", x, limits), ir.IntType(on.count))
            found = builder.or_(found, builder.shl(builder.zext(bits, _SIZE), _SIZE(v * on.count)))
        return found

    return numba.types.int64(s, numba.types.int64, s.dtype), emit


def _lowest_bit(bits: int) -> int:
    return (int(bits) & -int(bits)).bit_length() - 1


@intrinsic
def _compiled_lowest_bit(_, bits):  # type: ignore[no-untyped-def]  # pragma: no cover
    def emit(context: Context, builder: Builder, signature: Signature, arguments: Values) -> Value:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return numba.types.int64(numba.types.int64), emit


_JIT = not numba.config.DISABLE_JIT
highest = _compiled_highest if _JIT else _highest
"""``highest(s, count, top)``: raise `top` to the largest of each lane; NaN is passed over."""
exponentials = _compiled_exponentials if _JIT else _exponentials
"""``exponentials(s, count, shift, total)``: ``s = exp(s - shift)``, and their sums to `total`."""
exponents = _compiled_exponents if _JIT else _exponents
"""``exponents(s, count, sharp, shift, top)``: ``s = s sharp - shift``, the largest to `top`."""
slopes = _compiled_slopes if _JIT else _slopes
"""``slopes(s, ds, s0, step, count, top, inverse, mean)``: weights ``s = exp(s - top) inverse`` and
``ds = s (ds - mean)``."""
within = _compiled_within if _JIT else _within
"""``within(s, s0, limits)``: the lanes whose number is at most their limit, as bits."""
below = _compiled_below if _JIT else _below
"""``below(s, s0, limit)``: the numbers of a row that are at most the limit, as bits."""
lowest_bit = _compiled_lowest_bit if _JIT else _lowest_bit
"""``lowest_bit(bits)``: the number of the lowest of some bits."""
