"""Which key each query matched: displacements as colours, and what the colours mean."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Ints
from nlattn.plots import base
from nlattn.plots.base import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def match_field(
    index: Ints, key_grid: tuple[int, int], *, title: str = "", ax: Axes | None = None
) -> Axes:
    """Draw each query's matched key as a displacement: hue its direction, strength its length.

    Parameters
    ----------
    index : (Hq, Wq) integers
        Raster index of the matched key; -1 for none, drawn grey. White matches its own place.
    key_grid : (Hk, Wk)
        Across different grids, displacements count from the query's place in the key grid.
    title : str
        Above the picture.
    ax : Axes, optional
        Where to draw the field alone; a figure with a legend if omitted.

    Returns
    -------
    Axes
        Of the field.

    Examples
    --------
    >>> field = nlattn.patchmatch(grid, grid)
    >>> axes = nlattn.plots.match_field(field.index[..., 0], field.key_grid)
    """
    op = "match_field"
    index = _check.integers(op, "index", index)
    if index.ndim != 2 or 0 in index.shape:
        _check.fail(op, "index", f"has shape {index.shape}, expected (Hq, Wq), none of it 0")
    key_grid = _check.pair(op, "key_grid", key_grid, 1)
    if index.max() >= math.prod(key_grid):
        text = f"holds {index.max()}, expected keys of the {key_grid[0]} x {key_grid[1]} grid"
        _check.fail(op, "index", text)
    index = index.astype(np.int64)
    down, right = _displacement(index, key_grid)
    reach = float(np.hypot(*key_grid))
    colours = _hue(down, right, reach)
    colours[index < 0] = 0.6
    main = ax
    if main is None:
        tall = min(6.0 / base.aspect(index.shape), 8.0)
        figure = base.figure(6.2, tall + 3.0)
        grid = figure.add_gridspec(2, 2, height_ratios=(tall, 2.6), width_ratios=(1.1, 1))
        main = figure.add_subplot(grid[0, :])
        _wheel(figure.add_subplot(grid[1, 0]), reach)
        _lengths(figure.add_subplot(grid[1, 1]), np.hypot(down, right)[index >= 0])
    main.imshow(colours, interpolation="nearest")
    base.title(main, title or "Nearest-neighbour field")
    base.frame(main, "#999999", 0.8)
    return main


def _displacement(index: Ints, key_grid: tuple[int, int]) -> tuple[Floats, Floats]:
    row, column = np.divmod(index, key_grid[1])
    starts = [
        ((2 * np.arange(n) + 1) * m) // (2 * n) for n, m in zip(index.shape, key_grid, strict=True)
    ]
    return (row - starts[0][:, None]).astype(float), (column - starts[1][None, :]).astype(float)


def _hue(down: Floats, right: Floats, reach: float) -> Floats:
    """Colour of a displacement: OKLCh, lightness falling and chroma growing with log length."""
    length = np.log1p(np.hypot(down, right)) / np.log1p(reach)
    angle = np.arctan2(-down, right)
    lightness, chroma = 0.97 - 0.32 * length, 0.16 * length**0.7
    a, b = chroma * np.cos(angle), chroma * np.sin(angle)
    cone = np.stack([lightness + x * a + y * b for x, y in _CONES], axis=-1) ** 3
    linear = np.clip(cone @ _LINEAR.T, 0, 1)
    high = 1.055 * linear ** (1 / 2.4) - 0.055
    colours: Floats = np.where(linear <= 0.0031308, 12.92 * linear, high)
    return colours


# Ottosson 2020, OKLab to linear sRGB (bottosson.github.io/posts/oklab).
_CONES = (
    (0.3963377774, 0.2158037573),
    (-0.1055613458, -0.0638541728),
    (-0.0894841775, -1.2914855480),
)
_LINEAR = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def _wheel(axes: Axes, reach: float) -> None:
    """Legend: the colour of every direction and length, on a logarithmic radius."""
    side = np.linspace(-1, 1, 257)
    right, up = np.meshgrid(side, -side)
    radius = np.hypot(right, up)
    stretch = np.expm1(np.minimum(radius, 1) * np.log1p(reach)) / np.maximum(radius, 1e-9)
    colours = np.dstack([_hue(-up * stretch, right * stretch, reach), radius <= 1])
    axes.imshow(colours, extent=(-1, 1, -1, 1))
    for length in (1, 10, 100, 1000):
        if length < reach:
            r = np.log1p(length) / np.log1p(reach)
            turn = np.linspace(0, 2 * np.pi, 100)
            axes.plot(r * np.cos(turn), r * np.sin(turn), color=INK, lw=0.5, alpha=0.5)
            axes.text(0, -r, f"{length}", fontsize=8, color=INK, ha="center", va="center")
    for x, y, word, va, ha in (
        (1.06, 0, "right", "center", "left"),
        (-1.06, 0, "left", "center", "right"),
        (0, 1.06, "up", "bottom", "center"),
        (0, -1.06, "down", "top", "center"),
    ):
        axes.text(x, y, word, fontsize=9, color=INK, va=va, ha=ha)
    axes.set(xlim=(-1.6, 1.6), ylim=(-1.75, 1.35))
    axes.set_title("from query to key, in pixels", fontsize=9, color=INK)
    caption = "white: its own place; grey: no match"
    axes.text(0, -1.45, caption, fontsize=9, color=INK, ha="center", va="top")
    axes.axis("off")


def _lengths(axes: Axes, length: Floats) -> None:
    edges = np.concatenate(
        [[0], np.geomspace(1, max(2.0, float(length.max(initial=1))) * 1.01, 25)]
    )
    counts = np.histogram(length, edges)[0] / max(1, length.size)
    axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color="#7a828c")
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlabel("displacement, pixels", fontsize=9, color=INK)
    axes.set_ylabel("share of queries", fontsize=9, color=INK)
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
