"""What a row of the table says of an operator: all that other files need to know of it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from nlattn._types import Function, Options, Work
from nlattn.conformance.table.recipe import Recipe

SourceStatus = Literal["paper", "author code", "reconstruction", "ours"]
_PLAIN = Recipe("")
GRIDS = {"q": "Hq Wq d", "k": "Hk Wk d"}


class Law(NamedTuple):
    """Work from shapes alone, as expressions in the dimensions and options of a call."""

    scores: str
    multiply_adds: str
    numbers: str
    """Numbers of features, values and results that are read or written."""

    def work(self, sizes: Mapping[str, int]) -> Work:
        """The law at some sizes, in integers."""
        scores, products, numbers = (
            int(eval(text, {"__builtins__": {}}, dict(sizes)))  # constants of a row
            for text in self
        )
        return Work(scores, products, numbers * sizes["size"])

    def __str__(self) -> str:
        return self.multiply_adds.replace("**", "^").replace("//", "/").replace("*", " ")


@dataclass(frozen=True)
class Growth:
    """How cost grows: a law of shapes, a count, or, with neither, time alone."""

    law: Law | None = None
    """Exact multiply-adds, where work follows from shapes."""
    counted: Literal["", "field", "map", "entries", "steps"] = ""
    """What reports the work that a call has done; see `scaling/work.py`."""
    follows: str = ""
    """What counted work follows or is at most."""
    options: Options = field(default_factory=dict)
    """Options of full-sized pictures, where the row's own are of small ones."""
    scaled: bool = False
    """Whether ``scale`` is a factor on scores that a scene chooses."""
    sides: tuple[int, int, int] = (32, 256, 9)
    """Sides of the smallest and the largest picture, and how many, that show how work grows."""
    separable: bool = False
    """Whether a share of the queries takes that share of the time."""
    channels: int = 0
    """How many channels it is given, the first: as points of which a scene's scale is the sigma."""
    coarser_keys: bool = False
    """Whether keys come from a picture of half the size."""
    compared: Literal["", "map", "matches"] = ""
    """By what it is held against dense attention, if it means to stand for it."""


class Search(NamedTuple):
    """How what an operator finds by itself is judged beside what the oracle finds."""

    by: Literal["matches", "all keys", "nearest patch", "chosen keys"]
    """What faults are counted against, `judge/search.py`."""
    options: Options


@dataclass(frozen=True)
class Cases:
    """What the kit's cases of an operator are made of, and how its results are bounded."""

    choices: tuple[tuple[Recipe, ...], ...] = ()
    """Its options, each with the values that it is tried with: alone, in pairs, and with heads."""
    together: tuple[tuple[Recipe, ...], ...] = ()
    """All that may be asked at once, rare options too: each two of them meet, in float32."""
    apart: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Labels among `together` that exclude each other."""
    beside: Recipe = _PLAIN
    """What these recipes need beside: heads, a support."""
    heads: tuple[Recipe, ...] = ()
    """Ways to share heads that not all operators have."""
    recipes: tuple[Recipe, ...] = ()
    """What is tried beside these and beside what all operators have."""
    values: tuple[str, ...] = ()
    """Kinds of values that tell more of it than of others: "constant", "subnormal"."""
    large: tuple[
        Literal["queries", "outputs", "keys", "values", "elements", "band", "grid", "places"], ...
    ] = ()
    """In which ways a call grows past the limits of 32 bits, `cases/large.py`."""
    without: tuple[str, ...] = ()
    """Labels of common recipes that make no sense for it."""
    quantised: tuple[str, ...] = ()
    """Arrays that may be given in eight bits, with scales."""
    given: str = ""
    """A choice made beforehand and part of every case: "support", "field", "index", "simplices",
    "table"."""
    most: Mapping[str, int] = field(default_factory=dict)
    """Largest size of a dimension at which results tell something."""
    outputs: tuple[str, ...] = ("out",)
    differentiable: tuple[str, ...] = ()
    """Arrays given by keyword that have a gradient, too."""
    differentiable_if: Mapping[str, str] = field(default_factory=dict)
    """Arrays that have a gradient where an option is set, which comes last; changes in one case."""
    of_gradients: tuple[str, ...] = ()
    """Options that a gradient takes and the forward pass does not."""
    zeros: tuple[str, ...] = ()
    """Options among its choices that may be 0, which is no default."""
    ways: tuple[str, ...] = ()
    """Options that say how a result is found, not what it is."""
    promises: Literal["", "missed", "bracket", "residual"] = ""
    """What an operator states of results that are not determined, `judge/promises.py`."""
    unasked: Mapping[str, str] = field(default_factory=dict)
    """Options that no case asks for, each with the reason."""
    shares: tuple[str, ...] = ()
    """Arrays whose rows are shares of 1, 0 where the first array is -inf; they have no gradient."""
    stretch: float = 1.0
    """How far beyond scores of 1e4 large values go; 0 where lengths do not count."""
    tall: bool = False
    """Whether there must be as many keys as channels."""
    causal_is_square: bool = False
    """Whether causality needs as many keys as queries."""
    costly: bool = False
    """Whether the oracle takes long: fewer cases, of fewer dtypes."""
    one_head: bool = False
    """Whether the oracle takes no leading axes."""
    bound: Literal["analysis", "condition", "root of condition"] = "analysis"
    """Where results solve an equation, their bound is one of its condition."""
    factored: bool = False
    """Whether right backends factor the keys, with errors of their own: bounds alone judge."""
    slack: float = 0.0
    """Relative error that the operator itself allows, beside rounding."""
    result: Literal["numbers", "set", "index"] = "numbers"
    """What results are: a set is a bool for each key, an index is of keys."""
    stages: bool = False
    """Whether what lies between is compared, too, of a backend that shows it."""
    search: Search | None = None
    """How its own search is judged."""
    search_only: bool = False
    """Whether results are judged as a search's alone."""


@dataclass(frozen=True)
class Softmax:
    """How a call reads as one of dense softmax attention, whose wrong variants then fit."""

    own: bool = False
    """Whether its options are those of softmax attention itself."""
    scale: float | None = None
    """The default; ``1/sqrt(d)`` if None."""
    only: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """Options that it must have for that, the first value being the default."""


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
    status: SourceStatus
    source: str
    growth: Growth
    """How its cost grows."""
    wrong: tuple[str, ...]
    """Families of wrong variants that fit it, `judge/variants/`."""
    has_map: bool = True
    has_vjp: bool = True
    has_jvp: bool = False
    """Whether it has a forward mode, ``<name>_jvp``."""
    least: Mapping[str, int] = field(default_factory=dict)
    """Smallest legal size of a dimension, where that is not 1."""
    extras: Mapping[str, str] = field(default_factory=dict)
    """Arrays given by keyword, without leading axes, and their dimensions."""
    optional: tuple[str, ...] = ()
    """Those of `arrays` that may be left out."""
    options: Options = field(default_factory=dict)
    """Options that a small case needs, or that make it a good example."""
    heads: bool = True
    """Whether leading axes are heads; if not, the operator takes one head."""
    cases: Cases = Cases()
    """What the kit asks of other people's implementations."""
    behaviour: tuple[Literal["keys", "linear"], ...] = ()
    """Whether the order of keys does not count, and whether it is linear in values."""
    softmax: Softmax | None = None
    """If it is softmax attention in other words, in which."""

    def function(self, kind: Literal["", "map", "vjp"] = "") -> Function:
        """Return the public function, its map or its gradient."""
        module = importlib.import_module(f"nlattn.ops.{self.stem}")
        return getattr(module, "_".join(filter(None, [self.name, kind])))

    def oracle(self, kind: Literal["", "vjp", "jvp"] = "") -> Function:
        """Return the oracle's function of the same name."""
        module = importlib.import_module(f"nlattn.oracle.{self.stem}")
        return getattr(module, "_".join(filter(None, [self.name, kind])))
