"""Draws the pictures of the pages on linear attention: ``python docs/pictures/linear.py``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import nlattn
from nlattn import images, plots

PICTURES = Path(__file__).parent
PART = slice(20, 276), slice(90, 346)  # head and flag
QUERY = 82, 97  # on an eye
FEATURES = 128


def mechanisms() -> Figure:
    """Attention of one pixel by each mechanism."""
    image = images.photograph()[PART]
    features = images.patch_features(image)
    q, k = (x.reshape(-1, x.shape[-1]) for x in images.queries_and_keys(features))
    scale = images.softmax_scale(*images.queries_and_keys(features))
    pixel = [QUERY[0] * image.shape[1] + QUERY[1]]
    root = np.float32(scale**0.5)
    projection = nlattn.orthogonal_features(q.shape[1], FEATURES, 0).astype(np.float32)
    grid = images.queries_and_keys(features)
    maps = {
        "dense: the patches alike": nlattn.attention_map(q, k, scale=scale),
        "SCRAM: a window at the best": nlattn.scram_map(*grid, scale=scale, seed=0),
        "Efficient Attention: broad templates": nlattn.efficient_attention_map(root * q, root * k),
        "refined: signed, all of one matrix": nlattn.refined_self_attention_map(q, k),
        "ENLA: an estimate, noisy": nlattn.enla_map(q, k, projection=projection),
    }
    rows = {name: one.rows(pixel)[0].reshape(image.shape[:2]) for name, one in maps.items()}
    return plots.mechanisms(image, rows, QUERY)[0].figure


def estimates() -> Figure:
    """Error of random features against exact attention, over amplification and over r."""
    rng = np.random.default_rng(0)
    n, d = 512, 64
    q = rng.standard_normal((n, d))
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    noise = rng.standard_normal((n, d))
    k = 0.8 * q + 0.6 * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    v = rng.standard_normal((n, d))

    def error(amplification: float, r: int) -> float:
        root = amplification**0.5
        units = (x / np.linalg.norm(x, axis=1, keepdims=True) * root for x in (q, k))
        exact = nlattn.attention(*units, v, scale=1.0)
        squares = 0.0
        for seed in range(5):
            projection = nlattn.orthogonal_features(d, r, seed)
            out = nlattn.enla(q, k, v, projection=projection, amplification=amplification)
            squares += float(((out - exact) ** 2).sum() / (exact**2).sum())
        return (squares / 5) ** 0.5

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    amplifications = [0.5, 1, 1.5, 2, 3, 4, 5, 6]
    for r in (128, 1024):
        left.plot(amplifications, [error(a, r) for a in amplifications], "o-", label=f"r = {r}")
    left.axvline(6, color="grey", linewidth=0.8)
    left.set(xlabel="amplification", ylabel="relative error of the output")
    left.legend()
    counts = [32, 64, 128, 256, 512, 1024, 2048]
    errors = [error(1, r) for r in counts]
    right.loglog(counts, errors, "o-", label="amplification 1")
    slope = [errors[0] * (counts[0] / r) ** 0.5 for r in counts]
    right.loglog(counts, slope, "--", color="grey", label="1 / sqrt(r)")
    right.set(xlabel="features r", ylabel="relative error of the output")
    right.legend()
    return figure


if __name__ == "__main__":
    estimates().savefig(PICTURES / "features.png", dpi=80)
    mechanisms().savefig(PICTURES / "mechanisms.jpg", dpi=80)
