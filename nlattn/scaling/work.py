"""What one call of an operator takes: counted where it is counted, else its exact law."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import NamedTuple

import numpy as np

from nlattn._types import Arrays, Field, Options, Work
from nlattn.conformance.table import OpSpec
from nlattn.conformance.table.row import Law
from nlattn.maps.base import AttentionMap
from nlattn.maps.certified import CertifiedMap
from nlattn.maps.permutohedral import PermutohedralMap
from nlattn.maps.sparse import SparseMap

_SELECTION = Law("0", "3*m*d**2//2", "2*m*d + 2*m")
"""Choosing keys by their leverage."""


class Counted(NamedTuple):
    """Work of one call."""

    work: Work
    how: str
    """"count" if the operator counted, "law" if it follows from shapes, "number" if a function
    returned its work as a number, which stands as multiply-adds."""
    law: str


def count(spec: OpSpec, arrays: Arrays, options: Options) -> Counted | None:
    """Work of an operator of the table for some arguments; None if there is no knowing."""
    law = spec.growth.law
    if law is not None:
        return Counted(law.work(_sizes(spec, arrays, options)), "law", str(law))
    if not spec.growth.counted:
        return None
    counter = _COUNTERS[spec.growth.counted]
    return Counted(counter(spec, arrays, options), "count", spec.growth.follows)


def of_result(result: object) -> Work | None:
    """The `Work` that a function returned, alone, in a tuple, or as ``.work`` of a map or field."""
    if isinstance(result, Work):
        return result
    found = getattr(result, "work", None)
    if isinstance(found, Work):
        return found
    parts = result if isinstance(result, tuple) and not isinstance(result, Field) else ()
    return next((part for part in parts if isinstance(part, Work)), None)


def number_of(result: object) -> float | None:
    """The number that a function returned as its work; None if it is no finite number."""
    if isinstance(result, np.ndarray) and result.ndim == 0:
        result = result.item()
    if isinstance(result, (bool, np.bool_)) or not isinstance(result, Real):
        return None
    try:
        number = float(result)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _sizes(spec: OpSpec, arrays: Arrays, options: Options) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name, dims in {**spec.arrays, **spec.extras}.items():
        if name in arrays:
            sizes |= dict(zip(dims.split(), map(int, arrays[name].shape), strict=True))
    if "H" in sizes:
        sizes["n"] = sizes["H"] * sizes["W"]
    if "Hq" in sizes:
        sizes |= {"n": sizes["Hq"] * sizes["Wq"], "m": sizes["Hk"] * sizes["Wk"]}
    renamed = {"scale": "s", "patch_size": "patch", "patch_distance": "reach"}
    whole = {renamed.get(k, k): v for k, v in options.items() if isinstance(v, int)}
    first = next(iter(arrays.values()))
    return {**whole, **sizes, "size": int(first.dtype.itemsize)}


def _searched(spec: OpSpec, arrays: Arrays, options: Options) -> Work:
    """Work of making the map, and of applying it to the values."""
    given = {name: x for name, x in arrays.items() if name != "v"}
    return applied(spec.function("map")(**given, **options), arrays["v"].shape[-1])


def applied(A: AttentionMap, e: int) -> Work:
    """Work of a map: what made it, and what taking `e` channels of values through it is."""
    if isinstance(A, PermutohedralMap):
        filtered = A.lattice.work(e)
        products, bytes_ = A.work[1] + filtered.multiply_adds, A.work[2] + filtered.bytes
        return Work(0, products, bytes_)
    if isinstance(A, CertifiedMap):  # the sums look at as much as the normalisers
        scores, products, bytes_, seen, _ = A.work
        moved = scores * e * A.dtype.itemsize
        return Work(scores, products + scores * e, bytes_ + moved, seen)
    assert isinstance(A, SparseMap)
    nnz, size = len(A.weights), A.dtype.itemsize
    scores, products, bytes_ = A.work[:3]
    moved = nnz * (4 + size * (1 + e)) + A.shape[0] * e * size
    return Work(scores, products + nnz * e, bytes_ + moved, A.work.per_query, A.work.changed)


def _field(spec: OpSpec, arrays: Arrays, options: Options) -> Work:
    found: Work = spec.function()(**arrays, **options).work
    return found


def _heavy(spec: OpSpec, arrays: Arrays, options: Options) -> Work:
    scores, products, bytes_ = spec.function()(**arrays, **options).work[:3]
    keys = _SELECTION.work(_sizes(spec, arrays, options))
    return Work(scores, products + keys.multiply_adds, bytes_ + keys.bytes)


def _stepped(spec: OpSpec, arrays: Arrays, options: Options) -> Work:
    """A factorisation of all keys, and of the weighted keys in each step."""
    count = 1 + int(np.sum(spec.function()(**arrays, **options).iterations))
    m, d = arrays["k"].shape
    return Work(0, 3 * count * m * d * d, 2 * count * m * d * 8)


_COUNTERS: dict[str, Callable[[OpSpec, Arrays, Options], Work]] = {
    "field": _field,
    "map": _searched,
    "entries": _heavy,
    "steps": _stepped,
}
