"""From what the cases of an operator are made: what all have, and what its row says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

from nlattn.conformance.cases.covering import (
    crossings,
    everywhere,
    in_turn,
    pairs,
    spread,
    together,
)
from nlattn.conformance.cases.crossed import GRIDS, LAYOUTS, SETS
from nlattn.conformance.table import TABLE, OpSpec
from nlattn.conformance.table.recipe import ALL, LONG, ONES, PRIMES, TILES, WIDE, Recipe

_HEADS = (
    Recipe("heads", lead=(2, 3), dtypes=ALL),
    Recipe("heads-more", lead=(13,)),
    Recipe("keys-shared", lead=(2, 3), extra=("shared:k v",)),
)
_APART = tuple(
    Recipe(label, lead=lead, extra=(extra,), kinds=("forward", "vjp"))
    for label, lead, extra in (
        ("keys-of-one-head", (2, 3), "one:k v"),
        ("keys-of-one-batch", (2, 3), "first:k v"),
        ("queries-of-one-head", (3,), "one:q"),
        ("values-of-three-heads", (3,), "one:q k"),
        ("one-head-of-values", (2, 2), "one:v"),
    )
)
"""Heads of some arrays alone: leading axes of 1, which broadcast."""
_LAYOUTS = tuple(
    Recipe(layout.lower(), layout=layout)
    for layout in ("reversed", "strided", "Fortran", "heads-last")
)
_EVEN = {"n": 16, "m": 24, "d": 8, "e": 8, "r": 16, "Hq": 4, "Wq": 6, "Hk": 6, "Wk": 4}
_EVEN |= {"H": 6, "W": 8, "t": 4}
_SQUARE = {"n": 24, "m": 24, "d": 16, "e": 16, "r": 16, "Hq": 6, "Wq": 6, "Hk": 6, "Wk": 6}
_SQUARE |= {"H": 6, "W": 6, "t": 3}
_SIZES = (Recipe("even", sizes=_EVEN), Recipe("square", sizes=_SQUARE))
_SETS = (
    Recipe("decode", sizes={"n": 1, "m": 70, "d": 8, "e": 4}),
    Recipe("short", sizes={"n": 4, "m": 6, "d": 24, "e": 9}),
    Recipe("aligned", sizes={"n": 64, "m": 64, "d": 64, "e": 64}),
)
_BEYOND = (
    Recipe("keys-300", sizes={"n": 5, "m": 300, "d": 4, "e": 4}, dtypes=ALL),
    Recipe("keys-1030", sizes={"n": 8, "m": 1030, "d": 4, "e": 4}, dtypes=ALL),
    Recipe("queries-300", sizes={"n": 300, "m": 5, "d": 4, "e": 4}, dtypes=ALL),
    Recipe("queries-1030", sizes={"n": 1030, "m": 8, "d": 4, "e": 4}, dtypes=ALL),
    Recipe("both-200", sizes={"n": 136, "m": 200, "d": 8, "e": 8}),
    Recipe("channels-72", sizes={"n": 5, "m": 7, "d": 72, "e": 104}),
    Recipe("channels-128", sizes={"n": 5, "m": 7, "d": 128, "e": 136}),
    Recipe("channels-256", sizes={"n": 3, "m": 5, "d": 256, "e": 260}, values="channel"),
)
_LONG = tuple(
    Recipe(label, sizes=sizes, dtypes=("float16", "bfloat16"), kinds=("forward", "vjp"))
    for label, sizes in (
        ("keys-4100", {"n": 8, "m": 4100, "d": 4, "e": 4}),
        ("queries-4100", {"n": 4100, "m": 8, "d": 4, "e": 4}),
    )
)
"""Of gradients that are added up in 16 bits the errors only then stand out."""
_MANY_HEADS = Recipe(
    "keys-of-512-heads",
    sizes={"n": 2, "m": 9, "d": 4, "e": 4},
    lead=(512,),
    extra=("one:k v",),
    dtypes=("float16", "bfloat16"),
    kinds=("vjp",),
)
"""Where they are added up in 16 bits head by head."""
_TAILS = (
    Recipe("channels-65", sizes={"n": 9, "m": 7, "d": 65, "e": 33}, dtypes=("float32",)),
    Recipe("channels-129", sizes={"n": 8, "m": 9, "d": 129, "e": 65}, dtypes=("float32",)),
)
"""Channels of which one is left over, whatever a vector is long."""
_SINGLE = ("d", "e", "m", "t")
_GRID_SINGLE = {"row": {"H": 1, "Hq": 1, "Hk": 1}, "column": {"W": 1, "Wq": 1, "Wk": 1}}
_HARD = ("rising", "falling", "last", "sink", "channel", "negative", "offset")
_LEVELS = (Recipe("plain"),)
_CROSSED = 36
"""Crossings at least, where an operator has few options."""
_FEW = 4000
"""Pairs of queries and keys, of a slow oracle's crossings."""
_NARROW: tuple[tuple[str, ...], ...] = ((), (), ("float16",), (), ("bfloat16",))
"""Dtypes of some crossings beside float32."""
_FIRST, _OTHERS = ("float32",), ("float16", "bfloat16", "float64")
"""Dtypes of pairs of options: all are of the first, and each of one of the others."""
_LIKE_SUMS = ("channel", "negative", "offset")


def recipes(spec: OpSpec, taken: Callable[[Recipe], bool] | None = None) -> list[Recipe]:
    """Everything an operator is tried on; every two options that are `taken`, where not all are."""
    alone = [
        *_common(spec),
        *(level for factor in spec.cases.choices for level in factor),
        *spec.cases.recipes,
    ]
    found = [
        *alone,
        *_pairs(spec),
        *_together(spec),
        *_crossed(spec),
        *_zeros(spec),
        *_shared(spec),
    ]
    made = {r.label: _completed(spec, r) for r in found}
    more = {r.label: r for r in _narrowed(spec, taken) if r.label not in made}
    return [*made.values(), *more.values()]


def _narrowed(spec: OpSpec, taken: Callable[[Recipe], bool] | None) -> list[Recipe]:
    """Every two options of those that a backend takes, in every dtype.

    Most cases that are made for all backends have other options, too.
    """
    if taken is None:
        return []

    def of(factors: Sequence[Sequence[Recipe]], *beside: Recipe) -> tuple[tuple[Recipe, ...], ...]:
        def asked(recipe: Recipe) -> bool:
            return taken(_completed(spec, together([recipe, *beside])))

        known = (tuple(x for x in some if asked(x)) for some in factors)
        return tuple(some for some in known if some)

    choices, rare = of(spec.cases.choices), of(spec.cases.together, spec.cases.beside)
    if (choices, rare) == (spec.cases.choices, spec.cases.together):
        return []
    narrow = replace(spec, cases=replace(spec.cases, choices=choices, together=rare))
    return [everywhere(_completed(spec, r)) for r in (*_pairs(narrow), *_together(narrow))]


def _zeros(spec: OpSpec) -> list[Recipe]:
    """Options that are 0: not those of a call that does not name them."""
    every = [level for factor in spec.cases.choices for level in factor]
    lead = (2,) if spec.heads else ()
    found = []
    for name in spec.cases.zeros:
        one = next(level for level in every if name in level.options)
        found.append(Recipe(f"{name}-0", {**one.options, name: 0.0}, lead=lead))
    return found


def _shared(spec: OpSpec) -> list[Recipe]:
    """Masks and biases that the heads of a batch share, or that batches do."""
    extras = {x for factor in spec.cases.choices for level in factor for x in level.extra}
    names = [] if spec.cases.one_head else sorted({"mask", "bias"} & extras - {*spec.arrays})
    return [
        Recipe(f"{name}-{label}", extra=(f"{name}:{detail}",), lead=(2, 3))
        for name in names
        for label, detail in (("of-batch", "batch"), ("of-heads", "heads"))
    ]


def _common(spec: OpSpec) -> list[Recipe]:
    """Sizes, heads, values and layouts, by what the operator is."""
    found = [
        Recipe("primes", dtypes=ALL),
        Recipe("tiles", sizes=TILES, tier="smoke" if _sets(spec) else "standard"),
        Recipe("ones", sizes=ONES),
        everywhere(_SIZES[0]),
        _rarer(_SIZES[1]) if spec.cases.costly else everywhere(_SIZES[1]),
        Recipe("strided", layout="strided", tier="standard"),
        Recipe("reversed", layout="reversed"),
        Recipe("read-only", layout="read-only", tier="standard"),
        Recipe("zeros", values="zeros"),
        Recipe("small", values="small", tier="standard"),
        *_of_heads(spec),
    ]
    if spec.heads and not spec.cases.tall:
        lead = (2, 2) if spec.cases.costly else (2, 3)
        found.append(Recipe("heads-last", lead=lead, layout="heads-last"))
    if {"q", "k"} <= {*spec.arrays} and spec.heads and not spec.cases.one_head:
        found.append(Recipe("broadcast", lead=(2, 2), layout="broadcast"))
        found += _APART
        if _sets(spec) and spec.has_vjp and not spec.cases.costly:
            found.append(_MANY_HEADS)
    if "q" in spec.arrays:
        found += [Recipe("equal-rows", values="equal"), Recipe("large", values="large")]
        found += [Recipe(values, values=values, dtypes=ALL) for values in _hard(spec)]
    if spec.softmax:
        found += [Recipe("deep", values="deep"), Recipe("faint", values="faint")]
    if _sets(spec):
        found += [
            Recipe("no-queries", sizes={"n": 0}, tier="standard"),
            Recipe("long", sizes=LONG, dtypes=WIDE, tier="exhaustive"),
            *_SETS,
            *(() if "d" in spec.cases.most else _TAILS),
            *(_rarer(r) if spec.cases.costly else r for r in _beyond(spec)),
            *(() if spec.cases.costly else _LONG),
        ]
    elif "H" in _letters(spec) or "Hq" in _letters(spec):
        one = {"d": 1, "e": 1}
        found.append(Recipe("one-channel", sizes=one))
        found += [_single(name, some) for name, some in _GRID_SINGLE.items()]
    if spec.name in {row.name for row in TABLE} and not spec.cases.tall:
        sizes = [name for name in _SINGLE if name in _letters(spec)]
        found += [_single(name, {name: 1}) for name in sizes]
    if "constant" in spec.cases.values:
        found.append(Recipe("constant", values="constant"))
    if "subnormal" in spec.cases.values:
        found.append(Recipe("subnormal", values="subnormal", tier="standard", dtypes=ALL))
    return [recipe for recipe in found if recipe.label not in spec.cases.without]


def _single(name: str, sizes: dict[str, int]) -> Recipe:
    """One of a kind, beside several of all others: what is divided by the wrong number shows."""
    return Recipe(f"one-{name}", sizes=sizes, dtypes=("float32",), kinds=("forward", "vjp"))


def _beyond(spec: OpSpec) -> list[Recipe]:
    """Sizes beyond those of blocks; the widest with several heads."""
    *some, widest = _BEYOND
    return [*some, replace(widest, lead=(2,)) if spec.heads else widest]


def _pairs(spec: OpSpec) -> list[Recipe]:
    """Every two options, and every option with heads; sizes, values and layouts in turn."""
    heads = _of_heads(spec)
    factors = [*spec.cases.choices, *([heads] if heads else [])]
    sizes = (
        ()
        if spec.cases.tall
        else (*(_SIZES[:1] if spec.cases.costly else _SIZES), *(_SETS[:2] if _sets(spec) else ()))
    )
    values = [Recipe(x, values=x) for x in (_hard(spec) if "q" in spec.arrays else ())]
    found = [
        replace(r, dtypes=_FIRST) for r in spread(pairs(factors), _turns(values, sizes, _LAYOUTS))
    ]
    if spec.cases.costly:
        found = [_seldom(spec, r) if i % 2 else r for i, r in enumerate(found)]
    return [recipe for recipe in in_turn(found, _OTHERS) if "+" in recipe.label]


def _together(spec: OpSpec) -> list[Recipe]:
    """Every two of all that an operator may be asked, many at once."""
    found = pairs(spec.cases.together, spec.cases.apart)
    made = [replace(together([r, spec.cases.beside]), label=r.label) for r in found]
    return list(in_turn([replace(r, dtypes=_FIRST) for r in made if "+" in r.label], _OTHERS))


def _crossed(spec: OpSpec) -> list[Recipe]:
    """Every option alone with sizes that blocks, vectors and grids of hardware tell apart.

    Half of them, of grids a quarter at most, are of the first tier. Where an oracle takes long,
    options meet fewer sizes, and small ones.
    """
    own = [_LEVELS[0], *(level for factor in spec.cases.choices for level in factor)]
    rest = [r for r in spec.cases.recipes if _one_option(r)]
    sizes: Sequence[Recipe] = SETS if _sets(spec) else GRIDS
    if spec.cases.costly:
        sizes = [r for r in sizes if r.sizes["n"] * r.sizes["m"] < _FEW] if _sets(spec) else GRIDS
    heads = [Recipe(""), *_of_heads(spec)]
    layouts = [x for x in LAYOUTS if x.layout not in ("heads-last", "broadcast") or len(heads) > 1]
    if spec.cases.tall or not sizes:
        return []
    each = max(4, -(-_CROSSED // len(own))) if _sets(spec) else 2
    each = 1 if spec.cases.costly else each
    found = [
        *map(_lean, crossings(own, sizes, heads, layouts, each)),
        *crossings(rest, sizes, heads, layouts, 1 if spec.cases.costly else 2),
    ]
    few = 1 if spec.cases.costly else len(_NARROW)
    turn, first = (2 * len(heads), len(heads)) if _sets(spec) else (4, not spec.cases.costly)
    return [
        replace(
            r,
            dtypes=("float32", *_NARROW[i % few]),
            kinds=tuple(kind for kind in r.kinds if kind != "jvp"),
            tier="smoke" if i % turn < first else "standard",
        )
        for i, r in enumerate(found)
    ]


def _lean(recipe: Recipe) -> Recipe:
    """Many heads of few pairs of queries and keys, two of many."""
    pairs_each = recipe.sizes.get("n", _FEW) * recipe.sizes.get("m", 1)
    if not recipe.lead or pairs_each < _FEW // 2:
        return recipe
    groups = [int(x.partition(":")[2]) for x in recipe.extra if x.startswith("groups:")]
    return replace(recipe, lead=(2 * max([1, *groups]),))


def _one_option(recipe: Recipe) -> bool:
    """Whether a recipe asks for something that sizes and layouts of others do not spoil."""
    plain = recipe.values == "normal" and recipe.layout == "C" and 0 not in recipe.lead
    small = 0 not in recipe.sizes.values() and not {"sizes", "large"} & {*recipe.extra}
    small = small and prod(recipe.lead) < prod(_MANY_HEADS.lead)
    return plain and small and bool(recipe.options or recipe.extra) and recipe.tier == "smoke"


def _rarer(recipe: Recipe) -> Recipe:
    """The same, at the next tier."""
    return replace(recipe, tier="standard")


def _seldom(spec: OpSpec, recipe: Recipe) -> Recipe:
    """At the next tier, where options meet elsewhere, too; else without forward mode."""
    kinds = tuple(kind for kind in recipe.kinds if kind != "jvp")
    return _rarer(recipe) if spec.cases.together else replace(recipe, kinds=kinds)


def _turns(*kinds: Sequence[Recipe]) -> list[Recipe]:
    """One of each kind after the other, as long as the longest lasts."""
    longest = max(map(len, kinds))
    return [kind[i] for i in range(longest) for kind in kinds if i < len(kind)]


def _of_heads(spec: OpSpec) -> list[Recipe]:
    shared = {"q", "k"} <= {*spec.arrays} and not spec.cases.one_head
    some = [*_HEADS[: 2 + shared], *spec.cases.heads] if spec.heads else []
    if spec.cases.costly:
        fewer = {(13,): (4,), (2, 3): (2, 2)}
        some = [replace(r, lead=fewer.get(r.lead, r.lead)) for r in some]
    if spec.cases.tall:
        some = [replace(r, lead=(2,), dtypes=("float32",)) for r in some[:1]]
    return [recipe for recipe in some if recipe.label not in spec.cases.without]


def _hard(spec: OpSpec) -> tuple[str, ...]:
    """Values that are hard for a softmax, or for sums."""
    kinds = _HARD if spec.softmax else _LIKE_SUMS
    return tuple(kind for kind in kinds if kind not in spec.cases.without)


def given_per_head(spec: OpSpec, name: str) -> bool:
    """Whether an array has the leading axes of heads."""
    return name not in (*spec.extras, "weight") and not name.startswith("support")


def _letters(spec: OpSpec) -> list[str]:
    return " ".join(spec.arrays.values()).split()


def _sets(spec: OpSpec) -> bool:
    return {"n", "m"} <= {*_letters(spec)}


def _completed(spec: OpSpec, recipe: Recipe) -> Recipe:
    """What every case of an operator needs: its table's options, least sizes and given choices."""
    sizes = PRIMES | dict(recipe.sizes)
    for name, least in spec.least.items():
        sizes[name] = max(sizes[name], least)
    for name, most in spec.cases.most.items():
        sizes[name] = min(sizes[name], most)
    if spec.cases.tall and recipe.label != "ones":
        sizes["d"] = min(sizes["d"], 6)
        sizes["m"] = max(sizes["m"], sizes["d"])
    if recipe.options.get("causal") and spec.cases.causal_is_square:
        sizes["m"] = sizes["n"]  # rows are positions of one sequence
    given, extra = spec.cases.given, recipe.extra
    if given and not any(name.split(":")[0] in (given, "field") for name in extra):
        extra = (*extra, given)
    options = {n: x for n, x in spec.options.items() if not (given == "index" and n == "keys")}
    left_out = {n for n, x in recipe.options.items() if x is None and n in options}
    has = {"vjp": spec.has_vjp, "jvp": spec.has_jvp}
    kinds = tuple(k for k in recipe.kinds if has.get(k, True))
    options = {n: x for n, x in {**options, **recipe.options}.items() if n not in left_out}
    return replace(recipe, sizes=sizes, extra=extra, options=options, kinds=kinds)
