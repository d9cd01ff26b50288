"""Windows, strides and paddings, checked."""

from __future__ import annotations

import numpy as np

from nlattn import _check
from nlattn._types import Floats
from nlattn.engines.window import Local
from nlattn.engines.window_geometry import WindowGeometry
from nlattn.engines.window_jvp import WindowChange


def geometry(fit: _check.Fit, window: object, stride: object, padding: object) -> WindowGeometry:
    """Sizes of windows and outputs; what was given with other windows is refused."""
    op = fit.op
    kh, kw = _check.pair(op, "window", window, 1)
    sh, sw = _check.pair(op, "stride", stride, 1)
    ph, pw = ((kh - 1) // 2, (kw - 1) // 2)
    if padding is not None:
        ph, pw = _check.pair(op, "padding", padding, 0)
    H, W = fit.shape("H W")
    if kh > H + 2 * ph or kw > W + 2 * pw:
        _check.fail(
            op,
            "window",
            f"is ({kh}, {kw}), expected at most ({H + 2 * ph}, {W + 2 * pw}), the image with its "
            "padding; padding=None centres any window",
        )
    for name in ("bias", "gate"):
        if name in fit and fit.given(name)[-2:] != (kh, kw):
            text = f"has shape {fit.given(name)}, expected (..., t, {kh}, {kw}) from window"
            _check.fail(op, name, text)
    Ho, Wo = (H + 2 * ph - kh) // sh + 1, (W + 2 * pw - kw) // sw + 1
    return WindowGeometry(H, W, Ho, Wo, kh, kw, sh, sw, ph, pw)


def local(fit: _check.Fit, to: WindowGeometry, scale: float | None) -> Local:
    """The arrays of a call; no bias is 0, no gate is 1."""
    factor = fit.dims["d"] ** -0.5 if scale is None else _check.number(fit.op, "scale", scale)
    t, columns = fit.dims["t"], {name: i for i, name in enumerate(fit.names)}
    arrays: dict[str, Floats] = {}
    for name, value in (("bias", 0.0), ("gate", 1.0)):
        shape = (1, t, to.kh * to.kw)
        given = fit[name].reshape(-1, *shape[1:]) if name in fit else np.full(shape, value)
        arrays[name] = _check.frozen(given, fit.dtype)
    slices = np.zeros((fit.batch, 6), np.int64)
    for place, name in enumerate(("q", "k", "v", "bias", "gate", "dout")):
        if name in columns:
            slices[:, place] = fit.index[:, columns[name]]
    return Local(
        fit["q"], fit["k"], arrays["bias"], arrays["gate"], _check.frozen(slices), factor, to
    )


def changed(fit: _check.Fit, to: WindowGeometry) -> WindowChange:
    """The changes of a call's arrays."""
    slices, taps = np.zeros((fit.batch, 5), np.int64), (-1, fit.dims["t"], to.kh * to.kw)
    names = ("dq", "dk", "dv", "dbias", "dgate")
    for place, name in enumerate(names):
        if name in fit:
            slices[:, place] = fit.slices(name)[:, 0]
    beside = [_check.frozen(fit[n].reshape(taps)) if n in fit else None for n in names[3:]]
    return WindowChange(fit["dq"], fit["dk"], fit["dv"], beside[0], beside[1], slices)
