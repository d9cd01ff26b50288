"""Cases past the limits of 32 bits: each makes one array so long that offsets in it pass 2**31."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np

from nlattn.conformance.case import Case, Kind, dtype_of
from nlattn.conformance.cases.shapes import Shapes
from nlattn.conformance.cases.suite import fitted, make
from nlattn.conformance.large_call import TOWARDS
from nlattn.conformance.table import TABLE, OpSpec, find
from nlattn.conformance.table.recipe import Recipe

LIMIT = 1 << 31
"""Bytes, or elements, that the longest array passes."""
ROWS, MORE = 24, 65
"""Places of the small case in a long dimension, and rows beyond the limit."""
_SIZES = {"n": 24, "m": 40, "d": 8, "e": 8}
_WAYS: dict[str, tuple[str, dict[str, int]]] = {
    "queries": ("n", {"d": 256}),
    "outputs": ("n", {"e": 256}),
    "keys": ("m", {"d": 256, "n": 8}),
    "values": ("m", {"e": 256, "n": 8}),
    "elements": ("n", {"d": 1024}),
    "band": ("nm", {"d": 16, "n": ROWS, "m": ROWS}),
    "grid": ("H", {"d": 256, "H": 12, "W": 16}),
    "places": ("H", {"d": 16, "H": 12, "W": 16}),
}
"""The dimension that is long, and the sizes that make it so."""
_OPTIONS: dict[str, dict[str, object]] = {
    "band": {"window": [3, 2]},
    "grid": {"window": [3, 3], "causal": [True, False]},
}
_OPTIONS["places"] = _OPTIONS["grid"]
"""Of grids windows end at the query's row: what lies before, whose weight is 0, moves none."""
_BEFORE = 4
"""Rows of a grid's part before the limit."""


def large(
    ops: tuple[str, ...] | None = None,
    dtypes: Collection[str] | None = None,
    pattern: str = "*",
    shapes: Mapping[str, Shapes] | None = None,
) -> Iterator[Case]:
    """Large cases whose names match; of float32 if no dtype is asked for."""
    for spec in TABLE if ops is None else map(find, ops):
        for way in spec.cases.large:
            for kind in ("forward", "vjp") if spec.has_vjp else ("forward",):
                for dtype in dtypes or ("float32",):
                    if fnmatchcase(f"{spec.name}/{kind}/{dtype}/{way}", pattern):
                        yield enlarged(spec, way, kind, dtype, (shapes or {}).get(spec.name))


def enlarged(spec: OpSpec, way: str, kind: Kind, dtype: str, shapes: Shapes | None = None) -> Case:
    """One of them."""
    long, sizes = _WAYS[way]
    extra = ("support:gaps",) if spec.cases.given == "support" else ()
    recipe = Recipe(way, _OPTIONS.get(way, {}), {**_SIZES, **sizes}, extra=extra)
    case = make(spec, fitted(recipe, shapes), kind, dtype)
    arrays = {name: np.array(x) for name, x in case.arrays.items()}
    arrays["q"][..., -1], arrays["k"][..., -1] = TOWARDS, 0
    row = max(case.sizes()[name] for name in "de")
    item = 1 if way == "elements" else dtype_of(dtype).itemsize
    size = LIMIT // (row * item) if way not in ("band", "places") else LIMIT >> 10
    if long == "H":
        size = -(-size // arrays["q"].shape[1])
        at = list(range(size - _BEFORE, size - _BEFORE + len(arrays["q"])))
        return replace(
            case, arrays=arrays, whole={"H": {"size": at[-1] + 1, "at": at}}, tier="large"
        )
    total = dict.fromkeys(long, size + MORE)
    if shapes is not None:
        total = shapes.fit(total)
    counts = {"n": len(arrays["q"]), "m": len(arrays["k"])}
    whole: dict[str, object] = {}
    for name in long:
        at = _places(counts[name], size, total[name], together=way == "band")
        whole[name] = {"size": total[name], "at": at}
    return replace(case, arrays=arrays, whole=whole, tier="large")


def _places(count: int, limit: int, size: int, *, together: bool) -> list[int]:
    """Where the small case's rows stand: at both ends, on both sides of the limit, and between."""
    if together:
        return list(range(size - count, size))
    third = count // 3
    ends = {0, size - 1, *range(limit - third // 2, limit - third // 2 + third)}
    spread = np.linspace(1, size - 2, count, dtype=np.int64)
    chosen = [*ends, *(int(x) for x in spread if int(x) not in ends)]
    return sorted(chosen[:count])
