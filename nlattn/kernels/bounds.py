"""Steps on the bounds of a panel's lanes, in whole vectors: rows of `width` numbers from `at`."""

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from nlattn._types import Floats, Scalar
from nlattn.kernels.gemm import width
from nlattn.kernels.lanes import Lanes
from nlattn.runtime.llvm_types import Builder, Context, Signature, Value, Values

_CEILING = 64.0
NOTHING = 1e27
"""Weights of bounds that say nothing are as large, at least."""
_SIZE = ir.IntType(64)


def _nearer_last(far: Floats, at: int, like: Floats) -> bool:
    w = width(like)
    first, second = far[at : at + w], far[at + w : at + 2 * w]
    if 2 * int((first < second).sum()) <= w:
        return False
    far[at : at + 2 * w] = np.concatenate([second, first])
    return True


@intrinsic
def _compiled_nearer_last(_, far, at, like):  # type: ignore[no-untyped-def]  # pragma: no cover
    def emit(context: Context, builder: Builder, signature: Signature, arguments: Values) -> Value:
        on = Lanes(context, builder, signature)
        far_, at_, _ = arguments
        one = on.row(0, far_, at_)
        two = on.row(0, far_, builder.add(at_, _SIZE(len(one) * on.count)))
        first, second, nearer = on.load(one), on.load(two), _SIZE(0)
        for a, b in zip(first, second, strict=True):
            bits = builder.bitcast(builder.fcmp_ordered("<", a, b), ir.IntType(on.count))
            nearer = builder.add(nearer, builder.ctpop(builder.zext(bits, _SIZE)))
        most = builder.icmp_signed(">", builder.shl(nearer, _SIZE(1)), _SIZE(len(one) * on.count))
        with builder.if_then(most):
            on.store(second, one)
            on.store(first, two)
        return most

    return numba.types.boolean(far, numba.types.int64, like), emit


def _weights(far: Floats, at: int, rows: int, sharp: Floats, shift: Floats) -> None:
    w = width(sharp)
    row = far[at : at + rows * w].reshape(rows, w)
    row[:] = np.exp(np.fmin(row * sharp - shift, _CEILING))


@intrinsic
def _compiled_weights(  # type: ignore[no-untyped-def]
    _, far, at, rows, sharp, shift
):  # pragma: no cover - the compiler runs it
    def emit(context: Context, builder: Builder, signature: Signature, arguments: Values) -> Value:
        on = Lanes(context, builder, signature)
        far_, at_, rows_, sharp_, shift_ = arguments
        sharps, shifts = on.load(on.row(3, sharp_)), on.load(on.row(4, shift_))
        with cgutils.for_range(builder, rows_, intp=_SIZE) as loop:
            step = builder.mul(loop.index, _SIZE(len(sharps) * on.count))
            places = on.row(0, far_, builder.add(at_, step))
            new = []
            for x, a, b in zip(on.load(places), sharps, shifts, strict=True):
                exponent = builder.fsub(builder.fmul(x, a), b)
                below = builder.fcmp_ordered("<", exponent, on.every(_CEILING))
                new.append(on.exp(builder.select(below, exponent, on.every(_CEILING))))
            on.store(new, places)
        return context.get_dummy_value()

    i = numba.types.int64
    return numba.types.void(far, i, i, sharp, shift), emit


def _bear(
    far: Floats, at: int, part: Scalar, count: Scalar, allowed: Floats, spent: Floats
) -> bool:
    w = width(allowed)
    row = far[at : at + w]
    if not (row * part <= allowed).all():
        return False
    cost = row * count
    allowed -= cost
    spent += cost
    return True


@intrinsic
def _compiled_bear(  # type: ignore[no-untyped-def]
    _, far, at, part, count, allowed, spent
):  # pragma: no cover - the compiler runs it
    def emit(context: Context, builder: Builder, signature: Signature, arguments: Values) -> Value:
        on = Lanes(context, builder, signature)
        far_, at_, part_, count_, allowed_, spent_ = arguments
        rows, may = on.load(on.row(0, far_, at_)), on.row(4, allowed_)
        parts, counts = on.spread(part_), on.spread(count_)
        within = ir.Constant(ir.IntType(on.count), -1)
        for x, most in zip(rows, on.load(may), strict=True):
            fits = builder.fcmp_ordered("<=", builder.fmul(x, parts), most)
            within = builder.and_(within, builder.bitcast(fits, ir.IntType(on.count)))
        yes = builder.icmp_signed("==", within, ir.Constant(ir.IntType(on.count), -1))
        with builder.if_then(yes):
            used = on.row(5, spent_)
            costs = [builder.fmul(x, counts) for x in rows]
            on.store([builder.fsub(a, c) for a, c in zip(on.load(may), costs, strict=True)], may)
            on.store([builder.fadd(a, c) for a, c in zip(on.load(used), costs, strict=True)], used)
        return yes

    kind = far.dtype
    return numba.types.boolean(far, numba.types.int64, kind, kind, allowed, spent), emit


def _widened(a: Floats, at: int, factor: float, out: Floats, to: int, count: int) -> None:
    out[to : to + count] = a[at : at + count] * np.float64(factor)


@intrinsic
def _compiled_widened(  # type: ignore[no-untyped-def]
    _, a, at, factor, out, to, count
):  # pragma: no cover - the compiler runs it
    def emit(context: Context, builder: Builder, signature: Signature, arguments: Values) -> Value:
        a_, at_, factor_, out_, to_, count_ = arguments
        source = builder.gep(_data(context, builder, signature, 0, a_), [at_])
        target = builder.gep(_data(context, builder, signature, 3, out_), [to_])
        with cgutils.for_range(builder, count_, intp=_SIZE) as loop:
            x = builder.load(builder.gep(source, [loop.index]))
            x = x if x.type == factor_.type else builder.fpext(x, factor_.type)
            builder.store(builder.fmul(x, factor_), builder.gep(target, [loop.index]))
        return context.get_dummy_value()

    i = numba.types.int64
    return numba.types.void(a, i, numba.types.float64, out, i, i), emit


def _data(context: Context, builder: Builder, signature: Signature, n: int, value: Value) -> Value:
    """Pointer to the numbers of an array."""
    return context.make_array(signature.args[n])(context, builder, value).data


_JIT = not numba.config.DISABLE_JIT
nearer_last = _compiled_nearer_last if _JIT else _nearer_last
"""``nearer_last(far, at, like)``: whether the first of two rows is less in most lanes; then they
change places."""
weights = _compiled_weights if _JIT else _weights
"""``weights(far, at, rows, sharp, shift)``: ``exp(far sharp - shift)``, of at most e^64."""
bear = _compiled_bear if _JIT else _bear
"""``bear(far, at, part, count, allowed, spent)``: whether ``far part`` is allowed in every lane;
then ``far count`` goes from `allowed` to `spent`."""
widened = _compiled_widened if _JIT else _widened
"""``widened(a, at, factor, out, to, count)``: float64 numbers of a, times a factor."""
