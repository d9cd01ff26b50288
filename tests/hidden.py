"""Calls of every operator that hides keys from queries, and who may see whom in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import nlattn
from nlattn.conformance.table import find

Array = np.ndarray[Any, Any]
WILD = (np.nan, np.inf, -np.inf)
HIDING = ("mask", "key_mask", "causal", "window", "support", "index")
"""Options by which an operator hides keys."""


@dataclass(frozen=True)
class Scene:
    """A call of an operator, and which key each query may see."""

    op: str
    label: str
    arrays: Mapping[str, Array]
    options: Mapping[str, Any]
    seen: Array
    """(queries, keys), of flattened grids."""
    wild: tuple[int, ...] = (3, 11, 23)
    """Keys that are spoilt."""
    rows: tuple[int, ...] = (5,)
    """Queries, and rows of the cotangent, that are spoilt."""
    mapped: bool = True
    """Whether there is a map of these options."""
    zeros: bool = False
    """Whether bits are those of zeros in hidden places: other numbers move roundings."""
    unlike: frozenset[str] = field(default_factory=frozenset)
    """Results that are NaN in more places than the oracle's."""

    def __str__(self) -> str:
        return f"{self.op}-{self.label}"

    def spoilt(self, names: str, rows: bool) -> dict[str, Array]:
        """Arrays with numbers that are not finite in some, and perhaps in some queries."""
        places = {**dict.fromkeys(names, self.wild)}
        if rows:
            places |= {"q": self.rows, "dout": self.rows}
        return {n: _spoilt(x, places.get(n, ())) for n, x in self.arrays.items()}

    def plain(self, names: str, rows: bool) -> dict[str, Array]:
        """The arrays to compare with."""
        wild = self.spoilt(names, rows)
        if not self.zeros:
            return dict(self.arrays)
        return {n: np.where(np.isfinite(wild[n]), x, 0) for n, x in self.arrays.items()}

    def struck(self, rows: bool) -> Array:
        """Queries that see a spoilt key, or are spoilt."""
        hit: Array = self.seen[:, list(self.wild)].any(1)
        if rows:
            hit[list(self.rows)] = True
        return hit

    def call(self, kind: Any, arrays: Mapping[str, Array], oracle: bool = False) -> Any:
        """Result of the operator, its gradient or its map, or of the oracle."""
        row = find(self.op)
        given = {n: x for n, x in arrays.items() if n != "dout" or kind == "vjp"}
        if oracle:
            with np.errstate(all="ignore"):
                return row.oracle(kind)(**given, **self.options)
        if kind == "map":
            given.pop("v")
        return row.function(kind)(**given, **self.options, nonfinite="propagate")


def _spoilt(x: Array, places: tuple[int, ...]) -> Array:
    x = x.copy()
    flat = x.reshape(-1, x.shape[-1])
    for t, i in enumerate(places):
        flat[i, t % x.shape[-1] :] = WILD[t % 3]
    return x


def _sets(n: int = 24, m: int = 24, d: int = 4, e: int = 3) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    shapes = {"q": (n, d), "k": (m, d), "v": (m, e), "dout": (n, e)}
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def _scattered(n: int = 24, m: int = 24) -> Array:
    """Half of all pairs; key 0 is seen by all, and key 3 by none."""
    mask: Array = np.random.default_rng(1).random((n, m)) < 0.5
    mask[:, 0], mask[:, 3] = True, False
    return mask


def _support(seen: Array) -> nlattn.Support:
    indptr = np.concatenate([[0], np.cumsum(seen.sum(1))])
    return nlattn.support(indptr, np.nonzero(seen)[1], seen.shape)


def _dense() -> list[Scene]:
    pairs, tri = _scattered(), np.tri(24, dtype=bool)
    keys = np.ones(24, bool)
    keys[[3, 11, 23]] = False
    bias = np.where(pairs, np.random.default_rng(2).standard_normal(pairs.shape), -np.inf)
    away = np.arange(24) - np.arange(24)[:, None]
    shown: dict[str, tuple[dict[str, Any], Array]] = {
        "mask": ({"mask": pairs}, pairs),
        "keys": ({"mask": keys}, np.broadcast_to(keys, (24, 24))),
        "causal": ({"causal": True}, tri),
        "window": ({"window": (2, 1)}, (away >= -2) & (away <= 1)),
        "bias": ({"bias": bias}, pairs),
        "all": ({"mask": pairs, "causal": True, "softcap": 2.0}, pairs & tri),
    }
    found = [Scene("attention", n, _sets(), o, s.copy()) for n, (o, s) in shown.items()]
    i, j = np.arange(24)[:, None], np.arange(24)
    blocks = pairs[:6, :5]
    whole = np.repeat(np.repeat(blocks, 4, 0), 5, 1)[:, :24]
    shown = {
        "lengths": ({"key_lengths": 11, "query_lengths": 5}, (i < 5) & (j < 11)),
        "corner": (
            {"key_lengths": 20, "causal": True, "causal_offset": "bottom-right"},
            j <= np.minimum(i - 4, 19),
        ),
        "sinks": ({"sinks": np.array(0.5), "mask": pairs, "query_lengths": 20}, pairs & (i < 20)),
        "blocks": ({"mask": blocks, "mask_block": (4, 5), "alibi": np.array(0.1)}, whole),
        "dropout": ({"mask": pairs, "dropout_mask": ~pairs.T, "dropout_scale": 1.5}, pairs),
    }
    found += [
        Scene("attention", n, _sets(), o, s.copy(), mapped=False) for n, (o, s) in shown.items()
    ]
    return found


def _sparse() -> list[Scene]:
    pairs, index = _scattered(), np.array([0, 1, 2, 7, 8, 15])
    scenes = [
        Scene("sparse_attention", w, _sets(), {"support": _support(pairs), "weight": w}, pairs)
        for w in ("softmax", "gaussian", "abspow", "dot")
    ]
    chosen = np.zeros((24, 24), bool)
    chosen[:, index] = True
    return [*scenes, Scene("lev_attention", "index", _sets(), {"index": index}, chosen)]


def _efficient() -> list[Scene]:
    keys = np.ones(24, bool)
    keys[[3, 11, 23]] = False
    seen = np.broadcast_to(keys, (24, 24)).copy()
    return [
        Scene("efficient_attention", n, _sets(), {"mask": keys, "normalization": n}, seen)
        for n in ("softmax", "scaling")
    ]


MAKERS: tuple[Callable[[], list[Scene]], ...] = (_dense, _sparse, _efficient)
SCENES = [scene for make in MAKERS for scene in make()]
