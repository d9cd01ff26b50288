"""What forward mode costs: processor time of ``<name>_jvp`` over that of the forward pass.

One thread, both in turn in one process, medians of ratios:

    NLATTN_THREADS=1 python benchmarks/forward_mode.py [NAME ...] [--runs N]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import nlattn

RNG = np.random.default_rng(0)


def sets(n: int, d: int, **options: Any) -> tuple[list[Any], dict[str, Any]]:
    return [RNG.standard_normal((n, d)).astype(np.float32) for _ in range(3)], options


def grids(*shape: int, **options: Any) -> tuple[list[Any], dict[str, Any]]:
    return [RNG.standard_normal(shape).astype(np.float32) for _ in range(3)], options


def cases() -> dict[str, tuple[str, list[Any], dict[str, Any]]]:
    """Label, function, arrays and options."""
    support = nlattn.support_from_index(RNG.integers(0, 2048, (2048, 64)), 2048)
    projection = nlattn.orthogonal_features(64, 128, seed=0).astype(np.float32)
    queries, picture = grids(96, 96, 16)[0], RNG.random((96, 96, 3)).astype(np.float32)
    return {
        "attention": ("attention", *sets(2048, 64)),
        "attention, softcap, causal": ("attention", *sets(2048, 64, softcap=2.0, causal=True)),
        "sparse_attention": ("sparse_attention", *sets(2048, 64, support=support)),
        "efficient_attention": ("efficient_attention", *sets(16384, 64)),
        "favor_attention": ("favor_attention", *sets(8192, 64, projection=projection)),
        "neighbourhood_attention": (
            "neighbourhood_attention", *grids(64, 64, 32, window=(7, 7))
        ),
        "qna": ("qna", [queries[0][0, :2].copy(), *queries[1:]], {"window": 7}),
        "nl_means": ("nl_means", [picture], {"sigma": 0.1}),
    }  # fmt: skip


def processor(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def ratio(name: str, arrays: list[Any], options: dict[str, Any], runs: int) -> tuple[Any, float]:
    """Median, least and largest ratio, and the forward pass in seconds."""
    forward, jvp = getattr(nlattn, name), getattr(nlattn, f"{name}_jvp")
    given = dict(options)
    first = [*arrays, given.pop("support")] if "support" in given else arrays
    changes = [RNG.standard_normal(x.shape).astype(x.dtype) for x in arrays]
    calls = (lambda: forward(*first, **given)), (lambda: jvp(*first, *changes, **given))
    for call in calls:
        call()
    times = np.array([[processor(call) for call in calls] for _ in range(runs)])
    each = times[:, 1] / times[:, 0]
    return (np.median(each), each.min(), each.max()), float(np.median(times[:, 0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--runs", type=int, default=9)
    asked = parser.parse_args()
    for label, (name, arrays, options) in cases().items():
        if asked.names and name not in asked.names:
            continue
        (median, low, high), seconds = ratio(name, arrays, options, asked.runs)
        print(f"{label}: {median:.2f} ({low:.2f} to {high:.2f}) of {1e3 * seconds:.1f} ms")


if __name__ == "__main__":
    main()
