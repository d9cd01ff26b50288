"""The block of ENLCA: kernel attention behind three convolutions, and its contrastive loss."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._modes import Nonfinite
from nlattn._types import Floats, Result, StateDict
from nlattn.layers import _dual, _operators, _state, _weights
from nlattn.layers._conv import pixels
from nlattn.layers._projection import Projection
from nlattn.layers._weights import Weights
from nlattn.ops.enla import enla_vjp, enlca_loss_vjp

_CONVS = [Projection.named(name) for name in ("conv_match1.0", "conv_match2.0", "conv_assembly.0")]
_PROJECTION = "attn_fn.projection_matrix"
_SHAPES = {
    "conv_match1.0.weight": "d C 1 1",
    "conv_match1.0.bias": "d",
    "conv_match2.0.weight": "d C 1 1",
    "conv_match2.0.bias": "d",
    "conv_assembly.0.weight": "C C 1 1",
    "conv_assembly.0.bias": "C",
    _PROJECTION: "r d",
}
_FIRST_NEGATIVE = 50


def enlca_block(
    x: Floats,
    weights: StateDict,
    *,
    res_scale: float = 0.1,
    training: bool = False,
    nonfinite: Nonfinite = "raise",
) -> Result:
    """ENLCA block: ``y = x + res_scale * enla(q, k, v)``.

    Parameters
    ----------
    x : (..., H, W, C) array, float32 or float64
        Images.
    weights : mapping of str to array
        `conv_match1.0` and `conv_match2.0` (queries and keys, d channels) and `conv_assembly.0`
        (values, C), each `.weight` (out, C, 1, 1) and `.bias`, and `attn_fn.projection_matrix`
        (r, d), used as it is; of the dtype of `x`.
    res_scale : float
        Of what is added to the input.
    training : bool
        The result is ``(y, loss)``, the contrastive loss averaged over the images.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities.

    Returns
    -------
    array in the shape and dtype of `x`

    Raises
    ------
    ValueError
        Weights are missing, superfluous or misshaped (all are named), or the images have too few
        pixels for the loss, which needs 51.
    TypeError
        The dtypes differ, or are not floating.

    Notes
    -----
    ``n (2 C d + C^2)`` multiply-adds and those of `enla`; the loss takes ``n^2 d``. Source:
    [xia2022]. Status: author code.

    Examples
    --------
    >>> y = nlattn.layers.enlca_block(x, weights)
    """
    block = _Block.of("enlca_block", weights, res_scale, training, nonfinite, x=x)
    q, k, v = block.embed()
    out = _operators.enla(q, k, v, projection=block.w[_PROJECTION], nonfinite="propagate")
    y = block.fit.unfold(block.fit["x"] + block.scale * out.reshape(block.fit["x"].shape))
    if not training:
        return y
    losses = _operators.enlca_loss(q, k, nonfinite="propagate")
    return y, losses.mean(dtype=np.float64).astype(block.fit.out_dtype)


def enlca_block_vjp(
    x: Floats,
    weights: StateDict,
    dout: Floats,
    *,
    dloss: float | None = None,
    res_scale: float = 0.1,
    training: bool = False,
    nonfinite: Nonfinite = "raise",
) -> tuple[Floats, dict[str, Floats]]:
    """Gradients (dx, dweights) of ``sum(dout * y) + dloss * loss``; `dloss` needs `training`.

    Arguments as for `enlca_block`, `dout` in the shape of `x`. The projection has no gradient.

    Examples
    --------
    >>> y = nlattn.layers.enlca_block(x, weights)
    >>> dx, dweights = nlattn.layers.enlca_block_vjp(x, weights, np.ones_like(y))
    """
    op = "enlca_block_vjp"
    factor = 0.0 if dloss is None else _check.number(op, "dloss", dloss)
    block = _Block.of(op, weights, res_scale, training, nonfinite, x=x, dout=dout)
    if dloss is not None and not training:
        _check.fail(op, f"dloss={dloss}", "has no meaning without training=True")
    image, dy = pixels(block.fit["x"]), pixels(block.fit["dout"])
    q, k, v = block.embed()
    dq, dk, dv = enla_vjp(
        q, k, v, block.scale * dy, projection=block.w[_PROJECTION], nonfinite="propagate"
    )
    if factor:
        each = np.full(len(q), factor / len(q), q.dtype)
        more = enlca_loss_vjp(q, k, each, nonfinite="propagate")
        dq, dk = dq + more[0], dk + more[1]
    dx, found = dy.copy(), dict[str, Floats]()
    for c, dz in zip(_CONVS, (dq, dk, dv), strict=True):
        dx += c.vjp(block.w, image, dz, found)
    return block.fit.unfold(dx.reshape(block.fit["x"].shape)), block.w.gradients(found)


class _Block(NamedTuple):
    """Checked arguments of one call."""

    fit: _check.Fit
    w: Weights
    scale: np.floating
    """Of what is added to the input, in the dtype that is computed in."""

    @classmethod
    def of(
        cls,
        op: str,
        weights: object,
        res_scale: object,
        training: object,
        nonfinite: Nonfinite,
        **arrays: Floats,
    ) -> _Block:
        """Check everything."""
        scale = _check.number(op, "res_scale", res_scale)
        needed = _check.flag(op, "training", training)
        given = _state.mapping(op, weights)
        axes = {name: (z, "H W C") for name, z in arrays.items()}
        fit = _dual.fit(op, axes, nonfinite=nonfinite)
        w = _weights.take(fit, given, _SHAPES, nonfinite=nonfinite)
        n = fit.dims["H"] * fit.dims["W"]
        if needed and n <= _FIRST_NEGATIVE:
            _check.fail(
                op,
                f"{n} positions,",
                f"expected at least {_FIRST_NEGATIVE + 1} for the negatives at rank "
                f"{_FIRST_NEGATIVE}; training=False has no loss",
            )
        if needed and not fit.batch:
            _check.fail(op, "x", f"has leading axes {fit.lead}, expected images for a mean loss")
        return cls(fit, w, fit.dtype.type(scale))

    def embed(self) -> list[Floats]:
        """Queries, keys and values, (B, n, channels)."""
        x = pixels(self.fit["x"])
        return [c.of(self.w, x) for c in _CONVS]
