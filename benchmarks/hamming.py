"""Hamming attention beside float32 attention to the same keys, chosen by full scores.

The rival computes the scores of -1 and +1 in float32: this library's map of dense attention with
its best N keys, and NumPy's matrix product with a partial sort. Selections must agree; turns
alternate.

    python benchmarks/hamming.py [--n 16384] [--channels 128] [--keys 64] [--runs 5] [--json]
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


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def spread(times: list[float]) -> dict[str, float]:
    return {"median": statistics.median(times), "min": min(times), "max": max(times)}


def attend(weights: Any, index: Any, v: Any) -> Any:
    """Weights of the chosen keys, renormalised, times their values."""
    weights = weights / weights.sum(1, keepdims=True)
    out = np.empty((len(weights), v.shape[1]), v.dtype)
    for start in range(0, len(out), 1024):
        rows = slice(start, start + 1024)
        out[rows] = np.einsum("nk,nke->ne", weights[rows], v[index[rows]])
    return out


def dense(q: Any, k: Any, v: Any, keys: int) -> Any:
    """Dense attention's best keys, of equal ones the lowest."""
    return attend(*nlattn.attention_map(q, k).topk(keys), v)


def blas(q: Any, k: Any, v: Any, keys: int) -> Any:
    """NumPy: a block of scores, a partial sort, a softmax; which of equal keys is left open."""
    weights, index = [], []
    for start in range(0, len(q), 1024):
        s = q[start : start + 1024] @ k.T
        best = np.argpartition(-s, keys, axis=1)[:, :keys]
        top = np.take_along_axis(s, best, 1) * q.shape[1] ** -0.5
        weights.append(np.exp(top - top.max(1, keepdims=True)))
        index.append(best)
    return attend(np.concatenate(weights), np.concatenate(index), v)


def measure(n: int, d: int, keys: int, runs: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((n, c)).astype(np.float32) for c in (d, d, 64))
    words = nlattn.pack_signs(q), nlattn.pack_signs(k)
    sq, sk = (np.where(x < 0, -1, 1).astype(np.float32) for x in (q, k))
    calls: dict[str, Callable[[], Any]] = {
        "numbers": lambda: nlattn.hamming_attention(q, k, v, keys=keys),
        "words": lambda: nlattn.hamming_attention(*words, v, keys=keys),
        "dense": lambda: dense(sq, sk, v, keys),
        "blas": lambda: blas(sq, sk, v, keys),
    }
    want = calls["numbers"]()  # compiled, and of one selection
    np.testing.assert_allclose(calls["dense"](), want, atol=1e-4)
    np.testing.assert_array_equal(calls["words"](), want)
    turns = [{name: seconds(call) for name, call in calls.items()} for _ in range(runs)]
    return {
        "n": n,
        "channels": d,
        "keys": keys,
        "seconds": {name: spread([turn[name] for turn in turns]) for name in calls},
        "ratio": {
            name: spread([turn["numbers"] / turn[name] for turn in turns])
            for name in ("dense", "blas")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=16384)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--keys", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report = measure(options.n, options.channels, options.keys, options.runs)
    if options.json:
        print(json.dumps(report, indent=1))
        return
    for name, x in report["seconds"].items():
        print(f"{name:8} {x['median']:.3f} s ({x['min']:.3f} to {x['max']:.3f})")
    for name, x in report["ratio"].items():
        print(
            f"{name}: {1 / x['median']:.1f} times ours ({1 / x['max']:.1f} to {1 / x['min']:.1f})"
        )


if __name__ == "__main__":
    main()
