"""Pictures of attention maps: where queries look, and which key each query matched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Ints

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OKABE_ITO = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2")
_INK = "#22252a"
_NARROW = 4.0
"""Beyond it a picture is stretched to be seen."""


def overlay(
    image: Floats,
    weights: Floats,
    queries: Ints,
    *,
    keys: Floats | None = None,
    title: str = "",
    cutoff: float = 1e-3,
) -> Figure:
    """Draw where query points look: all together, and each alone with its weights.

    Parameters
    ----------
    image : (Hq, Wq, 1 or 3) array in [0, 1]
        Picture that the queries stand on.
    weights : (r, Hk, Wk) array
        Attention of each query point to every key, 0 where there is none.
    queries : (r, 2) integers
        Row and column of each query point.
    keys : (Hk, Wk, 1 or 3) array, optional
        Picture that the keys stand on; `image` if omitted.
    title : str
        Above the picture.
    cutoff : float
        Weights below are not drawn.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    ground = _rgb(image if keys is None else keys)
    points = np.asarray(queries)
    count = len(points)
    if weights.shape != (count, *ground.shape[:2]):
        _check.fail(
            "overlay",
            "weights",
            f"has shape {weights.shape}, expected {(count, *ground.shape[:2])} from the pictures",
        )
    columns = max(1, -(-count // 2)) if count > 1 else 1
    lines = 2 if count > 1 else 1
    aspect = _aspect(ground.shape)
    figure = Figure(figsize=(1.2 + 2.65 * aspect * (columns + 2), 6.2), layout="constrained")
    figure.patch.set_facecolor("white")
    grid = figure.add_gridspec(2, columns + 2)
    main = figure.add_subplot(grid[:, :2])
    radius = max(1, round(max(ground.shape[:2]) / 110))
    dim = _dimmed(ground)
    main.imshow(dim if keys is not None else _rgb(image), interpolation="nearest")
    norm = LogNorm(cutoff, 1)
    shown = None
    for i, (row, column) in enumerate(points):
        colour = _OKABE_ITO[i % len(_OKABE_ITO)]
        spread = _dots(np.asarray(weights[i], np.float64), radius)
        strength = np.where(spread >= cutoff, norm(np.clip(spread, cutoff, 1)).filled(0), 0)
        main.imshow(_tint(colour, np.where(spread >= cutoff, 0.35 + 0.65 * strength, 0)))
        axes = figure.add_subplot(grid[i % lines if lines > 1 else slice(None), 2 + i // lines])
        axes.imshow(dim, interpolation="nearest")
        drawn = np.ma.masked_less(spread, cutoff)
        shown = axes.imshow(drawn, cmap="plasma", norm=norm, interpolation="nearest")
        for place in (main, axes) if keys is None else ():
            _mark(place, row, column, colour, str(i + 1) if place is main else "")
        if keys is None:
            _lead(main, (row, column), np.asarray(weights[i]), colour)
        _magnify(axes, ground, np.asarray(weights[i], np.float64), (row, column), norm)
        strongest = float(np.max(weights[i], initial=0))
        held = int((np.asarray(weights[i]) > 0).sum())
        axes.set_title(
            f"{i + 1}: pixel ({row}, {column})\n{held:,} keys, strongest {strongest:.2g}",
            fontsize=8,
            color=_INK,
        )
        _frame(axes, colour)
    _title(main, title or "Query points and where they look")
    _frame(main, "#999999", width=0.8)
    if shown is not None:
        bar = figure.colorbar(shown, ax=figure.axes, fraction=0.025, pad=0.012, aspect=40)
        bar.set_label(f"attention weight (not drawn below {cutoff:g})", fontsize=8, color=_INK)
        bar.ax.tick_params(labelsize=8)
    return figure


def match_field(index: Ints, key_grid: tuple[int, int], *, title: str = "") -> Figure:
    """Draw each query's matched key as a displacement: hue its direction, strength its length.

    Parameters
    ----------
    index : (Hq, Wq) integers
        Raster index of the matched key; -1 for none, drawn grey.
    key_grid : (Hk, Wk)
        Across different grids, displacements count from the query's place in the key grid.
    title : str
        Above the picture.
    """
    from matplotlib.figure import Figure

    index = np.asarray(index)
    if index.ndim != 2:
        _check.fail("match_field", "index", f"has shape {index.shape}, expected (Hq, Wq)")
    down, right = _displacement(index, key_grid)
    reach = float(np.hypot(*key_grid))
    colours = _hue(down, right, reach)
    colours[index < 0] = 0.6
    aspect = _aspect(index.shape)
    figure = Figure(figsize=(6.2 * max(aspect, 0.3) + 2.9, 6.2), layout="constrained")
    figure.patch.set_facecolor("white")
    grid = figure.add_gridspec(3, 2, width_ratios=(6.2 * max(aspect, 0.3), 2.6))
    main = figure.add_subplot(grid[:, 0])
    main.imshow(colours, interpolation="nearest")
    _title(main, title or "Nearest-neighbour field")
    _frame(main, "#999999", width=0.8)
    _wheel(figure.add_subplot(grid[0, 1]), reach)
    _lengths(figure.add_subplot(grid[1, 1]), np.hypot(down, right)[index >= 0])
    return figure


def mechanisms(image: Floats, weights: Mapping[str, Floats], query: tuple[int, int]) -> Figure:
    """Draw what one query point looks at by several mechanisms, side by side.

    Parameters
    ----------
    image : (H, W, 1 or 3) array in [0, 1]
        Picture that query and keys stand on.
    weights : mapping of titles to (H, W) arrays
        Attention of the point to every pixel. Each panel has its own brightness, up to the 99.9th
        percentile of the magnitude; negative weights are blue.
    query : (row, column)
        The point.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * (len(weights) + 1), 3.0), layout="constrained")
    panels = figure.subplots(1, len(weights) + 1)
    panels[0].imshow(_rgb(image))
    panels[0].set_title("the query", fontsize=9)
    for axes, (title, w) in zip(panels[1:], weights.items(), strict=True):
        size = np.asarray(w, np.float64)
        shown = size[size != 0]
        reach = float(np.quantile(abs(shown), 0.999)) if shown.size else 1.0
        axes.imshow(_dimmed(image))
        strength: Floats = np.clip(abs(size) / max(reach, 1e-300), 0, 1)
        if (strength > 0.1).mean() < 0.01:  # single pixels would not be seen
            strength = _dots(strength, 2)
        axes.imshow(_tint("#E69F00", np.where(size >= 0, strength, 0)))
        axes.imshow(_tint("#0072B2", np.where(size < 0, strength, 0)))
        axes.set_title(title, fontsize=9)
    for axes in panels:
        axes.plot(*query[::-1], "o", ms=13, mew=1.6, mfc="none", color="#D55E00")
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


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


def _wheel(axes: Any, reach: float) -> None:
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
            axes.plot(r * np.cos(turn), r * np.sin(turn), color=_INK, lw=0.5, alpha=0.5)
            axes.text(0, -r, f"{length}", fontsize=7, color=_INK, ha="center", va="center")
    for x, y, word, place in (
        (1.06, 0, "right", {"va": "center", "ha": "left"}),
        (-1.06, 0, "left", {"va": "center", "ha": "right"}),
        (0, 1.06, "up", {"va": "bottom", "ha": "center"}),
        (0, -1.06, "down", {"va": "top", "ha": "center"}),
    ):
        axes.text(x, y, word, fontsize=8, color=_INK, **place)
    axes.set(xlim=(-1.5, 1.5), ylim=(-1.3, 1.3))
    axes.set_title("from query to key, pixels", fontsize=8, color=_INK)
    axes.axis("off")


def _lengths(axes: Any, length: Floats) -> None:
    edges = np.concatenate(
        [[0], np.geomspace(1, max(2.0, float(length.max(initial=1))) * 1.01, 25)]
    )
    counts = np.histogram(length, edges)[0] / max(1, length.size)
    axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color="#7a828c")
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlabel("displacement, pixels", fontsize=8, color=_INK)
    axes.set_ylabel("share of queries", fontsize=8, color=_INK)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _rgb(image: Floats) -> Floats:
    values = np.clip(np.asarray(image, np.float64), 0, 1)
    if values.ndim != 3 or values.shape[2] not in (1, 3):
        _check.fail("overlay", "image", f"has shape {values.shape}, expected (H, W, 1 or 3)")
    return np.broadcast_to(values, (*values.shape[:2], 3))


def _dimmed(image: Floats) -> Floats:
    """Pale grey version: what is drawn on it stands out."""
    grey = image.mean(2, keepdims=True)
    return np.broadcast_to(0.42 + 0.5 * grey, image.shape)


def _dots(weights: Floats, radius: int) -> Floats:
    """Largest weight within `radius`: a single key shows as a dot."""
    from scipy.ndimage import grey_dilation

    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    spread: Floats = grey_dilation(weights, footprint=x * x + y * y <= radius * radius + 0.5)
    return spread


def _tint(colour: str, alpha: Floats) -> Floats:
    from matplotlib.colors import to_rgb

    return np.dstack([np.broadcast_to(to_rgb(colour), (*alpha.shape, 3)), alpha])


def _mark(axes: Any, row: int, column: int, colour: str, label: str) -> None:
    from matplotlib.patheffects import withStroke

    axes.plot(column, row, "+", ms=11, mew=3.4, color="black")
    axes.plot(column, row, "+", ms=10, mew=1.8, color=colour)
    if label:
        axes.annotate(
            label,
            (column, row),
            (7, 6),
            textcoords="offset points",
            fontsize=11,
            fontweight="bold",
            color=colour,
            path_effects=[withStroke(linewidth=2.5, foreground="black")],
        )


def _lead(axes: Any, start: tuple[int, int], weights: Floats, colour: str) -> None:
    """Curve from a query to its strongest key, unless that is beside it."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.patheffects import withStroke

    row, column = divmod(int(np.argmax(weights)), weights.shape[1])
    reach = np.hypot(row - start[0], column - start[1])
    if weights.max(initial=0) <= 0 or reach < max(weights.shape) / 40:
        return
    axes.add_patch(
        FancyArrowPatch(
            (start[1], start[0]),
            (column, row),
            connectionstyle="arc3,rad=0.18",
            arrowstyle="-|>",
            mutation_scale=11,
            shrinkA=7,
            shrinkB=3,
            lw=1.5,
            color=colour,
            path_effects=[withStroke(linewidth=3, foreground="black", alpha=0.6)],
        )
    )


def _magnify(axes: Any, ground: Floats, weights: Floats, start: Any, norm: Any) -> None:
    """Inset in a far corner: the strongest key's surroundings and the weights of the keys there."""
    if weights.max(initial=0) < norm.vmin:
        return
    row, column = divmod(int(np.argmax(weights)), weights.shape[1])
    size = 1 + 2 * max(4, max(weights.shape) // 50)
    top, left = (
        int(np.clip(at - size // 2, 0, max(0, n - size)))
        for at, n in zip((row, column), weights.shape, strict=True)
    )
    middle = (np.array([row, column]) + np.asarray(start)) / (2 * np.array(weights.shape))
    corner = [0.02 if middle[1] > 0.5 else 0.62, 0.02 if middle[0] < 0.5 else 0.62]
    inset = axes.inset_axes([*corner, 0.36, 0.36])
    part = np.s_[top : top + size, left : left + size]
    inset.imshow(ground[part], interpolation="nearest")
    drawn = np.ma.masked_less(weights[part], norm.vmin)
    inset.imshow(drawn, cmap="plasma", norm=norm, interpolation="nearest")
    _frame(inset, "white", width=1.5)


def _aspect(shape: tuple[int, ...]) -> float:
    """Width over height of a panel: that of the picture, unless it is so narrow as to be a line."""
    return min(max(shape[1] / shape[0], 1 / _NARROW), _NARROW)


def _title(axes: Any, text: str) -> None:
    """A title of one line, in which nothing is mathematics."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    shown = shown if len(shown) <= 90 else f"{shown[:60]}...{shown[-27:]}"
    axes.set_title(shown, fontsize=11, color=_INK, parse_math=False)


def _frame(axes: Any, colour: str, width: float = 2.0) -> None:
    axes.set(xticks=[], yticks=[])
    if axes.images:
        height, width = axes.images[0].get_array().shape[:2]
        if max(width / height, height / width) > _NARROW:
            axes.set_aspect("auto")
    for spine in axes.spines.values():
        spine.set(edgecolor=colour, linewidth=width)
