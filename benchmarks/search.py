"""Argmax search beside FAISS and pynndescent: recall and score gap against time, in one run.

Every key of a photograph's features is sought in its shifted copy with noise, 32 channels. Time
includes building an index. Recall is the share of sampled queries whose match scores the largest
score, equal scores counted; the gap is the score missed, in deviations of the query's scores. All
searches take turns, and FAISS' flat index, which is exact, must find what a matrix product finds.

    python benchmarks/search.py [--sides 256 512] [--iterations 4 16] [--trees 4 8] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
from patchmatch import photograph_pair

import nlattn
from nlattn.runtime import threads

Search = Callable[[], np.ndarray]
FLAT_ROWS = 2048  # queries of the exact index, whose time is proportional to them


def ours(q: np.ndarray, k: np.ndarray, **options: Any) -> Search:
    return lambda: nlattn.patchmatch(q, k, scale=1.0, identity=False, **options).index.reshape(-1)


def ivf(q: np.ndarray, k: np.ndarray, probes: int) -> Search:
    lists = int(4 * len(k) ** 0.5)

    def search() -> np.ndarray:
        index = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(k.shape[1]), k.shape[1], lists, faiss.METRIC_INNER_PRODUCT
        )
        index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, 64
        index.train(k)
        index.add(k)
        index.nprobe = probes
        return index.search(q, 1)[1][:, 0]

    return search


def hnsw(q: np.ndarray, k: np.ndarray, effort: int) -> Search:
    def search() -> np.ndarray:
        index = faiss.IndexHNSWFlat(k.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 40
        index.add(k)
        index.hnsw.efSearch = effort
        return index.search(q, 1)[1][:, 0]

    return search


def descent(q: np.ndarray, k: np.ndarray, threads: int) -> Search:
    import pynndescent

    def search() -> np.ndarray:
        index = pynndescent.NNDescent(k, metric="cosine", random_state=0, n_jobs=threads)
        index.prepare()
        return index.query(q, k=1)[0][:, 0]

    return search


def flat(q: np.ndarray, k: np.ndarray) -> Search:
    def search() -> np.ndarray:
        index = faiss.IndexFlatIP(k.shape[1])
        index.add(k)
        return index.search(q[:FLAT_ROWS], 1)[1][:, 0]

    return search


def searches(
    q: np.ndarray, k: np.ndarray, options: argparse.Namespace, threads: int
) -> dict[str, Search]:
    flat_q, flat_k = (np.ascontiguousarray(x.reshape(-1, x.shape[-1])) for x in (q, k))
    found = {f"nlattn random, {n} iterations": ours(q, k, iterations=n) for n in options.iterations}
    for n in options.trees:
        found[f"nlattn tree, {n} trees"] = ours(q, k, candidates="tree", trees=n)
    found["nlattn nearest_keys"] = lambda: nlattn.nearest_keys(flat_q, flat_k).index[:, 0]
    found["faiss flat"] = flat(flat_q, flat_k)
    found |= {f"faiss ivf, {p} probes": ivf(flat_q, flat_k, p) for p in options.probes}
    found |= {f"faiss hnsw, effort {e}": hnsw(flat_q, flat_k, e) for e in options.efforts}
    if not options.no_descent:
        found["pynndescent"] = descent(flat_q, flat_k, threads)
    return found


class Judge:
    """Exact scores of some queries."""

    def __init__(self, q: np.ndarray, k: np.ndarray, rows: int):
        d, n = q.shape[-1], q.shape[0] * q.shape[1]
        self.flat = np.arange(min(rows, FLAT_ROWS, n))
        self.rows = np.sort(np.random.default_rng(1).choice(n, min(rows, n), replace=False))
        self._q, self._k = q.reshape(-1, d), k.reshape(-1, d)

    def __call__(self, index: np.ndarray) -> tuple[float, float]:
        """Recall and mean gap of a search that gave a key for each query, or for the first."""
        rows = self.flat if len(index) < len(self._q) else self.rows
        scores = self._q[rows] @ self._k.T
        best, deviation = scores.max(1), scores.std(1)
        reached = np.take_along_axis(scores, index[rows][:, None].astype(np.int64), 1)[:, 0]
        return float((reached >= best - 1e-6).mean()), float(((best - reached) / deviation).mean())


def measure(side: int, options: argparse.Namespace, threads: int) -> list[dict[str, Any]]:
    q, k = photograph_pair(side)
    judge = Judge(q, k, options.rows)
    calls = searches(q, k, options, threads)
    for call in searches(q[:32, :32], k[:32, :32], options, threads).values():
        call()  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    index: dict[str, np.ndarray] = {}
    for _ in range(options.repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            index[name] = call()
            taken = time.perf_counter() - start
            seconds[name].append(taken * side * side / len(index[name]))
    assert judge(index["faiss flat"])[0] == 1, "the exact index misses the best key"
    rows = []
    for name, found in index.items():
        recall, gap = judge(found)
        row = {"side": side, "name": name, "recall": recall, "gap": gap}
        times = {"median": statistics.median(seconds[name])}
        times |= {"min": min(seconds[name]), "max": max(seconds[name])}
        rows.append({**row, "seconds": times})
    return rows


def beside_ivf(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Our time over that of IVF at the same recall, between its settings in a straight line."""
    found = []
    for side in sorted({row["side"] for row in rows}):
        here = [row for row in rows if row["side"] == side]
        curve = sorted((r["recall"], r["seconds"]["median"]) for r in here if "ivf" in r["name"])
        recall, seconds = map(list, zip(*curve, strict=True))
        for row in here:
            if row["name"].startswith("nlattn") and recall[0] <= row["recall"] <= recall[-1]:
                rival = float(np.interp(row["recall"], recall, seconds))
                times = {name: t / rival for name, t in row["seconds"].items()}
                found.append({"side": side, "name": row["name"], "recall": row["recall"]})
                found[-1]["ratio"] = times
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sides", type=int, nargs="+", choices=(64, 128, 256, 512))
    parser.add_argument("--iterations", type=int, nargs="*", default=[4, 16], metavar="N")
    parser.add_argument("--trees", type=int, nargs="*", default=[4, 8], metavar="N")
    parser.add_argument("--probes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--efforts", type=int, nargs="*", default=[16, 64])
    parser.add_argument("--no-descent", action="store_true", help="leave pynndescent out")
    parser.add_argument("--rows", type=int, default=512, help="queries that recall is taken from")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=threads.threads())
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(sides=[256, 512])
    options = parser.parse_args()
    threads.set_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    rows = [row for side in options.sides for row in measure(side, options, options.threads)]
    report = {"threads": options.threads, "rows": rows, "beside_ivf": beside_ivf(rows)}
    if options.json:
        print(json.dumps(report, indent=1))
        return
    for row in rows:
        s = row["seconds"]
        print(
            f"{row['side']}^2  {row['name']:32s} recall {row['recall']:.3f}  gap {row['gap']:.4f}  "
            f"{s['median']:.2f} s ({s['min']:.2f} to {s['max']:.2f})"
        )
    for row in report["beside_ivf"]:
        r = row["ratio"]
        print(f"{row['side']}^2  {row['name']}: {r['median']:.2f} of IVF's time at its recall")


if __name__ == "__main__":
    main()
