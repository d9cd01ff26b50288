"""Heavy attention (p = 2) beside a dense blocked computation in NumPy, in one run.

    python benchmarks/heavy.py [--json] [--keys 262144] [--repeats 3]

The dense way computes all weights of some queries in blocks and keeps those of at least eps; its
time is scaled by the number of queries. Both must give the same entries there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import nlattn
from nlattn import testing
from nlattn.runtime import threads

BLOCK = 64


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def dense(q: np.ndarray, k: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, keys and values of the entries of at least eps, by all weights."""
    found = []
    for start in range(0, len(q), BLOCK):
        A = q[start : start + BLOCK] @ k.T
        np.multiply(A, A, out=A)
        A /= A.sum(1, keepdims=True)
        row, key = (eps <= A).nonzero()
        found.append((row + start, key, A[row, key]))
    return tuple(np.concatenate(x) for x in zip(*found, strict=True))  # type: ignore[return-value]


def measure(n: int, d: int, eps: float, planted: int, rows: int, repeats: int) -> dict[str, Any]:
    made = testing.planted_keys(n, d, planted, eps=0.05, seed=0)
    rng = np.random.default_rng(1)
    directions = made.keys[made.relevant]
    directions = directions / np.linalg.norm(directions, axis=1)[:, None]
    q = rng.standard_normal((n, d)) + 4 * directions[rng.integers(0, planted, n)]
    some = np.sort(rng.choice(n, rows, replace=False))
    nlattn.heavy_attention(q[:100], made.keys, eps)
    ours, rival = [], []
    for _ in range(repeats):
        seconds, A = timed(lambda: nlattn.heavy_attention(q, made.keys, eps))
        ours.append(seconds)
        seconds, (row, key, value) = timed(lambda: dense(q[some], made.keys, eps))
        rival.append(seconds * n / rows)
    got = A.to_csr()[some].tocoo()
    np.testing.assert_array_equal(got.row, row)
    np.testing.assert_array_equal(got.col, key)
    np.testing.assert_allclose(got.data, value, rtol=1e-10)
    ratios = [b / a for a, b in zip(ours, rival, strict=True)]
    return {
        "n": n,
        "d": d,
        "eps": eps,
        "universal": len(nlattn.universal_set(made.keys, eps).keys),
        "entries": len(A.weights),
        "seconds": statistics.median(ours),
        "dense_seconds": statistics.median(rival),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "rows_compared": rows,
        "entries_compared": len(row),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keys", type=int, default=262_144)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    r = measure(options.keys, 64, 0.01, 64, options.rows, options.repeats)
    if options.json:
        print(json.dumps(r, indent=2))
        return
    print(
        f"n = m = {r['n']}, d = 64, eps = 0.01, float64, {threads.threads()} threads: "
        f"{r['seconds']:.2f} s, dense {r['dense_seconds']:.0f} s: {r['ratio']:.0f} times as long "
        f"({r['ratio_min']:.0f} to {r['ratio_max']:.0f}); |U| = {r['universal']}, "
        f"{r['entries']} entries, {r['entries_compared']} compared"
    )


if __name__ == "__main__":
    main()
