"""Rows that are wrong, by what they see: queries that see no key, keys that several queries see.

What a query sees are the keys whose values reach its row: the result for values of 1 and 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from nlattn._types import Array, Arrays
from nlattn.conformance.case import Case
from nlattn.conformance.judge.measure import attempt
from nlattn.conformance.judge.variants.base import Call, Variant, first
from nlattn.conformance.truth.bounds import allowed, ratios, wide

MOST_KEYS = 300
LARGEST = 2_000_000
"""Pairs of queries and keys above which it is not asked who sees whom."""
SHARE = 0.7
"""Of the rows that have something in common, those that must be wrong for it to be the reason."""
SPREAD = 0.5
"""Of the channels of wrong rows, those that must be wrong."""
LIMITS = (1, 16, 32, 64, 128, 256)
"""Keys of a row beyond which kernels go wrong; another number is a chance."""
FEW_SEEN = 2
RIGHT = 0.1
"""The share of rows, at least, that is right."""


def by_sight(case: Case, want: Arrays, got: Arrays) -> str:
    """What the wrong rows of each result have in common, in words; empty where some have nothing.

    It is said where all wrong rows have it, most that have it are wrong, and others are right.
    """
    bounds, said = allowed(case), list[str]()
    for name, x in want.items():
        bad = ratios(got[name], x, bounds[name]) > 1
        if not bad.any():
            said.append(f"{name} is right")
            continue
        words = _common(case, name, x, got[name], bad)
        if not words:
            return ""
        said.append(f"{name} is right but in {words}")
    return ", ".join(said) if any(" but " in text for text in said) else ""


def _common(case: Case, name: str, want: Array, got: Array, bad: Array) -> str:
    side = "k" if name in ("dk", "dv") else "q" if name in ("out", "lse", "dq", "missed") else ""
    dims = len(case.spec.arrays.get("q", "").split()) - 1
    if side not in case.arrays or dims < 1 or case.spec.cases.result != "numbers":
        return ""
    places = case.arrays[side].shape[-dims - 1 : -1]
    rows = bad.any(-1) if bad.ndim > dims and bad.shape[-dims - 1 : -1] == places else bad
    if rows.shape[-dims:] != places or rows.all():
        return ""
    if bad.ndim > rows.ndim and bad[rows].mean() < SPREAD:
        return ""
    rows = rows.reshape(*rows.shape[:-dims], -1)
    values = got.reshape(*rows.shape, -1)[rows]
    zero = not values.any() and np.isfinite(want).all()
    for words, trait in _traits(case, side, rows):
        has = np.broadcast_to(trait, rows.shape) if _fits(trait, rows) else np.zeros_like(rows)
        if (rows & ~has).any() or rows.sum() < SHARE * has.sum() or (~has).mean() < RIGHT:
            continue
        what = "NaN" if np.isnan(values).all() else "0" if zero else ""
        what = "-inf" if np.isneginf(values).all() else what
        if what == "-inf" and words == _NOTHING["q"] and "sinks" in case.arrays:
            what = "-inf and should be their sink"
        due = want.reshape(*rows.shape, -1)[rows]
        if not what and words == _NOTHING[side] and not np.where(np.isneginf(due), 0, due).any():
            due_ = "-inf" if np.isneginf(due).all() else "0"
            return f"{words}, where it should be {due_} and holds numbers: were they never written?"
        return f"{words}, where it is {what}" if what else words
    return ""


_NOTHING = {"q": "queries that see no key", "k": "keys that no query sees"}


def _fits(trait: Array, rows: Array) -> bool:
    try:
        return np.broadcast_shapes(trait.shape, rows.shape) == rows.shape
    except ValueError:
        return False


def _traits(case: Case, side: str, rows: Array) -> Iterator[tuple[str, Array]]:
    """What rows may have in common, what tells most first."""
    sees, n = seen(case), rows.shape[-1]
    if side == "q" and case.options.get("causal") and sees is not None:
        yield "queries after the last key", (np.arange(n) >= sees.shape[-1]) & (sees.any(-1))
    if sees is not None:
        count = sees.sum(-1 if side == "q" else -2)
        yield _NOTHING[side], count == 0
        one, all_ = ("key", "keys") if side == "q" else ("query", "queries")
        whose, verb = ("queries", "see") if side == "q" else ("keys", "are seen by")
        yield f"{whose} that {verb} one {one} alone", count == 1
        if side == "k":
            yield "keys that several queries see", count > 1
            if sees.shape[-1] == sees.shape[-2]:
                theirs = (sees & ~np.swapaxes(sees, -1, -2)).any(-2)
                yield (
                    "keys of queries that they do not see as queries: neighbours not mutual",
                    theirs,
                )
        if _fits(count, rows):
            of = np.broadcast_to(count, rows.shape)[rows]
            low, high = int(of.min()), int(of.max())
            least, most = count >= low, count <= high  # where these tell all rows apart
            if low - 1 in LIMITS and min(rows.sum(), (~rows).sum()) > 2 and (rows == least).all():
                yield f"{whose} that {verb} {low} {all_} and more", least
            if high <= FEW_SEEN and min(rows.sum(), (~rows).sum()) > 2 and (rows == most).all():
                yield f"{whose} that {verb} {high} {all_} at most", most
    if len(case.spec.arrays["q"].split()) == 3:
        grid = case.arrays[side].shape[-3:-1]
        i, j = np.indices(grid)
        edge = np.minimum(np.minimum(i, grid[0] - 1 - i), np.minimum(j, grid[1] - 1 - j)).ravel()
        far = int(np.broadcast_to(edge, rows.shape)[rows].max()) if edge.size == n else 0
        if edge.size == n and rows.sum() > 3:
            yield f"places {far + 1} from the border at most", edge <= far


def _leading(case: Case) -> int:
    return case.arrays["k"].ndim - len(case.spec.arrays["k"].split())


@lru_cache(maxsize=64)
def seen(case: Case) -> Array | None:
    """Which queries see which keys, (..., n, m); None where values are no arrays of keys."""
    arrays = {n: x for n, x in wide(case.arrays).items() if n not in case.directions}
    if not {"q", "k", "v"} <= {*arrays}:
        return None
    if case.spec.arrays["v"].split()[:-1] != case.spec.arrays["k"].split()[:-1]:
        return None
    lead, dims = _leading(case), len(case.spec.arrays["k"].split()) - 1
    m, n = (math.prod(arrays[x].shape[-dims - 1 : -1]) for x in "kq")
    if not 0 < m <= MOST_KEYS or n * m * math.prod(arrays["q"].shape[: -dims - 1]) > LARGEST:
        return None
    eye = np.eye(m).reshape(*(1,) * lead, *arrays["k"].shape[-dims - 1 : -1], m)
    arrays["v"] = np.broadcast_to(eye, (*arrays["v"].shape[:-1], m)).copy()
    skip = ("masked_rows", "return_lse", "return_missed", "dropout_scale")
    options = {n: x for n, x in case.options.items() if n not in skip}
    arrays.pop("dropout_mask", None)
    made = attempt(Variant("", (), Call.__call__), Call(case.op, arrays, options))
    P = None if made is None else np.asarray(first(made))
    if P is None or P.shape[-1] != m or P.ndim < dims + 1:
        return None
    return np.asarray(P.reshape(*P.shape[: -dims - 1], -1, m) != 0)
