"""The cases: every recipe of every operator, in every kind and dtype that it is made for."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np

from nlattn._types import Array, JsonObject
from nlattn.conformance.case import DTYPES, TIERS, Case, Kind, Tier, dtype_of
from nlattn.conformance.cases.arrays import extras, lay, layout_of, values
from nlattn.conformance.cases.recipes import recipes
from nlattn.conformance.cases.shapes import Shapes
from nlattn.conformance.eight_bit import QUANTISED, quantised
from nlattn.conformance.table import JUDGED, OpSpec, find
from nlattn.conformance.table.recipe import PRIMES, Recipe
from nlattn.conformance.truth.bounds import floating
from nlattn.conformance.truth.transcription import transcription

SEED = 20260
_WIDE_ONLY = ("large", "subnormal", "deep", "faint", "huge")
"""Values that 16 bits hold only where a recipe says so."""


_NOT_OF_CODES = {*_WIDE_ONLY, "NaN", "hidden NaN", "hidden NaN keys", "poison"}


def cases(
    tier: Tier,
    ops: tuple[str, ...] | None = None,
    dtypes: tuple[str, ...] | None = None,
    pattern: str = "*",
    shapes: Mapping[str, Shapes] | None = None,
    scales: str = "head",
    results: str = "bfloat16",
    sparing: bool = False,
    takes: Callable[[Case], bool] | None = None,
) -> Iterator[Case]:
    """Cases up to a tier whose names match; KeyError for an operator that is not known.

    At "smoke" 16 bits are tried on few recipes, unless nothing else is asked for. `shapes` are the
    sizes that a backend takes, by operator: cases have legal sizes like their own. Inputs of eight
    bits are made where `dtypes` names them, with a scale for each of `scales`.
    `sparing` is for a backend that compiles for each shape: what needs a program of its own, such
    as an option or a size, is made in one dtype, these in turn. `takes` is of a backend that takes
    some options alone: it is asked for every two of these.
    """
    chosen = JUDGED if ops is None else tuple(find(name) for name in ops)
    few = tier == "smoke" and not (dtypes and {*dtypes} <= {"float16", "bfloat16"})
    for spec in chosen:
        if spec.cases.search_only:
            continue
        own_shapes = (shapes or {}).get(spec.name)
        taken = _taken(spec, takes, own_shapes, (dtypes or ("float64",))[0]) if takes else None
        for number, recipe in enumerate(recipes(spec, taken)):
            recipe = fitted(recipe, own_shapes)
            if TIERS.index(recipe.tier) > TIERS.index(tier):
                continue
            for kind in recipe.kinds:
                own = recipe.dtypes if kind == "jvp" else (*recipe.dtypes, *recipe.also)
                wanted = [x for x in (own if few else DTYPES) if fits(recipe, x)]
                wanted = [x for x in wanted if dtypes is None or x in dtypes]
                if sparing and wanted and (recipe.options or recipe.extra or _sized(recipe)):
                    wanted = [wanted[number % len(wanted)]]
                start = f"{spec.name}/{kind}"
                wanted = [x for x in wanted if fnmatchcase(f"{start}/{x}/{recipe.label}", pattern)]
                numbers = _numbers(spec, recipe, kind, SEED) if wanted else ()
                for dtype in wanted:
                    yield _rounded(spec, recipe, kind, dtype, SEED, *numbers)
                for dtype in QUANTISED if kind == "forward" and spec.cases.quantised else ():
                    named = fnmatchcase(f"{spec.name}/{kind}/{dtype}/{recipe.label}", pattern)
                    if named and dtypes and dtype in dtypes and recipe.values not in _NOT_OF_CODES:
                        yield of_codes(make(spec, recipe, kind, "float64"), dtype, scales, results)


def _taken(
    spec: OpSpec, takes: Callable[[Case], bool], shapes: Shapes | None, dtype: str
) -> Callable[[Recipe], bool]:
    """Whether a recipe's cases are taken, in every kind that is at all."""

    def one(recipe: Recipe, kind: Kind) -> bool:
        return takes(make(spec, fitted(recipe, shapes), kind, dtype))

    plain = recipes(spec)[0]
    kinds = [kind for kind in plain.kinds if one(plain, kind)]
    return lambda recipe: all(one(recipe, kind) for kind in kinds if kind in recipe.kinds)


def _sized(recipe: Recipe) -> bool:
    """Whether a recipe has sizes, heads or a layout of its own."""
    plain = all(recipe.sizes[name] == n for name, n in PRIMES.items() if name in recipe.sizes)
    return not plain or bool(recipe.lead) or recipe.layout != "C"


def of_codes(case: Case, dtype: str, scales: str, results: str) -> Case:
    """The case with inputs of eight bits, which lie in memory as its own."""
    arrays = {
        name: lay(x, layout_of(case.arrays[name])) if name in case.arrays else x
        for name, x in quantised(case.arrays, case.spec.cases.quantised, dtype, scales).items()
    }
    name = case.name.replace("/float64/", f"/{dtype}/", 1)
    return replace(case, name=name, dtype=dtype, arrays=arrays, results_in=results)


def fitted(recipe: Recipe, shapes: Shapes | None) -> Recipe:
    """A recipe whose sizes a backend takes."""
    if shapes is None:
        return recipe
    sizes, lead = shapes.fit(recipe.sizes), shapes.fit_lead(recipe.lead)
    for name in recipe.extra:
        kind, _, shared = name.partition(":")
        if kind == "groups" and "group" in shapes.sizes and lead:
            group = shapes.sizes["group"].nearest(lead[-1] // int(shared))
            lead = (*lead[:-1], group * int(shared))
    return replace(recipe, sizes=sizes, lead=lead)


def fits(recipe: Recipe, dtype: str) -> bool:
    """Whether a dtype is there, and can hold the recipe's numbers."""
    try:
        dtype_of(dtype)
    except LookupError:
        return False
    return dtype in recipe.dtypes or recipe.values not in _WIDE_ONLY


def make(spec: OpSpec, recipe: Recipe, kind: Kind, dtype: str, seed: int = SEED) -> Case:
    """The case of a recipe, the same numbers in every dtype but for rounding."""
    return _rounded(spec, recipe, kind, dtype, seed, *_numbers(spec, recipe, kind, seed))


def _numbers(
    spec: OpSpec, recipe: Recipe, kind: Kind, seed: int
) -> tuple[dict[str, Array], JsonObject, Array | None]:
    """Arrays in float64, options, and what is hidden: of all dtypes."""
    label = f"{spec.name}/{recipe.label}"
    rng = np.random.default_rng([seed, zlib.crc32(label.encode())])
    arrays = values(rng, spec, recipe)
    arrays |= extras(rng, spec, recipe, arrays)
    if kind == "vjp":
        with np.errstate(all="ignore"):
            out = transcription(spec.name, arrays, recipe.options)
        shape = np.shape(out[0] if isinstance(out, tuple) else out)
        arrays[f"d{spec.cases.outputs[0]}"] = np.asarray(rng.standard_normal(shape))
    options, hidden = dict(recipe.options), _hidden(arrays)
    if kind == "vjp":
        arrays |= _cotangent_of_lse(rng, spec, options, arrays)
    if kind == "jvp":
        options.pop("masked_rows", None)
        arrays |= _changes(rng, spec, arrays, options)
        options = {
            n: x for n, x in options.items() if n not in spec.cases.differentiable_if.values()
        }
    return arrays, options, hidden


def _rounded(
    spec: OpSpec, recipe: Recipe, kind: Kind, dtype: str, seed: int,
    arrays: Mapping[str, Array], options: JsonObject, hidden: Array | None,
) -> Case:  # fmt: skip
    given = {
        name: lay(_cast(name, x, dtype, recipe, hidden), _layout(name, recipe))
        for name, x in arrays.items()
    }
    return Case(
        f"{spec.name}/{kind}/{dtype}/{recipe.label}",
        spec.name,
        kind,
        dtype,
        given,
        dict(options),
        recipe.tier,
        seed,
    )


def _layout(name: str, recipe: Recipe) -> str:
    """Queries and cotangents are never of stride 0: heads are to differ."""
    own = recipe.layout == "broadcast" and name not in ("k", "v", "bias", "mask")
    return "C" if own else recipe.layout


def _cotangent_of_lse(
    rng: np.random.Generator, spec: OpSpec, options: JsonObject, arrays: Mapping[str, Array]
) -> dict[str, Array]:
    """What a gradient is asked for where lse is a result; rows of nothing give it no weight."""
    options.pop("masked_rows", None)
    wanted = {"return_lse": True} if options.pop("return_lse", False) else {}
    if not wanted and "lse" not in spec.cases.outputs:
        return {}
    with np.errstate(all="ignore"):
        given = {name: x for name, x in arrays.items() if name != "dout"}
        lse = transcription(spec.name, given, {**options, **wanted})[1]
    return {"dlse": np.where(np.isfinite(lse), rng.standard_normal(np.shape(lse)), 0.0)}


def _changes(
    rng: np.random.Generator, spec: OpSpec, arrays: dict[str, Array], options: JsonObject
) -> dict[str, Array]:
    """A direction for each array that has a gradient; what is not finite stays."""
    names = Case("", spec.name, "jvp", "float64", arrays, options).moving
    moved = {f"d{n}": rng.standard_normal(np.shape(arrays[n])) for n in names}
    return {n: np.where(np.isfinite(arrays[n[1:]]), x, 0.0) for n, x in moved.items()}


def _hidden(arrays: Mapping[str, Array]) -> Array | None:
    """Keys (m,) that no query of any head may attend to, or (..., m) that heads do not have.

    None where nothing hides any.
    """
    if {"key_lengths", "k"} <= {*arrays} and "mask" not in arrays:
        return np.arange(arrays["k"].shape[-2]) >= np.asarray(arrays["key_lengths"])[..., None]
    mask = arrays.get("mask")
    if mask is not None:
        return np.logical_not(mask.any(tuple(range(mask.ndim - 1))))
    if "index" in arrays:
        return ~np.isin(np.arange(arrays["k"].shape[-2]), arrays["index"])
    return None


def _cast(name: str, x: Array, dtype: str, recipe: Recipe, hidden: Array | None) -> Array:
    """In the case's dtype, in which subnormal values are subnormal, hidden ones huge or NaN."""
    if not floating(x):
        return x
    if recipe.values == "subnormal" and name == "v":
        x = np.ldexp(x, -{"float64": 1030, "float32": 130, "float16": 18, "bfloat16": 128}[dtype])
    if recipe.values == "poison" and name in ("k", "v") and hidden is not None:
        x = np.where(hidden[..., None], {"float16": 1e3}.get(dtype, 1e30), x)
    wild_in = {"hidden NaN": ("k", "v"), "hidden NaN keys": ("k",)}.get(recipe.values, ())
    if name in wild_in and hidden is not None:
        wild = np.where(np.arange(hidden.shape[-1]) % 3 == 1, np.inf, np.nan)[:, None]
        x = np.where(hidden[..., None], wild, x)
    return x.astype(dtype_of(dtype))
