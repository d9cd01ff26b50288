"""What the page holds of a picture and its maps, as bytes that a browser unpacks at once."""

from __future__ import annotations

import base64
import math
import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nlattn import _check
from nlattn._types import Floats, Ints, JsonObject
from nlattn.kernels import products
from nlattn.maps.base import AttentionMap
from nlattn.maps.selected import SelectedMap
from nlattn.maps.sparse import SparseMap

SCORES = 1 << 28
"""Scores that a page may cost where a map does not hold its weights; fewer queries beyond."""
QUERIES = 1 << 19
"""Queries that a page holds at most."""
PIXELS = 1 << 21
"""Pixels that a page holds of a picture at most."""
_LEVELS = 254
_DECADES = 1e4


class Looks(NamedTuple):
    """The strongest keys of the queries of one map that a page shows."""

    keys: Ints
    """(r, t), -1 where there are fewer."""
    weights: Floats
    """(r, t), largest first."""
    grid: tuple[int, int]
    """Rows and columns of the queries kept; r of them."""
    step: int
    """Every so many queries of a row or column are kept: the middle ones."""


class Layer(NamedTuple):
    """One number for each pixel."""

    values: Floats
    """(H, W); what is not finite is drawn as nothing."""
    label: str
    log: bool = False


def looks(A: AttentionMap, grid: tuple[int, int], count: int) -> Looks:
    """The `count` strongest keys of every query, or of as many as may be computed and held."""
    n, m = A.shape
    few = isinstance(A, (SparseMap, SelectedMap))  # keys: their largest are found at once
    most = QUERIES if few else max(1, min(QUERIES, SCORES // max(m, 1)))
    if n <= most:
        weights, keys = A.topk(count)
        return Looks(keys, weights, grid, 1)
    step = math.ceil(math.sqrt(n / most))
    rows, columns = (np.minimum(np.arange(0, s, step) + step // 2, s - 1) for s in grid)
    index = (rows[:, None] * grid[1] + columns).ravel()
    if isinstance(A, SparseMap):
        weights, keys = A.largest_of(index, count)
    elif few:
        weights, keys = (x[index] for x in A.topk(count))
    else:
        weights, keys = _largest(A, index, count)
    return Looks(keys, weights, (len(rows), len(columns)), step)


def _largest(A: AttentionMap, index: Ints, count: int) -> tuple[Floats, Ints]:
    """Largest weights of some queries, and their keys, from rows computed for it."""
    weights, keys = np.empty((len(index), count), A.dtype), np.empty((len(index), count), np.int64)
    for top in range(0, len(index), 256):
        part = slice(top, top + 256)
        block = _check.frozen(A.rows(index[part]))
        products.largest(len(block), block, weights[part], keys[part])
    return weights, keys


def received(A: AttentionMap, grid: tuple[int, int]) -> Layer | None:
    """What every key is given by all queries, over the mean; None where it would take long."""
    if not isinstance(A, SparseMap) and math.prod(A.shape) > SCORES:
        return None
    total = (A.T @ np.ones(A.shape[0], A.dtype)).astype(np.float64)
    share = total / (np.abs(total).mean() or 1.0)
    return Layer(share.reshape(grid), "attention received, over the mean", log=True)


def shrunk(image: Floats) -> NDArray[np.uint8]:
    """(h, w, 3) bytes of a picture in [0, 1]: block means if it has more pixels than a page may."""
    height, width = image.shape[:2]
    step = math.ceil(math.sqrt(height * width / PIXELS))
    if step > 1:
        rows, columns = (np.arange(0, s, step) for s in (height, width))
        sums = np.add.reduceat(np.add.reduceat(image, rows, 0, np.float64), columns, 1)
        sizes = np.outer(np.diff(rows, append=height), np.diff(columns, append=width))
        image = sums / sizes[..., None]
    levels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(levels, (*levels.shape[:2], 3)))


def of_looks(name: str, x: Looks, key_grid: tuple[int, ...]) -> JsonObject:
    """Keys as steps from one query to the next, byte by byte; weights as the upper half of floats.

    Matches that are neighbours' neighbours give the same step again: such bytes pack well.
    """
    steps = np.diff(x.keys.T.astype(np.int32), axis=1, prepend=np.int32(0))
    planes = np.ascontiguousarray(steps).view(np.uint8).reshape(-1, 4).T
    bits = np.ascontiguousarray(x.weights.T, np.float32).view(np.uint32)
    halves = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return {
        "name": name,
        "grid": x.grid,
        "step": x.step,
        "keyGrid": key_grid,
        "count": x.keys.shape[1],
        "keys": packed(planes),
        "weights": packed(np.ascontiguousarray(halves).view(np.uint8).reshape(-1, 2).T),
    }


def of_layer(layer: Layer) -> JsonObject:
    """254 levels between the 0.5th and the 99.5th percentile; 0 where nothing is known."""
    x = np.asarray(layer.values, np.float64)
    known = np.isfinite(x) & ((x > 0) | (not layer.log))
    low, high = np.quantile(x[known], (0.005, 0.995)) if known.any() else (0.0, 1.0)
    low = max(low, high / _DECADES) if layer.log else low
    if not low < high:
        low, high = (low / 2, low * 2) if layer.log and low > 0 else (low - 0.5, low + 0.5)
    with np.errstate(divide="ignore", invalid="ignore"):
        place = np.log(x / low) / np.log(high / low) if layer.log else (x - low) / (high - low)
    levels = np.where(known, 1 + np.rint(np.clip(place, 0, 1) * _LEVELS), 0)
    return {
        "label": layer.label,
        "grid": x.shape,
        "log": layer.log,
        "low": float(low),
        "high": float(high),
        "levels": packed(np.where(np.isfinite(levels), levels, 0).astype(np.uint8)),
    }


def of_picture(image: Floats) -> JsonObject:
    """Differences of neighbours along the rows, which pack better than colours."""
    pixels = shrunk(image)
    return {
        "grid": image.shape[:2],
        "shape": pixels.shape[:2],
        "pixels": packed(np.diff(pixels, axis=1, prepend=np.uint8(0)).transpose(2, 0, 1)),
    }


def packed(x: NDArray[np.uint8]) -> str:
    """Bytes, deflated and in letters."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(x).tobytes(), 6)).decode()
