"""Gradients of values and scores: sums over the windows that every input pixel lies in.

With the cotangents over their normalisers, ``exp(ref + top - norm)``, a pixel's gradients are
window sums too, of outputs instead of pixels. Input row y lies in output row I as tap
``u = y + padding - I stride``: each class of pixels modulo the stride has taps of its own.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np

from nlattn._types import Floats, Ints, Scalar
from nlattn.kernels.exp import exp
from nlattn.kernels.gemm import aligned
from nlattn.kernels.window import (
    Pair,
    WindowArrays,
    Windows,
    far,
    negligible,
    over_windows,
    peak,
    tap_weights,
)
from nlattn.runtime import jit

PIXELS = 2048
"""Pixels whose share in the gradient of the queries is one sum."""


Pixels: TypeAlias = tuple[Floats, Floats, Floats, Floats]
"""Scores and values of one slice, and their gradients."""


class PixelTile(NamedTuple):
    """Pixels ``(Y stride + class - padding)`` for n_y rows from Y0, and the windows over them."""

    Y0: int
    X0: int
    n_y: int
    n_x: int
    j0: int
    """Windows lie ``j0:j1`` strides before a pixel, and ``i0:i1`` in a row."""
    j1: int
    i0: int
    i1: int


@jit.device
def _lowest(like: Floats) -> Scalar:
    """The exponential of less than this is 0, or has lost digits."""
    return like.dtype.type(-87 if like.itemsize == 4 else -708)


@jit.device
def _tile(g: Windows, Y0: int, X0: int) -> PixelTile:
    n_y, n_x = (
        min(g.th, (g.H - 1 + g.ph) // g.sh + 1 - Y0),
        min(g.tw, (g.W - 1 + g.pw) // g.sw + 1 - X0),
    )
    j0, j1 = max(0, Y0 - g.Ho + 1), min((g.kh - 1) // g.sh, Y0 + n_y - 1) + 1
    i0, i1 = max(0, X0 - g.Wo + 1), min((g.kw - 1) // g.sw, X0 + n_x - 1) + 1
    return PixelTile(Y0, X0, n_y, n_x, j0, max(j0, j1), i0, max(i0, i1))


@jit.device
def _ratios(g: Windows, s: PixelTile, known: float, norm: Floats, delta: Floats, x: Floats) -> bool:
    """``exp(known - norm)`` of the windows, also times delta; False if digits may be lost."""
    limit, bound = 1 / negligible(x), x.dtype.type(60 if x.itemsize == 4 else 600)
    fine = bool(abs(known) <= far(x))
    for i in range(s.n_y + s.j1 - s.j0 - 1):
        for j in range(s.n_x + s.i1 - s.i0 - 1):
            I, J, to = s.Y0 - s.j1 + 1 + i, s.X0 - s.i1 + 1 + j, i * g.e_row + j
            x[g.powers + to] = x[g.ratio + to] = 0
            if I >= 0 and g.Ho > I and J >= 0 and g.Wo > J and norm[1, I, J] != 0:
                ahead = known - norm[0, I, J]
                ratio = exp(min(ahead, bound)) / norm[1, I, J]
                fine = fine and ahead < bound and ratio < limit
                x[g.powers + to] = ratio
                x[g.ratio + to] = ratio * delta[I, J]
    return fine


@jit.device
def _cotangents(g: Windows, s: PixelTile, dout: Floats, c0: int, cn: int, x: Floats) -> None:
    for i in range(s.n_y + s.j1 - s.j0 - 1):
        for j in range(s.n_x + s.i1 - s.i0 - 1):
            ratio, to = x[g.powers + i * g.e_row + j], g.values + i * g.v_row + j * cn
            I, J = s.Y0 - s.j1 + 1 + i, s.X0 - s.i1 + 1 + j
            for c in range(cn):
                x[to + c] = 0 if ratio == 0 else ratio * dout[I, J, c0 + c]


@jit.device
def _class(
    g: Windows,
    s: PixelTile,
    a: int,
    b: int,
    taps: tuple[int, int],
    c0: int,
    cn: int,
    x: Floats,
    at: Ints,
) -> None:
    """Window sums of the cotangents, and for the first channels of delta, over one class."""
    eb, gated = taps
    tall = max(0, min(s.j1, (g.kh - a + g.sh - 1) // g.sh) - s.j0)
    wide = max(0, min(s.i1, (g.kw - b + g.sw - 1) // g.sw) - s.i0)
    for k in range(tall * wide):
        u, w = k // wide, k % wide
        tap = (a + g.sh * (s.j0 + tall - 1 - u)) * g.kw + b + g.sw * (s.i0 + wide - 1 - w)
        at[k], at[g.at + k] = u * g.e_row + w, u * g.v_row + w * cn
        x[g.w_sums + k] = 1 if g.box else x[eb + tap]
        x[g.w_totals + k] = 1 if g.box else x[gated + tap]
    down, across = s.j1 - s.j0 - tall, s.i1 - s.i0 - wide
    shape = (tall, wide, s.n_y + max(0, tall - 1), s.n_y)
    if c0 == 0:
        source = (g.ratio + down * g.e_row + across, g.e_row, g.e_row)
        over_windows(g, shape, x, at, 0, g.w_sums, source, (g.sums, g.d_row, s.n_x))
    source = (g.values + down * g.v_row + across * cn, g.v_row, g.v_row)
    over_windows(g, shape, x, at, g.at, g.w_totals, source, (g.totals, g.n_row, s.n_x * cn))


@jit.device
def _store(
    g: Windows,
    s: PixelTile,
    a: int,
    b: int,
    known: tuple[Scalar, Scalar],
    c0: int,
    cn: int,
    given: tuple[Floats, Pair, Pair],
    arrays: Pixels,
    x: Floats,
) -> None:
    """Add the sums of one class of pixels to the gradients; pixels far below the top go alone."""
    image, v, dv, dscore = arrays
    ref, factor = known
    for i in range(s.n_y):
        for j in range(s.n_x):
            y, z = (s.Y0 + i) * g.sh + a - g.ph, (s.X0 + j) * g.sw + b - g.pw
            if y < 0 or y >= g.H or z < 0 or z >= g.W:
                continue
            if image[y, z] - ref < _lowest(x):  # its power is 0, its weight in a window need not be
                if c0 == 0:
                    _singly(g, y, z, given, arrays, x)
                continue
            power, slope = exp(image[y, z] - ref), x.dtype.type(0)
            share, at = power * factor, g.totals + i * g.n_row + j * cn
            for c in range(cn):
                dv[y, z, c0 + c] += share * x[at + c]
                slope += v[y, z, c0 + c] * x[at + c]
            if c0 == 0:
                dscore[y, z] = -power * x[g.sums + i * g.d_row + j]
            dscore[y, z] += share * slope


@jit.device
def _singly(
    g: Windows, y: int, z: int, given: tuple[Floats, Pair, Pair], arrays: Pixels, like: Floats
) -> None:
    """One pixel, without a reference in common with others."""
    dout, (bias, gate), (norm, delta) = given
    image, v, dv, dscore = arrays
    total = 0.0
    for k in range(g.kh * g.kw):
        I, J = y + g.ph - k // g.kw, z + g.pw - k % g.kw
        if I < 0 or J < 0 or I % g.sh or J % g.sw:
            continue
        I, J = I // g.sh, J // g.sw
        if g.Ho <= I or g.Wo <= J:
            continue
        power, slope = image[y, z] + bias[k] - norm[0, I, J], 0.0
        if power < _lowest(like):
            share = exp(power - np.log(norm[1, I, J]))
        else:
            share = exp(power) / norm[1, I, J]
        weight = like.dtype.type(share * gate[k])
        for c in range(v.shape[2]):
            dv[y, z, c] += weight * dout[I, J, c]
            slope += np.float64(v[y, z, c]) * dout[I, J, c]
        total += share * (gate[k] * slope - delta[I, J])
    dscore[y, z] = total


@jit.device
def _row(
    g: Windows, b: int, row: int, arrays: WindowArrays, slices: Ints, norms: Pair, results: Pair
) -> None:
    """One row of tiles of one slice."""
    scores, values, biases, gates, douts = arrays
    norm, delta = norms
    dvs, dscores = results
    x, at = aligned(g.size, values), np.zeros(3 * g.at, np.int64)
    for i in range(g.size):
        x[i] = 0
    v, dv, dout = values[slices[b, 2]], dvs[b], douts[slices[b, 5]]
    bias, gate = biases[slices[b, 3]], gates[slices[b, 4]]
    tap_weights(g, bias, gate, x)
    t_, taps = bias.shape
    Y0 = g.ph // g.sh + row * g.th
    for X0 in range(g.pw // g.sw, (g.W - 1 + g.pw) // g.sw + 1, g.tw):
        s = _tile(g, Y0, X0)
        y0, x0 = Y0 * g.sh - g.ph, X0 * g.sw - g.pw
        y1, x1 = y0 + s.n_y * g.sh, x0 + s.n_x * g.sw
        for i in range(max(0, y0), min(g.H, y1)):
            for j in range(max(0, x0), min(g.W, x1)):
                for c in range(v.shape[2]):
                    dv[i, j, c] = 0
        for t in range(t_):
            image = scores[b, t]
            ref = peak(image, y0, y1, x0, x1)
            some = (image, v, dv, dscores[b, t])
            given = (dout, (bias[t], gate[t]), (norm[b, t], delta[b, t]))
            if not _ratios(g, s, ref + x[g.top + t], norm[b, t], delta[b, t], x):
                for i in range(max(0, y0), min(g.H, y1)):
                    for j in range(max(0, x0), min(g.W, x1)):
                        _singly(g, i, j, given, some, x)
                continue
            places = (g.eb + t * taps, g.eb + (t_ + t) * taps)
            factor = x[places[1]] if g.box else x.dtype.type(1)
            for c0 in range(0, v.shape[2], g.chunk):
                cn = min(g.chunk, v.shape[2] - c0)
                _cotangents(g, s, dout, c0, cn, x)
                for k in range(g.sh * g.sw):
                    a, z = k // g.sw, k % g.sw
                    _class(g, s, a, z, places, c0, cn, x, at)
                    _store(g, s, a, z, (ref, factor), c0, cn, given, some, x)


@jit.kernel
def vjp(
    task: int,
    g: Windows,
    arrays: WindowArrays,
    slices: Ints,
    norm: Floats,
    delta: Floats,
    dv: Floats,
    dscore: Floats,
) -> None:
    """Gradients of values (B, H, W, e) and scores (B, t, H, W); tasks are rows of tiles.

    `arrays`, `slices`, `norm` and `delta` as for and from `attend`.
    """
    high = (g.H - 1 + g.ph) // g.sh - g.ph // g.sh + 1
    down = (high + g.th - 1) // g.th
    _row(g, task // down, task % down, arrays, slices, (norm, delta), (dv, dscore))


@jit.kernel
def project(
    task: int,
    q: Floats,
    k: Floats,
    slices: Ints,
    scale: Scalar,
    dscore: Floats,
    dk: Floats,
    dq: Floats,
) -> None:
    """Gradients of keys (B, H W, d), and of queries for blocks of pixels, (B, blocks, t, d).

    `q` (Bq, t, d), `k` (Bk, H W, d), `dscore` (B, t, H W).
    """
    n, d = k.shape[1:]
    blocks = dq.shape[1]
    b, block = task // blocks, task % blocks
    for j in range(block * PIXELS, min(n, block * PIXELS + PIXELS)):
        for c in range(d):
            dk[b, j, c] = 0
    for t in range(q.shape[1]):
        total = np.zeros(d, np.float64)
        for j in range(block * PIXELS, min(n, block * PIXELS + PIXELS)):
            s = scale * dscore[b, t, j]
            for c in range(d):
                dk[b, j, c] += s * q[slices[b, 0], t, c]
                total[c] += np.float64(s) * k[slices[b, 1], j, c]
        for c in range(d):
            dq[b, block, t, c] = total[c]
