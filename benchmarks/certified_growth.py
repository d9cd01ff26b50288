"""Where certified attention pays: counted work of photographs, channels, spreads.

    python benchmarks/certified_growth.py growth [--sides 128 256 512] [--only camera.png]
    python benchmarks/certified_growth.py pays [--side 192] [--picture FILE.png]

`growth`: keys and boxes a query, and the exponent of the total work, on pictures of scikit-image
averaged down to each side, or enlarged. `pays`: work and processor seconds beside dense
attention's, over channels and effective keys.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import zoom

import nlattn
from nlattn import images

PICTURES = ("camera.png", "ihc.png", "gravel.png", "hubble_deep_field.jpg", "retina.jpg")


def pictures() -> dict[str, np.ndarray]:
    """The built-in photograph, with noise too, and photographs that scikit-image ships."""
    import skimage.data

    noise = np.random.default_rng(0).standard_normal((512, 512, 3))
    built_in = images.photograph()
    found = {"built-in": built_in, "built-in, noise 10": built_in + noise * (10 / 255)}
    for name in PICTURES:
        found[name] = images.load(Path(skimage.data.__file__).parent / name)
    return found


def averaged(image: np.ndarray, side: int) -> np.ndarray:
    """The largest square in the middle, a power of two, averaged down or enlarged to a side."""
    wide = 1 << (min(image.shape[:2]).bit_length() - 1)
    top, left = ((n - wide) // 2 for n in image.shape[:2])
    square = image[top : top + wide, left : left + wide]
    if side > wide:
        return zoom(np.atleast_3d(square), (side // wide, side // wide, 1), order=1)
    return square.reshape(side, wide // side, side, wide // side, -1).mean((1, 3))


def flat(image: np.ndarray, channels: int, keys: float) -> tuple[Any, Any, Any, float]:
    """Queries, keys, values and the scale at which the median query attends to so many keys."""
    f = images.patch_features(image, channels=channels)
    q, k = images.queries_and_keys(f)
    scale = images.softmax_scale(q, k, keys=keys)
    return *(np.ascontiguousarray(x.reshape(-1, x.shape[-1])) for x in (q, k, f)), scale


def seconds(call: Callable[..., Any], *given: Any, **options: Any) -> float:
    """Processor seconds of a call, the least of two."""
    found = []
    for _ in range(2):
        start = time.process_time()
        call(*given, **options)
        found.append(time.process_time() - start)
    return min(found)


def growth(options: argparse.Namespace) -> None:
    for name, image in pictures().items():
        if options.only and name not in options.only:
            continue
        each, missed = [], 0.0
        for side in options.sides:
            q, k, _, scale = flat(averaged(image, side), 32, 16)
            A = nlattn.certified_attention_map(q, k, scale=scale, tolerance=options.tolerance)
            each.append(A.work.per_query.mean())
            missed = max(missed, float(A.missed.max()))
        told = "  ".join(f"{side}: {w:6.0f}" for side, w in zip(options.sides, each, strict=True))
        if len(each) > 1:
            size = np.log(np.array(options.sides, float) ** 2)
            told += f"  n^{1 + np.polyfit(size, np.log(each), 1)[0]:.2f}"
        print(f"{name:22} {told}  most missed {missed:.1e}", flush=True)


def pays(options: argparse.Namespace) -> None:
    channels, keys = (3, 8, 16, 32, 64), (1, 10, 100, 1000)
    share, ratio = np.empty((len(keys), len(channels))), np.empty((len(keys), len(channels)))
    image = averaged(images.photograph(), 256)[: options.side, : options.side]
    for column, c in enumerate(channels):
        for row, wide in enumerate(keys):
            q, k, v, scale = flat(image, c, wide)
            part = q[:: max(1, len(q) // 1024)]
            dense = seconds(nlattn.attention, part, k, v, scale=scale) * len(q) / len(part)
            ours = seconds(nlattn.certified_attention, q, k, v, scale=scale)
            A = nlattn.certified_attention_map(q, k, scale=scale)
            share[row, column] = A.work.per_query.mean() / len(k)
            ratio[row, column] = dense / ours
            told = f"share {share[row, column]:.3f}  times faster {ratio[row, column]:.2f}"
            print(f"channels {c:3}  keys {wide:5}  {told}", flush=True)
    if options.picture:
        _draw(channels, keys, share, ratio, options)


def _draw(channels: Any, keys: Any, share: Any, ratio: Any, options: argparse.Namespace) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    titles = "keys and boxes looked at, share of all", "times faster than dense attention"
    for axis, values, title, form in zip(
        axes, (share, ratio), titles, ("{:.2f}", "{:.1f}"), strict=True
    ):
        shown = axis.imshow(np.log(values), cmap="viridis", aspect="auto")
        for (row, column), x in np.ndenumerate(values):
            color = "k" if shown.norm(np.log(x)) > 0.6 else "w"
            axis.text(column, row, form.format(x), ha="center", va="center", color=color)
        axis.set_xticks(range(len(channels)), channels)
        axis.set_yticks(range(len(keys)), keys)
        axis.set_xlabel("channels")
        axis.set_ylabel("keys of the median query")
        axis.set_title(f"{title}, n = {options.side**2:,}", fontsize=10)
    figure.savefig(options.picture, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("growth")
    one.add_argument("--sides", type=int, nargs="+", default=[128, 256, 512])
    one.add_argument("--tolerance", type=float, default=1e-3)
    one.add_argument("--only", nargs="+", metavar="PICTURE")
    one.set_defaults(run=growth)
    two = commands.add_parser("pays")
    two.add_argument("--side", type=int, default=192)
    two.add_argument("--picture")
    two.set_defaults(run=pays)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
