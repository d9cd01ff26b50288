"""A large picture and where some of its pixels look, small enough to be drawn."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Ints
from nlattn.maps.on_disk import open_map
from nlattn.tiled import sources

_SIDE = 1024
"""Pixels of a side that are drawn, at most."""


class Overview(NamedTuple):
    """Arguments of ``plots.overlay``."""

    image: Floats
    """(H, W, C) means of squares."""
    weights: Floats
    """(r, H, W) weights of each query, added up in squares."""
    points: Ints
    """(r, 2) squares of the queries."""
    step: int
    """Side of a square."""


def overview(
    source: sources.Source, folder: str | os.PathLike[str], queries: list[tuple[int, int]]
) -> Overview:
    """Of a picture and the map of a run in a folder, at some pixels (row, column)."""
    height, width, colours = source.shape
    step = -(-max(height, width) // _SIDE)
    down, across = -(-height // step), -(-width // step)
    image = np.empty((down, across, colours), np.float32)
    columns = np.arange(across) * step
    for row in range(down):
        some = sources.rows(source, row * step, min((row + 1) * step, height)).mean(0)
        counts = np.diff([*columns, width])[:, None]
        image[row] = np.add.reduceat(some, columns, axis=0) / counts
    A = open_map(folder)
    weights = np.zeros((len(queries), down, across))
    for own, (y, x) in zip(weights, queries, strict=True):
        if not (0 <= y < height and 0 <= x < width):
            _check.fail("tiled", f"the query {y},{x}", f"lies outside the {height} x {width} grid")
        first, last = A.support.indptr[y * width + x : y * width + x + 2]
        rows, columns_ = np.divmod(A.support.indices[first:last], width)
        np.add.at(own, (rows // step, columns_ // step), A.weights[first:last])
    return Overview(image, weights, np.array(queries) // step, step)
