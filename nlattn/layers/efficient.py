"""The block of Efficient Attention: projections, heads, reprojection, residual."""

from __future__ import annotations

from typing import NamedTuple, get_args

import numpy as np

from nlattn import _check
from nlattn._modes import Nonfinite, Normalization
from nlattn._types import Floats, StateDict
from nlattn.layers import _dual, _state, _weights
from nlattn.layers._conv import pixels
from nlattn.layers._operators import efficient_attention
from nlattn.layers._projection import Projection
from nlattn.layers._weights import Weights
from nlattn.ops.efficient import efficient_attention_vjp

_SHAPES = {
    "queries.weight": "dk C 1 1",
    "queries.bias": "dk",
    "keys.weight": "dk C 1 1",
    "keys.bias": "dk",
    "values.weight": "dv C 1 1",
    "values.bias": "dv",
    "reprojection.weight": "C dv 1 1",
    "reprojection.bias": "C",
}
_CONVS = [Projection.named(name) for name in ("queries", "keys", "values")]
_LAST = Projection.named("reprojection")


def efficient_attention_block(
    x: Floats,
    weights: StateDict,
    *,
    heads: int = 1,
    normalization: Normalization = "softmax",
    parity: bool = False,
    nonfinite: Nonfinite = "raise",
) -> Floats:
    """Efficient Attention block: ``y = reprojection(heads of efficient_attention) + x``.

    Parameters
    ----------
    x : (..., H, W, C) array, float32 or float64
        Images.
    weights : mapping of str to array
        `queries` and `keys` (to d_k channels), `values` (to d_v) and `reprojection` (back to C),
        each `.weight` (out, in, 1, 1) and `.bias`; of the dtype of `x`.
    heads : int
        Head i owns the i-th run of d_k / heads, and of d_v / heads, channels.
    normalization : {"softmax", "scaling"}
        As for `efficient_attention`.
    parity : bool
        Where `heads` does not divide d_k, leave the last channels unused, as the published module
        does; otherwise that is an error.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities.

    Returns
    -------
    array in the shape and dtype of `x`

    Raises
    ------
    ValueError
        Weights are missing, superfluous or misshaped (all are named), or heads do not divide.
    TypeError
        The dtypes differ, or are not floating.

    Notes
    -----
    ``2 n C (d_k + d_v)`` and ``2 n d_k d_v / heads`` multiply-adds. Source: [shen2018]. Status:
    author code.

    Examples
    --------
    >>> y = nlattn.layers.efficient_attention_block(x, weights)
    """
    block = _Block.of(
        "efficient_attention_block", weights, heads, normalization, parity, nonfinite, x=x
    )
    out = block.join(block.attend(*block.split(*block.embed())))
    y = _LAST.of(block.w, out)
    return block.fit.unfold(y.reshape(block.fit["x"].shape) + block.fit["x"])


def efficient_attention_block_vjp(
    x: Floats,
    weights: StateDict,
    dout: Floats,
    *,
    heads: int = 1,
    normalization: Normalization = "softmax",
    parity: bool = False,
    nonfinite: Nonfinite = "raise",
) -> tuple[Floats, dict[str, Floats]]:
    """Gradients (dx, dweights) of ``sum(dout * y)``; arguments as for the block.

    Channels that `parity` leaves unused have gradient 0.

    Examples
    --------
    >>> y = nlattn.layers.efficient_attention_block(x, weights)
    >>> dx, dweights = nlattn.layers.efficient_attention_block_vjp(x, weights, np.ones_like(y))
    """
    op = "efficient_attention_block_vjp"
    block = _Block.of(op, weights, heads, normalization, parity, nonfinite, x=x, dout=dout)
    image, dy = pixels(block.fit["x"]), pixels(block.fit["dout"])
    projected = block.embed()
    sets = block.split(*projected)
    found: dict[str, Floats] = {}
    (dhead,) = block.split(_LAST.vjp(block.w, block.join(block.attend(*sets)), dy, found))
    q, k, v = sets
    gradients = efficient_attention_vjp(
        q, k, v, dhead, normalization=normalization, nonfinite="propagate"
    )
    dx = dy.copy()
    for c, full, dz in zip(_CONVS, projected, gradients, strict=True):
        joined = block.join(dz)
        whole = np.zeros(full.shape, full.dtype)
        whole[..., : joined.shape[-1]] = joined
        dx += c.vjp(block.w, image, whole, found)
    return block.fit.unfold(dx.reshape(block.fit["x"].shape)), block.w.gradients(found)


class _Block(NamedTuple):
    """Checked arguments of one call."""

    fit: _check.Fit
    w: Weights
    heads: int
    normalization: Normalization

    @classmethod
    def of(
        cls,
        op: str,
        weights: object,
        heads: object,
        normalization: object,
        parity: object,
        nonfinite: Nonfinite,
        **arrays: Floats,
    ) -> _Block:
        """Check everything."""
        count = _check.integer(op, "heads", heads, low=1)
        kind = _check.choice(op, "normalization", normalization, get_args(Normalization))
        parity = _check.flag(op, "parity", parity)
        given = _state.mapping(op, weights)
        axes = {name: (z, "H W C") for name, z in arrays.items()}
        fit = _dual.fit(op, axes, nonfinite=nonfinite)
        w = _weights.take(fit, given, _SHAPES, nonfinite=nonfinite)
        d_k, d_v = w.sizes["dk"], w.sizes["dv"]
        if d_v % count:
            _check.fail(op, f"heads={count}", f"does not divide the d_v={d_v} channels of values")
        if count > d_k or (d_k % count and not parity):
            remedy = "; parity=True leaves the last ones unused" if count < d_k else ""
            text = f"does not divide the d_k={d_k} channels of queries and keys{remedy}"
            _check.fail(op, f"heads={count}", text)
        return cls(fit, w, count, kind)

    def embed(self) -> list[Floats]:
        """Queries, keys and values of all heads, (B, n, channels)."""
        x = pixels(self.fit["x"])
        return [c.of(self.w, x) for c in _CONVS]

    def split(self, *arrays: Floats) -> list[Floats]:
        """Heads as an axis, (B, heads, n, channels of one)."""
        result = []
        for x in arrays:
            each = x.shape[-1] // self.heads
            used = x[..., : each * self.heads]
            result.append(used.reshape(*x.shape[:-1], self.heads, each).swapaxes(1, 2))
        return result

    def join(self, x: Floats) -> Floats:
        """Heads side by side again, (B, n, channels of all)."""
        batch, heads, n, each = x.shape
        return x.swapaxes(1, 2).reshape(batch, n, heads * each)

    def attend(self, q: Floats, k: Floats, v: Floats) -> Floats:
        """Outputs of every head."""
        return efficient_attention(q, k, v, normalization=self.normalization, nonfinite="propagate")
