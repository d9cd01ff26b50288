"""Draws the picture of cross-scale attention: ``python docs/pictures/cross_scale.py``."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

import nlattn
from nlattn import images

PICTURES = Path(__file__).parent
PART = slice(128, 176), slice(200, 248)  # teeth
QUERY = 20, 25
TEMPERATURE = 40.0


def enlarged() -> Figure:
    """A query, its weights on the keys, and the picture at twice its size."""
    x = images.photograph()[PART]
    q = x - x.mean((0, 1))
    k = nlattn.downscale(q, 2)
    fine = 2 * QUERY[0] * 2 * x.shape[1] + 2 * QUERY[1]
    A = nlattn.cross_scale_attention_map(q, k, scale=2, temperature=TEMPERATURE)
    cells = A.rows([fine])[0].reshape(k.shape[0], 2, k.shape[1], 2).sum((1, 3))
    out = nlattn.cross_scale_attention(q, k, x, scale=2, temperature=TEMPERATURE)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, picture, title in zip(
        figure.subplots(1, 3),
        (x, cells**0.5, out.clip(0, 1)),
        ("48 x 48 and a query", "its weights on 24 x 24 keys, square root", "96 x 96"),
        strict=True,
    ):
        axes.imshow(picture, cmap="gray", interpolation="nearest")
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    figure.axes[0].plot(QUERY[1], QUERY[0], "s", color="none", markeredgecolor="red", markersize=9)
    return figure


if __name__ == "__main__":
    enlarged().savefig(PICTURES / "cross_scale.png", dpi=65)
