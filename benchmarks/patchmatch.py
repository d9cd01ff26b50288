"""Score evaluations a second of PatchMatch, beside a plain loop over rasters, on a photograph.

    python benchmarks/patchmatch.py [--json] [--repeats 5]

The query is the photograph shifted by (7, 11) with noise added to its features, 32 channels. Both
searches do the same rounds with the same random numbers, so their fields must be equal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numba
import numpy as np

import nlattn
from nlattn import images


@numba.njit
def mix(z):
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@numba.njit
def absorb(h, x):
    return mix((h ^ np.uint64(x)) + np.uint64(0x9E3779B97F4A7C15))


@numba.njit
def below(h, limit):
    return np.int64(((h >> np.uint64(32)) * np.uint64(limit)) >> np.uint64(32))


@numba.njit(error_model="numpy", fastmath={"reassoc", "contract", "nsz", "arcp"})
def score(q, p, k, j):
    total = np.float32(0)
    for c in range(q.shape[1]):
        total += q[p, c] * k[j, c]
    return total


@numba.njit(parallel=True, error_model="numpy")
def plain_round(q, k, H, W, jump, last, iteration, old, scores, new, new_scores):
    """One round over rows of the raster: every candidate scored, none remembered."""
    for y in numba.prange(H):
        for x in range(W):
            p = y * W + x
            best, value = old[p], scores[p]
            for direction in range(4):
                dy = 0 if direction < 2 else (2 * direction - 5) * jump
                dx = 0 if direction > 1 else (2 * direction - 1) * jump
                if y + dy < 0 or y + dy >= H or x + dx < 0 or x + dx >= W:
                    continue
                match = old[(y + dy) * W + x + dx]
                row, column = match // W - dy, match % W - dx
                for kind in range(2):
                    j = match
                    if kind == 1:
                        if row < 0 or row >= H or column < 0 or column >= W:
                            continue
                        j = row * W + column
                    s = score(q, p, k, j)
                    if s > value or (s == value and j < best):
                        best, value = j, s
            if last:
                state = mix(np.uint64(0x9E3779B97F4A7C15))
                for field in (0, iteration, p):
                    state = absorb(state, field)
                radius, number = max(H, W), 0
                while radius >= 1:
                    row, column = best // W, best % W
                    top, left = max(row - radius, 0), max(column - radius, 0)
                    height = min(row + radius, H - 1) - top + 1
                    width = min(column + radius, W - 1) - left + 1
                    row = top + below(absorb(state, 2 * number), height)
                    j = row * W + left + below(absorb(state, 2 * number + 1), width)
                    s = score(q, p, k, j)
                    if s > value or (s == value and j < best):
                        best, value = j, s
                    radius //= 2
                    number += 1
            new[p], new_scores[p] = best, value


def plain(q: np.ndarray, k: np.ndarray, start: np.ndarray) -> np.ndarray:
    H, W, d = q.shape
    q, k = q.reshape(-1, d), k.reshape(-1, d)
    field = start.reshape(-1).astype(np.int64)
    scores = np.einsum("nd,nd->n", q, k[field])
    other, other_scores = field.copy(), scores.copy()
    for iteration in range(1, 6):
        for jump in (8, 4, 2, 1):
            plain_round(q, k, H, W, jump, jump == 1, iteration, field, scores, other, other_scores)
            field, other, scores, other_scores = other, field, other_scores, scores
    return field.reshape(H, W)


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def photograph_pair(side: int) -> tuple[np.ndarray, np.ndarray]:
    image = images.photograph()
    if side < 512:
        image = image.reshape(side, 512 // side, side, 512 // side, 3).mean((1, 3))
    k = images.patch_features(image)
    k /= np.linalg.norm(k, axis=-1, keepdims=True) + 1e-3
    noise = np.random.default_rng(0).standard_normal(k.shape).astype(np.float32)
    return np.roll(k, (7, 11), (0, 1)) + np.float32(0.02) * noise, k


def recall(q: np.ndarray, k: np.ndarray, field: nlattn.Field, rows: int = 256) -> float:
    """Share of sampled queries whose match scores at least the best key, less rounding."""
    d = q.shape[-1]
    chosen = np.random.default_rng(1).choice(q.shape[0] * q.shape[1], rows, replace=False)
    exact = (q.reshape(-1, d)[chosen] @ k.reshape(-1, d).T).max(1)
    return float((field.score.reshape(-1)[chosen] >= exact - 1e-6).mean())


def measure(side: int, repeats: int) -> dict[str, float]:
    q, k = photograph_pair(side)
    options = {"scale": 1.0, "identity": False}
    start = nlattn.patchmatch(q, k, iterations=0, **options).index
    field = nlattn.patchmatch(q, k, **options)
    agree = (field.index[..., 0] == plain(q, k, start)).mean()
    assert agree > 0.97, agree  # the rival's sums are in another order, so near ties may part
    ours, rival = [], []
    for _ in range(repeats):
        ours.append(timed(lambda: nlattn.patchmatch(q, k, **options)))
        rival.append(timed(lambda: plain(q, k, start)))
    tested = int(field.work.per_query.sum())
    ratios = [a / b for a, b in zip(ours, rival, strict=True)]
    return {
        "side": side,
        "seconds": statistics.median(ours),
        "tested_per_second": tested / min(ours),
        "tested_per_query": tested / side**2,
        "time_over_plain": statistics.median(ratios),
        "time_over_plain_min": min(ratios),
        "time_over_plain_max": max(ratios),
        "agreement": float(agree),
        "recall": recall(q, k, field),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    results = [measure(side, arguments.repeats) for side in (256, 512)]
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    for r in results:
        print(
            f"{r['side']}x{r['side']}: {r['tested_per_second'] / 1e6:.0f} million scores/s, "
            f"{r['time_over_plain']:.2f} of the plain loop's time "
            f"({r['time_over_plain_min']:.2f} to {r['time_over_plain_max']:.2f}), "
            f"recall {r['recall']:.2f}"
        )
    rate = results[1]["tested_per_second"] / results[0]["tested_per_second"]
    print(f"rate at 512x512 over rate at 256x256: {rate:.2f}")


if __name__ == "__main__":
    main()
