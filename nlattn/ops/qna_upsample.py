"""`qna` towards a finer grid: a set of learned queries for each phase of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nlattn import _check
from nlattn._modes import Nonfinite
from nlattn._types import Floats
from nlattn.ops._windows import geometry
from nlattn.ops.qna import ARRAYS, Gradients, fitted, qna, qna_jvp, qna_vjp


def qna_upsample(
    q: Floats,
    k: Floats,
    v: Floats,
    *,
    scale: int,
    window: int | tuple[int, int],
    bias: Floats | None = None,
    gate: Floats | None = None,
    nonfinite: Nonfinite = "raise",
) -> Floats:
    """`qna` at s times the resolution: ``out[s I + a, s J + b] = qna(q[a s + b], k, v)[I, J]``.

    Parameters
    ----------
    q, k, v : (..., s^2, t, d), (..., H, W, d), (..., H, W, e) arrays of one dtype
        A set of queries for each phase, row by row; keys and values, which all phases share.
    scale : int
        s, at least 1.
    window : int or (int, int)
        Odd size of the windows around each pixel.
    bias, gate : (..., s^2, t, kh, kw) arrays, optional
    nonfinite : {"raise", "propagate"}
        As for `qna`.

    Returns
    -------
    (..., s H, s W, e) array, dtype of `q`

    Raises
    ------
    ValueError, TypeError
        As for `qna`; there are not s^2 phases, or a window is even.

    Notes
    -----
    ``s^2`` times the cost of `qna`. Source: [arar2022], which offers the form but does not print
    it. Status: reconstruction.

    Examples
    --------
    >>> queries = rng.normal(size=(4, 1, 8))  # one for each new pixel of a cell
    >>> nlattn.qna_upsample(queries, grid, grid, scale=2, window=3).shape
    (32, 32, 8)
    """
    arrays = {"q": q, "k": k, "v": v, "bias": bias, "gate": gate}
    fit = _fitted("qna_upsample", arrays, scale, window, nonfinite)
    shared = _shared(k), _shared(v)
    out = qna(q, *shared, bias=bias, gate=gate, window=window, nonfinite="propagate")
    return _interleaved(out, fit, int(scale))


def _interleaved(out: Floats, fit: _check.Fit, s: int) -> Floats:
    """Phases (..., s^2, H, W, e) as one image (..., s H, s W, e)."""
    H, W = fit.shape("H W")
    cells = out.reshape(*out.shape[:-4], s, s, H, W, out.shape[-1])
    cells = np.moveaxis(cells, (-5, -4), (-4, -2))  # (..., H, a, W, b, e)
    return cells.reshape(*out.shape[:-4], s * H, s * W, out.shape[-1])


def qna_upsample_vjp(
    q: Floats,
    k: Floats,
    v: Floats,
    dout: Floats,
    *,
    scale: int,
    window: int | tuple[int, int],
    bias: Floats | None = None,
    gate: Floats | None = None,
    nonfinite: Nonfinite = "raise",
) -> Gradients:
    """Gradients (dq, dk, dv, dbias, dgate) of ``sum(dout * out)``; None for what was not given.

    Arguments as for `qna_upsample`, `dout` in the shape of its result.

    Examples
    --------
    >>> queries, dout = rng.normal(size=(4, 1, 8)), rng.normal(size=(32, 32, 8))
    >>> gradients = nlattn.qna_upsample_vjp(queries, grid, grid, dout, scale=2, window=3)
    """
    op = "qna_upsample_vjp"
    arrays = {"q": q, "k": k, "v": v, "bias": bias, "gate": gate, "dout": dout}
    fit = _fitted(op, arrays, scale, window, nonfinite)
    s, H, W, given = int(scale), *fit.shape("H W"), fit.given("dout")
    if given[-3:-1] != (s * H, s * W):
        text = f"has shape {given}, expected (..., {s * H}, {s * W}, e) from scale={s}"
        _check.fail(op, "dout", text)
    cells = np.asarray(dout).reshape(*given[:-3], H, s, W, s, given[-1])
    cells = np.moveaxis(cells, (-4, -2), (-5, -4)).reshape(*given[:-3], s * s, H, W, given[-1])
    dq, dk, dv, dbias, dgate = qna_vjp(
        q, _shared(k), _shared(v), cells, bias=bias, gate=gate, window=window,
        nonfinite="propagate",
    )  # fmt: skip
    return dq, dk.reshape(fit.given("k")), dv.reshape(fit.given("v")), dbias, dgate


def qna_upsample_jvp(
    q: Floats,
    k: Floats,
    v: Floats,
    dq: Floats,
    dk: Floats,
    dv: Floats,
    *,
    scale: int,
    window: int | tuple[int, int],
    dbias: Floats | None = None,
    dgate: Floats | None = None,
    bias: Floats | None = None,
    gate: Floats | None = None,
    nonfinite: Nonfinite = "raise",
) -> Floats:
    """Change of `qna_upsample` along (dq, dk, dv[, dbias][, dgate]), to first order.

    Arguments as there; changes have the shapes of their arrays.

    Examples
    --------
    >>> each = rng.normal(size=(4, 2, 8))
    >>> change = nlattn.qna_upsample_jvp(each, grid, grid, each, 0 * grid, 0 * grid, scale=2,
    ... window=3)
    """
    arrays = {"q": q, "k": k, "v": v, "bias": bias, "gate": gate, "dq": dq, "dk": dk, "dv": dv,
              "dbias": dbias, "dgate": dgate}  # fmt: skip
    fit = _fitted("qna_upsample_jvp", arrays, scale, window, nonfinite)
    out = qna_jvp(
        q, _shared(k), _shared(v), dq, _shared(dk), _shared(dv), dbias=dbias, dgate=dgate,
        bias=bias, gate=gate, window=window, nonfinite="propagate",
    )  # fmt: skip
    return _interleaved(out, fit, int(scale))


def _fitted(
    op: str, given: Mapping[str, object], scale: object, window: object, nonfinite: Nonfinite
) -> _check.Fit:
    """The arrays of all phases, checked against each other and the options."""
    s = _check.integer(op, "scale", scale, low=1)
    for size in _check.pair(op, "window", window, 1):
        _check.odd(op, "window", size, "its centre is a pixel")
    specs = {**ARRAYS, **{name: f"f {ARRAYS[name]}" for name in ("q", "bias", "gate")}}
    fit = fitted(op, given, nonfinite, specs)
    if fit.dims["f"] != s * s:
        shape = fit.given("q")
        _check.fail(op, "q", f"has shape {shape}, expected (..., {s * s}, t, d) from scale={s}")
    geometry(fit, window, 1, None)
    return fit


def _shared(x: Floats) -> Floats:
    """Keys or values with an axis for phases, not copied."""
    return np.asarray(x)[..., None, :, :, :]
