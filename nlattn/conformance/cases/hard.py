"""Values that are hard for a softmax: each shows one way in which kernels go wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nlattn._types import Array


def harden(kind: str, arrays: dict[str, Array], scale: float, grid: tuple[int, ...]) -> None:
    """Change q, k and v (..., d), of scores ``scale q k``, in place; `grid` is that of keys."""
    if kind in _SCORES:
        scores = _SCORES[kind](int(np.prod(grid)))
        _add(arrays, scale, scores.reshape(grid))
        if kind == "faint" and arrays["v"].size:  # what is left comes of the small weights
            first: Any = (..., *(0 for _ in grid), slice(None))
            arrays["v"][first] = 0.0
    else:
        HARD[kind](arrays)


def _add(arrays: dict[str, Array], scale: float, scores: Array) -> None:
    """Give every key its score (over the grid of keys) in the first channel of all queries."""
    if scale and scores.size:
        size = np.sqrt(abs(scores).max() / abs(scale)) or 1.0
        size = 2.0 ** np.round(np.log2(size))  # so that every format holds it
        arrays["q"][..., 0] = size
        arrays["k"][..., 0] = scores / (scale * size)


def _one(where: int, score: float) -> Callable[[int], Array]:
    """One key far above the others."""

    def scores(m: int) -> Array:
        found = np.zeros(m)
        found[where : where + 1 or None] = score
        return found

    return scores


_SCORES: dict[str, Callable[[int], Array]] = {
    "rising": lambda m: np.linspace(-6.0, 6.0, m),
    "falling": lambda m: np.linspace(6.0, -6.0, m),
    "deep": lambda m: np.full(m, -1e4),
    "last": _one(-1, 16.0),
    "sink": _one(0, 16.0),
    "faint": _one(0, 24.0),
}


def _channel(arrays: dict[str, Array]) -> None:
    """One channel of keys and of values is huge, as in the activations of language models."""
    for name in {"k", "v"} & {*arrays}:
        arrays[name][..., -1] += 200.0


def _negative(arrays: dict[str, Array]) -> None:
    """All scores below 0."""
    arrays["q"], arrays["k"] = abs(arrays["q"]), -abs(arrays["k"])


def _offset(arrays: dict[str, Array]) -> None:
    """Values that differ little from a constant."""
    name = "v" if "v" in arrays else "k"
    arrays[name] = 1.0 + arrays[name] / 64


HARD: dict[str, Callable[[dict[str, Array]], None]] = {
    "channel": _channel,
    "negative": _negative,
    "offset": _offset,
}
KINDS = (*_SCORES, *HARD)
