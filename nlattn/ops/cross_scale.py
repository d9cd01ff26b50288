"""Cross-scale attention: finer patches pasted where their coarser likenesses are found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from nlattn import _check
from nlattn._modes import Assign, Crop, Nonfinite, Overlap, Pad
from nlattn._types import Floats
from nlattn.engines import laws
from nlattn.engines.cross_scale import OVERLAPS, Cells, CrossScaleOptions, to_cells, to_pixels
from nlattn.engines.magnitude import ranged
from nlattn.maps.cross_scale import CrossScaleMap, apply

Mode: TypeAlias = Literal["edge", "reflect", "constant"]
PADS: dict[str, Mode] = {"edge": "edge", "reflect": "reflect", "zero": "constant"}


@ranged(laws.cross_scale)
def cross_scale_attention(
    q: Floats,
    k: Floats,
    v: Floats,
    *,
    scale: int,
    patch: int = 3,
    temperature: float = 10.0,
    floor: float = 1e-4,
    overlap: Overlap = "average",
    divisor: float = 6.0,
    assign: Assign = "softmax",
    crop: Crop = "exact",
    nonfinite: Nonfinite = "raise",
    max_bytes: float = 4e9,
) -> Floats:
    """Paste patches of v, s times larger than those of k that resemble the patches of q.

    ``A_i = softmax_l(temperature sum_o q[i + o] . k[l + o] / nu_l)`` over the patch's offsets o,
    ``B_il = sum_o A[i + o, l + o]``, ``out[cell i] = sum_l B_il v[cell l] / z_i``; a cell is s x s.

    Parameters
    ----------
    q, k, v : (..., H, W, d), (..., h, w, d), (..., s h, s w, e) arrays of one dtype
        Queries on any grid, keys, and values s times finer than the keys. Leading axes broadcast.
    scale, patch : int
        s, and the odd width of patches.
    temperature, floor : float
        Factor on scores; least value of ``nu_l``, the norm of a whole patch of keys.
    overlap : {"average", "mass", "divide"}
        ``z``: the number of patches that cover a cell, ``sum_l B_il``, or the constant `divisor`.
    assign : {"softmax", "argmax"}
        "argmax" takes the best key alone, the first of equals; its gradient is that of v alone.
    crop : {"exact", "published"}
        As fine as the queries, or what remains when s pixels are cut from each side: that and
        ``s (patch - 3)`` more.
    nonfinite, max_bytes
        What to do with NaN and infinities; most bytes to work in.

    Returns
    -------
    (..., s H, s W, e) array

    Raises
    ------
    ValueError, TypeError, MemoryError
        Shapes, dtypes or an option do not fit; a value is not finite; above `max_bytes`.

    Notes
    -----
    ``H W h w (d + s^2 e)`` multiply-adds, ``O(W h w)`` memory. Source: [mei2020]. Status: author
    code, "average" and "mass" are ours.

    Examples
    --------
    >>> fine = rng.normal(size=(24, 24, 4))  # values, twice as fine as queries and keys
    >>> coarse = fine.reshape(12, 2, 12, 2, 4).mean((1, 3))
    >>> nlattn.cross_scale_attention(coarse, coarse, fine, scale=2).shape
    (24, 24, 4)
    """
    arrays = {"q": (q, "Hq Wq d"), "k": (k, "Hk Wk d"), "v": (v, "Hv Wv e")}
    asked = CrossScaleArguments(scale, patch, temperature, floor, overlap, divisor, assign, crop,
        nonfinite, max_bytes)  # fmt: skip
    fit, options = _prepared("cross_scale_attention", arrays, asked)
    s = options.scale
    fit.dims["Ho"], fit.dims["Wo"] = (s * options.cells(fit.dims[x]) for x in ("Hq", "Wq"))
    out = fit.empty("Ho Wo e")
    for b, (i, j, l) in enumerate(fit.index):
        V = to_cells(fit["v"][l], s)
        V = _check.frozen(V.reshape(-1, V.shape[2]))
        out[b] = to_pixels(apply(Cells(fit["q"][i], fit["k"][j], options), V), s)
    return fit.unfold(out)


@ranged(laws.cross_scale)
def cross_scale_attention_map(
    q: Floats,
    k: Floats,
    *,
    scale: int,
    patch: int = 3,
    temperature: float = 10.0,
    floor: float = 1e-4,
    overlap: Overlap = "average",
    divisor: float = 6.0,
    assign: Assign = "softmax",
    crop: Crop = "exact",
    nonfinite: Nonfinite = "raise",
    max_bytes: float = 4e9,
) -> CrossScaleMap:
    """The map of one picture's `cross_scale_attention`, from pixels of v to pixels of the result.

    Options as there. A pixel reads the pixels at its own place in other cells. Rows sum to 1 with
    ``overlap="mass"``, to at most 1 with "average". The map holds `q` and `k`.

    Examples
    --------
    >>> A = nlattn.cross_scale_attention_map(grid, grid, scale=2)
    """
    op = "cross_scale_attention_map"
    asked = CrossScaleArguments(scale, patch, temperature, floor, overlap, divisor, assign, crop,
        nonfinite, max_bytes)  # fmt: skip
    fit, options = _prepared(op, {"q": (q, "Hq Wq d"), "k": (k, "Hk Wk d")}, asked)
    _check.one_head(fit, "(H, W, d), (h, w, d)", "one picture")
    return CrossScaleMap(fit["q"][0], fit["k"][0], options)


@ranged(laws.cross_scale)
def cross_scale_attention_vjp(
    q: Floats,
    k: Floats,
    v: Floats,
    dout: Floats,
    *,
    scale: int,
    patch: int = 3,
    temperature: float = 10.0,
    floor: float = 1e-4,
    overlap: Overlap = "average",
    divisor: float = 6.0,
    assign: Assign = "softmax",
    crop: Crop = "exact",
    nonfinite: Nonfinite = "raise",
    max_bytes: float = 4e9,
) -> tuple[Floats, Floats, Floats]:
    """Gradients (dq, dk, dv) of ``sum(dout * out)`` of `cross_scale_attention`.

    Arguments as there, `dout` in the shape of its result. Where a patch of keys is shorter than
    `floor` its norm is a constant, so that gradients at zero keys are finite. Twice the work and
    the memory of the result.

    Examples
    --------
    >>> fine = rng.normal(size=(32, 32, 4))
    >>> dq, dk, dv = nlattn.cross_scale_attention_vjp(grid, grid, fine, fine, scale=2)
    """
    op = "cross_scale_attention_vjp"
    arrays = {"q": (q, "Hq Wq d"), "k": (k, "Hk Wk d"), "v": (v, "Hv Wv e")}
    arrays["dout"] = (dout, "Ho Wo e")
    asked = CrossScaleArguments(scale, patch, temperature, floor, overlap, divisor, assign, crop,
        nonfinite, max_bytes)  # fmt: skip
    fit, options = _prepared(op, arrays, asked)
    s = options.scale
    dq, dk, dv = (fit.empty(spec) for spec in ("Hq Wq d", "Hk Wk d", "Hv Wv e"))
    for b, (i, j, l, o) in enumerate(fit.index):
        V, cotangent = to_cells(fit["v"][l], s), to_cells(fit["dout"][o], s)
        h, w, size = V.shape
        cells = Cells(fit["q"][i], fit["k"][j], options)
        known = _check.frozen(V.reshape(h * w, size)), cotangent
        dq[b], dk[b], dV = cells.gradients(*known)
        dv[b] = to_pixels(dV.reshape(h, w, size), s)
    return fit.reduce("q", dq), fit.reduce("k", dk), fit.reduce("v", dv)


@ranged(laws.along(laws.cross_scale))
def cross_scale_attention_jvp(
    q: Floats,
    k: Floats,
    v: Floats,
    dq: Floats,
    dk: Floats,
    dv: Floats,
    *,
    scale: int,
    patch: int = 3,
    temperature: float = 10.0,
    floor: float = 1e-4,
    overlap: Overlap = "average",
    divisor: float = 6.0,
    assign: Assign = "softmax",
    crop: Crop = "exact",
    nonfinite: Nonfinite = "raise",
    max_bytes: float = 4e9,
) -> Floats:
    """Change of `cross_scale_attention` along (dq, dk, dv), to first order.

    Arguments as there; changes have the shapes of their arrays. Three times the work of the
    result and twice its memory.

    Examples
    --------
    >>> fine = rng.normal(size=(32, 32, 8))
    >>> change = nlattn.cross_scale_attention_jvp(grid, grid, fine, 1e-3 * grid, 0 * grid,
    ... 0 * fine, scale=2)
    """
    specs = {"q": "Hq Wq d", "k": "Hk Wk d", "v": "Hv Wv e"}
    arrays = {n: (x, specs[n]) for n, x in zip(specs, (q, k, v), strict=True)}
    arrays |= {f"d{n}": (x, specs[n]) for n, x in zip(specs, (dq, dk, dv), strict=True)}
    asked = CrossScaleArguments(scale, patch, temperature, floor, overlap, divisor, assign, crop,
        nonfinite, max_bytes)  # fmt: skip
    fit, options = _prepared("cross_scale_attention_jvp", arrays, asked)
    s = options.scale
    fit.dims["Ho"], fit.dims["Wo"] = (s * options.cells(fit.dims[x]) for x in ("Hq", "Wq"))
    out = fit.empty("Ho Wo e")
    for b, (i, j, l, di, dj, dl) in enumerate(fit.index):
        V, dV = (
            _check.frozen(x.reshape(-1, x.shape[2]))
            for x in (to_cells(fit["v"][l], s), to_cells(fit["dv"][dl], s))
        )
        cells = Cells(fit["q"][i], fit["k"][j], options)
        moved = np.empty((cells.rows, cells.columns, V.shape[1]), fit.dtype)
        cells.changes(V, dV, fit["dq"][di], fit["dk"][dj], moved)
        out[b] = to_pixels(moved, s)
    return fit.unfold(out)


def downscale(
    x: Floats, scale: int, *, pad: Pad = "edge", nonfinite: Nonfinite = "raise"
) -> Floats:
    """Bilinear samples at ``(i + 0.5) s - 0.5``, without antialias: (..., ceil(H/s), ceil(W/s), C).

    Scale 2 averages 2 x 2 pixels, 3 takes the middle one, 4 averages the middle 2 x 2. Sizes that
    are no multiple of the scale are padded at bottom and right: `pad` "edge", "reflect" or "zero",
    or "error" to refuse them. Source: [mei2020].

    Examples
    --------
    >>> nlattn.downscale(grid, 2).shape
    (8, 8, 8)
    """
    op = "downscale"
    fit = _check.fit(op, {"x": (x, "H W e")}, nonfinite=nonfinite)
    s = _padding(op, fit, scale, pad)
    wide = extend(fit["x"], s, pad)
    low, high = (s - 1) // 2, s // 2
    total = wide[:, low::s, low::s] + wide[:, low::s, high::s]
    total += wide[:, high::s, low::s]
    total += wide[:, high::s, high::s]
    return fit.unfold(total / 4)


def downscale_vjp(
    x: Floats, dout: Floats, scale: int, *, pad: Pad = "edge", nonfinite: Nonfinite = "raise"
) -> Floats:
    """Gradient by x of ``sum(dout * downscale(x))``.

    Examples
    --------
    >>> nlattn.downscale_vjp(grid, nlattn.downscale(grid, 2), 2).shape
    (16, 16, 8)
    """
    op = "downscale_vjp"
    arrays = {"x": (x, "H W e"), "dout": (dout, "Ho Wo e")}
    fit = _check.fit(op, arrays, nonfinite=nonfinite)
    s = _padding(op, fit, scale, pad)
    H, W = fit.shape("H W")
    small = -(-H // s), -(-W // s)
    if fit.shape("Ho Wo") != small:
        text = f"has grid {fit.shape('Ho Wo')}, expected {small} for scale={s}"
        _check.fail(op, "dout", text)
    wide = np.zeros((fit.batch, s * small[0], s * small[1], fit.dims["e"]), fit.dtype)
    for a in ((s - 1) // 2, s // 2):
        for b in ((s - 1) // 2, s // 2):
            wide[:, a::s, b::s] += fit["dout"] / 4
    return fit.reduce("x", extend_vjp(wide, (H, W), pad))


def _padding(op: str, fit: _check.Fit, scale: object, pad: str) -> int:
    s = _check.integer(op, "scale", scale, low=1)
    _check.choice(op, "pad", pad, get_args(Pad))
    H, W = fit.shape("H W")
    if pad == "error" and (H % s or W % s):
        text = f"has {H} x {W} pixels, expected multiples of scale={s}; pad='edge' allows any"
        _check.fail(op, "x", text)
    return s


def extend(x: Floats, s: int, pad: str) -> Floats:
    """Pad (B, H, W, C) at bottom and right to multiples of s."""
    H, W = x.shape[1:3]
    widths = [(0, 0), (0, -H % s), (0, -W % s), (0, 0)]
    mode = PADS.get(pad, "edge")
    wide: Floats = np.pad(x, widths, mode=mode)
    return wide


def extend_vjp(dx: Floats, shape: tuple[int, ...], pad: str) -> Floats:
    """What stands at a copy goes to the original, (B, *shape, C)."""
    mode = PADS.get(pad, "edge")
    for axis, length in enumerate(shape, 1):
        source = np.pad(np.arange(length) + 1, (0, dx.shape[axis] - length), mode=mode) - 1
        summed: Floats = np.zeros([*dx.shape[:axis], length, *dx.shape[axis + 1 :]], dx.dtype)
        real, moved = source >= 0, np.moveaxis(dx, axis, 0)
        np.add.at(np.moveaxis(summed, axis, 0), source[real], moved[real])
        dx = summed
    return dx


class CrossScaleArguments(NamedTuple):
    """The options of a call, as they came."""

    scale: int
    patch: int
    temperature: float
    floor: float
    overlap: Overlap
    divisor: float
    assign: Assign
    crop: Crop
    nonfinite: Nonfinite
    max_bytes: float


def _prepared(
    op: str, arrays: Mapping[str, tuple[object, str]], asked: CrossScaleArguments
) -> tuple[_check.Fit, CrossScaleOptions]:
    """Arrays and options of a call, checked against each other."""
    fit = _check.fit(op, arrays, nonfinite=asked.nonfinite, max_bytes=asked.max_bytes)
    options = CrossScaleOptions(
        _check.integer(op, "scale", asked.scale, low=1),
        _check.odd(op, "patch", asked.patch, "its centre is a pixel"),
        _check.number(op, "temperature", asked.temperature),
        _check.number(op, "floor", asked.floor, positive=True),
        _check.choice(op, "overlap", asked.overlap, OVERLAPS),
        _check.number(op, "divisor", asked.divisor, positive=True),
        _check.choice(op, "assign", asked.assign, get_args(Assign)) == "argmax",
        _check.choice(op, "crop", asked.crop, get_args(Crop)) == "published",
    )
    s, (H, W, h, w) = options.scale, fit.shape("Hq Wq Hk Wk")
    if "v" in arrays and fit.shape("Hv Wv") != (s * h, s * w):
        text = f"has grid {fit.shape('Hv Wv')}, expected {(s * h, s * w)}, {s} times that of k"
        _check.fail(op, "v", text)
    rows, columns = options.cells(H), options.cells(W)
    if min(rows, columns) < 1:
        text = f"has {H} x {W} pixels, of which crop='published' with patch=1 leaves none"
        _check.fail(op, "q", text)
    if "dout" in arrays and fit.shape("Ho Wo") != (s * rows, s * columns):
        text = f"has grid {fit.shape('Ho Wo')}, expected {(s * rows, s * columns)} as the output"
        _check.fail(op, "dout", text)
    rings = (4 if "dout" in arrays else 2) * options.patch + 4
    needed = rings * max(W, columns) * h * w * fit.dtype.itemsize
    what = f"{rings} rows of {max(W, columns)} x {h * w} weights"
    _check.memory(op, needed, asked.max_bytes, what, "use narrower pictures")
    return fit, options
