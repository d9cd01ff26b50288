"""Small valid calls of every operator, made from its row of the table."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import DTypeLike

from nlattn._types import JsonObject, Support
from nlattn.conformance.table import OpSpec

SIZES = {"n": 5, "m": 7, "d": 3, "e": 4, "r": 6, "Hq": 3, "Wq": 4, "Hk": 4, "Wk": 3}
SIZES |= {"H": 4, "W": 5, "t": 2, "kh": 3, "kw": 3, "f": 4}


def call(
    spec: OpSpec,
    kind: Literal["", "map", "vjp"] = "",
    *,
    sizes: dict[str, int] | None = None,
    lead: tuple[int, ...] = (),
    dtype: DTypeLike = np.float64,
    seed: int = 0,
) -> JsonObject:
    """Arguments by name for ``spec.function(kind)``: normal random arrays, and what they need."""
    rng = np.random.default_rng(seed)
    size = {**SIZES, **(sizes or {})}
    for axis in "HW":  # of values and outputs that are finer than keys and queries
        scale = spec.options.get("scale", 1)
        size[f"{axis}v"], size[f"{axis}o"] = scale * size[f"{axis}k"], scale * size[f"{axis}q"]
        size[f"{axis}s"] = scale * size[axis]
    names = dict(spec.arrays)
    if kind == "map":
        names.pop("v", None)
    if kind == "vjp":
        names["dout"] = spec.out
    arguments: JsonObject = {
        name: rng.standard_normal((*lead, *(size[dim] for dim in dims.split()))).astype(dtype)
        for name, dims in names.items()
    }
    for name, dims in spec.extras.items():
        arguments[name] = rng.standard_normal([size[dim] for dim in dims.split()]).astype(dtype)
    if spec.cases.given == "support" and "n" in spec.out.split():
        arguments["support"] = _every_other_key(size["n"], size["m"])
    return {**arguments, **spec.options}


def _every_other_key(n: int, m: int) -> Support:
    """Query i attends to the keys of its own parity, and query 0 to none."""
    rows = [np.arange(i % 2, m, 2) if i else np.arange(0) for i in range(n)]
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Support(indptr, np.concatenate(rows or [np.arange(0)]).astype(np.int32), (n, m))
