"""How well each approximation stands for dense attention on the built-in photograph.

Queries and keys are those of `nlattn demo`: 33 channels of 7 x 7 patches, spread over 16 keys. Each
map is compared with exact attention in float64 on the same queries.

    python benchmarks/approximations.py [--side 128] [--rows 512] [--json]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import nlattn
from nlattn import images

_GAIN = 1.5


def methods(q: Any, k: Any, scale: float, side: int) -> dict[str, Callable[[], Any]]:
    d, rng = q.shape[1], np.random.default_rng(0)
    grid = (side, side, d)
    directions = rng.standard_normal((d - 1, 512)).astype(np.float32)
    projection = nlattn.orthogonal_features(d, 256, seed=0).astype(np.float32)
    found: dict[str, Callable[[], Any]] = {
        "scram, window 3": lambda: nlattn.scram_map(
            q.reshape(grid), k.reshape(grid), scale=scale, seed=0
        ),
    }
    for select in ("leverage", "norm"):
        found[f"lev_attention, 64 keys by {select}"] = lambda select=select: (
            nlattn.lev_attention_map(q, k, keys=64, select=select, scale=scale)
        )
    found["hamming, 64 keys"] = lambda: nlattn.hamming_attention_map(q, k, keys=64)
    found["hamming, 64 keys, 512 random directions"] = lambda: nlattn.hamming_attention_map(
        q[:, :-1] @ directions, k[:, :-1] @ directions, keys=64
    )
    for channels in (2, 3, 4, 5, 8):
        points = images.gaussian_points(
            q[:, :-1].reshape(side, side, -1), scale=scale, gain=_GAIN, channels=channels
        )
        sets = [x.reshape(len(q), -1) for x in points]
        found[f"permutohedral, {channels} channels"] = lambda sets=sets: (
            nlattn.permutohedral_attention_map(*sets)
        )
    root = scale**0.5 * d**0.25  # it scales by d^(-1/4) itself
    found["favor_attention, 256 features"] = lambda: nlattn.favor_attention_map(
        np.float32(root) * q, np.float32(root) * k, projection=projection
    )
    return found


def measure(side: int, rows: int) -> list[dict[str, Any]]:
    image = images.resize(images.photograph(), side, side)
    pair = images.queries_and_keys(images.patch_features(image, patch=7, channels=32), gain=_GAIN)
    scale = images.softmax_scale(*pair, keys=16.0, seed=0)
    q, k = (x.reshape(side * side, -1) for x in pair)
    exact = nlattn.attention_map(q.astype(np.float64), k.astype(np.float64), scale=scale)
    v = image.reshape(-1, 3).astype(np.float64)
    report = []
    for name, make in methods(q, k, scale, side).items():
        make()
        start = time.perf_counter()
        A = make()
        taken = time.perf_counter() - start
        found = nlattn.compare(A, exact, v, rows=rows, seed=0)
        assert found.output is not None
        report.append(
            {
                "method": name,
                "recall": found.recall.value,
                "keys": found.support,
                "mass": found.mass.value,
                "mass_best": found.mass_best,
                "tv": found.tv.value,
                "output": found.output.value,
                "points": getattr(A, "points", None),
                "seconds": taken,
            }
        )
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report = measure(options.side, options.rows)
    if options.json:
        print(json.dumps(report, indent=1))
        return
    print("| method | argmax recall | keys | mass | best of as many | TV | output error | map |")
    print("|---|---|---|---|---|---|---|---|")
    for r in report:
        print(
            f"| {r['method']} | {r['recall']:.3f} | {r['keys']:.0f} | {r['mass']:.3f} | "
            f"{r['mass_best']:.3f} | {r['tv']:.3f} | {r['output']:.3f} | {r['seconds']:.2f} s |"
        )


if __name__ == "__main__":
    main()
