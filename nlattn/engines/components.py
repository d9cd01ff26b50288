"""Principal components of patches, and what is summed over a picture, in blocks of a fixed order.

Blocks of rows follow from the width alone, and are summed in groups: whoever sums the groups, one
process or several, gets the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import DTypeLike

from nlattn._types import Array, Floats
from nlattn.runtime.threads import serial_blas

_BLOCK = 1 << 13  # patches in memory at a time: about 10 MB of 7 x 7 RGB patches
GROUP = 16
"""Blocks whose sum is one term of the whole."""
KEYS = 1 << 16
"""Keys whose scores are in memory at a time."""


def block_rows(width: int) -> int:
    """Rows of a block."""
    return max(1, _BLOCK // width)


def groups(height: int, width: int) -> list[range]:
    """Rows of each group of blocks."""
    step = GROUP * block_rows(width)
    return [range(top, min(top + step, height)) for top in range(0, height, step)]


def split(rows: range, width: int) -> Iterator[slice]:
    """Blocks of some rows, which begin with a block."""
    step = block_rows(width)
    return (slice(top, min(top + step, rows.stop)) for top in range(rows.start, rows.stop, step))


def channel_sums(image: Floats, rows: range) -> Floats:
    """Sum of the pixels of a group, (C,) float64."""
    total = np.zeros(image.shape[2])
    for block in split(rows, image.shape[1]):
        values = np.ascontiguousarray(image[block], np.float64)
        total += values.reshape(-1, image.shape[2]).sum(0)
    return total


def _vectors(image: Floats, mean: Floats, rows: slice, patch: int, dtype: DTypeLike) -> Floats:
    """Patches of some rows as vectors, reflected at the border, less the mean pixel."""
    height, width, channels = image.shape
    margin = patch // 2
    down, across = (np.pad(np.arange(n), margin, mode="reflect") for n in (height, width))
    near = np.asarray(image[down[rows.start : rows.stop + 2 * margin]]) - mean
    windows = np.lib.stride_tricks.sliding_window_view(near[:, across], (patch, patch), axis=(0, 1))
    flat: Floats = windows.astype(dtype).reshape(-1, patch * patch * channels)
    return flat


@serial_blas
def moments(image: Floats, mean: Floats, rows: range, patch: int) -> Floats:
    """Sums over the patches of a group: of vectors, and of their products, (1 + size, size)."""
    size = patch * patch * image.shape[2]
    result = np.zeros((1 + size, size))
    for block in split(rows, image.shape[1]):
        vectors = _vectors(image, mean, block, patch, np.float64)
        result[0] += vectors.sum(0)
        result[1:] += vectors.T @ vectors
    return result


def centre(sums: Floats, pixels: int, dtype: DTypeLike) -> Floats:
    """The mean pixel, from the sums of groups (groups, C)."""
    return (_total(sums) / pixels).astype(dtype)


@serial_blas
def axes(sums: Floats, pixels: int, kept: int, dtype: DTypeLike) -> Floats:
    """Leading axes and, last, what the mean patch is on them, (size + 1, kept)."""
    total = _total(sums) / pixels
    size, mean = total.shape[1], total[0]
    vectors = np.linalg.eigh(total[1:] - np.outer(mean, mean))[1][:, ::-1][:, :kept]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(0), np.arange(kept)])
    vectors = np.ascontiguousarray(vectors) / np.sqrt(size)
    return np.concatenate([vectors, [mean @ vectors]]).astype(dtype)


@serial_blas
def project(
    image: Floats, mean: Floats, axes: Floats, rows: range, patch: int, out: Floats
) -> None:
    """Components of the patches of some rows, which begin with a block; `out` (rows, W, kept)."""
    narrow, shift = np.ascontiguousarray(axes[:-1]), axes[-1]
    for block in split(rows, image.shape[1]):
        vectors = _vectors(image, mean, block, patch, axes.dtype)
        part = slice(block.start - rows.start, block.stop - rows.start)
        out[part] = (vectors @ narrow - shift).reshape(out[part].shape)


def squares(features: Array) -> Floats:
    """Squared length of every vector, (..., 1) float64."""
    total: Floats = (np.asarray(features).astype(np.float64) ** 2).sum(-1, keepdims=True)
    return total


def sum_of_squares(features: Array, rows: range) -> Floats:
    """Sum of the squared lengths of a group, (1,)."""
    total = np.zeros(1)
    for block in split(rows, features.shape[1]):
        total += squares(features[block]).sum()
    return total


def offset(features: Floats, sums: Floats, pixels: int, gain: float) -> Floats:
    """What a key adds to its products: less the longer it is, and 0 on the mean."""
    mean, result = _total(sums) / pixels, np.empty((*features.shape[:2], 1), features.dtype)
    for block in split(range(len(features)), features.shape[1]):
        result[block] = (mean - squares(features[block])) / (2 * gain)
    return result


@serial_blas
def largest_scores(queries: Floats, keys: Array, count: int) -> Floats:
    """The `count` largest products of each query with keys (m, d), largest first."""
    top = np.empty((len(queries), 0), queries.dtype)
    for start in range(0, len(keys), KEYS):
        scores = np.concatenate([top, queries @ keys[start : start + KEYS].T], axis=1)
        few = min(count, scores.shape[1])
        top = np.partition(scores, scores.shape[1] - few, axis=1)[:, scores.shape[1] - few :]
    ordered: Floats = np.sort(top, axis=1)[:, ::-1].astype(np.float64)
    return ordered


def _total(sums: Floats) -> Floats:
    """Sum over groups, in order."""
    total = np.zeros(sums.shape[1:])
    for part in sums:
        total += part
    return total
