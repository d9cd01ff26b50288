"""What all pictures share: figures, frames, titles, marks, and images as they are."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from nlattn import _check
from nlattn._types import Array, Floats, Ints

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OKABE_ITO = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2")
INK = "#22252a"
NARROW = 4.0
"""Beyond it a picture is stretched to be seen."""


def figure(width: float, height: float) -> Figure:
    """A white figure in inches; in a notebook one that is shown."""
    if "ipykernel" in sys.modules:
        from matplotlib import pyplot

        return pyplot.figure(figsize=(width, height), layout="constrained", facecolor="white")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def aspect(shape: tuple[int, ...]) -> float:
    """Width over height of a panel: that of the picture, unless it is so narrow as to be a line."""
    return min(max(shape[1] / shape[0], 1 / NARROW), NARROW)


def rgb(op: str, image: Array) -> Floats:
    """An image (H, W, 1 or 3) as colours of 0 to 1; whole numbers count up to their largest."""
    values = _check.pixels(op, "image", image, (1, 3))
    if values.dtype.kind in "iu":
        values = values / np.iinfo(values.dtype).max
    clipped = np.clip(values.astype(np.float64), 0, 1)
    return np.broadcast_to(clipped, (*values.shape[:2], 3))


def points(op: str, name: str, value: object, grid: tuple[int, ...]) -> Ints:
    """Rows and columns (r, 2) of points of a grid."""
    places = _check.integers(op, name, value)
    if places.ndim != 2 or places.shape[1] != 2:
        _check.fail(op, name, f"has shape {places.shape}, expected (r, 2), rows and columns")
    outside = (places < 0) | (places >= np.array(grid))
    if outside.any():
        first = places[outside.any(1)][0].tolist()
        _check.fail(op, name, f"holds {first}, expected points of the {grid[0]} x {grid[1]} grid")
    return places.astype(np.int64)


def numbers(op: str, name: str, value: object, shape: tuple[int, ...]) -> Floats:
    """An array of real numbers of a shape, as float64."""
    x = _check.real(op, name, value).astype(np.float64)
    if x.shape != shape:
        _check.fail(op, name, f"has shape {x.shape}, expected {shape} from the pictures")
    return x


def dimmed(image: Floats) -> Floats:
    """Pale grey version: what is drawn on it stands out."""
    grey = image.mean(2, keepdims=True)
    return np.broadcast_to(0.42 + 0.5 * grey, image.shape)


def dots(weights: Floats, radius: int) -> Floats:
    """Largest weight within `radius`: a single key shows as a dot."""
    from scipy.ndimage import grey_dilation

    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    spread: Floats = grey_dilation(weights, footprint=x * x + y * y <= radius * radius + 0.5)
    return spread


def tint(colour: str, alpha: Floats) -> Floats:
    """A layer of one colour."""
    from matplotlib.colors import to_rgb

    return np.dstack([np.broadcast_to(to_rgb(colour), (*alpha.shape, 3)), alpha])


def title(axes: Axes, text: str, size: float = 11) -> None:
    """A title in which nothing is mathematics; unknown letters are question marks."""
    given = str(text).split("\n")[:3]
    lines = ["".join(c if c.isprintable() else "?" for c in line) for line in given]
    short = [line if len(line) <= 90 else f"{line[:60]}...{line[-27:]}" for line in lines]
    axes.set_title("\n".join(short), fontsize=size, color=INK, parse_math=False)


def frame(axes: Axes, colour: str, width: float = 2.0) -> None:
    """No ticks, a border, and a picture stretched if it would be a line."""
    axes.set(xticks=[], yticks=[])
    if axes.images:
        height, length = np.shape(np.asarray(axes.images[0].get_array()))[:2]
        if max(length / height, height / length) > NARROW:
            axes.set_aspect("auto")
    for spine in axes.spines.values():
        spine.set(edgecolor=colour, linewidth=width)
