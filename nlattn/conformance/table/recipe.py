"""From what one case of an operator is made: sizes, values, layouts, masks and options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from nlattn._types import Options

Kind = Literal["forward", "vjp", "jvp", "stages"]
Tier = Literal["smoke", "standard", "exhaustive", "large"]

WIDE = ("float64", "float32")
ALL = ("float64", "float32", "float16", "bfloat16")

PRIMES = {
    "n": 17, "m": 13, "d": 5, "e": 3, "r": 11, "Hq": 5, "Wq": 3, "Hk": 3, "Wk": 7,
    "H": 5, "W": 7, "t": 2, "f": 4, "h": 3, "parts": 3, "count": 5, "size": 4, "s": 3,
}  # fmt: skip
TILES = {
    "n": 65, "m": 129, "d": 17, "e": 33, "r": 31, "Hq": 9, "Wq": 8, "Hk": 8, "Wk": 9,
    "H": 9, "W": 8, "t": 3, "f": 4,
}  # fmt: skip
LONG = TILES | {"n": 257, "m": 513, "d": 65, "e": 31}
ONES = dict.fromkeys(PRIMES, 1) | {"f": 4}


@dataclass(frozen=True)
class Recipe:
    """One case for each kind and dtype."""

    label: str
    options: Options = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    lead: tuple[int, ...] = ()
    extra: tuple[str, ...] = ()
    """Arrays beside those of the table: "bias", "mask", "support:gaps", ...; see `cases.arrays`."""
    values: str = "normal"
    layout: str = "C"
    dtypes: tuple[str, ...] = WIDE
    also: tuple[str, ...] = ()
    """Dtypes beside these in which forward mode is not asked."""
    kinds: tuple[Kind, ...] = ("forward", "vjp", "jvp")
    """Of which an operator is asked for those that it has; a forward mode wherever a gradient."""
    tier: Tier = "smoke"
