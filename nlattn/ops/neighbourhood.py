"""Neighbourhood attention: every query sees as many keys about its own place on a grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from nlattn import _check
from nlattn._modes import Nonfinite
from nlattn._types import Array, Floats, Result, Support
from nlattn.engines import laws
from nlattn.engines import neighbourhood as engine
from nlattn.engines.dense import log_normaliser
from nlattn.engines.magnitude import ranged
from nlattn.engines.neighbourhood import Axis
from nlattn.engines.sparse import Edges, WeightFunction
from nlattn.kernels.neighbourhood import NearArrays, NearMoving
from nlattn.maps.sparse import SparseMap

_GRIDS = {1: "L", 2: "H W", 3: "T H W"}

PerAxis = int | tuple[int, ...]
Flags = bool | tuple[bool, ...]


@ranged(laws.softmax)
def neighbourhood_attention(
    q: Floats,
    k: Floats,
    v: Floats,
    *,
    window: PerAxis,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    causal: Flags = False,
    scale: float | None = None,
    nonfinite: Nonfinite = "raise",
    return_lse: bool = False,
) -> Result:
    """Softmax attention to the neighbours on a grid: ``out_i = sum_j softmax_j(s_ij) v_j``.

    Parameters
    ----------
    q, k, v : (..., *grid, d), (..., *grid, d), (..., *grid, e) arrays, float32 or float64
        A grid of one, two or three axes. Leading axes broadcast.
    window : int or tuple of int
        Keys along each axis; so many entries, so many axes (an int: one). About the query, one
        more before than behind where it is even; at borders the window moves inside.
    stride : int or tuple of int
        So many queries share the window of the one in their middle; at most `window`.
    dilation : int or tuple of int
        Distance from one key to the next.
    causal : bool or tuple of bool
        Axes along which the window ends at the query; at the start there are fewer keys.
    scale : float, optional
        Factor on the scores ``s_ij = scale q_i.k_j``; ``1/sqrt(d)`` if omitted.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities.
    return_lse : bool
        Also return the log of each query's normaliser, (..., *grid) float64.

    Returns
    -------
    (..., *grid, e) array, dtype of `q`

    Raises
    ------
    ValueError
        Shapes do not fit, a window is longer than its axis, or a value is not finite.
    TypeError
        The dtypes differ, or are not floating.

    Notes
    -----
    ``n window (d + e)`` multiply-adds, ``O(n e)`` memory. Source: [hassani2023].
    Status: author code.

    Examples
    --------
    >>> nlattn.neighbourhood_attention(grid, grid, grid, window=5).shape
    (16, 16, 8)
    """
    op = "neighbourhood_attention"
    fit, axes, p = on_neighbours(
        op, {"q": q, "k": k, "v": v}, window, stride, dilation, causal, scale, nonfinite
    )
    out, norm = engine.attend(p, axes)
    result = on_grid(fit, axes, out)
    return (result, on_grid(fit, axes, log_normaliser(norm), cast=False)) if return_lse else result


@ranged(laws.softmax)
def neighbourhood_attention_map(
    q: Floats,
    k: Floats,
    *,
    window: PerAxis,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    causal: Flags = False,
    scale: float | None = None,
    nonfinite: Nonfinite = "raise",
) -> SparseMap:
    """The map of one head's `neighbourhood_attention`, from values (n, e) to outputs (n, e).

    Arguments as there, `q` and `k` (*grid, d), places in raster order.

    Examples
    --------
    >>> A = nlattn.neighbourhood_attention_map(q, k, window=5)  # on a line
    >>> A.shape
    (64, 64)
    """
    op = "neighbourhood_attention_map"
    fit, axes, _ = on_neighbours(
        op, {"q": q, "k": k}, window, stride, dilation, causal, scale, nonfinite
    )
    _check.one_head(fit, "")
    weights = WeightFunction.checked(fit, scale=scale)
    return SparseMap(*Edges(fit, engine.support(axes)).entries(weights))


@ranged(laws.softmax)
def neighbourhood_attention_vjp(
    q: Floats,
    k: Floats,
    v: Floats,
    dout: Floats,
    *,
    window: PerAxis,
    dlse: Floats | None = None,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    causal: Flags = False,
    scale: float | None = None,
    nonfinite: Nonfinite = "raise",
) -> tuple[Floats, Floats, Floats]:
    """Gradients (dq, dk, dv) of ``sum(dout * out) + sum(dlse * lse)``.

    Arguments as for `neighbourhood_attention`, `dout` in the shape of its result and `dlse`
    (..., *grid). The forward pass is computed again, and ``n window (4 d + 3 e)`` multiply-adds.
    Gradients of keys are summed over the queries that see them, queries ascending.

    Examples
    --------
    >>> dq, dk, dv = nlattn.neighbourhood_attention_vjp(grid, grid, grid, grid, window=5)
    """
    op = "neighbourhood_attention_vjp"
    arrays = {"q": q, "k": k, "v": v, "dout": dout} | ({} if dlse is None else {"dlse": dlse})
    fit, axes, p = on_neighbours(op, arrays, window, stride, dilation, causal, scale, nonfinite)
    n = p.q.shape[1]
    weights = np.zeros((1, n), fit.dtype) if dlse is None else fit["dlse"].reshape(-1, n)
    norm = engine.attend(p, axes)[1]
    g = fit["dout"].reshape(-1, n, fit.dims["e"])
    each = engine.vjp(p, axes, g, _check.frozen(weights), norm)
    return tuple(  # type: ignore[return-value]
        fit.reduce(name, x.reshape(len(x), *_grid(axes), x.shape[2]))
        for name, x in zip("qkv", each, strict=True)
    )


def neighbourhood_support(
    grid: tuple[int, ...],
    *,
    window: PerAxis,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    causal: Flags = False,
) -> Support:
    """The neighbours of every place of a grid, as `sparse_attention` takes them.

    Parameters
    ----------
    grid : tuple of int
        Lengths of one, two or three axes.
    window, stride, dilation, causal
        As for `neighbourhood_attention`.

    Returns
    -------
    Support
        Of shape (n, n), places in raster order.

    Raises
    ------
    ValueError
        A window is longer than its axis, or there are not as many entries as axes.

    Examples
    --------
    >>> len(nlattn.neighbourhood_support((16, 16), window=(5, 5)).indices)  # 25 of each query
    6400
    """
    op = "neighbourhood_support"
    sizes = [_check.integer(op, f"grid[{a}]", size, low=1) for a, size in enumerate(grid)]
    axes = _axes(op, window, stride, dilation, causal, sizes)
    return engine.support(axes)


def on_neighbours(
    op: str,
    given: Mapping[str, object],
    window: object,
    stride: object,
    dilation: object,
    causal: object,
    scale: float | None,
    nonfinite: Nonfinite,
) -> tuple[_check.Fit, tuple[Axis, ...], NearArrays]:
    """Arrays in raster order, and what is seen along each axis."""
    fit, axes = _grid_axes(op, given, window, stride, dilation, causal, nonfinite)
    factor = fit.dims["d"] ** -0.5 if scale is None else _check.number(op, "scale", scale)
    names = ("q", "k", "v", "dout", "dlse")
    slices = np.zeros((fit.batch, 5), np.int64)
    for column, name in enumerate(names):
        if name in fit:
            slices[:, column] = fit.slices(name)[:, 0]
    n = math.prod(_grid(axes))
    q, k = (fit[name].reshape(-1, n, fit.dims["d"]) for name in "qk")
    v = fit["v"].reshape(-1, n, fit.dims["e"]) if "v" in fit else k
    return fit, axes, NearArrays(q, k, v, _check.frozen(slices), fit.dtype.type(factor))


def moving(fit: _check.Fit, p: NearArrays) -> NearMoving:
    """Changes dq, dk and dv of a call, in raster order."""
    slices = np.column_stack([fit.slices(name)[:, 0] for name in ("dq", "dk", "dv")])
    like = zip(("dq", "dk", "dv"), (p.q, p.k, p.v), strict=True)
    dq, dk, dv = (_check.frozen(fit[name].reshape(-1, *x.shape[1:])) for name, x in like)
    return NearMoving(dq, dk, dv, _check.frozen(slices, np.int64))


def _grid_axes(
    op: str,
    given: Mapping[str, object],
    window: object,
    stride: object,
    dilation: object,
    causal: object,
    nonfinite: Nonfinite,
) -> tuple[_check.Fit, tuple[Axis, ...]]:
    """Arrays on a grid of as many axes as the window has, and what is seen along each."""
    dims = _GRIDS[_count(op, window)]
    channels = {
        "q": "d",
        "k": "d",
        "v": "e",
        "dout": "e",
        "dlse": "",
        "dq": "d",
        "dk": "d",
        "dv": "e",
    }
    arrays = {name: (x, f"{dims} {channels[name]}".strip()) for name, x in given.items()}
    fit = _check.fit(op, arrays, nonfinite=nonfinite)
    return fit, _axes(op, window, stride, dilation, causal, fit.shape(dims))


def _axes(
    op: str, window: object, stride: object, dilation: object, causal: object, grid: Sequence[int]
) -> tuple[Axis, ...]:
    """What is seen along each axis of a grid, checked."""
    count = _count(op, window)
    if count != len(grid):
        _check.fail(op, "window", f"has {count} entries, expected one for each of {len(grid)} axes")
    named = {"window": window, "stride": stride, "dilation": dilation}
    sizes = {name: _entries(op, name, x, count, _check.integer, low=1) for name, x in named.items()}
    flags = _entries(op, "causal", causal, count, _check.flag)
    each = zip(grid, *sizes.values(), flags, strict=True)
    axes = tuple(Axis(int(length), *options) for length, *options in each)
    for a, axis in enumerate(axes):
        most = axis.length // axis.dilation
        if axis.window > most:
            text = f"is {axis.window} on axis {a}, expected at most {most}"
            held = f"an axis of {axis.length} with dilation {axis.dilation} holds no more keys"
            _check.fail(op, "window", f"{text}: {held} of one remainder")
        if axis.stride > axis.window:
            text = f"is {axis.stride} on axis {a}, expected at most the window of {axis.window}"
            _check.fail(op, "stride", text)
    return axes


def _count(op: str, window: object) -> int:
    """How many axes a window has."""
    count = len(window) if isinstance(window, (tuple, list)) else 1
    if count not in _GRIDS:
        _check.fail(op, "window", f"has {count} entries, expected one, two or three axes")
    return count


T = TypeVar("T")


def _entries(
    op: str, name: str, value: object, count: int, check: Callable[..., T], **limits: int
) -> list[T]:
    """One entry for each axis, or one for all."""
    if not isinstance(value, (tuple, list)):
        return [check(op, name, value, **limits)] * count
    if len(value) != count:
        _check.fail(op, name, f"has {len(value)} entries, expected one for each of {count} axes")
    return [check(op, f"{name}[{a}]", x, **limits) for a, x in enumerate(value)]


def _grid(axes: tuple[Axis, ...]) -> tuple[int, ...]:
    return tuple(axis.length for axis in axes)


def on_grid(fit: _check.Fit, axes: tuple[Axis, ...], x: Array, *, cast: bool = True) -> Array:
    """A result (batch, n, ...) with the grid's axes."""
    return fit.unfold(x.reshape(len(x), *_grid(axes), *x.shape[2:]), cast=cast)
