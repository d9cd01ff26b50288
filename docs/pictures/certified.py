"""Draw the picture of the page on certified attention.

python docs/pictures/certified.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import nlattn
from nlattn import images

PICTURES = Path(__file__).parent
SIDE, QUERY = 256, (60, 62)


def main() -> None:
    """A query, the weights of all its keys, and those that hold all but a thousandth."""
    photograph = images.photograph().reshape(SIDE, 2, SIDE, 2, 3).mean((1, 3))
    q, k = images.queries_and_keys(images.patch_features(photograph))
    scale = images.softmax_scale(q, k)
    flat_q, flat_k = (x.reshape(SIDE * SIDE, -1) for x in (q, k))
    A = nlattn.certified_attention_map(flat_q, flat_k, scale=scale)
    query = QUERY[0] * SIDE + QUERY[1]
    weights = np.sort(A.rows([query])[0].astype(float))[::-1]
    needed = int(np.searchsorted(np.cumsum(weights), 0.999)) + 1
    seen = A.work.per_query.reshape(SIDE, SIDE) / SIDE**2
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
    axes[0].imshow(photograph)
    axes[0].plot(*QUERY[::-1], "o", mfc="none", mec="w", ms=9)
    axes[0].set_title("a query")
    row = np.log10(np.maximum(A.rows([query])[0].reshape(SIDE, SIDE), 1e-12))
    shown = axes[1].imshow(row, cmap="magma")
    axes[1].set_title(f"log10 weights; {needed} keys hold 0.999")
    figure.colorbar(shown, ax=axes[1], shrink=0.8)
    shown = axes[2].imshow(seen, cmap="viridis")
    axes[2].set_title(f"share looked at; mean {seen.mean():.3f}")
    figure.colorbar(shown, ax=axes[2], shrink=0.8)
    for axis in axes:
        axis.set_axis_off()
    figure.savefig(PICTURES / "certified.png", dpi=90)


if __name__ == "__main__":
    main()
