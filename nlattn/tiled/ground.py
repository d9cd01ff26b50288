"""What certified attention knows of queries and keys before there are values, as files.

One task surveys all of them; others read its trees where they lie. A part (there are at most three,
by precision) is the files whose names begin with its number.
"""

from __future__ import annotations

import numpy as np

from nlattn import _check
from nlattn._types import Array, Ints, JsonObject
from nlattn.engines.certified import Descent, Ground
from nlattn.engines.nearest import ALL, SHARE
from nlattn.kernels.boxes import Tree
from nlattn.kernels.certified_terms import Originals
from nlattn.kernels.nearest import Asked
from nlattn.tiled.folder import ArraySpec, Folder

PARTS = 3
_TREE = ("order", "points", "shorts", "boxes", "least", "most", "uniform")
_ASKED = ("queries", "places", "brief", "bounds", "panels")
_GIVEN = ("asked", "factors", "keys", "heights")
_OTHERS = ("sizes", "numbers", "top", "errors", "position")
WHOLE = ("dense", "dense_rounding", "dense_wide")
"""Files of what is left to dense attention, whatever the values."""


def names(part: int) -> tuple[str, ...]:
    """Files of a part."""
    return tuple(f"part{part}_{name}" for name in (*_TREE, *_ASKED, *_GIVEN, *_OTHERS))


def all_names() -> tuple[str, ...]:
    """Files of all of it."""
    return (*(name for part in range(PARTS) for name in names(part)), *WHOLE)


def save(folder: Folder, ground: Ground) -> JsonObject:
    """Make the files; returns what they hold."""
    n = len(ground.slice.q)
    made: JsonObject = {
        "dense": ground.dense,
        "dense_rounding": ground.dense_rounding,
        "dense_wide": ground.dense_wide,
    }
    for number in range(PARTS):
        there = number < len(ground.parts)
        arrays = _arrays(ground.parts[number], n) if there else [np.zeros(0)] * len(names(number))
        made |= dict(zip(names(number), arrays, strict=True))
    for name, x in made.items():
        folder.make(ArraySpec(name, x.shape, x.dtype.str))
    return made


def _arrays(part: Descent, n: int) -> list[Array]:
    tree, asked = part.tree, part.asked
    position = np.full(n, -1, np.int64)
    position[asked.order] = np.arange(len(asked.order))
    return [
        *(getattr(tree, name) for name in _TREE),
        *(asked.order, asked.points, asked.shorts, asked.numbers, asked.panels),
        *part.given[:4],
        np.array(
            [
                *(tree.levels, tree.size, tree.dims, tree.short),
                *(part.mixed, part.exact, part.given.without),
            ]
        ),
        part.numbers,
        part.top,
        np.array([asked.rounding, part.slack, part.given.share]),
        position,
    ]


def part(folder: Folder, number: int) -> Descent | None:
    """A part, read where it lies; None if there is none."""
    short_names = (*_TREE, *_ASKED, *_GIVEN, *_OTHERS)
    if not folder.read(f"part{number}_sizes").size:
        return None
    held = {name: folder.read(f"part{number}_{name}") for name in short_names}
    levels, size, dims, short, mixed, exact, without = (int(x) for x in held["sizes"])
    arrays = {name: _check.frozen(held[name]) for name in _TREE}
    tree = Tree(levels=levels, size=size, dims=dims, short=short, **arrays)
    order, points, shorts, bounds, panels = (_check.frozen(held[name]) for name in _ASKED)
    rounding, slack, share = (float(x) for x in held["errors"])
    asked = Asked(order, points, shorts, bounds, rounding, panels, ALL, SHARE)
    queries, factors, keys, heights = (_check.frozen(held[name]) for name in _GIVEN)
    given = Originals(queries, factors, keys, heights, share, without)
    numbers = _check.frozen(held["numbers"])
    return Descent(tree, asked, numbers, held["top"], slack, bool(mixed), given, bool(exact))


def some(whole: Descent, first: int, last: int, panels: Ints) -> Descent:
    """The queries `first` to `last` of the order of a part, renumbered; panels of theirs."""
    asked, own = whole.asked, whole.asked.order[first:last]
    fewer = asked._replace(
        order=_check.frozen(np.arange(len(own)), np.int32),
        points=_check.frozen(asked.points[own]),
        shorts=_check.frozen(asked.shorts[own]),
        numbers=_check.frozen(asked.numbers[own]),
        panels=_check.frozen(panels, asked.panels.dtype),
    )
    numbers = _check.frozen(whole.numbers[own])
    given = whole.given
    if whole.mixed:
        queries, factors = _check.frozen(given.queries[own]), _check.frozen(given.factors[own])
        given = given._replace(queries=queries, factors=factors)
    return whole._replace(asked=fewer, numbers=numbers, top=whole.top[own], given=given)
