"""The table of operators: one row each, from which cases, tests, lists and docs are made."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["paper", "author code", "reconstruction", "ours"]


@dataclass(frozen=True)
class OpSpec:
    """What there is to know of one operator."""

    name: str
    """Public name; its map and gradient are ``<name>_map`` and ``<name>_vjp``."""
    stem: str
    """File name in ``oracle/`` and ``ops/``, and of its page in ``docs/algorithms/``."""
    arrays: Mapping[str, str]
    """Positional arrays and their trailing dimensions, ``{"q": "n d"}``."""
    out: str
    """Trailing dimensions of the result."""
    summary: str
    cost: str
    memory: str
    exact: bool
    """Whether the result is dense attention, or an approximation chosen by a search."""
    status: Status
    source: str
    has_map: bool = True
    has_vjp: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options that a small case needs to be a good example."""

    def function(self, kind: Literal["", "map", "vjp"] = "") -> Callable[..., Any]:
        """Return the public function, its map or its gradient."""
        module = importlib.import_module(f"nlattn.ops.{self.stem}")
        return getattr(module, "_".join(filter(None, [self.name, kind])))  # type: ignore[no-any-return]

    def oracle(self, kind: Literal["", "vjp"] = "") -> Callable[..., Any]:
        """Return the oracle's function of the same name."""
        module = importlib.import_module(f"nlattn.oracle.{self.stem}")
        return getattr(module, "_".join(filter(None, [self.name, kind])))  # type: ignore[no-any-return]


_GRIDS = {"q": "Hq Wq d", "k": "Hk Wk d"}

TABLE: tuple[OpSpec, ...] = (
    OpSpec(
        name="attention",
        stem="dense",
        arrays={"q": "n d", "k": "m d", "v": "m e"},
        out="n e",
        summary="softmax over all keys",
        cost="n m (d + e)",
        memory="O(n e)",
        exact=True,
        status="paper",
        source="vaswani2017",
    ),
    OpSpec(
        name="patchmatch",
        stem="patchmatch",
        arrays=_GRIDS,
        out="Hq Wq topk",
        summary="best keys of every query, by propagation and random search",
        cost="n iterations (32 + log2 side) d",
        memory="O(n topk)",
        exact=False,
        status="paper",
        source="barnes2009, barnes2010",
        has_map=False,
        has_vjp=False,
    ),
    OpSpec(
        name="sparse_attention",
        stem="sparse",
        arrays={"q": "n d", "k": "m d", "v": "m e"},
        out="n e",
        summary="softmax over a given support",
        cost="nnz (d + e)",
        memory="O(n e)",
        exact=True,
        status="ours",
        source="wang2018, calian2019",
    ),
    OpSpec(
        name="scram",
        stem="scram",
        arrays={**_GRIDS, "v": "Hk Wk e"},
        out="Hq Wq e",
        summary="PatchMatch argmax, then a sparse non-local mean",
        cost="n log n d",
        memory="O(n (e + window^2))",
        exact=False,
        status="reconstruction",
        source="calian2019",
    ),
)


def find(name: str) -> OpSpec:
    """Return the row of an operator."""
    for spec in TABLE:
        if spec.name == name:
            return spec
    raise KeyError(f"{name!r} is no operator; there are {', '.join(s.name for s in TABLE)}")
