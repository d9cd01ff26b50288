"""Keys that are hard to bound, and queries that try to give a key more than its bound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

POWERS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
EPSILONS = (0.02, 0.1, 0.3, 1.0)
KINDS = ("normal", "zeros", "copies", "low rank", "rows of all sizes", "huge", "columns", "tight")


def keys(rng: Any, kind: str) -> Any:
    """A few keys (n, d) of some kind."""
    n, d = rng.integers(1, 13), rng.integers(1, 5)
    K = rng.standard_normal((n, d))
    if kind == "zeros":
        K[rng.random(n) < 0.4] = 0
    elif kind == "copies":
        K = K[rng.integers(0, n, 2 * n)]
    elif kind == "low rank":  # small integers: scores are exact
        K = np.round(3 * K[:, :1]) * rng.integers(-2, 3, (1, d)) + 0.0
    elif kind == "rows of all sizes":
        K *= 10.0 ** rng.uniform(-8, 8, (n, 1))
    elif kind == "huge":
        K[rng.integers(n)] *= 1e8
    elif kind == "columns":
        K *= 10.0 ** rng.uniform(-4, 4, d)
    elif kind == "tight":
        K = np.repeat(np.eye(d), 2 ** rng.integers(0, 4), axis=0)
    return K * 10.0 ** rng.uniform(-8, 8)


def ascend(K: Any, p: float, steps: int = 6) -> Any:
    """For every key a query, moved to raise the logarithm of that key's weight."""
    q = np.linalg.pinv(K).T
    for _ in range(steps):
        q = q / np.maximum(abs(q).max(1, keepdims=True), 1e-300)
        s = q @ K.T
        f = abs(s) ** p
        share = f / np.maximum(f.sum(1, keepdims=True), 1e-300)
        slope = np.where(s == 0, 0, share / np.where(s == 0, 1, s))
        own = s.diagonal()
        gradient = K / np.where(own == 0, 1, own)[:, None] - slope @ K
        size = np.linalg.norm(gradient, axis=1, keepdims=True)
        q = q + 0.1 * gradient / np.where(size == 0, 1, size)
    return q


def queries(rng: Any, K: Any, p: float) -> Any:
    """Queries (many, d): those that attain leverage, ascended, null directions, of all sizes."""
    n, d = K.shape
    best = np.linalg.pinv(K).T
    _, _, V = np.linalg.svd(K)
    smallest = V[-1:] + 1e-6 * rng.standard_normal((3, d))
    near = np.round(8 * V[-1:]) + 1e-9 * best[rng.integers(0, n, 2)]
    plain = rng.standard_normal((4, d))
    some = np.vstack([best, ascend(K, p), K, np.eye(d), plain, V, smallest, near])
    sizes = 10.0 ** rng.choice([-150, -8, -3, 0, 0, 3, 8, 150], len(some))
    longest = np.maximum(abs(some).max(1), 1e-300)
    return some / longest[:, None] * sizes[:, None]


def instances(p: float, count: int) -> Iterator[tuple[Any, Any, float]]:
    """`count` triples of queries, keys and eps."""
    rng = np.random.default_rng([int(10 * p), 7])
    for number in range(count // len(EPSILONS)):
        K = keys(rng, KINDS[number % len(KINDS)])
        Q = queries(rng, K, p)
        for eps in EPSILONS:
            yield Q, K, eps


def reliable(Q: Any, K: Any, unit: float) -> Any:
    """Which queries have a score above what rounding by `unit` makes of the others."""
    sizes = np.sqrt((K**2).sum(1)).max(initial=0) * np.sqrt((Q**2).sum(1))
    return abs(Q @ K.T).max(1, initial=0) > 1e6 * K.shape[1] * unit * sizes
