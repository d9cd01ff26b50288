"""Arrays of what stands beside attention: normalisers of sets, scores of keys, tables of pages."""

from __future__ import annotations

from typing import Any

import numpy as np

from nlattn.conformance.case import Array

_LOGARITHMS = ("lses", "lse", "lse_set", "scores")


def _hidden(rng: np.random.Generator, name: str, x: Array) -> Array:
    """A third is -inf: sets without keys, hidden keys; and all that one query has."""
    if name not in _LOGARITHMS:
        return x
    if name != "lse":
        x = np.where(rng.random(x.shape) < 0.3, -np.inf, x)
    middle = x.shape[-2 if name == "scores" else -1] // 2
    x[(..., middle, slice(None)) if name == "scores" else (..., middle)] = -np.inf
    return x


def _spread(_: object, name: str, x: Array) -> Array:
    """Normalisers that lie up to a hundred apart."""
    return 30 * x if name in _LOGARITHMS else x


def _far(_: object, name: str, x: Array) -> Array:
    """Whose exponentials overflow."""
    return x + 2000 if name in _LOGARITHMS else x


PART_VALUES = {"hidden": _hidden, "empty NaN": _hidden, "spread": _spread, "far": _far}


def shares(rng: np.random.Generator, x: Array, scores: Array) -> Array:
    """Shares of 1 in every row, some of them 0, and all of those whose score is -inf."""
    x = np.where(np.isneginf(scores) | (rng.random(x.shape) < 0.2), 0, abs(x))
    total = x.sum(-1, keepdims=True)
    return np.asarray(x / np.where(total == 0, 1, total))


def page_table(
    rng: np.random.Generator, _: object, __: object, arrays: dict[str, Array], detail: str
) -> Any:
    """Pages of three sequences, of one, or of two times three; some empty, or all the same."""
    count, width = arrays["pages" if "pages" in arrays else "k_pages"].shape[0], 4
    lead = {"one": (), "many": (2, 3)}.get(detail, (3,))
    if "q" in arrays:
        lead = arrays["q"].shape[:1]
    table = rng.integers(0, count, (*lead, width))
    if detail == "ordered":
        table = np.broadcast_to(np.arange(width) % count, table.shape).copy()
    if detail == "shared":
        table[...] = table[..., :1, :]
    if detail == "empty":
        table[..., 2:] = -1
        table[0] = -1
    return {"table": table.astype(np.int32)}


def page_lengths(_: Any, __: Any, ___: Any, arrays: dict[str, Array], ____: str) -> Any:
    """All rows of a sequence, none, or some, of whole pages and not."""
    size, width = arrays["k_pages"].shape[1], arrays["table"].shape[-1]
    some = np.array([2 * size + 1, width * size, 0, size], np.int64)
    return {"key_lengths": np.resize(some, arrays["q"].shape[:1])}
