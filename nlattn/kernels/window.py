"""Queries that are the same everywhere attend to overlapping windows: what all kernels of it share.

Since a query does not depend on the place, ``exp(score)`` is needed once per pixel, not per tap:
with one reference per tile, ``exp(score - ref)`` and its product with the values are written once
and then summed over windows with the weights ``exp(bias - top)`` and ``exp(bias - top) gate``
(`windowsum`). A window whose sum is so small that digits may have been lost is done alone, relative
to its own maximum. Outside pixels have weight 0, not score 0.

A task works in one flat buffer, whose parts are listed in `Windows`: numbers are cheaper to hand to
compiled code than arrays.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np

from nlattn._types import Floats, Ints, Scalar
from nlattn.kernels.exp import exp
from nlattn.kernels.gemm import PANEL_BYTES, aligned, multiply, width
from nlattn.kernels.window_sum import TAPS, sums
from nlattn.runtime import jit

PIXELS = 256


class Windows(NamedTuple):
    """Sizes, and where the parts of a task's buffer begin; ``_row`` steps to the next row."""

    H: int
    W: int
    Ho: int
    Wo: int
    kh: int
    kw: int
    sh: int
    sw: int
    ph: int
    pw: int
    th: int
    """Rows of a tile."""
    tw: int
    """Columns of a tile."""
    chunk: int
    """Channels summed at once."""
    box: int
    """Whether every bias and gate is one number for all taps: then sums go axis by axis."""
    learn: int
    """Whether gradients of bias and gate are asked for."""
    plane: int
    """Columns of one phase of the stride, which lie together."""
    at: int
    """Offsets of a group of taps, one after the other."""
    e_row: int
    v_row: int
    d_row: int
    n_row: int
    powers: int
    """``exp(score - ref)`` of the pixels under a tile."""
    values: int
    """The same times some channels of the values."""
    sums: int
    """Of powers."""
    totals: int
    """Of values."""
    across: int
    """Sums along one axis only."""
    inverse: int
    """Of the sums; 0 for a window that must be done alone."""
    moved: int
    """``dout . out``."""
    ratio: int
    """Cotangents over sums."""
    lanes: int
    part: int
    crossed: int
    w_sums: int
    w_totals: int
    eb: int
    """``exp(bias - top)`` of every query and tap, then the same times the gate."""
    top: int
    size: int


Pair: TypeAlias = tuple[Floats, Floats]


class WindowArrays(NamedTuple):
    """What windows are attended with, by slice; which belong together another array says."""

    scores: Floats
    """(B, t, H, W)."""
    values: Floats
    """(Bv, H, W, e)."""
    bias: Floats
    """(B., t, kh kw), as `gate`."""
    gate: Floats
    dout: Floats
    """(Bd, Ho, Wo, e), empty where no gradient is asked for."""


class LearningWindows(Windows):
    """The same where gradients of bias and gate are asked for."""


def rounded(count: int, unit: int) -> int:
    """`count` up to whole units."""
    return -(-count // unit) * unit


def windows(
    sizes: dict[str, int], t: int, box: bool, learn: bool, reach: tuple[int, int], like: Floats
) -> Windows:
    """Lay out the buffer of a task whose tiles have `reach` rows and columns of pixels under them.

    `sizes` holds the fields of `Windows` up to `chunk`.
    """
    th, tw, chunk, sw = (sizes[name] for name in ("th", "tw", "chunk", "sw"))
    w = PANEL_BYTES // like.itemsize
    plane, at = -(-reach[1] // sw), rounded(sizes["kh"] * sizes["kw"], TAPS)
    e_row, v_row = sw * plane + 2 * w, sw * plane * chunk + 2 * w
    d_row, n_row = rounded(tw, w), rounded(tw * chunk, w)
    parts = {
        "powers": reach[0] * e_row,
        "values": reach[0] * v_row,
        "sums": th * d_row,
        "totals": th * n_row,
        "across": reach[0] * n_row if box else 0,
        "inverse": th * d_row,
        "moved": th * d_row,
        "ratio": max(th * n_row, reach[0] * e_row),
        "lanes": 4 * w,
        "part": at,
        "crossed": at,
        "w_sums": at,
        "w_totals": at,
        "eb": 2 * t * sizes["kh"] * sizes["kw"],
        "top": t,
    }
    starts, size = {}, 0
    for name, length in parts.items():
        starts[name], size = size, size + rounded(length, w)
    rows = {"plane": plane, "at": at, "e_row": e_row, "v_row": v_row, "d_row": d_row}
    return (LearningWindows if learn else Windows)(
        **sizes, box=int(box), learn=int(learn), **rows, n_row=n_row, **starts, size=size + 2 * w
    )


@jit.kernel
def score(task: int, q: Floats, k: Floats, slices: Ints, scale: Scalar, out: Floats) -> None:
    """``out[b, i, pixel] = scale q_i . k_pixel``; tasks are blocks of pixels, (B, t, H W)."""
    t, d = q.shape[1:]
    n = k.shape[1] * k.shape[2]
    blocks, w = (n + PIXELS - 1) // PIXELS, width(q)
    b, first = task // blocks, task % blocks * PIXELS
    count = min(PIXELS, n - first)
    panel, s = aligned(d * w, q), aligned(PIXELS * w, q)
    for t0 in range(0, t, w):
        some = min(w, t - t0)
        for c in range(d):
            for i in range(w):
                panel[c * w + i] = q[slices[b, 0], t0 + i, c] if i < some else 0
        multiply(k, (slices[b, 1] * n + first) * d, d, 1, panel, 0, w, s, 0, w, count, d)
        for i in range(some):
            for j in range(count):
                out[b, t0 + i, first + j] = scale * s[j * w + i]


@jit.device
def far(like: Floats) -> Scalar:
    """Scores beyond which a sum in parts and the sum itself are no longer one number."""
    return like.dtype.type(2.0**15 if like.itemsize == 4 else 2.0**44)


@jit.device
def negligible(like: Floats) -> Scalar:
    """Sums below this may have lost digits: ``e^-60`` or ``e^-600``."""
    return like.dtype.type(8.75651076269652e-27 if like.itemsize == 4 else 2.65039655e-261)


@jit.device
def tap_weights(g: Windows, bias: Floats, gate: Floats, x: Floats) -> None:
    """``exp(bias - top)`` for each query and tap, the same times the gate, and the top bias."""
    t, taps = bias.shape
    for i in range(t):
        top = bias[i, 0]
        for k in range(taps):
            top = max(top, bias[i, k])
        x[g.top + i] = top
        for k in range(taps):
            x[g.eb + i * taps + k] = exp(bias[i, k] - top)
            x[g.eb + (t + i) * taps + k] = x[g.eb + i * taps + k] * gate[i, k]


@jit.device
def peak(image: Floats, y0: int, y1: int, x0: int, x1: int) -> Scalar:
    """Largest value of a box, clipped to the image; 0 if it has none above -inf."""
    H, W = image.shape
    top = image.dtype.type(-np.inf)
    for y in range(max(0, y0), min(H, y1)):
        line = image[y]
        for x in range(max(0, x0), min(W, x1)):
            top = line[x] if line[x] > top else top
    return top if top > -np.inf else image.dtype.type(0)


@jit.device
def over_windows(
    g: Windows,
    shape: tuple[int, int, int, int],
    x: Floats,
    at: Ints,
    k0: int,
    weights: int,
    source: tuple[int, int, int],
    target: tuple[int, int, int],
) -> None:
    """Weighted sums over windows; of boxes, axis by axis.

    `shape` counts rows of taps, taps of a row, rows of pixels and of windows. The taps' offsets
    begin at `k0`, a row of taps being the first ones, and their weights at `weights`. `source` is
    where the pixels begin, and the steps to their next row and to the next row of windows;
    `target` is where sums go, their row, and lanes.
    """
    tall, wide, rows, down = shape
    base, row, step = source
    to, to_row, lanes = target
    if g.box:
        for u in range(tall):
            at[2 * g.at + u] = u * to_row
        sums(x, base, row, at, k0, weights, wide, g.across, to_row, rows, lanes)
        base, row, step = g.across, to_row, step // row * to_row
        sums(x, base, step, at, 2 * g.at, weights, tall, to, to_row, down, lanes)
    else:
        sums(x, base, step, at, k0, weights, tall * wide, to, to_row, down, lanes)
