"""The refined self-attention block: SAGAN's, with products over n in place of the softmax."""

from __future__ import annotations

from nlattn._modes import Nonfinite
from nlattn._types import Floats, StateDict
from nlattn.layers._operators import refined_self_attention
from nlattn.layers._sagan_port import Port, one_image
from nlattn.maps.base import AttentionMap
from nlattn.ops.refined import refined_self_attention_map, refined_self_attention_vjp


def refined_block(x: Floats, weights: StateDict, *, nonfinite: Nonfinite = "raise") -> Floats:
    """Refined self-attention block: ``y = gamma * refined_self_attention(q, k, v) + x``.

    Parameters
    ----------
    x : (..., H, W, C) array, float32 or float64
        At least 8 channels.
    weights : mapping of str to array
        `gamma` (1,), and `query_conv`, `key_conv` (to C // 8 channels) and `value_conv` (to C),
        each `.weight` (out, C, 1, 1) and `.bias`; of the dtype of `x`.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities.

    Returns
    -------
    array in the shape and dtype of `x`

    Raises
    ------
    ValueError
        Weights are missing, superfluous or misshaped (all are named), or sizes do not fit.
    TypeError
        The dtypes differ, or are not floating.

    Notes
    -----
    Linear in the pixels: about ``1.5 n C^2`` multiply-adds. Source: [wang2019]. Status:
    reconstruction.

    Examples
    --------
    >>> y = nlattn.layers.refined_block(x, weights)
    """
    return Port.of("refined_block", weights, nonfinite, x=x).forward(refined_self_attention)


def refined_block_map(
    x: Floats, weights: StateDict, *, nonfinite: Nonfinite = "raise"
) -> AttentionMap:
    """The map ``q k.T / n`` inside `refined_block`, of one image (H, W, C).

    Examples
    --------
    >>> A = nlattn.layers.refined_block_map(x[0], weights)
    """
    port = Port.of("refined_block_map", weights, nonfinite, x=x)
    one_image(port.fit)
    q, k, _ = port.embed()
    grid = port.fit["x"].shape[1:3]
    return refined_self_attention_map(q[0], k[0], query_grid=grid, key_grid=grid)


def refined_block_vjp(
    x: Floats, weights: StateDict, dout: Floats, *, nonfinite: Nonfinite = "raise"
) -> tuple[Floats, dict[str, Floats]]:
    """Gradients (dx, dweights) of ``sum(dout * y)``; arguments as for `refined_block`.

    Examples
    --------
    >>> y = nlattn.layers.refined_block(x, weights)
    >>> dx, dweights = nlattn.layers.refined_block_vjp(x, weights, np.ones_like(y))
    """
    port = Port.of("refined_block_vjp", weights, nonfinite, x=x, dout=dout)
    return port.backward(refined_self_attention, refined_self_attention_vjp)
