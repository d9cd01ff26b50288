"""From what the cases of an operator are made: what all have, and what its row says."""

from __future__ import annotations

from dataclasses import replace

from nlattn.conformance.table import OpSpec
from nlattn.conformance.table.recipe import ALL, LONG, ONES, PRIMES, TILES, WIDE, Recipe


def recipes(spec: OpSpec) -> list[Recipe]:
    """Everything an operator is tried on."""
    return [_completed(spec, recipe) for recipe in (*_common(spec), *spec.cases.recipes)]


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
    found.append(one)
    if spec.heads:
        found.append(Recipe("heads", lead=(2, 3), dtypes=ALL))
    if scores:
        found += [Recipe("equal-rows", values="equal"), Recipe("large", values="large")]
    if sets:
        found += [
            Recipe("no-queries", sizes={"n": 0}, tier="standard"),
            Recipe("long", sizes=LONG, dtypes=WIDE, tier="exhaustive"),
        ]
    if "constant" in spec.cases.values:
        found.append(Recipe("constant", values="constant"))
    if "subnormal" in spec.cases.values:
        found.append(Recipe("subnormal", values="subnormal", tier="standard", dtypes=ALL))
    return [recipe for recipe in found if recipe.label not in spec.cases.without]


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
    if spec.cases.tall and recipe.label != "ones":
        sizes["m"] = max(sizes["m"], sizes["d"])
    given, extra = spec.cases.given, recipe.extra
    if given and not any(name.split(":")[0] == given for name in extra):
        extra = (*extra, given)
    options = {n: x for n, x in spec.options.items() if not (given == "index" and n == "keys")}
    kinds = tuple(k for k in recipe.kinds if k == "forward" or spec.has_vjp)
    return replace(
        recipe, sizes=sizes, extra=extra, options={**options, **recipe.options}, kinds=kinds
    )
