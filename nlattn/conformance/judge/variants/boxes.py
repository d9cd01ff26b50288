"""Windows of pixels gone wrong: what they hold, at borders too, and about whose match they lie."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np

from nlattn._types import Array, Function, Result
from nlattn.conformance.judge.variants.base import Call, Run, Variant, step

_SCRAM, _MEANS = ("boxes",), ("patch means",)
Grid = tuple[int, int]
Box = Callable[[int, int, int, Grid], set[Grid]]
"""Pixels of the window of a radius about a place."""
_KINDS = ("window", "topk", "neighbours", "local")


def _whole(y: int, x: int, r: int, grid: Grid) -> set[Grid]:
    rows, columns = (
        range(max(at - r, 0), min(at + r + 1, n)) for at, n in ((y, grid[0]), (x, grid[1]))
    )
    return {*product(rows, columns)}


def _some(has: Callable[[int, int, int], bool]) -> Box:
    """Those that are at some offsets from the middle."""
    return lambda y, x, r, grid: {(i, j) for i, j in _whole(y, x, r, grid) if has(i - y, j - x, r)}


def _inside(y: int, x: int, r: int, grid: Grid) -> set[Grid]:
    i, j = (min(max(at, r), max(n - 1 - r, r)) for at, n in ((y, grid[0]), (x, grid[1])))
    return _whole(i, j, r, grid)


def _around(y: int, x: int, r: int, grid: Grid) -> set[Grid]:
    return {
        ((y + a) % grid[0], (x + b) % grid[1]) for a in range(-r, r + 1) for b in range(-r, r + 1)
    }


def _in_a_row(y: int, x: int, r: int, grid: Grid) -> set[Grid]:
    at = y * grid[1] + x
    return {divmod(j, grid[1]) for j in range(max(at - r, 0), min(at + r + 1, grid[0] * grid[1]))}


_BOXES: dict[str, Box] = {
    "without their last row and column": _some(lambda a, b, r: a < r and b < r),
    "without their first row and column": _some(lambda a, b, r: a > -r and b > -r),
    "of one row": _some(lambda a, b, r: a == 0),
    "of one column": _some(lambda a, b, r: b == 0),
    "that are crosses": _some(lambda a, b, r: a == 0 or b == 0),
    "that are disks": _some(lambda a, b, r: a * a + b * b <= r * r),
    "that are diamonds": _some(lambda a, b, r: abs(a) + abs(b) <= r),
    "that end at their middle": _some(lambda a, b, r: (a, b) <= (0, 0)),
    "that begin at their middle": _some(lambda a, b, r: (a, b) >= (0, 0)),
    "moved inside at borders, not cut off": _inside,
    "continued on the other side at borders": _around,
    "that are runs of numbers in raster order": _in_a_row,
}


def _box(box: Box) -> Run:
    """In place of the boxes about matches; single pixels stay."""
    return step("box", lambda _, f, y, x, r, grid: box(y, x, r, grid) if r else f(y, x, r, grid))


def _window(box: Box) -> Run:
    """In place of the windows about pixels."""

    def wrong(_: Call, __: Function, H: int, W: int, distance: int) -> Result:
        rows = [
            sorted(i * W + j for i, j in box(y, x, distance, (H, W))) for y, x in np.ndindex(H, W)
        ]
        indptr = np.cumsum([0, *map(len, rows)])
        return indptr, np.array([j for row in rows for j in row]), (H * W, H * W)

    return step("window_support", wrong)


def _neighbours(reach: int | None = None, shift: bool | None = None) -> Run:
    def wrong(_: Call, f: Function, *args: object) -> Result:
        *rest, own, moved = args
        return f(*rest, own if reach is None else reach, moved if shift is None else shift)

    return step("neighbours", wrong)


def _four(_: Call, f: Function, index: Array, y: int, x: int, *rest: object) -> Result:
    kept = index.copy()
    for i, j in product((y - 1, y + 1), (x - 1, x + 1)):
        if 0 <= i < index.shape[0] and 0 <= j < index.shape[1]:
            kept[i, j] = -1
    return f(kept, y, x, *rest)


def _without(
    name: str,
    _: Call,
    f: Function,
    index: Array,
    y: int,
    x: int,
    grid: Grid,
    kind: object,
    *rest: object,
) -> Result:
    """A union of all kinds of keys but one."""
    kinds = _KINDS if kind == "union" else (kind,) if isinstance(kind, str) else tuple(kind)  # type: ignore[arg-type]
    kept = tuple(k for k in kinds if k != name)
    return f(index, y, x, grid, kept if len(kept) < len(kinds) > 1 else kind, *rest)


VARIANTS = (
    *(Variant(f"with windows {words}", _SCRAM, _box(box)) for words, box in _BOXES.items()),
    *(Variant(f"with windows {words}", _MEANS, _window(box)) for words, box in _BOXES.items()),
    Variant("with the matches of two steps of neighbours", _SCRAM, _neighbours(reach=2)),
    Variant("with the matches of four neighbours, not eight", _SCRAM, step("neighbours", _four)),
    Variant(
        "without the matches moved back by a neighbour's step", _SCRAM, _neighbours(shift=False)
    ),
    Variant(
        "with neighbours' matches moved on, not back",
        _SCRAM,
        step("step", lambda _, f, *args: -f(*args)),
    ),
    Variant(
        "with neighbours' steps not scaled to the keys' grid",
        _SCRAM,
        step("step", lambda _, __, delta, *rest: delta),
    ),
    Variant(
        "with the query's own place not scaled to the keys' grid",
        _SCRAM,
        step("mapped", lambda _, __, at, *rest: at),
    ),
    *(
        Variant(f"without {name} in a union", _SCRAM, step("_row", partial(_without, name)))
        for name in _KINDS[1:]  # neighbours have the window, too
    ),
)
