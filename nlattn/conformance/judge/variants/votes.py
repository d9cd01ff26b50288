"""Votes of patches gone wrong: which of several for a key, and what is outside."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np

from nlattn._types import Array, Function, Result
from nlattn.conformance.judge.variants.base import Call, Run, Variant, needs, step

_PSAL = ("patch votes",)


def _one_vote(better: Callable[[Any, Any], bool]) -> Run:
    """Of several votes for a key another than the first of the lowest cost."""

    def wrong(_: Call, __: Function, row: list[Any], c: Array) -> Result:
        best: dict[int, Any] = {}
        for place, key in row:
            if key not in best or better(c[place].real, c[best[key]].real):
                best[key] = place
        return [(place, key) for place, key in row if best[key] == place]

    return needs("dedup", step("cheapest", wrong))


def _onto_the_border(_: Call, __: object, index: Array, grid: tuple[int, int], r: int) -> Result:
    """Votes of neighbours outside, and for keys outside, are those of the border."""
    (Hq, Wq, topk), found = index.shape, []
    for y, x in np.ndindex(Hq, Wq):
        row = []
        for a, b, t in product(range(-r, r + 1), range(-r, r + 1), range(topk)):
            i, j = min(max(y + a, 0), Hq - 1), min(max(x + b, 0), Wq - 1)
            if index[i, j, t] >= 0:
                ky, kx = divmod(int(index[i, j, t]), grid[1])
                ky, kx = min(max(ky - a, 0), grid[0] - 1), min(max(kx - b, 0), grid[1] - 1)
                row.append(((i, j, t), ky * grid[1] + kx))
        found.append(row)
    return found


def _wrapped(queries: bool, keys: bool) -> Run:
    """Neighbours by their flat number alone: what leaves a row of the grid goes on in the next."""

    def wrong(_: Call, __: object, index: Array, grid: tuple[int, int], r: int) -> Result:
        (Hq, Wq, topk), (Hk, Wk), found = index.shape, grid, []
        for y, x in np.ndindex(Hq, Wq):
            row = []
            for a, b, t in product(range(-r, r + 1), range(-r, r + 1), range(topk)):
                i, j = divmod((y + a) * Wq + x + b, Wq) if queries else (y + a, x + b)
                if not (0 <= i < Hq and 0 <= j < Wq) or index[i, j, t] < 0:
                    continue
                ky, kx = divmod(int(index[i, j, t]), Wk)
                ky, kx = ky - a, kx - b
                if 0 <= ky * Wk + kx < Hk * Wk and (keys or (0 <= ky < Hk and 0 <= kx < Wk)):
                    row.append(((i, j, t), ky * Wk + kx))
            found.append(row)
        return found

    return needs("aggregate", step("votes", wrong))


VARIANTS = (
    Variant(
        "with the first vote for a key, not the cheapest", _PSAL, _one_vote(lambda a, b: False)
    ),
    Variant("with the dearest vote for a key", _PSAL, _one_vote(lambda a, b: a > b)),
    Variant(
        "with votes from outside moved onto the border", _PSAL, step("votes", _onto_the_border)
    ),
    Variant(
        "with keys of votes that go on in the next row of the grid, not checked by column",
        _PSAL,
        _wrapped(queries=False, keys=True),
    ),
    Variant(
        "with neighbours that vote from the next row of the grid, not checked by column",
        _PSAL,
        _wrapped(queries=True, keys=False),
    ),
    Variant(
        "with neighbours and keys of votes that go on in the next row, not checked by column",
        _PSAL,
        _wrapped(queries=True, keys=True),
    ),
    Variant(
        "with votes of the nearest neighbours alone, whatever the patch is",
        _PSAL,
        step("votes", lambda _, f, index, grid, r: f(index, grid, min(r, 1))),
    ),
)
