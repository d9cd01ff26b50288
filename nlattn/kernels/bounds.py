"""Steps on the bounds of a panel's lanes, in whole vectors: rows of `width` numbers from `at`."""

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from nlattn._types import Floats, Scalar
from nlattn.kernels.gemm import PANEL_BYTES, VECTOR_BYTES, width
from nlattn.kernels.lanes import Lanes
from nlattn.runtime.emitting import Builder, Context, Kind, Signature, Value, Values

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


def _copy(a: Floats, at: int, b: Floats, to: int, count: int) -> None:
    b[to : to + count] = a[at : at + count]


@intrinsic
def _compiled_copy(_, a, at, b, to, count):  # type: ignore[no-untyped-def]  # pragma: no cover
    def emit(context: Context, builder: Builder, signature: Signature, arguments: Values) -> Value:
        a_, at_, b_, to_, count_ = arguments
        source = builder.gep(_data(context, builder, signature, 0, a_), [at_])
        target = builder.gep(_data(context, builder, signature, 2, b_), [to_])
        size = context.get_abi_sizeof(context.get_value_type(signature.args[0].dtype))
        cgutils.raw_memcpy(builder, target, source, count_, size)
        return context.get_dummy_value()

    i = numba.types.int64
    return numba.types.void(a, i, b, i, i), emit


def _less(a: Floats, at: int, centre: Floats, b: Floats, to: int, count: int) -> None:
    b[to : to + count] = a[at : at + count] - centre[:count]


@intrinsic
def _compiled_less(  # type: ignore[no-untyped-def]
    _, a, at, centre, b, to, count
):  # pragma: no cover - the compiler runs it
    def emit(context: Context, builder: Builder, signature: Signature, arguments: Values) -> Value:
        a_, at_, centre_, b_, to_, count_ = arguments
        source = builder.gep(_data(context, builder, signature, 0, a_), [at_])
        middle = _data(context, builder, signature, 2, centre_)
        target = builder.gep(_data(context, builder, signature, 3, b_), [to_])
        with cgutils.for_range(builder, count_, intp=_SIZE) as loop:
            x, c = (builder.load(builder.gep(p, [loop.index])) for p in (source, middle))
            rounded = _rounded(builder, builder.fsub(x, c), target.type.pointee)
            builder.store(rounded, builder.gep(target, [loop.index]))
        return context.get_dummy_value()

    i = numba.types.int64
    return numba.types.void(a, i, centre, b, i, i), emit


def _relative(
    x: Floats, count: int, steep: Floats, high: Floats, first: int, s: Floats, w: int
) -> None:
    part = width(x)
    lanes = slice(first, first + part)
    square = x[: count * part].reshape(count, part)
    s[: count * w].reshape(count, w)[:, lanes] = square * steep[lanes] - high[lanes]


@intrinsic
def _compiled_relative(  # type: ignore[no-untyped-def]
    _, x, count, steep, high, first, s, w
):  # pragma: no cover - the compiler runs it
    part = PANEL_BYTES // (x.dtype.bitwidth // 8)
    lanes = VECTOR_BYTES // (x.dtype.bitwidth // 8)

    def emit(context: Context, builder: Builder, signature: Signature, arguments: Values) -> Value:
        x_, count_, steep_, high_, first_, s_, w_ = arguments
        squares = _data(context, builder, signature, 0, x_)
        wide = ir.VectorType(squares.type.pointee, lanes)
        slopes = builder.gep(_data(context, builder, signature, 2, steep_), [first_])
        shifts = builder.gep(_data(context, builder, signature, 3, high_), [first_])
        target = builder.gep(_data(context, builder, signature, 5, s_), [first_])

        def load(pointer: Value, first: int) -> Value:
            size = context.get_abi_sizeof(pointer.type.pointee)
            kind = ir.VectorType(pointer.type.pointee, lanes).as_pointer()
            place = builder.bitcast(builder.gep(pointer, [_SIZE(first)]), kind)
            found = builder.load(place, align=size)
            return found if found.type == wide else builder.fpext(found, wide)

        given = [(load(slopes, l), load(shifts, l)) for l in range(0, part, lanes)]
        narrow = ir.VectorType(target.type.pointee, lanes)
        size = context.get_abi_sizeof(target.type.pointee)
        with cgutils.for_range(builder, count_, intp=_SIZE) as loop:
            source = builder.gep(squares, [builder.mul(loop.index, _SIZE(part))])
            row = builder.gep(target, [builder.mul(loop.index, w_)])
            for n, (a, b) in enumerate(given):
                new = builder.fsub(builder.fmul(load(source, n * lanes), a), b)
                place = builder.gep(row, [_SIZE(n * lanes)])
                place = builder.bitcast(place, narrow.as_pointer())
                builder.store(_rounded(builder, new, narrow), place, align=size)
        return context.get_dummy_value()

    i = numba.types.int64
    return numba.types.void(x, i, steep, high, i, s, i), emit


def _data(context: Context, builder: Builder, signature: Signature, n: int, value: Value) -> Value:
    """Pointer to the numbers of an array."""
    return context.make_array(signature.args[n])(context, builder, value).data


def _rounded(builder: Builder, x: Value, kind: Kind) -> Value:
    """A number in the type of another array."""
    return x if x.type == kind else builder.fptrunc(x, kind)


_JIT = not numba.config.DISABLE_JIT
nearer_last = _compiled_nearer_last if _JIT else _nearer_last
"""``nearer_last(far, at, like)``: whether the first of two rows is less in most lanes; then they
change places."""
weights = _compiled_weights if _JIT else _weights
"""``weights(far, at, rows, sharp, shift)``: ``exp(far sharp - shift)``, of at most e^64."""
bear = _compiled_bear if _JIT else _bear
"""``bear(far, at, part, count, allowed, spent)``: whether ``far part`` is allowed in every lane;
then ``far count`` goes from `allowed` to `spent`."""
copy = _compiled_copy if _JIT else _copy
"""``copy(a, at, b, to, count)``: numbers of one array into another; no index is looked at."""
less = _compiled_less if _JIT else _less
"""``less(a, at, centre, b, to, count)``: differences from a centre, rounded to the dtype of b."""
relative = _compiled_relative if _JIT else _relative
"""``relative(x, count, steep, high, first, s, w)``: ``s = x steep - high`` of the lanes of x, which
are those of `s` from the `first`; rows of `s` hold w."""
