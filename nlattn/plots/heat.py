"""One number for each pixel, as colours with their meaning beside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nlattn import _check
from nlattn._types import Floats
from nlattn.plots import base

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEAST = 1e-290
_DECADES = 1e4
"""Colours of a logarithm span so much at most."""


def heat(
    values: Floats, label: str, *, title: str = "", log: bool = False, ax: Axes | None = None
) -> Axes:
    """Draw a number for each pixel; returns the Axes.

    Parameters
    ----------
    values : (H, W) array
        What is drawn; colours span its 0.5th to 99.5th percentile, of a logarithm four decades.
    label : str
        What it is, beside the colours.
    title : str
        Above the picture.
    log : bool
        Colours of the logarithm, for positive values.
    ax : Axes, optional
        Where to draw; a figure of its own if omitted.

    Examples
    --------
    >>> axes = nlattn.plots.heat(image.mean(2), "grey level")
    >>> axes.figure.savefig("grey.png")
    """
    from matplotlib.colors import LogNorm, Normalize

    x = _check.real("heat", "values", values).astype(np.float64)
    if x.ndim != 2 or 0 in x.shape:
        _check.fail("heat", "values", f"has shape {x.shape}, expected (H, W), none of it 0")
    known = x[np.isfinite(x) & ((x > 0) | (not log))]
    low, high = np.quantile(known, (0.005, 0.995)) if known.size else (0.0, 1.0)
    low = max(low, high / _DECADES, _LEAST) if log else low
    if not low < high:
        low, high = (low / 2, low * 2) if log and low > 0 else (low - 0.5, low + 0.5)
    if ax is None:
        ax = base.figure(5.4 * base.aspect(x.shape) + 1.4, 5.8).add_subplot()
    norm = LogNorm(low, high, clip=True) if log else Normalize(low, high)
    shown = ax.imshow(x, cmap="magma", norm=norm, interpolation="nearest")
    base.title(ax, title)
    base.frame(ax, "#999999", 0.8)
    bar = ax.figure.colorbar(shown, ax=ax, fraction=0.045, pad=0.02, extend="both")
    bar.set_label(label, fontsize=10, color=base.INK)
    bar.ax.tick_params(labelsize=9)
    return ax
