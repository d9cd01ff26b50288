"""Local attention with learned queries: the same few queries look into every window."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nlattn import _check
from nlattn._modes import Nonfinite
from nlattn._types import Floats, JsonObject
from nlattn.engines import laws
from nlattn.engines.magnitude import ranged
from nlattn.maps.window import WindowMap
from nlattn.ops._windows import changed, geometry, local

Gradients = tuple[Floats, Floats, Floats, Floats | None, Floats | None]
_ARRAYS = {"q": "t d", "k": "H W d", "v": "H W e", "bias": "t kh kw", "gate": "t kh kw"}


@ranged(laws.window)
def qna(
    q: Floats,
    k: Floats,
    v: Floats,
    *,
    window: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | None = None,
    bias: Floats | None = None,
    gate: Floats | None = None,
    scale: float | None = None,
    nonfinite: Nonfinite = "raise",
) -> Floats:
    """Learned queries in windows: ``out[I, J] = sum_t sum_tap softmax_tap(s + bias) gate v``.

    Parameters
    ----------
    q, k, v : (..., t, d), (..., H, W, d), (..., H, W, e) arrays of one dtype, float32 or float64
        Queries, the same at every place; keys and values. Leading axes broadcast.
    window, stride : int or (int, int)
        Size of the windows, and the way from one to the next. Tap (u, w) of window (I, J) reads
        pixel ``(I stride + u - padding, J stride + w - padding)``.
    padding : int or (int, int), optional
        ``(window - 1) // 2`` if omitted. Taps outside the image have no weight.
    bias : (..., t, kh, kw) array, optional
        Added to the scores ``s = scale q.k``.
    gate : (..., t, kh, kw) array, optional
        Multiplies the weights after the softmax.
    scale : float, optional
        ``1/sqrt(d)`` if omitted.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities.

    Returns
    -------
    (..., Ho, Wo, e) array, dtype of `q`
        ``Ho = (H + 2 padding - kh) // stride + 1``; 0 where a window lies wholly outside.

    Raises
    ------
    ValueError
        Shapes do not fit, a window is larger than the padded image, or a value is not finite.
    TypeError
        The dtypes differ, or are not floating.

    Notes
    -----
    ``Ho Wo kh kw t (e + 1)`` multiply-adds, ``Ho Wo (kh + kw) t (e + 1)`` without bias and gate;
    ``H W t`` exponentials; memory ``O(H W (t + e))``, whatever the window. Source: [arar2022].
    Status: author code.

    Examples
    --------
    >>> queries = rng.normal(size=(2, 8))  # learned, the same everywhere
    >>> nlattn.qna(queries, grid, grid, window=3, stride=2).shape
    (8, 8, 8)
    """
    fit = _fit("qna", {"q": q, "k": k, "v": v, "bias": bias, "gate": gate}, nonfinite)
    to = geometry(fit, window, stride, padding)
    return fit.unfold(local(fit, to, scale).attend(fit["v"], out=True)[0])


@ranged(laws.window)
def qna_map(
    q: Floats,
    k: Floats,
    *,
    window: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | None = None,
    bias: Floats | None = None,
    gate: Floats | None = None,
    scale: float | None = None,
    query: int | None = None,
    nonfinite: Nonfinite = "raise",
) -> WindowMap:
    """The map of one head's `qna`, from values (H W, e) to outputs (Ho Wo, e).

    Arguments as there, `q` (t, d) and `k` (H, W, d). The map is the sum over all queries, or that
    of the learned query number `query`; only then it has ``lse`` and scores.

    Examples
    --------
    >>> A = nlattn.qna_map(rng.normal(size=(1, 8)), grid, window=3)
    """
    op = "qna_map"
    fit = _fit(op, {"q": q, "k": k, "bias": bias, "gate": gate}, nonfinite)
    _check.one_head(fit, "")
    to = geometry(fit, window, stride, padding)
    if query is not None:
        t = fit.dims["t"]
        i = _check.integer(op, "query", query, low=0, high=t - 1)
        some = {name: fit[name][0] for name in fit.names}
        some.update({name: x[i : i + 1] for name, x in some.items() if name != "k"})
        fit = _fit(op, some, nonfinite)
    return WindowMap(local(fit, to, scale))


@ranged(laws.window)
def qna_vjp(
    q: Floats,
    k: Floats,
    v: Floats,
    dout: Floats,
    *,
    window: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | None = None,
    bias: Floats | None = None,
    gate: Floats | None = None,
    scale: float | None = None,
    nonfinite: Nonfinite = "raise",
) -> Gradients:
    """Gradients (dq, dk, dv, dbias, dgate) of ``sum(dout * out)``; None for what was not given.

    Arguments as for `qna`, `dout` in the shape of its result. Gradients have the shapes of their
    arrays. The forward pass is computed again, and ``Ho Wo kh kw t e`` multiply-adds each for the
    values with the scores, and for bias and gate; memory as there and ``O(Ho Wo t)``.

    Examples
    --------
    >>> gradients = nlattn.qna_vjp(rng.normal(size=(2, 8)), grid, grid, grid, window=3)
    """
    arrays = {"q": q, "k": k, "v": v, "bias": bias, "gate": gate, "dout": dout}
    fit = _fit("qna_vjp", arrays, nonfinite)
    to = geometry(fit, window, stride, padding)
    if fit["dout"].shape[1:3] != (to.Ho, to.Wo):
        text = f"has shape {fit.given('dout')}, expected (..., {to.Ho}, {to.Wo}, e) from window"
        _check.fail(fit.op, "dout", text)
    near, learn = local(fit, to, scale), "bias" in fit or "gate" in fit
    norm, delta, dbias, dgate = near.attend(fit["v"], fit["dout"], out=False, learn=learn)
    dv, dscore = near.vjp(fit["v"], fit["dout"], norm, delta)
    dq, dk = near.project(dscore)
    taps = (fit.batch, *fit.shape("t"), to.kh, to.kw)
    return (
        fit.reduce("q", dq),
        fit.reduce("k", dk),
        fit.reduce("v", dv),
        fit.reduce("bias", dbias.reshape(taps)) if "bias" in fit else None,
        fit.reduce("gate", dgate.reshape(taps)) if "gate" in fit else None,
    )


@ranged(laws.along(laws.window))
def qna_jvp(
    q: Floats,
    k: Floats,
    v: Floats,
    dq: Floats,
    dk: Floats,
    dv: Floats,
    *,
    window: int | tuple[int, int],
    dbias: Floats | None = None,
    dgate: Floats | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | None = None,
    bias: Floats | None = None,
    gate: Floats | None = None,
    scale: float | None = None,
    nonfinite: Nonfinite = "raise",
) -> Floats:
    """Change of `qna` along (dq, dk, dv[, dbias][, dgate]), to first order.

    Arguments as there; changes have the shapes of their arrays. Outputs for other values and gates:
    some four times the forward pass, memory ``O(H W (t + e))``.

    Examples
    --------
    >>> change = nlattn.qna_jvp(q[:2], grid, grid, 1e-3 * q[:2], 0 * grid, 0 * grid, window=3)
    """
    op = "qna_jvp"
    arrays = {"q": q, "k": k, "v": v, "bias": bias, "gate": gate, "dq": dq, "dk": dk, "dv": dv,
              "dbias": dbias, "dgate": dgate}  # fmt: skip
    for name in ("bias", "gate"):
        if arrays[f"d{name}"] is not None and arrays[name] is None:
            _check.fail(op, f"d{name}", f"is given without {name}, expected None")
    fit = _fit(op, arrays, nonfinite)
    to = geometry(fit, window, stride, padding)
    return fit.unfold(local(fit, to, scale).jvp(fit["v"], changed(fit, to)))


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
    phases, fit = _phases("qna_upsample", arrays, scale, window, nonfinite)
    out = qna(**phases, window=window, nonfinite="propagate")
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
    phases, fit = _phases(op, arrays, scale, window, nonfinite)
    s, H, W, given = int(scale), *fit.shape("H W"), fit.given("dout")
    if given[-3:-1] != (s * H, s * W):
        text = f"has shape {given}, expected (..., {s * H}, {s * W}, e) from scale={s}"
        _check.fail(op, "dout", text)
    cells = np.asarray(dout).reshape(*given[:-3], H, s, W, s, given[-1])
    cells = np.moveaxis(cells, (-4, -2), (-5, -4)).reshape(*given[:-3], s * s, H, W, given[-1])
    dq, dk, dv, dbias, dgate = qna_vjp(**phases, dout=cells, window=window, nonfinite="propagate")
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
    phases, fit = _phases("qna_upsample_jvp", arrays, scale, window, nonfinite)
    out = qna_jvp(**phases, window=window, nonfinite="propagate")
    return _interleaved(out, fit, int(scale))


def _phases(
    op: str, given: Mapping[str, object], scale: object, window: object, nonfinite: Nonfinite
) -> tuple[JsonObject, _check.Fit]:
    """Arguments of `qna` with phases as the last leading axis; keys and values are not copied."""
    s = _check.integer(op, "scale", scale, low=1)
    for size in _check.pair(op, "window", window, 1):
        _check.odd(op, "window", size, "its centre is a pixel")
    specs = {**_ARRAYS, **{name: f"f {_ARRAYS[name]}" for name in ("q", "bias", "gate")}}
    fit = _fit(op, given, nonfinite, specs)
    if fit.dims["f"] != s * s:
        shape = fit.given("q")
        _check.fail(op, "q", f"has shape {shape}, expected (..., {s * s}, t, d) from scale={s}")
    geometry(fit, window, 1, None)
    phases: JsonObject = {name: x for name, x in given.items() if name != "dout"}
    for name in {"k", "v", "dk", "dv"} & {*phases}:
        phases[name] = np.asarray(given[name])[..., None, :, :, :]
    return phases, fit


def _fit(
    op: str, given: Mapping[str, object], nonfinite: Nonfinite, specs: dict[str, str] | None = None
) -> _check.Fit:
    """The arrays that are there, checked against each other."""
    specs = specs or _ARRAYS
    specs = {**specs, "dout": "Ho Wo e", **{f"d{name}": spec for name, spec in specs.items()}}
    optional = ("bias", "gate", "dbias", "dgate")
    arrays = {
        name: (x, specs[name]) for name, x in given.items() if x is not None or name not in optional
    }
    fit = _check.fit(op, arrays, nonfinite=nonfinite)
    if fit.dims["t"] == 0:
        _check.fail(op, "q", f"has shape {fit.given('q')}, expected at least one query")
    return fit
