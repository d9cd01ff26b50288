"""Arrays of one call: checked against each other, and folded for the kernels."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, get_args, overload

import numpy as np
from numpy.typing import DTypeLike

from nlattn._check.words import choice, fail, memory
from nlattn._modes import Nonfinite
from nlattn._types import Array, Floats, Ints

A = TypeVar("A", bound=Array)
FLOATS = "float32, float64 (or float16, bfloat16)"
_FEW = 8192  # entries; BLAS sums their squares faster than NumPy finds the largest
_known = threading.local()
COTANGENTS = ("dout", "dlse")  # these have the output's leading axes, and never widen them


def numbers(op: str, name: str, value: object) -> Array:
    """What NumPy makes of a value; what an object's own ``__array__`` raises is its own to say."""
    try:
        return np.asarray(value)
    except ValueError:
        if hasattr(type(value), "__array__"):
            raise
        fail(op, name, "is a ragged sequence, expected an array")


def array(op: str, name: str, value: object) -> Array:
    """`value` as a floating NumPy array, its strides and byte order still the caller's."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{op}: {name} is a masked array, whose mask would be lost; use mask=")
    if isinstance(value, np.matrix):
        raise TypeError(f"{op}: {name} is a np.matrix; pass np.asarray({name})")
    result = numbers(op, name, value)
    kind = result.dtype
    if kind.kind in "iub":
        raise TypeError(
            f"{op}: {name} has dtype {kind}, expected {FLOATS}; "
            f"convert it with {name}.astype(np.float32)"
        )
    if kind.kind == "c":
        raise TypeError(f"{op}: {name} is complex, expected {FLOATS}")
    held = kind.kind == "f" and kind.itemsize <= 8
    if not held and kind.newbyteorder("=").name != "bfloat16":
        raise TypeError(f"{op}: {name} has dtype {kind}, expected {FLOATS}")
    return result


def _compute_dtype(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def one_dtype(op: str, dtypes: Mapping[str, np.dtype], remedy: str = "") -> None:
    """Refuse arrays of several dtypes, naming all; `remedy` ends the error."""
    if len({native_of(dtype) for dtype in dtypes.values()}) > 1:
        listed = ", ".join(f"{name}: {dtype}" for name, dtype in dtypes.items())
        raise TypeError(f"{op}: arrays must share one dtype, got {listed}{remedy}")


@overload
def frozen(x: A) -> A: ...
@overload
def frozen(x: Array, dtype: DTypeLike) -> Any: ...
def frozen(x: Array, dtype: DTypeLike | None = None) -> Any:
    """Contiguous, aligned, native and read-only: the one layout that kernels are compiled for."""
    native = native_of(x.dtype) if dtype is None else np.dtype(dtype)
    flags = x.flags
    if not (flags.c_contiguous and flags.aligned and x.dtype == native and x.dtype.isnative):
        x = np.require(x, native, ["C", "A"])
    view = x.view()
    view.setflags(write=False)
    return view


def native_of(dtype: np.dtype) -> np.dtype:
    """The dtype in this machine's byte order."""
    return dtype if dtype.isnative else dtype.newbyteorder("=")


def largest(x: Floats) -> float:
    """The largest magnitude of an array, or a bound of it; NaN if an entry is not finite."""
    if not x.size:
        return 0.0
    if x.size <= _FEW and x.flags.c_contiguous and x.dtype.char in "fd":
        flat = x.reshape(-1)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            squares = float(np.dot(flat, flat))
        if 1e-20 < squares < 1e20:
            return math.sqrt(squares)
    high, low = float(x.max()), float(x.min())
    return max(high, -low) if math.isfinite(high) and math.isfinite(low) else math.nan


@contextmanager
def known_finite(arrays: Sequence[Floats]) -> Iterator[None]:
    """Spare these arrays another look for NaN while the block runs."""
    before: frozenset[int] = getattr(_known, "numbers", frozenset())
    try:
        _known.numbers = frozenset(map(id, arrays))
        yield
    finally:
        _known.numbers = before


def finite(op: str, name: str, x: Floats, *, remedy: bool = True) -> None:
    """Refuse NaN and infinities, naming the first; the `remedy` is the option to let them pass."""
    if math.isfinite(largest(x)):
        return
    flat = x.reshape(-1)
    for start in range(0, flat.size, 1 << 20):
        bad = ~np.isfinite(flat[start : start + (1 << 20)])
        if bad.any():
            first = start + int(bad.argmax())
            where = tuple(int(i) for i in np.unravel_index(first, x.shape))
            text = f"is {flat[first]}, expected finite values"
            passes = "; nonfinite='propagate' lets them pass" if remedy else ""
            fail(op, f"{name}{list(where)}", text + passes)


class Fit:
    """Arrays of one call, checked against each other and folded to one leading axis.

    Broadcast leading axes are not copied: ``index[b]`` says which slice of each folded array
    belongs to slice `b` of the result.
    """

    def __init__(self, op: str, lead: tuple[int, ...], dims: dict[str, int], out_dtype: np.dtype):
        self.op = op
        self.lead = lead
        self.dims = dims
        self.out_dtype = out_dtype
        self.dtype = _compute_dtype(out_dtype)
        self.batch = math.prod(lead)
        self.index: Ints = np.zeros((self.batch, 0), np.int64)
        self._folded: dict[str, Floats] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def __getitem__(self, name: str) -> Floats:
        return self._folded[name]

    def __contains__(self, name: str) -> bool:
        return name in self._folded

    def replaced(self, name: str, x: Floats) -> Fit:
        """The same call with other numbers in an array."""
        other = copy.copy(self)
        other._folded = self._folded | {name: frozen(x)}
        return other

    def put(self, name: str, x: Floats) -> None:
        """Another array of the same shape in the place of one."""
        self._folded[name] = frozen(x, self.dtype)

    def slices(self, *names: str) -> Ints:
        """Which slice of each of some arrays belongs to each slice of the result."""
        order = list(self._folded)
        return self.index[:, [order.index(name) for name in names]]

    @property
    def names(self) -> tuple[str, ...]:
        """Arrays of the call, in the order of the columns of `index`."""
        return tuple(self._folded)

    def given(self, name: str) -> tuple[int, ...]:
        """The shape in which an array was given."""
        return self._shapes[name]

    def shape(self, spec: str) -> tuple[int, ...]:
        """Sizes of the dimensions in `spec`."""
        return tuple(self.dims[d] for d in spec.split())

    def lead_of(self, name: str) -> tuple[int, ...]:
        """Leading axes of an array as it was given."""
        shape = self._shapes[name]
        return shape[: len(shape) - self._folded[name].ndim + 1]

    def empty(self, spec: str, dtype: DTypeLike | None = None) -> Any:
        """Uninitialised result of every slice, ``(batch, *spec)``."""
        return np.empty((self.batch, *self.shape(spec)), self.dtype if dtype is None else dtype)

    def unfold(self, x: Array, *, cast: bool = True) -> Array:
        """Leading axes restored; rounded to the caller's dtype if `cast`."""
        x = x.reshape(self.lead + x.shape[1:])
        return x.astype(self.out_dtype, copy=False) if cast else x

    def reduce(self, name: str, gradient: Floats) -> Floats:
        """Sum a per-slice gradient over the slices that share `name`'s arrays, in fixed order."""
        shape, core = self._shapes[name], gradient.shape[1:]
        lead = shape[: len(shape) - len(core)]
        summed = gradient.reshape(self.lead + core)
        for axis, length in enumerate((1,) * (len(self.lead) - len(lead)) + lead):
            group = summed.shape[axis] // length if length else 1
            if group != 1:  # a shared group of heads is consecutive, also when it is all of them
                split = (*summed.shape[:axis], length, group, *summed.shape[axis + 1 :])
                summed = summed.reshape(split).sum(axis + 1)
        return summed.reshape(shape).astype(self.out_dtype, copy=False)

    def reduce_beside(self, gradient: Floats, shape: tuple[int, ...]) -> Floats:
        """Sum numbers of slices, (batch,), to a `shape` that broadcasts to the leading axes."""
        summed = gradient.reshape(self.lead)
        summed = summed.sum(tuple(range(len(self.lead) - len(shape))))
        kept = tuple(a for a, size in enumerate(shape) if size == 1 != summed.shape[a])
        total: Floats = summed.sum(kept, keepdims=True).astype(self.out_dtype)
        return total


def fit(
    op: str,
    arrays: Mapping[str, tuple[object, str]],
    *,
    nonfinite: str = "raise",
    gqa: bool = False,
    shared: Sequence[str] = (),
    max_bytes: float = 4e9,
    remedy: bool = True,
) -> Fit:
    """Check arrays against their dimensions and each other, and fold their leading axes.

    Each entry is ``name: (array, "n d")``: trailing dimensions by name, one name one size; axes
    before them are leading and broadcast. The first array leads: with ``gqa=True`` its last
    leading axis may be a multiple of the others'. The `shared` arrays serve all slices and have no
    leading axes. Dimensions `d`, `e`, `C` and those that start with `H`, `W`, `T` or `L` must not
    be empty. `remedy` says whether the caller has the option `nonfinite`, which an error names.
    """
    choice(op, "nonfinite", nonfinite, get_args(Nonfinite))
    given = {name: array(op, name, value) for name, (value, _) in arrays.items()}
    dtypes = {name: native_of(x.dtype) for name, x in given.items()}
    one_dtype(op, dtypes)

    dims = _dimensions(op, given, {name: spec.split() for name, (_, spec) in arrays.items()})
    leads = {
        name: given[name].shape[: given[name].ndim - len(spec.split())]
        for name, (_, spec) in arrays.items()
    }
    for name in shared:
        if leads[name]:
            wanted = f"({', '.join(arrays[name][1].split())})"
            fail(op, name, f"has shape {given[name].shape}, expected {wanted}, one for all slices")
    for name, x in given.items():  # dq is a change of q
        array_ = given.get(name[1:]) if name[0] == "d" else None
        if array_ is not None and x.shape != array_.shape:
            fail(op, name, f"has shape {x.shape}, expected {array_.shape} as {name[1:]} has")
    lead, tables = _broadcast(op, leads, gqa)
    result = Fit(op, lead, dims, next(iter(dtypes.values())))
    result.index = np.empty((result.batch, len(tables)), np.int64)
    for column, table in enumerate(tables):
        result.index[:, column] = table
    for name, x in given.items():
        plain = x.flags.c_contiguous and x.dtype == result.dtype
        copied = 0 if plain else x.size * result.dtype.itemsize
        memory(
            op, copied, max_bytes, f"a contiguous copy of {name}", "pass it contiguous, in parts"
        )
        folded = frozen(x, result.dtype)
        if nonfinite == "raise" and id(arrays[name][0]) not in getattr(_known, "numbers", ()):
            finite(op, name, folded, remedy=remedy)
        result._shapes[name] = x.shape
        result._folded[name] = folded.reshape(
            (math.prod(leads[name]), *x.shape[len(leads[name]) :])
        )
    return result


def _dimensions(
    op: str, given: Mapping[str, Array], specs: Mapping[str, list[str]]
) -> dict[str, int]:
    dims: dict[str, int] = {}
    source: dict[str, str] = {}
    for name, x in given.items():
        spec = specs[name]
        wanted = f"({', '.join(spec)})"
        if x.ndim < len(spec):
            fail(op, name, f"has shape {x.shape}, expected {wanted} or with leading axes")
        core = x.shape[x.ndim - len(spec) :]
        for dim, length in zip(spec, core, strict=True):
            if dims.setdefault(dim, length) != length:
                fail(
                    op,
                    name,
                    f"has shape {x.shape}, expected {wanted} with {dim}={dims[dim]} "
                    f"from {source[dim]}",
                )
            source.setdefault(dim, name)
            if length == 0 and dim in "deC":
                fail(op, name, "has 0 channels, expected at least 1")
            if length == 0 and dim[0] in "HWTL":
                fail(op, name, f"has shape {x.shape}, expected at least one pixel")
    return dims


def _broadcast(
    op: str, leads: Mapping[str, tuple[int, ...]], gqa: bool
) -> tuple[tuple[int, ...], list[Ints]]:
    """The common leading shape, and for each array the slice that every result slice reads."""
    first, *others = leads
    if not gqa and all(lead == leads[first] for lead in leads.values()):
        return leads[first], [np.arange(math.prod(leads[first]))] * len(leads)
    expanded = dict(leads)
    repeats = dict.fromkeys(leads, 1)
    if gqa:
        if not leads[first]:
            fail(op, first, "has no head axis, which gqa=True needs: expected (..., heads, n, d)")
        heads = leads[first][-1]
        for name in others:
            mine = leads[name][-1] if leads[name] else 1
            if name in COTANGENTS or mine in (1, heads):
                continue
            if mine == 0 or heads % mine:
                fail(
                    op,
                    name,
                    f"has {mine} heads, expected a divisor of the {heads} heads of {first}",
                )
            repeats[name] = heads // mine
            expanded[name] = (*leads[name][:-1], heads)
    try:
        lead = np.broadcast_shapes(*(s for name, s in expanded.items() if name not in COTANGENTS))
    except ValueError:
        listed = ", ".join(f"{name}: {shape}" for name, shape in leads.items())
        raise ValueError(f"{op}: leading axes do not broadcast, got {listed}") from None
    tables: list[Ints] = []
    for name, shape in leads.items():
        if name in COTANGENTS and shape != lead:
            fail(op, name, f"has leading axes {shape}, expected {lead} as the output has")
        slices = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
        if repeats[name] > 1:
            slices = np.repeat(slices, repeats[name], axis=-1)
        tables.append(np.broadcast_to(slices, lead).reshape(-1))
    return tuple(lead), tables
