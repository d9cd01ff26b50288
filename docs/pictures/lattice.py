"""Draw the pictures of the pages on permutohedral and on Hamming attention.

python docs/pictures/lattice.py [--table]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

import nlattn
from nlattn import images
from nlattn.engines import lattice as lattices

IMAGES = Path(__file__).parent
CHANNELS = range(1, 9)


def exact(f: Any) -> Any:
    """Gaussian weights of every pair of points, normalised."""
    w = np.exp(-((f[:, None] - f[None]) ** 2).sum(-1) / 2)
    return w / w.sum(1, keepdims=True)


def errors(d: int, spread: float, lattice: str, n: int, seeds: int = 3) -> tuple[float, float]:
    """Relative Frobenius error of the map, and lattice points per point."""
    found = []
    for seed in range(seeds):
        f = spread * np.random.default_rng(seed).standard_normal((n, d))
        A = nlattn.permutohedral_attention_map(f, f, lattice=lattice)
        P = exact(f)
        found.append((np.linalg.norm(A.to_dense() - P) / np.linalg.norm(P), A.points / n))
    return tuple(np.mean(found, 0))  # type: ignore[return-value]


def curves(table: bool) -> dict[tuple[float, str], list[float]]:
    """Error over channels for three spreads, and on the complete lattice."""
    curve: dict[tuple[float, str], list[float]] = {}
    for spread, lattice, top in (
        (0.5, "published", 8), (1, "published", 8), (2, "published", 8), (1, "complete", 5),
    ):  # fmt: skip
        rows = [errors(d, spread, lattice, 1500) for d in CHANNELS if d <= top]
        curve[spread, lattice] = [error for error, _ in rows]
        if table:
            print(lattice, f"spread {spread}:", *(f"{e:.3f} (M/n {r:.2f})" for e, r in rows))
    return curve


def mesh(axes: Any) -> None:
    """Points in the plane, the simplices that hold them, and the lattice points of these."""
    f = np.random.default_rng(4).normal(0, 0.9, (14, 2))
    placed = lattices.Placed.of(f, None)
    E = lattices.embedding(2)
    back = E / (E * E).sum(0)
    last = -placed.vertices.sum(1, keepdims=True)
    corners = (np.concatenate([placed.vertices, last], 1) @ back).reshape(len(f), 3, 2)
    for triangle in corners:
        axes.fill(*triangle.T, facecolor="C0", alpha=0.12, edgecolor="0.6", linewidth=0.7)
    axes.plot(*f.T, "o", color="C3", markersize=4, label="points")
    axes.plot(*corners.reshape(-1, 2).T, "k.", markersize=5, label="lattice points")
    for triangle in corners[:1]:
        for corner, b in zip(triangle, placed.b[0], strict=True):
            axes.annotate("", corner, f[0], arrowprops={"arrowstyle": "->", "color": "C3"})
            axes.text(*corner, f" {b:.2f}", fontsize=7, color="C3")
    axes.set(aspect="equal", xticks=[], yticks=[], title="splat: the vertices of its simplex")
    axes.legend(fontsize=7, loc="lower left", framealpha=1)
    axes.margins(0.25)


def permutohedral(table: bool) -> None:
    """The simplices of some points; a kernel beside the Gaussian; error over channels."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.3), layout="constrained")
    mesh(left)
    x = np.linspace(-4, 4, 400)[:, None]
    for lattice, style in (("published", "C0"), ("complete", "C1--")):
        A = nlattn.permutohedral_attention_map(x, x, normalize=False, lattice=lattice)
        row = A.rows(210)
        middle.plot(x[:, 0], row / row.sum(), style, label=lattice)
    w = np.exp(-((x[:, 0] - x[210, 0]) ** 2) / 2)
    middle.plot(x[:, 0], w / w.sum(), "k:", label="Gaussian")
    middle.set(title="one query's weights, 1 channel", xlabel="feature / sigma")
    middle.legend(fontsize=7)
    for (spread, lattice), error in curves(table).items():
        style = "--" if lattice == "complete" else "-"
        name = f"spread {spread} sigma" + (", complete" if lattice == "complete" else "")
        right.plot(CHANNELS[: len(error)], error, f"o{style}", markersize=3, label=name)
    right.set(yscale="log", xlabel="channels", title="error against the exact Gaussian")
    right.legend(fontsize=7)
    figure.savefig(IMAGES / "permutohedral.png", dpi=100)


def hamming() -> None:
    """Signs of a few vectors; how agreement follows the angle; what 64 keys hold, by bits."""
    rng = np.random.default_rng(0)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.1), layout="constrained")
    x = rng.standard_normal((8, 64))
    left.imshow(np.where(x < 0, -1, 1), cmap="gray", aspect="auto", interpolation="nearest")
    left.set(title="64 signs of 8 keys: a word each", xlabel="channel", ylabel="key")
    a, b = rng.standard_normal((2, 4000, 128))
    b = np.linspace(-1, 1, 4000)[:, None] * a + rng.standard_normal((4000, 1)) * b
    cosine = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    agree = (np.sign(a) * np.sign(b)).sum(1)
    middle.plot(cosine, agree, ".", markersize=1, alpha=0.4)
    t = np.linspace(-1, 1, 200)
    middle.plot(t, 128 * (1 - 2 * np.arccos(t) / np.pi), "k", linewidth=0.8)
    middle.set(xlabel="cosine of query and key", title="d - 2 popcount(q xor k), d = 128")
    image = images.resize(images.photograph(), 96, 96)
    pair = images.queries_and_keys(images.patch_features(image, channels=32))
    scale = images.softmax_scale(*pair, keys=16.0, seed=0)
    q, k = (y.reshape(96 * 96, -1) for y in pair)
    full = nlattn.attention_map(q.astype(float), k.astype(float), scale=scale)
    kept = (1, 4, 16, 64, 256, 1024)
    for bits in (0, 64, 256, 1024):
        to = np.eye(32) if not bits else rng.standard_normal((32, bits))
        y, z = (u[:, :32] @ to.astype(np.float32) for u in (q, k))
        mass = [
            nlattn.compare(nlattn.hamming_attention_map(y, z, keys=N), full, rows=200).mass.value
            for N in kept
        ]
        right.plot(
            kept,
            mass,
            "o-",
            markersize=3,
            label=f"{bits} random directions" if bits else "32 channels",
        )
    right.set(xscale="log", xlabel="keys kept", title="exact attention that they hold")
    right.legend(fontsize=7)
    figure.savefig(IMAGES / "hamming.png", dpi=100)


if __name__ == "__main__":
    permutohedral("--table" in sys.argv)
    hamming()
