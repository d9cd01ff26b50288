"""Few cases in which every two choices meet: a covering array, made greedily."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from nlattn._types import JsonObject
from nlattn.conformance.table.recipe import ALL, Recipe

Levels = Sequence[Recipe]
"""What one choice may be; that it is not made at all is one more."""
Place = tuple[int, int]
"""A factor, and one of its levels."""
_NONE = Recipe("")


def pairs(
    factors: Sequence[Levels], apart: Mapping[str, Collection[str]] | None = None
) -> list[Recipe]:
    """Recipes in which every level of a factor meets every level of every other.

    `apart` are labels of levels that exclude each other. A recipe starts with a pair that has not
    met yet; of each other factor it takes the level that meets most others for the first time, and
    of several the one taken least.
    """
    levels = [[_NONE, *factor] for factor in factors]
    places = [(f, i) for f, some in enumerate(levels) for i in range(len(some))]

    def fits(a: Place, b: Place) -> bool:
        one, other = levels[a[0]][a[1]].label, levels[b[0]][b[1]].label
        never = apart or {}
        return other not in never.get(one, ()) and one not in never.get(other, ())

    left: set[tuple[Place, Place]] = {
        (a, b) for a, b in combinations(places, 2) if a[0] != b[0] and (a[1] or b[1]) and fits(a, b)
    }
    taken, found = Counter[Place](), []
    while left:
        row = dict(min(left, key=lambda pair: (sum(taken[place] for place in pair), pair)))
        for f, some in enumerate(levels):
            if f not in row:
                legal = [i for i in range(len(some)) if all(fits((f, i), p) for p in row.items())]
                new = {
                    i: sum((min(p, (f, i)), max(p, (f, i))) in left for p in row.items())
                    for i in legal
                }
                row[f] = min(legal, key=lambda i: (-new[i], taken[f, i], i))
        taken.update(row.items())
        left -= {(min(a, b), max(a, b)) for a, b in combinations(row.items(), 2)}
        found.append(together([levels[f][i] for f, i in sorted(row.items())]))
    return found


def together(chosen: Sequence[Recipe]) -> Recipe:
    """One recipe of several; where two choose the same thing the first has its way."""
    some = [recipe for recipe in chosen if recipe is not _NONE]
    sizes, options, extra = dict[str, int](), JsonObject(), dict[str, str]()
    for recipe in reversed(some):
        sizes |= recipe.sizes
        options |= recipe.options
        extra |= {name.partition(":")[0]: name for name in recipe.extra}
    first = {
        name: next((x for r in some if (x := getattr(r, name)) != getattr(_NONE, name)), default)
        for name, default in (("lead", ()), ("values", "normal"), ("layout", "C"))
    }
    label = "+".join(recipe.label for recipe in some)
    return Recipe(label, options, sizes, extra=tuple(extra.values()), **first)  # type: ignore[arg-type]


def crossings(
    alone: Sequence[Recipe], sizes: Levels, heads: Levels, layouts: Levels, each: int
) -> Iterator[Recipe]:
    """Every recipe with `each` of some sizes, and with heads and layouts: all of these in turn.

    Lists of lengths that share no factor let sizes meet layouts, too. A recipe of heads keeps them.
    """
    for i, recipe in enumerate(x for x in alone for _ in range(each)):
        lists = (layouts,) if recipe.lead else (heads, layouts)
        more = [some[i % len(some)] for some in lists if some]
        larger = sizes[i % len(sizes)]
        wanted = Recipe(larger.label, sizes=larger.sizes)  # sizes of its own it gives up
        kept = replace(recipe, sizes={})
        met = together([kept, wanted, *(x for x in more if x.label)])
        yield replace(met, kinds=recipe.kinds)


def spread(recipes: Sequence[Recipe], levels: Sequence[Recipe]) -> Iterator[Recipe]:
    """The recipes, each with one of some other levels: all of these in turn."""
    for i, recipe in enumerate(recipes):
        yield together([recipe, levels[i % len(levels)]]) if levels else recipe


def in_turn(recipes: Sequence[Recipe], dtypes: Sequence[str]) -> Iterator[Recipe]:
    """Each recipe in one more of some dtypes: that which most of its levels have not met yet."""
    met = Counter[tuple[str, str]]()
    for recipe in recipes:
        labels = recipe.label.split("+")

        def new(dtype: str, labels: Sequence[str] = labels) -> tuple[int, int]:
            times = [met[label, dtype] for label in labels]
            return times.count(0), -sum(times)

        also = max(dtypes, key=new)
        met.update((label, also) for label in labels)
        yield replace(recipe, also=(also,))


def everywhere(recipe: Recipe) -> Recipe:
    """The same in every dtype."""
    return replace(recipe, dtypes=ALL)
