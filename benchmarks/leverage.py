"""Leverage scores: time beside PyTorch's QR and two matrix products, error, memory of a stream.

python benchmarks/leverage.py [--what time error stream] [--n 262144] [--d 64] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import tracemalloc
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

import nlattn
from nlattn.oracle import leverage as oracle
from nlattn.runtime import threads


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure_time(n: int, d: int, repeats: int, dtypes: list[str]) -> list[dict[str, Any]]:
    """Seconds of each call, alternating, after one round that compiles; ratios of each round."""
    import torch

    runs = []
    for dtype in dtypes:
        k = np.random.default_rng(0).standard_normal((n, d)).astype(dtype)
        factor = np.linalg.inv(np.linalg.cholesky(k[: 64 * d].T @ k[: 64 * d])).T.copy()
        on_torch, factor_torch = torch.from_numpy(k), torch.from_numpy(factor)

        def numpy_products(k: Any = k, factor: Any = factor) -> Any:
            return k.T @ k, k @ factor

        def torch_products(k: Any = on_torch, factor: Any = factor_torch) -> Any:
            return k.T @ k, k @ factor

        def torch_qr(k: Any = on_torch) -> Any:
            return (torch.linalg.qr(k)[0] ** 2).sum(1)

        calls: dict[str, Callable[[], Any]] = {
            "qr": lambda k=k: nlattn.leverage_scores(k),
            "torch qr": torch_qr,
            "gram": lambda k=k: nlattn.leverage_scores(k, method="gram"),
            "torch products": torch_products,
            "numpy products": numpy_products,
        }
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(repeats + 1):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                if number:
                    seconds[name].append(time.perf_counter() - start)
        pairs = ("qr", "torch qr"), ("gram", "torch products"), ("gram", "numpy products")
        ratios = {
            f"{a} / {b}": spread([x / y for x, y in zip(seconds[a], seconds[b], strict=True)])
            for a, b in pairs
        }
        times = {name: spread(x) for name, x in seconds.items()}
        runs.append({"n": n, "d": d, "dtype": dtype, "seconds": times, "ratios": ratios})
    return runs


def conditioned(n: int, d: int, kappa: float, seed: int) -> Any:
    """Keys with singular values from 1 to 1 / kappa, their directions at random."""
    rng = np.random.default_rng(seed)
    u = np.linalg.qr(rng.standard_normal((n, d)))[0]
    v = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return (u * np.geomspace(1, 1 / kappa, d)) @ v


def measure_error(n: int, d: int, seeds: int) -> list[dict[str, Any]]:
    """Largest error against a Jacobi SVD in longdouble, of float64 and of float32 keys."""
    rows = []
    for kappa in (1e2, 1e3, 1e4, 1e6, 1e8):
        for dtype in ("float64", "float32"):
            keys = [conditioned(n, d, kappa, seed).astype(dtype) for seed in range(seeds)]
            exact = [oracle.leverage_scores(k.astype(np.longdouble), method="svd") for k in keys]
            for method in ("qr", "svd", "gram"):
                with warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always")
                    got = [nlattn.leverage_scores(k, method=method) for k in keys]
                error = max(float(np.abs(a - b).max()) for a, b in zip(got, exact, strict=True))
                row = {"kappa": kappa, "dtype": dtype, "method": method, "error": error}
                rows.append({**row, "gave_way": bool(said)})
    return rows


def measure_stream(d: int, eps: float, sizes: list[int]) -> list[dict[str, Any]]:
    """Allocated bytes and seconds while n keys pass in blocks."""
    rows = []
    for n in [sizes[0], *sizes]:  # the first compiles
        rng, block = np.random.default_rng(0), 10_000
        stream = nlattn.LeverageStream(d, eps)
        tracemalloc.start()
        start = time.perf_counter()
        for _ in range(n // block):
            stream.update(rng.standard_normal((block, d)) * rng.pareto(3, (block, 1)))
        heavy = stream.result()
        seconds = time.perf_counter() - start
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        row = {"n": n, "d": d, "eps": eps, "seconds": seconds, "peak_bytes": peak}
        rows.append({**row, "state_bytes": stream.nbytes, "heavy": len(heavy.index)})
    return rows[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    kinds = ("time", "error", "stream")
    parser.add_argument("--what", nargs="+", choices=kinds, default=list(kinds))
    parser.add_argument("--n", type=int, default=262_144)
    parser.add_argument("--d", type=int, default=64)
    parser.add_argument("--dtypes", nargs="+", default=["float64", "float32"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report: dict[str, Any] = {"threads": threads.threads()}
    if "time" in options.what:
        report["time"] = measure_time(options.n, options.d, options.repeats, options.dtypes)
    if "error" in options.what:
        report["error"] = measure_error(2000, 16, 3)
    if "stream" in options.what:
        report["stream"] = measure_stream(16, 0.01, [10**i for i in (4, 5, 6, 7)])
    if options.json:
        print(json.dumps(report, indent=1))
        return
    for run in report.get("time", []):
        print(f"{run['n']} x {run['d']} {run['dtype']}, {threads.threads()} threads")
        for title in ("seconds", "ratios"):
            for name, x in run[title].items():
                print(f"  {name:24} {x['median']:8.3f}  ({x['min']:.3f} to {x['max']:.3f})")
    for row in report.get("error", []) + report.get("stream", []):
        print(
            "  ".join(
                f"{name} {x:.3g}" if isinstance(x, float) else f"{name} {x}"
                for name, x in row.items()
            )
        )


if __name__ == "__main__":
    main()
