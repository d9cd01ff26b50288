"""From what the cases of an operator are made: sizes, values, layouts, masks and options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nlattn.conformance.case import Kind, Tier
from nlattn.conformance.table import OpSpec

WIDE = ("float64", "float32")
ALL = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Recipe:
    """One case for each kind and dtype."""

    label: str
    options: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    lead: tuple[int, ...] = ()
    extra: tuple[str, ...] = ()
    """Arrays beside those of the table: "bias", "mask", "support:gaps", ...; see `ingredients`."""
    values: str = "normal"
    layout: str = "C"
    dtypes: tuple[str, ...] = WIDE
    kinds: tuple[Kind, ...] = ("forward", "vjp")
    tier: Tier = "smoke"


PRIMES = {
    "n": 17, "m": 13, "d": 5, "e": 3, "r": 11, "Hq": 5, "Wq": 3, "Hk": 3, "Wk": 7,
    "H": 5, "W": 7, "t": 2, "f": 4,
}  # fmt: skip
TILES = {
    "n": 65, "m": 129, "d": 17, "e": 33, "r": 31, "Hq": 9, "Wq": 8, "Hk": 8, "Wk": 9,
    "H": 9, "W": 8, "t": 3, "f": 4,
}  # fmt: skip
LONG = TILES | {"n": 257, "m": 513, "d": 65, "e": 31}
ONES = dict.fromkeys(PRIMES, 1) | {"f": 4}
_KEYS = ("lewis_weights", "sensitivity_bounds", "lp_sensitivity", "universal_set")


def recipes(spec: OpSpec) -> list[Recipe]:
    """Everything an operator is tried on."""
    return [_completed(spec, recipe) for recipe in (*_common(spec), *_OWN.get(spec.name, ()))]


def _common(spec: OpSpec) -> list[Recipe]:
    """Sizes, heads, values and layouts, by what the operator is."""
    sets = "n" in " ".join(spec.arrays.values()).split() and "m" in _letters(spec)
    scores = "q" in spec.arrays
    one = Recipe("ones", sizes=ONES)
    found = [
        Recipe("primes", dtypes=ALL),
        Recipe("tiles", sizes=TILES, tier="smoke" if sets else "standard"),
        Recipe("strided", layout="strided", tier="standard"),
        Recipe("reversed", layout="reversed"),
        Recipe("read-only", layout="read-only", tier="standard"),
        Recipe("zeros", values="zeros"),
        Recipe("small", values="small", tier="standard"),
    ]
    if spec.name not in ("enlca_loss", "lewis_weights", "sensitivity_bounds", "lp_sensitivity"):
        found.append(one)
    if spec.heads:
        found.append(Recipe("heads", lead=(2, 3), dtypes=ALL))
    if scores:
        found += [Recipe("equal-rows", values="equal"), Recipe("large", values="large")]
    if sets and spec.name not in ("enlca_loss", "favor_attention", "enla", "heavy_attention"):
        found += [
            Recipe("no-queries", sizes={"n": 0}, tier="standard"),
            Recipe("long", sizes=LONG, dtypes=WIDE, tier="exhaustive"),
        ]
    if spec.name in ("attention", "nl_means", "psal", "scram", "cross_scale_attention", "qna"):
        found.append(Recipe("constant", values="constant"))
    if spec.name in ("attention", "sparse_attention", "scram", "qna", "lev_attention"):
        found.append(Recipe("subnormal", values="subnormal", tier="standard", dtypes=ALL))
    return found


def given_per_head(spec: OpSpec, name: str) -> bool:
    """Whether an array has the leading axes of heads."""
    return name not in (*spec.extras, "weight") and not name.startswith("support")


def _letters(spec: OpSpec) -> list[str]:
    return " ".join(spec.arrays.values()).split()


def _completed(spec: OpSpec, recipe: Recipe) -> Recipe:
    """What every case of an operator needs: its table's options, least sizes and given choices."""
    sizes = PRIMES | dict(recipe.sizes)
    for name, least in spec.least.items():
        sizes[name] = max(sizes[name], least)
    if spec.name == "qna_upsample":
        sizes["f"] = 4
    if spec.name in _KEYS and recipe.label != "ones":
        sizes["m"] = max(sizes["m"], sizes["d"])
    given = {"scram": "support", "sparse_attention": "support", "psal": "field",
             "lev_attention": "index"}.get(spec.name)  # fmt: skip
    extra = recipe.extra
    if given is not None and not any(name.split(":")[0] == given for name in extra):
        extra = (*extra, given)
    options = {n: x for n, x in spec.options.items() if not (spec.stem == "lev" and n == "keys")}
    kinds = tuple(k for k in recipe.kinds if k == "forward" or spec.has_vjp)
    return replace(
        recipe, sizes=sizes, extra=extra, options={**options, **recipe.options}, kinds=kinds
    )


_OWN: dict[str, tuple[Recipe, ...]] = {
    "attention": (
        Recipe("scale", {"scale": 0.3}),
        Recipe("lse", {"return_lse": True}, kinds=("forward",)),
        Recipe("causal", {"causal": True}, dtypes=ALL),
        Recipe("causal-offset", {"causal": True, "causal_offset": 3}),
        Recipe("causal-nothing", {"causal": True, "causal_offset": -3}),
        Recipe("causal-tiles", {"causal": True}, sizes=TILES, tier="standard"),
        Recipe("window", {"window": [2, 1]}, dtypes=ALL),
        Recipe("window-left", {"window": [3, None]}, tier="standard"),
        Recipe("window-right", {"window": [None, 0]}, tier="standard"),
        Recipe("window-causal", {"window": [2, 4], "causal": True}),
        Recipe("mask", extra=("mask",), dtypes=ALL),
        Recipe("mask-heads", extra=("mask",), lead=(2, 3), tier="standard"),
        Recipe("nan-rows", {"masked_rows": "nan"}, extra=("mask",), kinds=("forward",)),
        Recipe("bias", extra=("bias",), dtypes=ALL),
        Recipe("bias-inf", extra=("bias:inf",), tier="standard"),
        Recipe("softcap", {"softcap": 1.5}, dtypes=ALL),
        Recipe("softcap-bias", {"softcap": 1.5}, extra=("bias",)),
        Recipe(
            "everything",
            {"softcap": 2.0, "causal": True, "causal_offset": 2, "window": [5, 3], "scale": 0.7},
            extra=("bias", "mask"),
        ),
        Recipe("grouped", {"gqa": True}, lead=(2, 6), extra=("groups:2",), dtypes=ALL),
        Recipe("multi-query", {"gqa": True}, lead=(6,), extra=("groups:1",)),
        Recipe("no-keys", sizes={"m": 0}, tier="standard"),
        Recipe("no-heads", lead=(0, 2), tier="standard"),
        Recipe("integers", values="ties"),
    ),
    "nonlocal_mean": (
        Recipe("gaussian", {"pairwise": "gaussian", "scale": 0.5}),
        Recipe("dot-product", {"pairwise": "dot_product"}, dtypes=ALL),
        Recipe("concatenation", {"pairwise": "concatenation"}, extra=("weight",), dtypes=ALL),
        Recipe("dot-product-tiles", {"pairwise": "dot_product"}, sizes=TILES, tier="standard"),
    ),
    "sparse_attention": (
        Recipe("empty-rows", extra=("support:gaps",), dtypes=ALL),
        Recipe("all-keys", extra=("support:all",), tier="standard"),
        Recipe("lse", {"return_lse": True}, kinds=("forward",)),
        Recipe("gaussian", {"weight": "gaussian", "bandwidth": 2.0}),
        Recipe("abspow", {"weight": "abspow", "power": 2.0}),
        Recipe("dot", {"weight": "dot"}, extra=("support:gaps",)),
        Recipe("scale", {"scale": 0.3}, tier="standard"),
    ),
    "scram": (
        Recipe("empty-rows", extra=("support:gaps",)),
        Recipe("gaussian", {"weight": "gaussian", "bandwidth": 2.0}, tier="standard"),
        Recipe("scale", {"scale": 0.3}, tier="standard"),
    ),
    "efficient_attention": (
        Recipe("scaling", {"normalization": "scaling"}, dtypes=ALL),
        Recipe("mask", extra=("key mask",)),
        Recipe("scaling-mask", {"normalization": "scaling"}, extra=("key mask",), tier="standard"),
    ),
    "favor_attention": (
        Recipe("causal", {"causal": True}, sizes={"m": 17}),
        Recipe("relu", {"kernel": "relu"}, dtypes=ALL),
        Recipe("relu-causal", {"kernel": "relu", "causal": True}, sizes={"m": 17}, tier="standard"),
        Recipe("eps", {"eps": 0.1}),
        Recipe("neutral", {"stabilizer": "neutral"}, tier="standard"),
        Recipe("no-stabilizer", {"stabilizer": "none"}, tier="standard"),
    ),
    "enla": (
        Recipe("amplification", {"amplification": 2.0}),
        Recipe("as-they-are", {"amplification": None}, tier="standard"),
        Recipe("eps", {"eps": 0.1}),
    ),
    "enlca_loss": (Recipe("margin", {"margin": 1.0}, tier="standard"),),
    "nl_means": (
        Recipe("pixel", {"aggregate": "pixel"}),
        Recipe("self-one", {"self_weight": "one"}),
        Recipe("self-zero", {"self_weight": "zero"}, tier="standard"),
        Recipe("h", {"h": 0.9}),
        Recipe("patch-5", {"patch_size": 5, "patch_distance": 1}, tier="standard"),
    ),
    "cross_scale_attention": (
        Recipe("mass", {"overlap": "mass"}),
        Recipe("divide", {"overlap": "divide"}, tier="standard"),
        Recipe("published-crop", {"overlap": "divide", "crop": "published"}, tier="standard"),
        Recipe("scale-3", {"scale": 3}, tier="standard"),
        Recipe("patch-1", {"patch": 1}),
    ),
    "psal": (
        Recipe("voting", {"aggregate": True}),
        Recipe("dedup", {"aggregate": True, "dedup": True}, tier="standard"),
        Recipe("edge", {"border": "edge"}, tier="standard"),
        Recipe("patch-1", {"patch": 1}),
        Recipe("no-matches", extra=("field:gaps",)),
    ),
    "qna": (
        Recipe("bias-gate", extra=("bias", "gate"), dtypes=ALL),
        Recipe("stride", {"stride": 2}),
        Recipe("padding", {"padding": [2, 0]}, tier="standard"),
        Recipe("window-2x4", {"window": [2, 4]}, tier="standard"),
        Recipe("scale", {"scale": 0.3}),
    ),
    "qna_upsample": (Recipe("bias-gate", extra=("bias", "gate")),),
    "leverage_scores": (
        Recipe("svd", {"method": "svd"}),
        Recipe("gram", {"method": "gram"}),
        Recipe("low-rank", values="low rank"),
    ),
    "lewis_weights": (
        Recipe("p-1", {"p": 1.0}),
        Recipe("p-4", {"p": 4.0}),
    ),
    "sensitivity_bounds": (
        Recipe("p-1", {"p": 1.0}),
        Recipe("p-3", {"p": 3.0}),
    ),
    "lp_sensitivity": (Recipe("p-4", {"p": 4.0, "i": 2}),),
    "universal_set": (
        Recipe("p-4", {"p": 4.0, "eps": 0.3}),
        Recipe("causal", {"causal": True, "eps": 0.3}),
        Recipe("tight", values="tight", options={"eps": 0.3}),
    ),
    "heavy_attention": (
        Recipe("p-4", {"p": 4.0}),
        Recipe("causal", {"causal": True}),
        Recipe("light", {"eps": 0.01}),
    ),
}
