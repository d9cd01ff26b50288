"""The upsampling layer of QnA: a set of learned queries for each phase of a finer grid."""

from __future__ import annotations

import numpy as np

from nlattn import _check
from nlattn._modes import Gate, Nonfinite, Position
from nlattn._types import Floats, StateDict
from nlattn.layers._state import mapping
from nlattn.layers.qna import qna_block, qna_block_vjp

PHASED = (
    "query",
    "rpe_bias",
    "rpe_bias.kernel",
    "rpe_bias.bias",
    "absolute_pos_embedding",
    "attn_scale_weights",
    "attn_scale_pos",
)
"""Weights that each phase has its own of."""


def qna_upsample_block(
    x: Floats,
    weights: StateDict,
    *,
    heads: int,
    scale: int,
    window: int | tuple[int, int],
    gate: Gate = "normal",
    position: Position = "relative_pos",
    normalize_queries: bool = True,
    detach_query_norm: bool = False,
    scale_rpe_bias: bool = False,
    nonfinite: Nonfinite = "raise",
) -> Floats:
    """`qna_block` at s times the resolution, ``y[s I + a, s J + b]`` with the queries ``a s + b``.

    Parameters
    ----------
    x : (..., H, W, C) array, float32 or float64
        Image.
    weights : mapping
        As for `qna_block`; those of queries, gate and position have one more axis in front, of
        ``s^2`` phases, ``query`` (s^2, t, F).
    scale : int
        s, at least 1.
    window : int or (int, int)
        Odd size of the windows.
    heads, gate, position, normalize_queries, detach_query_norm, scale_rpe_bias
        As for `qna_block`.

    Returns
    -------
    (..., s H, s W, Cout) array, dtype of `x`

    Raises
    ------
    ValueError, TypeError
        As for `qna_block`; a window is even, or a weight has not s^2 phases.

    Notes
    -----
    ``s^2`` times the cost of `qna_block`. Status: reconstruction.

    Examples
    --------
    >>> y = nlattn.layers.qna_upsample_block(x, weights, heads=2, scale=2, window=3)
    """
    phases = _phases("qna_upsample_block", weights, scale, window)
    each = [
        qna_block(x, phase, heads=heads, window=window, gate=gate, position=position,
            normalize_queries=normalize_queries, detach_query_norm=detach_query_norm,
            scale_rpe_bias=scale_rpe_bias, nonfinite=nonfinite)
        for phase in phases
    ]  # fmt: skip
    *lead, H, W, C = each[0].shape
    y = np.stack(each, -2).reshape(*lead, H, W, scale, scale, C)
    return np.moveaxis(y, -3, -4).reshape(*lead, scale * H, scale * W, C)


def qna_upsample_block_vjp(
    x: Floats,
    weights: StateDict,
    dout: Floats,
    *,
    heads: int,
    scale: int,
    window: int | tuple[int, int],
    gate: Gate = "normal",
    position: Position = "relative_pos",
    normalize_queries: bool = True,
    detach_query_norm: bool = False,
    scale_rpe_bias: bool = False,
    nonfinite: Nonfinite = "raise",
) -> tuple[Floats, dict[str, Floats]]:
    """Gradients (dx, dweights) of ``sum(dout * y)``, dweights with the names of the weights.

    Arguments as for `qna_upsample_block`, `dout` in the shape of its result.

    Examples
    --------
    >>> options = {"heads": 2, "scale": 2, "window": 3}
    >>> y = nlattn.layers.qna_upsample_block(x, weights, **options)
    >>> dx, dw = nlattn.layers.qna_upsample_block_vjp(x, weights, np.ones_like(y), **options)
    """
    op = "qna_upsample_block_vjp"
    phases = _phases(op, weights, scale, window)
    fit = _check.fit(op, {"x": (x, "H W C"), "dout": (dout, "Ho Wo Cout")}, nonfinite=nonfinite)
    H, W = (scale * size for size in fit.shape("H W"))
    if fit.given("dout")[-3:-1] != (H, W):
        text = f"has shape {fit.given('dout')}, expected (..., {H}, {W}, Cout) from scale={scale}"
        _check.fail(op, "dout", text)
    cotangents = (
        np.asarray(dout)[..., f // scale :: scale, f % scale :: scale, :]
        for f in range(scale * scale)
    )
    dx, each = zip(
        *(
            qna_block_vjp(x, phase, dy, heads=heads, window=window, gate=gate, position=position,
                normalize_queries=normalize_queries, detach_query_norm=detach_query_norm,
                scale_rpe_bias=scale_rpe_bias, nonfinite=nonfinite)
            for phase, dy in zip(phases, cotangents, strict=True)
        ),
        strict=True,
    )  # fmt: skip
    found = {
        name: np.stack([d[name] for d in each]) if name in PHASED else sum(d[name] for d in each)
        for name in each[0]
    }
    return sum(dx), found


def _phases(op: str, weights: object, scale: object, window: object) -> list[dict[str, object]]:
    """The weights of each phase."""
    s = _check.integer(op, "scale", scale, low=1)
    for size in _check.pair(op, "window", window, 1):
        _check.odd(op, "window", size, "its centre is a pixel")
    given = mapping(op, weights)
    for name, w in given.items():
        if name in PHASED and np.shape(w)[:1] != (s * s,):
            text = f"has shape {np.shape(w)}, expected ({s * s}, ...) from scale={s}"
            _check.fail(op, f"weights[{name!r}]", text)
    return [
        {name: w[f] if name in PHASED else w for name, w in given.items()} for f in range(s * s)
    ]
