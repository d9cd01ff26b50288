"""Proved nearest keys and certified attention of a photograph beside their rivals, in one run.

Calls take turns; seconds are those of the processor, of all threads; ratios are of medians. FAISS'
exact index and dense attention, whose time is proportional to the queries, are asked for some of
them. Times hold everything: points, trees, searches and sums.

    python benchmarks/certified.py [--sides 128 256 512] [--tolerances 1e-3 1e-6] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.ndimage import zoom

import nlattn
from nlattn import images
from nlattn.runtime import threads

GAIN = 1.5  # of `images.queries_and_keys`
ROWS = 2048
"""Queries of dense attention and of the exact index."""


def scene(side: int, keys: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Queries, keys and values of the demo's map, and its scale."""
    image = images.photograph()
    if side > 512:
        image = zoom(image, (side // 512, side // 512, 1), order=1)
    else:
        image = image.reshape(side, 512 // side, side, 512 // side, 3).mean((1, 3))
    f = images.patch_features(image)
    q, k = images.queries_and_keys(f)
    scale = images.softmax_scale(q, k, keys=keys)
    flat = [np.ascontiguousarray(x.reshape(side * side, -1)) for x in (q, k, f)]
    return flat[0], flat[1], flat[2], scale


def in_turns(calls: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, float], Any]:
    """Median processor seconds of each call after one that compiles, and the last results."""
    results = {name: call() for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.process_time()
            results[name] = call()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(s) for name, s in seconds.items()}, results


def ivf(q: np.ndarray, k: np.ndarray, probes: int) -> Callable[[], np.ndarray]:
    """By the distance that the pair disguises: lists of products hold no best keys."""
    import faiss

    q, k = (np.ascontiguousarray(x[:, :-1]) for x in (GAIN * q, k))

    def search() -> np.ndarray:
        lists = int(4 * len(k) ** 0.5)
        index = faiss.IndexIVFFlat(faiss.IndexFlatL2(k.shape[1]), k.shape[1], lists)
        index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, 64
        index.train(k)
        index.add(k)
        index.nprobe = probes
        return index.search(q, 1)[1][:, 0]

    return search


def flat(q: np.ndarray, k: np.ndarray) -> Callable[[], np.ndarray]:
    import faiss

    def search() -> np.ndarray:
        index = faiss.IndexFlatIP(k.shape[1])
        index.add(k)
        return index.search(q[:ROWS], 1)[1][:, 0]

    return search


def measure(side: int, options: argparse.Namespace) -> dict[str, Any]:
    q, k, v, scale = scene(side, options.keys)
    n, some = len(q), slice(0, ROWS)
    share = n / min(ROWS, n)
    calls: dict[str, Callable[[], Any]] = {
        "nearest": lambda: nlattn.nearest_keys(q, k, scale=scale),
        "dense": lambda: nlattn.attention(q[some], k, v, scale=scale, return_lse=True),
    }
    for t in options.tolerances:
        calls[f"certified {t:g}"] = lambda t=t: nlattn.certified_attention(
            q, k, v, scale=scale, tolerance=t, return_lse=True, return_missed=True
        )
    if not options.no_faiss:
        calls["faiss flat"] = flat(q, k)
        calls |= {f"faiss ivf {p}": ivf(q, k, p) for p in options.probes}
    seconds, results = in_turns(calls, options.repeats)
    for name in ("dense", "faiss flat"):
        if name in seconds:
            seconds[name] *= share
    best = results["nearest"].score[:, 0] / scale
    found: dict[str, Any] = {"side": side, "scale": scale, "seconds": seconds}
    found["keys and boxes"] = float(results["nearest"].work.per_query.mean())
    for name, index in results.items():
        if "ivf" in name:
            reached = np.einsum("nd,nd->n", q, k[index])
            size = np.einsum("nd,nd->n", np.abs(q), np.abs(k[index]))
            found[f"recall {name}"] = float((reached >= best - 1e-6 * size).mean())
    out, lse = results["dense"]
    span = np.ptp(v, axis=0)
    for t in options.tolerances:
        got, got_lse, missed = results[f"certified {t:g}"]
        error = (np.abs(got[some] - out) / span).max()
        found[f"certified {t:g}"] = {
            "of dense": seconds[f"certified {t:g}"] / seconds["dense"],
            "missed": float(missed.mean()),
            "most missed": float(missed.max()),
            "error over range": float(error),
            "lse": float(np.abs(got_lse[some] - lse).max()),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--tolerances", type=float, nargs="+", default=[1e-3, 1e-6])
    parser.add_argument("--keys", type=float, default=16.0, help="effective keys of the map")
    parser.add_argument("--probes", type=int, nargs="*", default=[4, 16])
    parser.add_argument("--no-faiss", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if not options.no_faiss:
        import faiss

        faiss.omp_set_num_threads(threads.threads())
    for side in options.sides:
        print(json.dumps({"threads": threads.threads(), **measure(side, options)}, indent=1))


if __name__ == "__main__":
    main()
