"""A case: one call of one operator, as data that any backend can be asked to compute."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from nlattn._types import Array as Array
from nlattn._types import Json, JsonObject
from nlattn.conformance.table import OpSpec, find
from nlattn.conformance.table.recipe import Kind as Kind
from nlattn.conformance.table.recipe import Tier as Tier

TIERS: tuple[Tier, ...] = ("smoke", "standard", "exhaustive")
DTYPES = ("float64", "float32", "float16", "bfloat16")

RETURNED = {"return_lse": "lse", "return_missed": "missed", "return_rank": "rank"}
"""Results that an option asks for, in the order in which they come."""
STAGES = ("raw", "capped", "biased", "masked", "weights", "output")
"""What a backend may show of how it computes `attention`."""


@dataclass(frozen=True, eq=False)
class Case:
    """One call: what to compute, on which arrays, with which options."""

    name: str
    """``attention/forward/float32/causal-17x13``: unique, stable, and a path of folders."""
    op: str
    """Name in the table of operators."""
    kind: Kind
    """A gradient is asked of a backend as ``<op>_vjp``, forward mode as ``<op>_jvp``, what lies
    between as ``<op>_stages``."""
    dtype: str
    """Of all floating arrays: "float64", "float32", "float16" or "bfloat16"."""
    arrays: Mapping[str, Array]
    """By the operator's argument names; the cotangent is ``dout``, changes are ``dq``, ``dk``, ....

    A support is three arrays, ``support.indptr``, ``support.indices`` and ``support.shape``, and
    sometimes a table ``support.index`` (..., n, t) that says the same: below 0 and from m on is
    none, a key named twice counts once. A field of matches is ``field.index``, raster indices of
    keys (-1 for none); simplices of queries are ``q_simplices.rem0`` and ``q_simplices.rank``, and
    those of keys likewise; matches to start from are ``start.index`` (..., 1, n, topk).
    """
    options: Mapping[str, Json] = field(default_factory=dict)
    """Keyword options, JSON values only."""
    tier: Tier = "smoke"
    seed: int = 0
    error: str = ""
    """For a call that must be refused: what is wrong with it."""
    results_in: str = ""
    """Of a case whose inputs are codes of eight bits, the dtype that results are expected in."""
    codes: Case | None = None
    """The case of which this one holds the numbers that codes mean, `eight_bit.dequantised`."""
    whole: Mapping[str, Json] = field(default_factory=dict)
    """For a part of a large call, by dimension: its ``size`` there, and the places that rows of
    the arrays are ``at``; see `whole`."""

    @property
    def spec(self) -> OpSpec:
        """Row of the operator in the table."""
        return find(self.op)

    @property
    def function(self) -> str:
        """What a backend is asked for: ``attention`` or ``attention_vjp``."""
        return self.op if self.kind == "forward" else f"{self.op}_{self.kind}"

    @property
    def results(self) -> tuple[str, ...]:
        """Names of what the forward call gives."""
        more = (name for option, name in RETURNED.items() if self.options.get(option))
        return (*self.spec.cases.outputs, *more)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the results, in the order of a tuple."""
        if self.kind == "stages":
            return STAGES
        if self.kind == "forward":
            return self.results
        return tuple(f"d{x}" for x in (self.moving if self.kind == "vjp" else self.results))

    @property
    def moving(self) -> tuple[str, ...]:
        """Arrays that have a gradient."""
        made = self.spec.cases
        names = (*(x for x in self.spec.arrays if x not in made.shares), *made.differentiable)
        asked = [
            x
            for x, option in made.differentiable_if.items()
            if self.options.get(option) or (self.kind == "jvp" and f"d{x}" in self.arrays)
        ]
        return tuple(name for name in (*names, *asked) if name in self.arrays)

    @property
    def directions(self) -> tuple[str, ...]:
        """Arrays beside those of the forward call: cotangents of results, or changes of arrays."""
        if self.kind == "vjp":
            some = list(dict.fromkeys(f"d{x}" for x in (*self.spec.cases.outputs, "lse")))
        else:
            some = [f"d{x}" for x in self.moving] if self.kind == "jvp" else []
        return tuple(name for name in some if name in self.arrays)

    def sizes(self) -> dict[str, int]:
        """Sizes by the names of the table, with ``heads``, ``batch`` and ``group``."""
        found: dict[str, int] = {}
        leads = {}
        for name, dims in self.spec.arrays.items():
            if name in self.arrays:
                shape, names = np.shape(self.arrays[name]), dims.split()
                leads[name] = shape[: len(shape) - len(names)]
                found |= zip(names, shape[len(shape) - len(names) :], strict=True)
        found |= {name: place["size"] for name, place in self.whole.items()}
        lead = leads.get("q", next(iter(leads.values()), ()))
        if lead:
            found |= {"heads": int(lead[-1]), "batch": math.prod(lead[:-1])}
        if self.options.get("gqa") and lead and leads.get("k"):
            found["group"] = int(lead[-1]) // max(1, int(leads["k"][-1]))
        return found


def scale_of(options: Mapping[str, object], q: Array) -> float:
    """Factor on the scores: the option, which may be 0, or ``1/sqrt(d)``."""
    given = options.get("scale")
    return float(given) if isinstance(given, (int, float)) else float(q.shape[-1] ** -0.5)


def dtype_of(name: str) -> np.dtype:
    """NumPy's dtype of a name; LookupError where ml_dtypes is missing and the name needs it."""
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ModuleNotFoundError:
        raise LookupError("bfloat16 needs ml_dtypes") from None
    dtype: np.dtype = np.dtype(ml_dtypes.bfloat16)
    return dtype


def native(arrays: Mapping[str, Array]) -> JsonObject:
    """Arguments as the operators take them: a Support and a Field in place of their parts."""
    from nlattn._types import Field, Simplices, Support, Work

    arguments: dict[str, object] = {name: x for name, x in arrays.items() if "." not in name}
    if "support.indptr" in arrays:
        shape = tuple(int(n) for n in arrays["support.shape"])
        arguments["support"] = Support(arrays["support.indptr"], arrays["support.indices"], shape)
    if "field.index" in arrays:
        index, grid = arrays["field.index"], np.shape(arrays["k"])[-3:-1]
        score = np.where(index < 0, -np.inf, 0.0)
        arguments["field"] = Field(index, score, Work(0, 0, 0), (grid[0], grid[1]))
    if "start.index" in arrays:
        index, m = arrays["start.index"], np.shape(arrays["k"])[-2]
        arguments["start"] = Field(index, np.zeros(index.shape), Work(0, 0, 0), (1, m))
    for name in ("q_simplices", "k_simplices"):
        if f"{name}.rem0" in arrays:
            arguments[name] = Simplices(arrays[f"{name}.rem0"], arrays[f"{name}.rank"])
    return arguments


def named(case: Case, result: object) -> JsonObject:
    """Results by name, from an array, a tuple in the order of `Case.outputs`, or a mapping.

    None may stand where a call has no result, such as the gradient of an array that is not given.
    """
    names = case.outputs
    if isinstance(result, Mapping):
        given = {n: x for n, x in result.items() if x is not None or n in names}
    elif isinstance(result, (tuple, list)):
        if len(result) > len(names):
            result = [x for x in result if x is not None]
        given = dict(zip(names, result, strict=False))
        if len(result) != len(names):
            given[f"{len(result)} results"] = None
    else:
        given = {names[0]: result}
    if set(given) != set(names) and not (case.kind == "stages" and set(given) <= set(names)):
        raise ValueError(f"gave {', '.join(map(str, given))}, expected {', '.join(names)}")
    return {name: given[name] for name in names if name in given}
