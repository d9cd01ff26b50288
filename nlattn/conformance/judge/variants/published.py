"""Mistakes that were found in published implementations of one operator each."""

from __future__ import annotations

import numpy as np

from nlattn._types import Function, Result
from nlattn.conformance.judge.variants.base import Array, Call, Variant, softmax, step


def _disk(c: Call, f: Function, F: Array, *rest: object) -> Result:
    """Distances of the pixels of a disk alone; values stay whole patches."""
    p = int(c.get("patch_size", 5))
    r = p // 2
    y, x = np.mgrid[-r : r + 1, -r : r + 1]
    inside = (y * y + x * x <= r * r).astype(float)
    weight = np.sqrt(inside * p * p / inside.sum()).reshape(-1, 1)
    scaled = F.reshape(len(F), p * p, -1) * weight
    return f(scaled.reshape(F.shape), *rest)


def _reflected_keys(
    _: Call, f: Function, q: Array, k: Array, p: int, t: float, *rest: float
) -> Result:
    """Patches of keys that go on beyond the border as in a mirror."""
    _, __, Q, K, nu, above = f(q, k, p, t, *rest)
    r = p // 2
    if min(k.shape[:2]) <= r:
        raise ValueError
    wide = np.pad(k, ((r, r), (r, r), (0, 0)), mode="reflect")
    places = np.ndindex(*k.shape[:2])
    K = np.stack([wide[y : y + p, x : x + p].reshape(-1) for y, x in places]).reshape(K.shape)
    N = np.sqrt((K * K).sum(1))
    S = Q @ K.T / np.where(N.real > rest[0], N, rest[0])
    return softmax(t * S), S, Q, K, nu, above


def _eps_of(role: str) -> Result:
    """Features with eps for queries, or for keys, alone."""

    def wrong(_: Call, f: Function, x: Array, projection: Array, **options: object) -> Result:
        if options.get("role", "query") != role:
            options["eps"] = 1e-300
        return f(x, projection, **options)

    return step("positive_features", wrong)


_SQUARE = "with a disk of pixels in place of a square patch"
VARIANTS = (
    Variant(_SQUARE, ("patch means",), step("weights", _disk)),
    Variant(
        "with patches of keys reflected at the border",
        ("pasted patches",),
        step("weights", _reflected_keys),
    ),
    Variant("with eps for queries alone", ("positive features",), _eps_of("query")),
    Variant("with eps for keys alone", ("positive features",), _eps_of("key")),
)
