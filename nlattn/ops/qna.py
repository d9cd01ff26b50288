"""Local attention with learned queries: the same few queries look into every window."""

from __future__ import annotations

from collections.abc import Mapping

from nlattn import _check
from nlattn._modes import Nonfinite
from nlattn._types import Floats
from nlattn.engines import laws
from nlattn.engines.magnitude import ranged
from nlattn.engines.window_jvp import jvp
from nlattn.maps.window import WindowMap
from nlattn.ops._windows import changed, geometry, local

Gradients = tuple[Floats, Floats, Floats, Floats | None, Floats | None]
ARRAYS = {"q": "t d", "k": "H W d", "v": "H W e", "bias": "t kh kw", "gate": "t kh kw"}


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
    fit = fitted("qna", {"q": q, "k": k, "v": v, "bias": bias, "gate": gate}, nonfinite)
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
    fit = fitted(op, {"q": q, "k": k, "bias": bias, "gate": gate}, nonfinite)
    _check.one_head(fit, "")
    to = geometry(fit, window, stride, padding)
    if query is not None:
        t = fit.dims["t"]
        i = _check.integer(op, "query", query, low=0, high=t - 1)
        some = {name: fit[name][0] for name in fit.names}
        some.update({name: x[i : i + 1] for name, x in some.items() if name != "k"})
        fit = fitted(op, some, nonfinite)
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
    fit = fitted("qna_vjp", arrays, nonfinite)
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
    fit = fitted(op, arrays, nonfinite)
    to = geometry(fit, window, stride, padding)
    return fit.unfold(jvp(local(fit, to, scale), fit["v"], changed(fit, to)))


def fitted(
    op: str, given: Mapping[str, object], nonfinite: Nonfinite, specs: dict[str, str] | None = None
) -> _check.Fit:
    """The arrays that are there, checked against each other."""
    specs = specs or ARRAYS
    specs = {**specs, "dout": "Ho Wo e", **{f"d{name}": spec for name, spec in specs.items()}}
    optional = ("bias", "gate", "dbias", "dgate")
    arrays = {
        name: (x, specs[name]) for name, x in given.items() if x is not None or name not in optional
    }
    fit = _check.fit(op, arrays, nonfinite=nonfinite)
    if fit.dims["t"] == 0:
        _check.fail(op, "q", f"has shape {fit.given('q')}, expected at least one query")
    return fit
