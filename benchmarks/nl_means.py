"""Non-local means of the built-in photograph beside scikit-image and OpenCV, in one run.

All get the true noise. scikit-image's fast mode gets the best of some bandwidths for each patch
distance, OpenCV, which works on 8 bits, the best of some bandwidths for its default windows; this
library its defaults and, beside them, other searches. First, all must remove noise: their
pictures are nearer to the clean one than the noisy one is. Times are medians of alternating runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from skimage.restoration import denoise_nl_means

import nlattn
from nlattn import images
from nlattn.runtime import threads

BANDWIDTHS = (0.5, 0.65, 0.8)
DISTANCES = (5, 10, 15)
OURS: dict[str, dict[str, Any]] = {
    "window 5 (default)": {},
    "window 5, pixels": {"aggregate": "pixel"},
    "window 10": {"patch_distance": 10},
}
SLOW: dict[str, dict[str, Any]] = {
    "patchmatch 16": {"search": "patchmatch"},
    "patchmatch 16, statistical": {"search": "patchmatch", "select": "statistical"},
    "window 5 and patchmatch 4": {"search": "union", "topk": 4},
}
CROP = slice(40, 200), slice(150, 310)


def psnr(image: Any, clean: Any) -> float:
    return float(-10 * np.log10(((image - clean) ** 2).mean()))


def rival(noisy: Any, sigma: float, distance: int, bandwidth: float) -> Any:
    return denoise_nl_means(
        noisy,
        patch_size=5,
        patch_distance=distance,
        h=bandwidth * sigma,
        sigma=sigma,
        fast_mode=True,
        channel_axis=-1,
    )


def opencv(noisy: Any, bandwidth: float) -> Any:
    """OpenCV's, of BGR or RGB alike; patches of 7, windows of 21."""
    import cv2

    levels = np.rint(np.clip(noisy, 0, 1) * 255).astype(np.uint8)
    found = cv2.fastNlMeansDenoisingColored(levels, None, bandwidth, bandwidth, 7, 21)
    return found.astype(np.float32) / 255


def measure(level: int, side: int, repeats: int, slow: bool, picture: Path | None) -> list[Any]:
    clean = images.photograph()[:side, :side]
    sigma = level / 255
    noise = np.random.default_rng(0).standard_normal(clean.shape).astype(np.float32)
    noisy = clean + np.float32(sigma) * noise
    calls: dict[str, Callable[[], Any]] = {}
    for name, options in {**OURS, **(SLOW if slow else {})}.items():
        calls[f"nlattn {name}"] = lambda o=options: nlattn.nl_means(noisy, sigma=sigma, **o)
        nlattn.nl_means(noisy[:16, :16], sigma=sigma, **options)  # compiles
    for distance in DISTANCES:
        best = max(BANDWIDTHS, key=lambda h: psnr(rival(noisy, sigma, distance, h), clean))
        calls[f"scikit-image {distance}, h = {best} sigma"] = lambda d=distance, h=best: rival(
            noisy, sigma, d, h
        )
    best = max(BANDWIDTHS, key=lambda h: psnr(opencv(noisy, h * level), clean))
    calls[f"OpenCV, h = {best} sigma"] = lambda h=best: opencv(noisy, h * level)
    for name, call in calls.items():
        assert psnr(call(), clean) > psnr(noisy, clean), f"{name} removes no noise"
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    result: dict[str, Any] = {}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            result[name] = call()
            seconds[name].append(time.perf_counter() - start)
    if picture is not None:
        theirs = max(
            (n for n in calls if not n.startswith("nlattn")), key=lambda n: psnr(result[n], clean)
        )
        shown = noisy, result["nlattn window 5 (default)"], result[theirs], clean
        images.save(picture, np.concatenate([x[CROP] for x in shown], axis=1))
    rows = [
        {
            "level": level,
            "noisy": psnr(noisy, clean),
            "name": name,
            "psnr": psnr(result[name], clean),
            "seconds": statistics.median(seconds[name]),
            "range": (min(seconds[name]), max(seconds[name])),
        }
        for name in calls
    ]
    best_rival = max(
        (r for r in rows if not r["name"].startswith("nlattn")), key=lambda r: r["psnr"]
    )
    for row in rows:
        row["ratio"] = row["seconds"] / best_rival["seconds"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--levels", type=int, nargs="+", default=[10, 25, 50], help="of 255")
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--threads", type=int, default=threads.threads(), help="scikit-image takes 1"
    )
    parser.add_argument("--slow", action="store_true", help="PatchMatch too")
    parser.add_argument("--picture", type=Path, help="write a crop of the level 25")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    threads.set_threads(options.threads)
    import cv2

    cv2.setNumThreads(options.threads)
    rows = []
    for level in options.levels:
        picture = options.picture if level == 25 else None
        rows += measure(level, options.side, options.repeats, options.slow, picture)
    if options.json:
        print(json.dumps({"threads": threads.threads(), "rows": rows}, indent=1))
        return
    print(
        f"{options.side}^2 photograph, {threads.threads()} threads; "
        "ratio: time over the best rival's"
    )
    for row in rows:
        low, high = row["range"]
        print(
            f"sigma {row['level']:2d} ({row['noisy']:.2f} dB)  {row['name']:36s} "
            f"{row['psnr']:.2f} dB  {row['seconds']:.2f} s ({low:.2f}-{high:.2f})  "
            f"{row['ratio']:.2f}"
        )


if __name__ == "__main__":
    main()
