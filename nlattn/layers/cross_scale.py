"""The modules of cross-scale super-resolution: two attentions, their fusion, the recurrent cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nlattn import _check
from nlattn._modes import Assign, Nonfinite, Overlap, Pad
from nlattn._types import Floats, StateDict
from nlattn.layers import _cross_scale_parts as parts
from nlattn.layers._cross_scale_parts import Net
from nlattn.layers._strided import Stride

SCALES = (2, 3, 4)


def cross_scale_block(
    x: Floats,
    weights: StateDict,
    *,
    scale: int,
    patch: int = 3,
    temperature: float = 10.0,
    assign: Assign = "softmax",
    overlap: Overlap = "average",
    pad: Pad = "edge",
    parity: bool = False,
    nonfinite: Nonfinite = "raise",
) -> Floats:
    """Cross-scale attention of x to itself, ``scale`` times as fine.

    ``E(z) = PReLU(conv(z) + bias)``; queries ``E_match_1(x)``, keys ``E_match_2(downscale(x))``,
    values ``E_assembly(x)``, then `cross_scale_attention`.

    Parameters
    ----------
    x : (..., H, W, C) array, float32 or float64
    weights : mapping of str to array
        ``conv_match_1.0.weight (c, C, 1, 1)``, ``.bias``, ``conv_match_1.1.weight (1,)`` the slope;
        ``conv_match_2`` likewise, ``conv_assembly`` to C channels; ``escape_NaN (1,)``, the floor,
        may be missing and is 1e-4 then.
    scale, patch, temperature, assign, overlap
        As for `cross_scale_attention`.
    pad : {"edge", "reflect", "zero", "error"}
        How keys and values go on at bottom and right, where sizes are no multiples of `scale`.
    parity : bool
        As published: ``overlap="divide"``, ``pad="error"``, ``crop="published"``.

    Returns
    -------
    (..., scale H, scale W, C) array

    Raises
    ------
    ValueError, TypeError
        Weights are missing, superfluous or misshaped (all are named), or something does not fit.

    Notes
    -----
    Source: [mei2020]. Status: author code.

    Examples
    --------
    >>> y = nlattn.layers.cross_scale_block(x, weights, scale=2)
    """
    op = "cross_scale_block"
    asked = parts.CellOptions(scale, patch, temperature, assign, overlap, pad)
    net, options = _start(op, {"x": (x, "H W C")}, weights, None, asked, parity, nonfinite)
    return net.fit.unfold(parts.across(net, "", net.fit["x"], options)[0])


def cross_scale_block_vjp(
    x: Floats,
    weights: StateDict,
    dout: Floats,
    *,
    scale: int,
    patch: int = 3,
    temperature: float = 10.0,
    assign: Assign = "softmax",
    overlap: Overlap = "average",
    pad: Pad = "edge",
    parity: bool = False,
    nonfinite: Nonfinite = "raise",
) -> tuple[Floats, dict[str, Floats]]:
    """Gradients (dx, dweights) of ``sum(dout * y)``; the floor has none.

    Examples
    --------
    >>> y = nlattn.layers.cross_scale_block(x, weights, scale=2)
    >>> dx, dweights = nlattn.layers.cross_scale_block_vjp(x, weights, np.ones_like(y), scale=2)
    """
    op = "cross_scale_block_vjp"
    asked = parts.CellOptions(scale, patch, temperature, assign, overlap, pad)
    arrays = {"x": (x, "H W C"), "dout": (dout, "Ho Wo C")}
    net, options = _start(op, arrays, weights, None, asked, parity, nonfinite)
    y, vjp = parts.across(net, "", net.fit["x"], options)
    return _gradients(net, [("dout", y)], lambda d: vjp(d[0]))


def inscale_block(x: Floats, weights: StateDict, *, nonfinite: Nonfinite = "raise") -> Floats:
    """In-scale attention: ``sum_j softmax_j(E_match1(x)_i . E_match2(x)_j) E_assembly(x)_j``.

    Weights ``conv_match1``, ``conv_match2`` and ``conv_assembly`` as in `cross_scale_block`, one
    underscore less. Returns the shape of `x`. No factor on scores, no residual. Source: [mei2020].

    Examples
    --------
    >>> y = nlattn.layers.inscale_block(x, weights)
    """
    net = Net("inscale_block", {"x": (x, "H W C")}, weights, parts.of_inscale(), nonfinite)
    return net.fit.unfold(parts.inside(net, "", net.fit["x"])[0])


def inscale_block_vjp(
    x: Floats, weights: StateDict, dout: Floats, *, nonfinite: Nonfinite = "raise"
) -> tuple[Floats, dict[str, Floats]]:
    """Gradients (dx, dweights) of ``sum(dout * y)``.

    Examples
    --------
    >>> y = nlattn.layers.inscale_block(x, weights)
    >>> dx, dweights = nlattn.layers.inscale_block_vjp(x, weights, np.ones_like(y))
    """
    arrays = {"x": (x, "H W C"), "dout": (dout, "H W C")}
    net = Net("inscale_block_vjp", arrays, weights, parts.of_inscale(), nonfinite)
    y, vjp = parts.inside(net, "", net.fit["x"])
    return _gradients(net, [("dout", y)], lambda d: vjp(d[0]))


def multi_source_projection(
    x: Floats,
    weights: StateDict,
    *,
    scale: int,
    patch: int = 3,
    temperature: float = 10.0,
    assign: Assign = "softmax",
    overlap: Overlap = "average",
    pad: Pad = "edge",
    parity: bool = False,
    nonfinite: Nonfinite = "raise",
) -> Floats:
    """Fuse both attentions: ``U + conv(PReLU(conv(U - D)))``.

    ``U`` is cross-scale attention (``up_attention.*``), ``D`` is ``PReLU(deconv(inscale(x)))``
    (``down_attention.*``, ``upsample``); ``encoder.body.0`` and ``.2`` are 3 x 3. Scale 2, 3, or 4,
    which here enlarges by 2. Options as for `cross_scale_block`. Source: [mei2020].

    Examples
    --------
    >>> y = nlattn.layers.multi_source_projection(x, weights, scale=2)
    """
    op = "multi_source_projection"
    asked = parts.CellOptions(scale, patch, temperature, assign, overlap, pad)
    arrays = {"x": (x, "H W C")}
    net, options = _start(op, arrays, weights, parts.of_projection, asked, parity, nonfinite)
    return net.fit.unfold(parts.projection(net, "", net.fit["x"], options)[0])


def multi_source_projection_vjp(
    x: Floats,
    weights: StateDict,
    dout: Floats,
    *,
    scale: int,
    patch: int = 3,
    temperature: float = 10.0,
    assign: Assign = "softmax",
    overlap: Overlap = "average",
    pad: Pad = "edge",
    parity: bool = False,
    nonfinite: Nonfinite = "raise",
) -> tuple[Floats, dict[str, Floats]]:
    """Gradients (dx, dweights) of ``sum(dout * y)``.

    Examples
    --------
    >>> y = nlattn.layers.multi_source_projection(x, weights, scale=2)
    >>> dout = np.ones_like(y)
    >>> dx, dw = nlattn.layers.multi_source_projection_vjp(x, weights, dout, scale=2)
    """
    op = "multi_source_projection_vjp"
    asked = parts.CellOptions(scale, patch, temperature, assign, overlap, pad)
    arrays = {"x": (x, "H W C"), "dout": (dout, "Ho Wo C")}
    net, options = _start(op, arrays, weights, parts.of_projection, asked, parity, nonfinite)
    y, vjp = parts.projection(net, "", net.fit["x"], options)
    return _gradients(net, [("dout", y)], lambda d: vjp(d[0]))


def sem_cell(
    x: Floats,
    weights: StateDict,
    *,
    scale: int,
    patch: int = 3,
    temperature: float = 10.0,
    assign: Assign = "softmax",
    overlap: Overlap = "average",
    pad: Pad = "edge",
    parity: bool = False,
    nonfinite: Nonfinite = "raise",
) -> tuple[Floats, Floats]:
    """One step of self-exemplars mining: ``(x_final, h)``, features for the next, and enlarged.

    ``u = M(x)``, ``h = u + PReLU(deconv(x - PReLU(conv(u))))``, with scale 4 the same again from h
    with kernels of 8; ``x_final = PReLU(conv3(PReLU(conv_down(h))))``. Weights
    ``multi_source_projection.*``, ``down_sample_1``, ``error_encode``, ``down_sample_2``,
    ``post_conv``; with scale 4 ``multi_source_projection_2.*``, ``error_encode_2``,
    ``down_sample_3`` and ``_4`` and no ``down_sample_2``. Options as for `cross_scale_block`.
    Source: [mei2020].

    Examples
    --------
    >>> final, h = nlattn.layers.sem_cell(x, weights, scale=2)
    """
    op = "sem_cell"
    asked = parts.CellOptions(scale, patch, temperature, assign, overlap, pad)
    arrays = {"x": (x, "H W C")}
    net, options = _start(op, arrays, weights, parts.of_cell, asked, parity, nonfinite)
    final, h, _ = _cell(net, net.fit["x"], options)
    return net.fit.unfold(final), net.fit.unfold(h)


def sem_cell_vjp(
    x: Floats,
    weights: StateDict,
    dfinal: Floats,
    dh: Floats,
    *,
    scale: int,
    patch: int = 3,
    temperature: float = 10.0,
    assign: Assign = "softmax",
    overlap: Overlap = "average",
    pad: Pad = "edge",
    parity: bool = False,
    nonfinite: Nonfinite = "raise",
) -> tuple[Floats, dict[str, Floats]]:
    """Gradients (dx, dweights) of ``sum(dfinal * x_final) + sum(dh * h)``.

    Examples
    --------
    >>> final, h = nlattn.layers.sem_cell(x, weights, scale=2)
    >>> dx, dweights = nlattn.layers.sem_cell_vjp(x, weights, final, h, scale=2)
    """
    op = "sem_cell_vjp"
    asked = parts.CellOptions(scale, patch, temperature, assign, overlap, pad)
    arrays = {"x": (x, "H W C"), "dfinal": (dfinal, "H W C"), "dh": (dh, "Ho Wo C")}
    net, options = _start(op, arrays, weights, parts.of_cell, asked, parity, nonfinite)
    final, h, vjp = _cell(net, net.fit["x"], options)
    return _gradients(net, [("dfinal", final), ("dh", h)], lambda d: vjp(*d))


def _cell(
    net: Net, x: Floats, options: parts.CellOptions
) -> tuple[Floats, Floats, Callable[[Floats, Floats], Floats]]:
    """Results of the recurrent cell, and the gradient of x for theirs."""
    small = parts.STRIDES[options.scale]
    u, u_vjp = parts.projection(net, "multi_source_projection.", x, options)
    h, h_vjp = _corrected(net, u, x, ("down_sample_1", "error_encode"), small)
    down, how = "down_sample_2", small
    if options.scale == 4:
        u2, u2_vjp = parts.projection(net, "multi_source_projection_2.", h, options)
        names = "down_sample_3", "error_encode_2"
        h2, h2_vjp = _corrected(net, u2, x, names, parts.WHOLE)
        down, how = "down_sample_4", parts.WHOLE
    result = h2 if options.scale == 4 else h
    low, low_vjp = parts.active(net, down, result, how)
    final, final_vjp = parts.active(net, "post_conv", low, parts.SAME)

    def vjp(dfinal: Floats, dh: Floats) -> Floats:
        dh = dh + low_vjp(final_vjp(dfinal))
        dx: Floats | int = 0
        if options.scale == 4:
            du2, dx = h2_vjp(dh)
            dh = u2_vjp(du2)
        du, more = h_vjp(dh)
        return u_vjp(du) + more + dx

    return final, result, vjp


def _corrected(
    net: Net, u: Floats, x: Floats, names: tuple[str, str], how: Stride
) -> tuple[Floats, Callable[[Floats], tuple[Floats, Floats]]]:
    """What u misses of x is enlarged and added; gradients of u and x."""
    low, low_vjp = parts.active(net, names[0], u, how)
    error, error_vjp = parts.active(net, names[1], x - low, how, turned=True)

    def vjp(dh: Floats) -> tuple[Floats, Floats]:
        missed = error_vjp(dh)
        return dh + low_vjp(-missed), missed

    return u + error, vjp


def _start(
    op: str,
    arrays: Mapping[str, tuple[object, str]],
    weights: object,
    shapes: Callable[[int], Mapping[str, str]] | None,
    asked: parts.CellOptions,
    parity: bool,
    nonfinite: Nonfinite,
) -> tuple[Net, parts.CellOptions]:
    """Check everything; `shapes` of the weights by scale, None of the block, which takes any."""
    options = parts.checked(op, SCALES if shapes else None, asked, parity)
    scale = options.scale
    net = Net(op, arrays, weights, shapes(scale) if shapes else parts.of_block(), nonfinite)
    H, W = net.fit.shape("H W")
    step = parts.STEP[scale] if shapes else scale
    if options.pad == "error" and (H % step or W % step):  # keys would not fill them
        of = f"scale={scale}" if step == scale else f"{step}, the steps of scale={scale}"
        text = f"has {H} x {W} pixels, expected multiples of {of}; pad='edge' allows any"
        _check.fail(op, "x", text)
    return net, options


def _gradients(
    net: Net, results: list[tuple[str, Floats]], vjp: Callable[[list[Floats]], Floats]
) -> tuple[Floats, dict[str, Floats]]:
    """Gradients of x and of the weights; cotangents must have the shapes of results."""
    fit = net.fit
    for name, y in results:
        if fit[name].shape != y.shape:
            text = f"has shape {fit[name].shape[1:]}, expected {y.shape[1:]} as the output"
            _check.fail(fit.op, name, text)
    dx = vjp([fit[name] for name, _ in results])
    return fit.unfold(dx), net.gradients
