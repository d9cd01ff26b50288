"""What one call of an operator takes: counted where it is counted, else its exact law."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from nlattn._types import Field, Work
from nlattn.conformance.table import OpSpec
from nlattn.maps.base import AttentionMap
from nlattn.maps.sparse import SparseMap


class Law(NamedTuple):
    """Work from shapes alone, as expressions in the dimensions and options of a call."""

    scores: str
    multiply_adds: str
    numbers: str
    """Numbers of features, values and results that are read or written."""

    def work(self, sizes: Mapping[str, int]) -> Work:
        """The law at some sizes, in integers."""
        scores, products, numbers = (
            int(eval(text, {"__builtins__": {}}, dict(sizes)))  # constants of this file
            for text in self
        )
        return Work(scores, products, numbers * sizes["size"])

    def __str__(self) -> str:
        return self.multiply_adds.replace("**", "^").replace("//", "/").replace("*", " ")


_ALL = Law("n*m", "n*m*(d + e)", "n*m*(d + e) + n*(d + e)")
_ORDER = Law("0", "(n + m)*d*e", "(n + m)*(d + e)")
_RANDOM = Law("0", "(n + m)*r*(d + e + 1)", "(n + m)*(d + e)")
LAWS: dict[str, Law] = {
    "attention": _ALL,
    "nonlocal_mean": _ALL,
    "efficient_attention": _ORDER,
    "refined_self_attention": _ORDER,
    "favor_attention": _RANDOM,
    "enla": _RANDOM,
    "enlca_loss": Law("n*m", "n*m*d", "n*m*d + n*d"),
    "leverage_scores": Law("0", "3*n*d**2//2", "2*n*d + 2*n"),
    "universal_set": Law("0", "3*m*d**2//2", "2*m*d + 2*m"),
    "lev_attention": Law(
        "n*keys",
        "3*m*d**2//2 + n*keys*(d + e)",
        "2*m*d + 2*m + n*keys*(d + e) + n*(d + e)",
    ),
    "nl_means": Law(
        "n*(2*reach + 1)**2",
        "n*(2*reach + 1)**2*(patch + e)",
        "n*(2*reach + 1)**2*(patch + e) + n*e",
    ),
    "cross_scale_attention": Law("n*m", "n*m*(d + s**2*e)", "n*m*(2*d + 2*s**2*e + 1)"),
    "qna": Law("n*t", "n*t*d + 2*n*window*t*(e + 1)", "n*(d + t + 2*window*t*(e + 1) + e)"),
    "qna_upsample": Law(
        "n*f*t", "n*f*t*d + n*f*window**2*t*(e + 1)", "n*(d + f*t + f*window**2*t*(e + 1) + f*e)"
    ),
}
"""Exact multiply-adds of operators whose work follows from shapes."""

BOUNDS: dict[str, str] = {
    "patchmatch": "n d (1 + 5 (8 4 + log2(side) + 1))",
    "scram": "n d (1 + 5 (8 4 + log2(side) + 1)) + 9 n (d + e)",
    "psal": "n d patch^2 (1 + iterations (8 4 + log2(side) + 1)) + n topk patch^2 (d + e)",
    "sparse_attention": "nnz (d + e)",
    "heavy_attention": "3 m d^2/2 + n |U| d",
    "lewis_weights": "3 m d^2 steps",
}
"""What counted work follows or is at most."""

DATA = ("sensitivity_bounds", "lp_sensitivity")
"""Operators whose number of steps depends on data and is not reported: time alone."""


class Counted(NamedTuple):
    """Work of one call."""

    work: Work
    how: str
    """"count" if the operator counted, "law" if it follows from shapes."""
    law: str


def count(spec: OpSpec, arrays: Mapping[str, Any], options: Mapping[str, Any]) -> Counted | None:
    """Work of an operator of the table for some arguments; None if there is no knowing."""
    if spec.name in LAWS:
        law = LAWS[spec.name]
        return Counted(law.work(_sizes(spec, arrays, options)), "law", str(law))
    counter = _COUNTERS.get(spec.name)
    if counter is None:
        return None
    return Counted(counter(spec, arrays, options), "count", BOUNDS[spec.name])


def of_result(result: Any) -> Work | None:
    """The `Work` that a function returned, alone, in a tuple, or as ``.work`` of a map or field."""
    if isinstance(result, Work):
        return result
    found = getattr(result, "work", None)
    if isinstance(found, Work):
        return found
    parts = result if isinstance(result, tuple) and not isinstance(result, Field) else ()
    return next((part for part in parts if isinstance(part, Work)), None)


def _sizes(spec: OpSpec, arrays: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, int]:
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


def _searched(spec: OpSpec, arrays: Mapping[str, Any], options: Mapping[str, Any]) -> Work:
    """Work of making the map, and of applying it to the values."""
    given = {name: x for name, x in arrays.items() if name != "v"}
    return applied(spec.function("map")(**given, **options), arrays["v"].shape[-1])


def applied(A: AttentionMap, e: int) -> Work:
    """Work of a sparse map: what made it, and what taking `e` channels of values through it is."""
    assert isinstance(A, SparseMap)
    nnz, size = len(A.weights), A.dtype.itemsize
    scores, products, bytes_ = A.work[:3]
    moved = nnz * (4 + size * (1 + e)) + A.shape[0] * e * size
    return Work(scores, products + nnz * e, bytes_ + moved, A.work.per_query, A.work.changed)


def _field(spec: OpSpec, arrays: Mapping[str, Any], options: Mapping[str, Any]) -> Work:
    found: Work = spec.function()(**arrays, **options).work
    return found


def _heavy(spec: OpSpec, arrays: Mapping[str, Any], options: Mapping[str, Any]) -> Work:
    scores, products, bytes_ = spec.function()(**arrays, **options).work[:3]
    keys = LAWS["universal_set"].work(_sizes(spec, arrays, options))
    return Work(scores, products + keys.multiply_adds, bytes_ + keys.bytes)


def _lewis(spec: OpSpec, arrays: Mapping[str, Any], options: Mapping[str, Any]) -> Work:
    steps = int(np.sum(spec.function()(**arrays, **options).iterations))
    m, d = arrays["k"].shape
    return Work(0, 3 * steps * m * d * d, 2 * steps * m * d * 8)


_COUNTERS: dict[str, Callable[[OpSpec, Mapping[str, Any], Mapping[str, Any]], Work]] = {
    "patchmatch": _field,
    "scram": _searched,
    "psal": _searched,
    "sparse_attention": _searched,
    "heavy_attention": _heavy,
    "lewis_weights": _lewis,
}
