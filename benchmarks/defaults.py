"""The default of ``nlattn map`` beside others, on photographs: recall, mass, output error, time.

Certified attention, whose mass is at least what is said, comes last; its time is that of outputs,
and that of best keys, which are proved, beside it.

``python benchmarks/defaults.py [SIDE] [PICTURE...]``: centre crops so wide (256) of the built-in
photograph and of pictures; without a PICTURE those that scikit-image and scikit-learn ship.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

import nlattn
from nlattn import images

WAYS = {
    "random, window 3": ("random", "window", 3),
    "tree, window 3": ("tree", "window", 3),
    "random, neighbours 1": ("random", "neighbours", 1),
    "tree, neighbours 1": ("tree", "neighbours", 1),
}


def shipped() -> list[Path]:
    """Photographs that other packages bring."""
    import skimage.data
    import sklearn.datasets

    of_skimage = Path(skimage.data.__file__).parent
    of_sklearn = Path(sklearn.datasets.__file__).parent / "images"
    names = ("coffee.png", "chelsea.png", "rocket.jpg", "camera.png")
    return [*(of_skimage / n for n in names), of_sklearn / "china.jpg", of_sklearn / "flower.jpg"]


def crop(image: np.ndarray, side: int) -> np.ndarray:
    top, left = ((max(n, side) - side) // 2 for n in image.shape[:2])
    return image[top : top + side, left : left + side]


def measure(image: np.ndarray, way: tuple[str, str, int]) -> str:
    features = images.patch_features(image, patch=7, channels=32)
    q, k = images.queries_and_keys(features)
    scale = images.softmax_scale(q, k)
    flat = [x.reshape(-1, x.shape[-1]) for x in (q, k, image)]
    candidates, kind, window = way
    start = time.perf_counter()
    field = nlattn.patchmatch(q, k, candidates=candidates, scale=scale)
    support = nlattn.scram_support(field, kind=kind, window=window)
    A = nlattn.scram_map(q, k, field=field, support=support, scale=scale)
    seconds = time.perf_counter() - start
    exact = nlattn.attention_map(*(x.astype(np.float64) for x in flat[:2]), scale=scale)
    r = nlattn.compare(A, exact, flat[2])
    best = r.mass.value / r.mass_best
    return (
        f"recall {r.recall.value:.2f}  mass {r.mass.value:.3f}, {best:.2f} of the best "
        f"{r.support:.0f} keys  output error {r.output.value:.4f}  {seconds:.2f} s"
    )


def certified(image: np.ndarray, tolerance: float = 1e-3) -> str:
    features = images.patch_features(image, patch=7, channels=32)
    pair = images.queries_and_keys(features)
    q, k, v = (x.reshape(-1, x.shape[-1]) for x in (*pair, image))
    scale, start = images.softmax_scale(*pair), time.perf_counter()
    how = {"tolerance": tolerance, "scale": scale, "return_missed": True}
    out, missed = nlattn.certified_attention(q, k, v, **how)
    between = time.perf_counter()
    nlattn.nearest_keys(q, k, scale=scale)
    end = time.perf_counter()
    some = np.sort(np.random.default_rng(0).choice(len(q), min(256, len(q)), replace=False))
    exact = nlattn.attention(*(x.astype(np.float64) for x in (q[some], k, v)), scale=scale)
    error = np.linalg.norm(out[some] - exact) / np.linalg.norm(exact)
    return (
        f"recall 1  mass {1 - missed.max():.5f} at least  "
        f"output error {error:.1e}  {between - start:.2f} s, {end - between:.2f} s"
    )


def main() -> None:
    side = int(sys.argv[1]) if len(sys.argv) > 1 else 256
    pictures = {"built-in": images.photograph()}
    for path in map(Path, sys.argv[2:]) if len(sys.argv) > 2 else shipped():
        pictures[path.name] = images.load(path)
    for name, image in pictures.items():
        for title, way in WAYS.items():
            measure(crop(image, 24), way)  # compile
            print(f"{name:12} {title:22} {measure(crop(image, side), way)}", flush=True)
        certified(crop(image, 96))  # compile
        print(f"{name:12} {'certified, 1e-3':22} {certified(crop(image, side))}", flush=True)


if __name__ == "__main__":
    main()
