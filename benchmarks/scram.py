"""SCRAM-style attention of a photograph beside exact attention, in one run.

Dense time is that of some queries against all keys, times the number of queries over theirs. At
1024 x 1024 the photograph is enlarged.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.ndimage import zoom

import nlattn
from nlattn import images
from nlattn.runtime import threads


def best(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Shortest of some runs after one that compiles, and the result."""
    result, seconds = call(), []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def measure(side: int, rows: int, repeats: int, seed: int) -> dict[str, float]:
    image = images.photograph()
    if side > 512:
        image = zoom(image, (side // 512, side // 512, 1), order=1)
    else:
        image = image.reshape(side, 512 // side, side, 512 // side, 3).mean((1, 3))
    features = images.patch_features(image, patch=7, channels=32)
    q, k = images.queries_and_keys(features)
    scale = images.softmax_scale(q, k, seed=seed)
    flat_q, flat_k, flat_v = (x.reshape(side * side, -1) for x in (q, k, features))

    search, field = best(lambda: nlattn.patchmatch(q, k, scale=scale, seed=seed), repeats)
    listing, support = best(lambda: nlattn.scram_support(field), repeats)
    mean, (out, lse) = best(
        lambda: nlattn.sparse_attention(
            flat_q, flat_k, flat_v, support, scale=scale, return_lse=True
        ),
        repeats,
    )
    gradient, _ = best(
        lambda: nlattn.sparse_attention_vjp(flat_q, flat_k, flat_v, support, out, scale=scale),
        repeats,
    )
    some = np.sort(np.random.default_rng(seed).choice(side * side, rows, replace=False))
    dense, (exact, exact_lse) = best(
        lambda: nlattn.attention(flat_q[some], flat_k, flat_v, scale=scale, return_lse=True), 2
    )
    mass = np.exp(lse[some] - exact_lse)
    whole = search + listing + mean
    return {
        "side": side,
        "search": search,
        "support": listing,
        "attention": mean,
        "scram": whole,
        "gradient": gradient,
        "dense": dense * side * side / rows,
        "ratio": dense * side * side / rows / whole,
        "scores_per_query": (field.work.scores + len(support.indices)) / side**2,
        "mass": float(mass.mean()),
        "mass_se": float(mass.std(ddof=1) / np.sqrt(rows)),
        "error": float(np.linalg.norm(out[some] - exact) / np.linalg.norm(exact)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sides", type=int, nargs="+", choices=(64, 128, 256, 512, 1024), default=[512, 1024]
    )
    parser.add_argument("--rows", type=int, default=1024, help="queries of dense attention to time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    runs = [measure(n, options.rows, options.repeats, options.seed) for n in options.sides]
    if options.json:
        print(json.dumps({"threads": threads.threads(), "runs": runs}, indent=1))
        return
    print(f"7 x 7 patches to 32 channels, window 3, softmax, {threads.threads()} threads; seconds")
    for run in runs:
        print(
            f"{run['side']}^2: search {run['search']:.3f}, support {run['support']:.3f}, "
            f"attention {run['attention']:.3f}, in all {run['scram']:.3f} "
            f"(gradient {run['gradient']:.3f}); dense {run['dense']:.1f}: "
            f"{run['ratio']:.0f} times as long\n"
            f"       {run['scores_per_query']:.0f} scores a query; captured mass "
            f"{run['mass']:.3f} ± {1.96 * run['mass_se']:.3f}, output error {run['error']:.3f}"
        )


if __name__ == "__main__":
    main()
