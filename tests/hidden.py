"""Calls of every operator that hides keys from queries, and who may see whom in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import nlattn
from nlattn.conformance.table import find

Array = np.ndarray[Any, Any]
WILD = (np.nan, np.inf, -np.inf)
NONE: frozenset[str] = frozenset()
MORE = frozenset({"out", "dq", "dk", "dv"})
"""What is NaN where the oracle knows an infinite key to have no weight, or any."""
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
    unlike: frozenset[str] = NONE
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
            options = {n: x for n, x in self.options.items() if n != "field"}
            if "field" in self.options:
                options["index"] = self.options["field"].index
            with np.errstate(all="ignore"):
                return row.oracle(kind)(**given, **options)
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


def _certified() -> list[Scene]:
    pairs, tri = _scattered(), np.tri(24, dtype=bool)
    bias = np.where(np.isin(np.arange(24), (3, 11)), -np.inf, 0.5)  # and one that is seen
    some = np.broadcast_to(np.isfinite(bias), (24, 24))
    shown: dict[str, tuple[dict[str, Any], Array]] = {
        "mask": ({"mask": pairs}, pairs),
        "causal": ({"causal": True}, tri),
        "bias": ({"bias": bias, "causal": True}, some & tri),
        "gaussian": ({"mask": pairs, "weight": "gaussian"}, pairs),
    }
    return [
        Scene(
            "certified_attention",
            n,
            _sets(),
            o,
            s,
            zeros=n == "gaussian",
            unlike=MORE if n == "gaussian" else NONE,
        )
        for n, (o, s) in shown.items()
    ]


def _favor() -> list[Scene]:
    projection, tri = nlattn.orthogonal_features(4, 16, seed=0), np.tri(24, dtype=bool)
    scenes = []
    for kernel in ("softmax", "relu", "none"):
        options = {"causal": True, "kernel": kernel}
        if kernel != "none":
            options["projection"] = projection
        scenes.append(
            Scene(
                "favor_attention",
                kernel,
                _sets(),
                options,
                tri,
                wild=(11, 23),
                mapped=False,
                zeros=kernel == "none",
                unlike=MORE,
            )
        )
    return scenes


def _windows() -> list[Scene]:
    rng, (H, W, t) = np.random.default_rng(3), (6, 7, 2)
    shapes = {"q": (t, 4), "k": (H, W, 4), "v": (H, W, 3), "dout": (H, W, 3)}
    arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    y, x = np.divmod(np.arange(H * W), W)
    seen = (abs(y - y[:, None]) <= 1) & (abs(x - x[:, None]) <= 1)
    extras = {"bias": rng.standard_normal((t, 3, 3)), "gate": rng.standard_normal((t, 3, 3))}
    return [
        Scene("qna", n, arrays, {"window": 3, **o}, seen, wild=(10,), rows=(), zeros=True)
        for n, o in (("boxes", {}), ("bias", {"bias": extras["bias"]}), ("gated", extras))
    ]


def _neighbours() -> list[Scene]:
    rng, grid = np.random.default_rng(6), (6, 7)
    arrays = {n: rng.standard_normal((*grid, 3)) for n in ("q", "k", "v", "dout")}
    scenes = []
    for label, options in (
        ("boxes", {"window": (3, 3)}),
        ("dilated", {"window": (3, 2), "dilation": (2, 1), "stride": (1, 2)}),
        ("causal", {"window": (3, 3), "causal": (True, False)}),
    ):
        support: Any = nlattn.neighbourhood_support(grid, **options)
        seen = np.zeros((42, 42), bool)
        seen[np.repeat(np.arange(42), np.diff(support.indptr)), support.indices] = True
        scenes.append(Scene("neighbourhood_attention", label, arrays, options, seen, wild=(10,)))
    return scenes


def _grids() -> list[Scene]:
    rng, (H, W) = np.random.default_rng(4), (4, 6)
    arrays = {n: rng.standard_normal((H, W, 3)) for n in ("q", "k", "v", "dout")}
    keys = np.ones((H, W), bool)
    keys.flat[[3, 11, 23]] = False
    pairs = np.broadcast_to(keys, (H, W, H, W))
    scenes = []
    field = nlattn.patchmatch(
        arrays["q"], arrays["k"], score="neg_l2", topk=2, key_mask=keys, iterations=2
    )
    for op, label, options in (
        ("scram", "keys", {"key_mask": keys, "iterations": 2}),
        ("scram", "pairs", {"mask": pairs, "iterations": 2, "weight": "gaussian"}),
        ("psal", "keys", {"field": field, "patch": 1}),
    ):
        A = find(op).function("map")(arrays["q"], arrays["k"], **options)
        seen = A.scores(np.arange(H * W)) > -np.inf
        scenes.append(Scene(op, label, arrays, options, seen, rows=()))
    return scenes


MAKERS: tuple[Callable[[], list[Scene]], ...] = (
    _dense, _sparse, _efficient, _certified, _favor, _windows, _neighbours, _grids,
)  # fmt: skip
SCENES = [scene for make in MAKERS for scene in make()]
