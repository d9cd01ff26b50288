"""How well an approximate operator stands for dense attention at one size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nlattn._types import Arrays, Floats, JsonObject, Options
from nlattn.conformance.table import OpSpec
from nlattn.maps.base import AttentionMap
from nlattn.ops.dense import attention_map
from nlattn.ops.scram import scram_map, scram_support
from nlattn.quality import compare

_ROWS = 128
_BEST = 8


def compared(spec: OpSpec, arrays: Arrays, options: Options, seed: int) -> JsonObject | None:
    """Figures of `quality.compare` on some queries; None where there is nothing to approximate."""
    make = _MAPS.get(spec.growth.compared)
    if make is None:
        return None
    q, k = (_flat(arrays[name]).astype(np.float64) for name in "qk")
    exact = attention_map(q, k, scale=options.get("scale"))
    v = _flat(arrays["v"]).astype(np.float64) if "v" in arrays else None
    found = compare(make(spec, arrays, options), exact, v, rows=_ROWS, seed=seed, k=_BEST)
    return {
        "rows": found.rows,
        "recall": found.recall,
        "mass": found.mass,
        "mass_best": found.mass_best,
        "error": found.output,
    }


def _flat(x: Floats) -> Floats:
    return x.reshape(-1, x.shape[-1])


def _own(spec: OpSpec, arrays: Arrays, options: Options) -> AttentionMap:
    """The operator's map."""
    given = {name: x for name, x in arrays.items() if name != "v"}
    made: AttentionMap = spec.function("map")(**given, **options)
    return made


def _matches(spec: OpSpec, arrays: Arrays, options: Options) -> AttentionMap:
    """Attention to the matches of a search alone."""
    field = spec.function()(**arrays, **options)
    support = scram_support(field, kind="topk")
    scale = options.get("scale")
    return scram_map(arrays["q"], arrays["k"], field=field, support=support, scale=scale)


_MAPS: dict[str, Callable[[OpSpec, Arrays, Options], AttentionMap]] = {
    "map": _own,
    "matches": _matches,
}
"""By what operators that mean to be dense attention are compared."""
