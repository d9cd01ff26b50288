"""Patches of pictures, and the way back: what is added up where they overlap."""

from __future__ import annotations

import numpy as np

from nlattn._types import Floats, Ints


def padded(u: Floats, patch: int) -> Floats:
    """(H, W, C) reflected at the border, half a patch on every side."""
    r = patch // 2
    return np.pad(u, ((r, r), (r, r), (0, 0)), mode="reflect")


def padded_vjp(dpadded: Floats, patch: int) -> Floats:
    """Cotangent (H, W, C) of a picture, from that of the padded one."""
    r = patch // 2
    for axis in (0, 1):
        length = dpadded.shape[axis] - 2 * r
        source: Ints = np.pad(np.arange(length), r, mode="reflect")
        shape = [*dpadded.shape]
        shape[axis] = length
        summed = np.zeros(shape, dpadded.dtype)
        np.add.at(summed.swapaxes(0, axis), source, dpadded.swapaxes(0, axis))
        dpadded = summed
    return dpadded


def patches(u: Floats, patch: int) -> Floats:
    """Surroundings of every pixel, (H W, patch patch C)."""
    windows = np.lib.stride_tricks.sliding_window_view(padded(u, patch), (patch, patch), (0, 1))
    return np.ascontiguousarray(windows.transpose(0, 1, 3, 4, 2)).reshape(
        u.shape[0] * u.shape[1], -1
    )


def patches_vjp(dF: Floats, shape: tuple[int, ...], patch: int) -> Floats:
    """Cotangent (H, W, C) of a picture, from that of its patches."""
    H, W, C = shape
    dF = dF.reshape(H, W, patch, patch, C)
    dpadded = np.zeros((H + patch - 1, W + patch - 1, C), dF.dtype)
    for y in range(patch):
        for x in range(patch):
            dpadded[y : y + H, x : x + W] += dF[:, :, y, x]
    return padded_vjp(dpadded, patch)


def ballots(dout: Floats, patch: int) -> Floats:
    """Cotangent (H W, patch patch C) of what patches vote, from that of the mean of the votes."""
    r = patch // 2
    H, W = dout.shape[:2]
    rows, columns = (
        np.minimum(n - 1, np.arange(n) + r) - np.maximum(0, np.arange(n) - r) + 1 for n in (H, W)
    )
    shared = dout / (rows[:, None] * columns)[:, :, None].astype(dout.dtype)
    shared = np.pad(shared, ((r, r), (r, r), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(shared, (patch, patch), (0, 1))
    return np.ascontiguousarray(windows.transpose(0, 1, 3, 4, 2)).reshape(H * W, -1)


def tallied(votes: Floats, shape: tuple[int, ...], patch: int) -> Floats:
    """Mean of the votes (H W, patch patch C) for every pixel; those for pixels outside drop."""
    (H, W, C), r = shape, patch // 2
    votes = votes.reshape(H, W, patch, patch, C)
    total = np.zeros((H + 2 * r, W + 2 * r, C), votes.dtype)
    for y in range(patch):
        for x in range(patch):
            total[y : y + H, x : x + W] += votes[:, :, y, x]
    rows, columns = (
        np.minimum(n - 1, np.arange(n) + r) - np.maximum(0, np.arange(n) - r) + 1 for n in (H, W)
    )
    inside = total[r : r + H, r : r + W]
    mean: Floats = inside / (rows[:, None] * columns)[:, :, None].astype(votes.dtype)
    return mean
