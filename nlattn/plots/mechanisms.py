"""What one query looks at by several mechanisms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from nlattn import _check
from nlattn._types import Floats
from nlattn.plots import base

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def mechanisms(image: Floats, weights: Mapping[str, Floats], query: tuple[int, int]) -> Figure:
    """Draw what one query point looks at by several mechanisms; returns the Axes of each panel.

    Parameters
    ----------
    image : (H, W, 1 or 3) array in [0, 1], or of whole numbers
        Picture that query and keys stand on.
    weights : mapping of titles to (H, W) arrays
        Attention of the point to every pixel. Each panel has its own brightness, up to the 99.9th
        percentile of the magnitude; negative weights are blue.
    query : (row, column)
        The point.

    Examples
    --------
    >>> A = nlattn.scram_map(grid, grid)
    >>> panels = {"SCRAM": A.rows([100]).reshape(16, 16)}
    >>> axes = nlattn.plots.mechanisms(image[:16, :16], panels, (6, 4))
    """
    op = "mechanisms"
    ground = base.rgb(op, image)
    _check.instance(op, "weights", weights, Mapping, "a mapping of titles to arrays")
    base.points(op, "query", [query], ground.shape[:2])
    named = {
        n: base.numbers(op, f"weights[{n!r}]", w, ground.shape[:2]) for n, w in weights.items()
    }
    panels = base.figure(2.6 * (len(weights) + 1), 3.0).subplots(
        1, len(weights) + 1, squeeze=False
    )[0]
    panels[0].imshow(ground)
    base.title(panels[0], "the query", 9)
    for axes, (name, w) in zip(panels[1:], named.items(), strict=True):
        size = np.nan_to_num(w)
        shown = size[size != 0]
        reach = float(np.quantile(abs(shown), 0.999)) if shown.size else 1.0
        axes.imshow(base.dimmed(ground))
        strength: Floats = np.clip(abs(size) / max(reach, 1e-300), 0, 1)
        if (strength > 0.1).mean() < 0.01:  # single pixels would not be seen
            strength = base.dots(strength, 2)
        axes.imshow(base.tint("#E69F00", np.where(size >= 0, strength, 0)))
        axes.imshow(base.tint("#0072B2", np.where(size < 0, strength, 0)))
        base.title(axes, name, 9)
    for axes in panels:
        axes.plot(*query[::-1], "o", ms=13, mew=1.6, mfc="none", color="#D55E00")
        axes.set_xticks([])
        axes.set_yticks([])
    return panels
