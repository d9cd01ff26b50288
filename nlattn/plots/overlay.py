"""Where query points look: all together, and each alone with its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Ints
from nlattn.plots import base
from nlattn.plots.base import INK, OKABE_ITO

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = 12
"""Points that have one of their own; further ones stand in the large picture."""
_COLUMNS = 3
_SHOWN = 0.98
"""Of the keys, those that the large picture does not show: all points share it."""
_LEAST = 1e-290
"""Weights so small are drawn as none: their logarithms have no digits."""
_SPAN = 1e3
"""Colours span so much below the largest weight, or less if the weights do."""


def overlay(
    image: Floats,
    weights: Floats,
    queries: Ints,
    *,
    keys: Floats | None = None,
    title: str = "",
    cutoff: float | None = None,
    mass: Floats | None = None,
    exact: Floats | None = None,
    ax: Axes | None = None,
) -> Any:
    """Draw where query points look; returns the Axes of the large picture.

    Parameters
    ----------
    image : (Hq, Wq, 1 or 3) array in [0, 1], or of whole numbers
        Picture that the queries stand on.
    weights : (r, Hk, Wk) array
        Attention of each query point to every key, 0 where there is none.
    queries : (r, 2) integers
        Row and column of each query point.
    keys : (Hk, Wk, 1 or 3) array, optional
        Picture that the keys stand on; `image` if omitted.
    title : str
        Above the picture.
    cutoff : float, optional
        Magnitudes below are not drawn; a thousandth of the largest if omitted.
    mass, exact : (r,) arrays, optional
        Exact attention that the drawn keys hold, and that of the strongest of them, where `weights`
        count among a few keys.
    ax : Axes, optional
        Where to draw the large picture alone.

    Examples
    --------
    >>> features = nlattn.images.patch_features(image)
    >>> queries = np.array([[20, 30], [40, 10]])
    >>> A = nlattn.scram_map(*nlattn.images.queries_and_keys(features))
    >>> axes = nlattn.plots.overlay(image, A.rows(queries @ (64, 1)).reshape(2, 64, 64), queries)
    """
    ground = base.rgb("overlay", image if keys is None else keys)
    op = "overlay"
    grid = base.rgb(op, image).shape[:2] if keys is not None else ground.shape[:2]
    points = base.points(op, "queries", queries, grid)
    weights = base.numbers(op, "weights", weights, (len(points), *ground.shape[:2]))
    for name, x in (("mass", mass), ("exact", exact)):
        if x is not None:
            base.numbers(op, name, x, (len(points),))
    if cutoff is not None:
        cutoff = _check.number(op, "cutoff", cutoff, positive=True)
    sizes = np.abs(weights)
    norm = _norm(sizes, cutoff)
    shown = len(points[:PANELS])
    main, panels = (ax, []) if ax is not None else _layout(ground.shape, shown)
    pale = base.dimmed(ground)
    main.imshow(pale if keys is not None else ground, interpolation="nearest")
    radius = max(1, round(max(ground.shape[:2]) / 110))
    for i, (row, column) in enumerate(points):
        colour = OKABE_ITO[i % len(OKABE_ITO)]
        drawn = base.dots(sizes[i], radius)
        strength = np.asarray(norm(np.clip(drawn, norm.vmin, norm.vmax)), np.float64)
        few = drawn >= max(norm.vmin, float(np.quantile(sizes[i], _SHOWN)))
        main.imshow(base.tint(colour, np.where(few & (few.mean() < 0.5), 0.3 + 0.6 * strength, 0)))
        itself = keys is None and int(np.argmax(sizes[i])) == row * ground.shape[1] + column
        if keys is None:
            _mark(main, row, column, colour, str(i + 1), itself)
            _lead(main, (row, column), sizes[i], colour)
        if i < len(panels):
            axes = panels[i]
            axes.imshow(pale, interpolation="nearest")
            axes.imshow(
                np.ma.masked_less(drawn, norm.vmin), cmap="plasma", norm=norm,
                interpolation="nearest",
            )  # fmt: skip
            if keys is None:
                _mark(axes, row, column, colour, "", itself)
            _magnify(axes, ground, sizes[i], (row, column), norm)
            held = None if mass is None else float(mass[i])
            true = None if exact is None else float(exact[i])
            text = _words(i, (row, column), np.asarray(weights[i]), itself, held, true)
            base.title(axes, text, 9)
            base.frame(axes, colour)
    base.title(main, title or "Query points and where they look")
    base.frame(main, "#999999", 0.8)
    if panels:
        what = "weight among the keys kept" if mass is not None else "attention weight"
        signed = bool((np.asarray(weights) < 0).any())
        _legend(main.figure, panels, norm, f"magnitude of the {what}" if signed else what)
    return main


def _norm(sizes: Floats, cutoff: float | None) -> Any:
    """Logarithmic colours that span the weights there are."""
    from matplotlib.colors import LogNorm

    positive = sizes[(sizes > _LEAST) & (sizes < np.inf)]
    high = float(positive.max(initial=0)) or 1.0
    low = high / _SPAN if cutoff is None else min(cutoff, high)
    if positive.size and cutoff is None:
        low = max(low, float(positive.min()))
    return LogNorm(low if low < high / 2 else high / 2, high)


def _layout(shape: tuple[int, ...], count: int) -> tuple[Any, list[Any]]:
    """The large picture above, panels below it in reading order; readable 420 pixels wide."""
    aspect = base.aspect(shape)
    columns = min(_COLUMNS, max(count, 1))
    lines = -(-count // columns)
    tall, low = min(6.0 / aspect, 8.0), min(1.9 / aspect, 3.0)
    figure = base.figure(6.2, tall + lines * (low + 0.75) + 1.0)
    heights = [tall, *[low + 0.6] * lines]
    grid = figure.add_gridspec(1 + lines, columns, height_ratios=heights)
    main = figure.add_subplot(grid[0, :])
    panels = [figure.add_subplot(grid[1 + i // columns, i % columns]) for i in range(count)]
    return main, panels


def _words(
    i: int,
    at: tuple[int, int],
    weights: Floats,
    itself: bool,
    mass: float | None,
    exact: float | None,
) -> str:
    """What stands above a panel."""
    held = int((weights != 0).sum())
    top = float(weights.reshape(-1)[np.abs(weights).argmax()]) if weights.size else 0.0
    where = f"{i + 1}: ({at[0]}, {at[1]})" + (", sees itself" if itself else "")
    keys = f"{held:,} keys" + ("" if mass is None else f" hold {mass:.2g}")
    true = "" if exact is None else f", truly {exact:.2g}"
    return f"{where}\n{keys}\ntop {top:.2g}{true}"


def _legend(figure: Any, panels: list[Any], norm: Any, what: str) -> None:
    from matplotlib.cm import ScalarMappable

    shown = ScalarMappable(norm, "plasma")
    bar = figure.colorbar(
        shown, ax=panels, location="bottom", fraction=0.06, pad=0.02, aspect=45, extend="min"
    )
    marks = "white frame: around the strongest key; ring: a point that sees itself"
    bar.set_label(f"{what}\n{marks}", fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=9)


def _mark(axes: Axes, row: int, column: int, colour: str, label: str, itself: bool) -> None:
    from matplotlib.patheffects import withStroke

    if itself:
        for width, ink in ((3.6, "black"), (1.8, colour)):
            axes.plot(column, row, "o", ms=15, mew=width, mfc="none", color=ink)

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


def _lead(axes: Axes, start: tuple[int, int], weights: Floats, colour: str) -> None:
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


def _magnify(axes: Axes, ground: Floats, weights: Floats, start: object, norm: Any) -> None:
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
    across = 0.02 if middle[1] > 0.5 else 0.62
    down = 0.02 if middle[0] < 0.5 else 0.62
    inset = axes.inset_axes((across, down, 0.36, 0.36))
    part = np.s_[top : top + size, left : left + size]
    inset.imshow(ground[part], interpolation="nearest")
    drawn = np.ma.masked_less(weights[part], norm.vmin)
    inset.imshow(drawn, cmap="plasma", norm=norm, interpolation="nearest")
    base.frame(inset, "white", 1.5)
