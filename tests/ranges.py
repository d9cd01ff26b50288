"""Calls at the edges of a format, made from the rows of the table, and what is right there.

Right is the oracle in longdouble, whose exponents have 15 bits: what float64 holds, it can square,
multiply and exponentiate. A scaled array keeps the digits of the ordinary one.
"""

from __future__ import annotations

import functools
import inspect
import re
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

import nlattn
from nlattn._types import Field, Work
from nlattn.conformance.cases.calls import call
from nlattn.conformance.table import TABLE, OpSpec
from nlattn.conformance.table.parts import PARTS

DTYPES = (np.float32, np.float64)
ROWS = (*TABLE, *(spec for spec in PARTS if spec.cases.given != "table"))
KINDS = [
    (spec, kind)
    for spec in ROWS
    for kind in ("", "map", "vjp", "jvp")
    if not kind or (getattr(spec, f"has_{kind}") and (kind != "map" or "v" in spec.arrays))
]
SHARED = {np.float32: (1e-30, 1e-22, 1e-17, 1e-9, 1e9, 1e17, 1e19, 1e30), np.float64: (
    1e-300, 1e-200, 1e-160, 1e-150, 1e-17, 1e17, 1e150, 1e154, 1e200, 1e300)}  # fmt: skip
"""Factors of arrays, beside the subnormal, the largest, and the square root of the largest."""
REFUSED = r"^{op}\w*: .*(3\.40\d*e\+38, the largest float32|1\.79\d*e\+308, the largest float64)"

OTHERWISE = (
    "expected (a positive|at least|at most|from)|negative|is for|outside|below 1|has no place"
)


class Edge(NamedTuple):
    """A call, by what is unusual in it."""

    spec: OpSpec
    kind: Any
    dtype: Any
    what: str
    arguments: dict[str, Any]

    def __repr__(self) -> str:
        name = "_".join(filter(None, [self.spec.name, self.kind]))
        return f"{name}-{np.dtype(self.dtype)}-{self.what}"


def function(spec: OpSpec, kind: Any) -> tuple[Any, Any]:
    """The public function, and its parameters."""
    found = getattr(nlattn, "_".join(filter(None, [spec.name, kind])))
    return found, inspect.signature(found).parameters


def sample(spec: OpSpec, kind: Any, dtype: Any) -> dict[str, Any]:
    """A small ordinary call; oracles of PSAL's derivatives take matches."""
    sizes = {"parts": 3, "h": 2}
    given = call(spec, kind if kind == "vjp" else "", sizes=sizes, dtype=dtype)
    for share in spec.cases.shares:
        given[share] = np.exp(given[share]) / np.exp(given[share]).sum(-1, keepdims=True)
    if kind == "vjp":
        given[f"d{spec.cases.outputs[0]}"] = given.pop("dout")
    if kind == "jvp":
        rng = np.random.default_rng(6)
        names = [name for name in function(spec, kind)[1] if name[1:] in given and name[0] == "d"]
        given |= {n: rng.standard_normal(given[n[1:]].shape).astype(dtype) for n in names}
    if spec.name == "psal" and kind:
        index = np.random.default_rng(5).integers(-1, 12, (3, 4, 3))
        score = np.where(index < 0, -np.inf, 0).astype(dtype)
        given["field"] = Field(index.astype(np.int64), score, Work(0, 0, 0), (4, 3))
    return given


def scaled(spec: OpSpec, kind: Any, dtype: Any) -> Iterator[Edge]:
    """Arrays times powers of two near some powers of ten: alone, and queries with keys."""
    info = np.finfo(dtype)
    plain = sample(spec, kind, dtype)
    names = [*spec.arrays, *(f"d{n}" for n in (*spec.arrays, *spec.cases.outputs))]
    beside = ("v", "gate") if kind == "map" else ()  # values come later, and so do their products
    names = [n for n in dict.fromkeys(names) if n in plain and n not in beside]
    groups: list[tuple[str, ...]] = [(name,) for name in names] + (
        [("q", "k")] if {"q", "k"} <= {*names} else []
    )
    if {"dq", "dk"} <= {*names}:
        groups.append(("q", "k", "dq", "dk"))
    sigma = [name for name in ("sigma", "h") if name in plain]
    if spec.name == "psal":  # alone, one is lost in the other's rounding
        groups = [group for group in groups if group not in (("q",), ("k",))]
    if sigma:
        groups.append(("image", *sigma))
    for group in groups:
        top = max(np.abs(plain[name]).max(initial=0) for name in group)
        root, top = float(np.sqrt(info.max)), float(max(top, 1))
        ends = (float(info.smallest_subnormal) * 8, float(root / top / 4), float(root / top * 4),
                float(info.max / top / 2))  # fmt: skip
        for factor in (*SHARED[dtype], *ends):
            exact = np.ldexp(1.0, int(np.floor(np.log2(factor))))
            moved = {
                n: plain[n] * (exact if isinstance(plain[n], float) else dtype(exact))
                for n in group
            }
            yield Edge(spec, kind, dtype, f"{'+'.join(group)}*{factor:.0e}", plain | moved)


def numbers(spec: OpSpec, kind: Any) -> list[str]:
    """Options that take a number."""
    found = function(spec, kind)[1].values()
    return [
        x.name for x in found if str(x.annotation).startswith("float") and x.name != "max_bytes"
    ]


RANKS = (
    *(f"enlca_loss_{kind}-float64-q+k*1e-{n}" for kind in ("vjp", "jvp") for n in (200, 300)),
    *(
        f"permutohedral_attention_{kind}-float64-{group}*4e-323"
        for kind in ("vjp", "jvp")
        for group in ("k", "q+k")
    ),
)
"""Scores below the smallest number, of which none is larger; features without digits, which lie on
a border of simplices, each with a derivative of its own."""


def edges(spec: OpSpec, kind: Any) -> Iterator[Edge]:
    """All of them, in both dtypes."""
    for dtype in DTYPES:
        for edge in (*scaled(spec, kind, dtype), *optioned(spec, kind, dtype)):
            if repr(edge) not in RANKS:
                yield edge


def optioned(spec: OpSpec, kind: Any, dtype: Any) -> Iterator[Edge]:
    """Every option that takes a number through the numbers at the edges."""
    info = np.finfo(dtype)
    ends = map(float, (info.smallest_subnormal, info.smallest_normal, info.max))
    values = (*ends, 1e-320, 1e-200, 1e-30, 1e19, 1e39, 1e155, 1e300)
    for name in numbers(spec, kind):
        for x in (0.0, *values, *(-x for x in values)):
            given = sample(spec, kind, dtype) | {name: x}
            yield Edge(spec, kind, dtype, f"{name}={x:.1e}", given)


def wide(edge: Edge) -> Any:
    """What is right, in longdouble."""
    given: dict[str, Any] = {
        n: x.astype(np.longdouble) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x
        for n, x in edge.arguments.items()
    }
    given = {n: np.longdouble(x) if isinstance(x, float) else x for n, x in given.items()}
    if edge.spec.stem in ("lewis", "universal"):
        given["K"] = given.pop("k")
    if "field" in given:
        given["index"] = given.pop("field").index
    if "support" in given:
        given["support"] = tuple(given["support"])
    with np.errstate(all="ignore"):
        return oracle(edge)(**given)


def oracle(edge: Edge) -> Any:
    """Of what a call computes; a map is asked for sums over its rows."""
    return edge.spec.oracle("" if edge.kind == "map" else edge.kind)


def summed(edge: Edge) -> Any:
    """Sums over the rows of a map."""
    given = {**edge.arguments}
    v = given.pop("v")
    A = function(edge.spec, edge.kind)[0](**given)
    out = A @ v.reshape(A.shape[1], -1)
    with np.errstate(over="ignore"):
        return out.astype(edge.dtype)


def outcome(edge: Edge) -> Any:
    """The result, or the words of a refusal; warnings are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            if edge.kind == "map":
                return summed(edge)
            return function(edge.spec, edge.kind)[0](**edge.arguments)
        except ValueError as error:
            return str(error)


def flat(result: Any) -> list[Any]:
    """Arrays of a result."""
    if hasattr(result, "borderline"):  # a universal set
        chosen = np.zeros(result.upper.shape[-1], bool)
        chosen[result.keys] = True
        return [chosen]
    if hasattr(result, "to_dense"):
        return [result.to_dense()]
    if hasattr(result, "score"):  # matches
        return [np.asarray(result.index, float), result.score]
    if isinstance(result, (tuple, list)) and not hasattr(result, "tested"):
        return [x for part in result for x in flat(part)]
    return [] if result is None else [np.asarray(result)]


@functools.cache
def formats_of(name: str, kind: Any, dtype: Any) -> list[Any]:
    """Of the results of an ordinary call."""
    spec = next(spec for spec, _ in KINDS if spec.name == name)
    return [x.dtype for x in flat(outcome(Edge(spec, kind, dtype, "", sample(spec, kind, dtype))))]


def noise(edge: Edge, number: int) -> Any:
    """What the terms of a softmax's derivative come to, which cancel where a row has one key."""
    given = edge.arguments
    if not {"q", "k", "v"} <= {*given}:
        return 0
    if edge.kind == "vjp" and number < 2:
        return top(given["dout"]) * top(given["v"]) * slope(edge, "qk"[number])
    if edge.kind == "jvp":
        return sum(top(given[f"d{own}"]) * slope(edge, own) for own in "qk") * top(given["v"])
    return 0


def top(x: Any) -> Any:
    """The largest entry."""
    return np.abs(x).max().astype(np.longdouble)


def slope(edge: Edge, own: str) -> Any:
    """How fast a score grows with queries, or with keys, at most."""
    given, name = edge.arguments, edge.spec.name
    other = given["k" if own == "q" else "q"]
    scale = given.get("scale")
    factor = abs(np.longdouble(scale)) if isinstance(scale, float) else 1
    if name in ("efficient_attention", "permutohedral_attention"):
        return factor
    if name == "favor_attention":
        return (top(given["projection"]) + factor * top(given[own])) * factor
    if name == "enla":
        lengths = np.sqrt((given[own].astype(np.longdouble) ** 2).sum(-1))
        floor = np.longdouble(given.get("floor", 5e-5))
        return 16 * top(given["projection"]) / max(lengths.min(), floor)
    return factor * top(other)


def wrong(edge: Edge) -> str:
    """What is wrong with the outcome; nothing, if nothing is."""
    try:
        got = outcome(edge)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if isinstance(got, str):
        name = "_".join(filter(None, [edge.spec.name, edge.kind]))
        fine = re.match(REFUSED.format(op=name.split("_")[0]), got)
        fine = fine or re.match(rf"^{name}: \w+(=|\[.*\] is ).*({OTHERWISE})", got)
        return "" if fine else f"refused: {got}"
    known = inspect.signature(oracle(edge)).parameters
    if edge.what.split("=")[0] in {"tol", "tolerance", "average", "eta", "failure"} - {*known}:
        return ""  # of how it is computed
    if edge.spec.stem in ("lewis", "universal") and edge.arguments.get("p", 2) > 99:
        return ""  # the oracle lists all monomials of that degree
    formats = [x.dtype for x in flat(got)]
    if formats != formats_of(edge.spec.name, edge.kind, edge.dtype):
        return f"results in {formats}"
    want = flat(wide(edge))
    if edge.kind == "map":
        want = [want[0].reshape(got.shape)]
    tolerance = (3e-4 if edge.dtype == np.float32 else 1e-9) + 2 * edge.spec.cases.slack
    if edge.spec.name == "lewis_weights":  # what is left over is rounding
        want = want[:1]
    for number, (a, b) in enumerate(zip(flat(got), want, strict=False)):
        if a.shape != b.shape:
            return f"shape {a.shape}, not {b.shape}"
        with np.errstate(all="ignore"):
            b = b.astype(a.dtype) if a.dtype != bool else b
        bad = np.isnan(b)
        if (np.isnan(a) & ~bad).any():
            return f"result {number}: NaN"
        size = noise(edge, number) + np.abs(b[np.isfinite(b)], dtype=np.longdouble).max(initial=0)
        tiny = np.finfo(a.dtype).smallest_normal if a.dtype.kind == "f" else 0
        if a.dtype.kind == "f" and tolerance * size > np.finfo(a.dtype).max:
            continue  # rounding of terms that cancel is beyond the format
        if (np.isinf(a) & ~bad & (a != b)).any():
            return f"result {number}: infinite"
        with np.errstate(all="ignore"):
            off = np.where(bad | (a == b), 0, np.abs(a.astype(np.longdouble) - b))
        if not (off <= tolerance * size + tiny).all():
            return f"result {number}: off by {off.max():.1e} of {size:.1e}"
    return ""
