"""The parts that cross-scale networks are made of: each gives its result and the way back.

A part is ``y, vjp = part(net, name, x)``; ``vjp(dy)`` returns the gradient of x and puts those of
the weights into ``net.found``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypedDict, get_args

import numpy as np

from nlattn import _check
from nlattn._modes import Assign, Crop, Nonfinite, Overlap, Pad
from nlattn._types import Floats
from nlattn.layers import _dual, _state, _weights
from nlattn.layers._conv import total
from nlattn.layers._operators import attention, cross_scale_attention, downscale, extend
from nlattn.layers._projection import Projection
from nlattn.layers._strided import Stride, gather, prelu, prelu_vjp, scatter, weight_gradient
from nlattn.layers._weights import Weights
from nlattn.ops.cross_scale import cross_scale_attention_vjp, downscale_vjp, extend_vjp
from nlattn.ops.dense import attention_vjp

Part = tuple[Floats, Callable[[Floats], Floats]]
STEP = {2: 2, 3: 3, 4: 2}
"""Factor of one projection: scale 4 takes two of 2."""
STRIDES = {2: Stride(6, 2, 2), 3: Stride(9, 3, 3), 4: Stride(6, 2, 2)}
WHOLE = Stride(8, 4, 2)
"""Between the result of scale 4 and the input."""
SAME = Stride(3, 1, 1)
FLOOR = 1e-4


class CellOptions(NamedTuple):
    """Of the cross-scale attention inside."""

    scale: int
    patch: int
    temperature: float
    assign: Assign
    overlap: Overlap
    pad: Pad
    crop: Crop = "exact"


class Net:
    """Checked input, weights and options of a call, and the gradients found so far."""

    def __init__(
        self,
        op: str,
        arrays: Mapping[str, tuple[object, str]],
        weights: object,
        shapes: Mapping[str, str],
        nonfinite: Nonfinite,
    ):
        given = _state.mapping(op, weights)
        floors = {name for name in shapes if name.endswith("escape_NaN")} - set(given)
        shapes = {name: spec for name, spec in shapes.items() if name not in floors}
        self.fit = _dual.fit(op, arrays, nonfinite=nonfinite)
        self.w: Weights = _weights.take(self.fit, given, shapes, nonfinite=nonfinite)
        self.found: dict[str, Floats] = {}

    @property
    def gradients(self) -> dict[str, Floats]:
        """Of every weight that was used."""
        return self.w.gradients(self.found)


def checked(
    op: str, scales: tuple[int, ...] | None, asked: CellOptions, parity: bool
) -> CellOptions:
    """Options, those of parity in place of what they replace; of `scales` there are weights."""
    scale = _check.integer(op, "scale", asked.scale, low=1)
    found = asked._replace(scale=scale)
    if scales is not None and scale not in scales:
        _check.fail(op, f"scale={scale}", f"is none of {scales}, which have weights")
    if _check.flag(op, "parity", parity):
        found = found._replace(overlap="divide", pad="error", crop="published")
        if scales is not None and asked.patch != 3:
            text = "with parity=True, where the published sizes fit for patch=3 alone"
            _check.fail(op, f"patch={asked.patch}", text)
    _check.choice(op, "pad", found.pad, get_args(Pad))
    return found


def of_block(prefix: str = "") -> dict[str, str]:
    """Shapes of the weights of cross-scale attention."""
    return {
        **_conv(f"{prefix}conv_match_1", "c C 1 1"),
        **_conv(f"{prefix}conv_match_2", "c C 1 1"),
        **_conv(f"{prefix}conv_assembly", "C C 1 1"),
        f"{prefix}escape_NaN": "1",
    }


def of_inscale(prefix: str = "") -> dict[str, str]:
    """Shapes of the weights of in-scale attention, whose names have one underscore less."""
    return {
        **_conv(f"{prefix}conv_match1", "b C 1 1"),
        **_conv(f"{prefix}conv_match2", "b C 1 1"),
        **_conv(f"{prefix}conv_assembly", "C C 1 1"),
    }


def of_projection(scale: int, prefix: str = "") -> dict[str, str]:
    """Shapes of the weights of a multi-source projection."""
    K = STRIDES[scale].kernel
    shapes = {**of_block(f"{prefix}up_attention."), **of_inscale(f"{prefix}down_attention.")}
    shapes |= _conv(f"{prefix}upsample", f"C C {K} {K}")
    for place in (0, 2):
        shapes[f"{prefix}encoder.body.{place}.weight"] = "C C 3 3"
        shapes[f"{prefix}encoder.body.{place}.bias"] = "C"
    return {**shapes, f"{prefix}encoder.body.1.weight": "1"}


def of_cell(scale: int) -> dict[str, str]:
    """Shapes of the weights of a recurrent cell."""
    K = STRIDES[scale].kernel
    shapes = of_projection(scale, "multi_source_projection.")
    small, large = ["down_sample_1", "error_encode"], []
    if scale == 4:
        shapes |= of_projection(scale, "multi_source_projection_2.")
        large = ["down_sample_3", "down_sample_4", "error_encode_2"]
    else:
        small.append("down_sample_2")
    for names, kernel in ((small, K), (large, WHOLE.kernel)):
        for name in names:
            shapes |= _conv(name, f"C C {kernel} {kernel}")
    return {**shapes, **_conv("post_conv", "C C 3 3")}


def _conv(name: str, shape: str) -> dict[str, str]:
    """A convolution and the slope of its PReLU."""
    bias = shape.split()[0]
    return {f"{name}.0.weight": shape, f"{name}.0.bias": bias, f"{name}.1.weight": "1"}


def linear(net: Net, name: str, x: Floats, how: Stride, *, turned: bool = False) -> Part:
    """Convolution and bias; `turned` for the transposed one."""
    if how.kernel == 1:
        one = Projection.named(name)
        return one.of(net.w, x), lambda dy: one.vjp(net.w, x, dy, net.found)
    weight, bias = net.w[f"{name}.weight"], net.w[f"{name}.bias"]

    def vjp(dy: Floats) -> Floats:
        pair = (dy, x) if turned else (x, dy)
        net.found |= {f"{name}.weight": weight_gradient(*pair, how), f"{name}.bias": total(dy)}
        return (
            gather(dy, weight, how)
            if turned
            else scatter(dy, weight, how)[:, : x.shape[1], : x.shape[2]]
        )

    return (scatter if turned else gather)(x, weight, how) + bias, vjp


def active(net: Net, name: str, x: Floats, how: Stride, *, turned: bool = False) -> Part:
    """Convolution, bias, PReLU."""
    z, back = linear(net, f"{name}.0", x, how, turned=turned)
    slope = net.w[f"{name}.1.weight"]

    def vjp(dy: Floats) -> Floats:
        dz, net.found[f"{name}.1.weight"] = prelu_vjp(z, slope, dy)
        return back(dz)

    return prelu(z, slope), vjp


POINT = Stride(1, 1, 0)


class _Attention(TypedDict):
    """Options of the attention inside."""

    scale: int
    patch: int
    temperature: float
    floor: float
    overlap: Overlap
    assign: Assign
    crop: Crop
    nonfinite: Nonfinite


def across(net: Net, prefix: str, x: Floats, options: CellOptions) -> Part:
    """Cross-scale attention of x to itself downscaled."""
    scale, pad = STEP.get(options.scale, options.scale) if prefix else options.scale, options.pad
    wide = extend(x, scale, pad)
    small = downscale(x, scale, pad=pad, nonfinite="propagate")
    q, q_vjp = active(net, f"{prefix}conv_match_1", x, POINT)
    k, k_vjp = active(net, f"{prefix}conv_match_2", small, POINT)
    v, v_vjp = active(net, f"{prefix}conv_assembly", wide, POINT)
    floor = f"{prefix}escape_NaN"
    arguments = _Attention(
        scale=scale,
        patch=options.patch,
        temperature=options.temperature,
        floor=float(net.w[floor][0]) if floor in net.w else FLOOR,
        overlap=options.overlap,
        assign=options.assign,
        crop=options.crop,
        nonfinite="propagate",
    )

    def vjp(dy: Floats) -> Floats:
        dq, dk, dv = cross_scale_attention_vjp(q, k, v, dy, **arguments)
        dsmall = downscale_vjp(x, k_vjp(dk), scale, pad=pad, nonfinite="propagate")
        dx: Floats = q_vjp(dq) + dsmall + extend_vjp(v_vjp(dv), x.shape[1:3], pad)
        return dx

    return cross_scale_attention(q, k, v, **arguments), vjp


def inside(net: Net, prefix: str, x: Floats) -> Part:
    """In-scale attention: the softmax over keys of plain dot products, without a residual."""
    parts = [active(net, f"{prefix}{name}", x, POINT)
             for name in ("conv_match1", "conv_match2", "conv_assembly")]  # fmt: skip
    sets = [y.reshape(len(y), -1, y.shape[3]) for y, _ in parts]
    y = attention(*sets, scale=1.0, nonfinite="propagate")

    def vjp(dy: Floats) -> Floats:
        flat = dy.reshape(sets[2].shape)
        q, k, v = sets
        gradients = attention_vjp(q, k, v, flat, scale=1.0, nonfinite="propagate")
        dx = np.zeros(x.shape, x.dtype)
        for (part, back), gradient in zip(parts, gradients, strict=True):
            dx += back(gradient.reshape(part.shape))
        return dx

    return y.reshape(parts[2][0].shape), vjp


def projection(net: Net, prefix: str, x: Floats, options: CellOptions) -> Part:
    """Both attentions, and an encoding of their difference."""
    how = STRIDES[options.scale]
    low, low_vjp = inside(net, f"{prefix}down_attention.", x)
    D, D_vjp = active(net, f"{prefix}upsample", low, how, turned=True)
    U, U_vjp = across(net, f"{prefix}up_attention.", x, options)
    z, z_vjp = linear(net, f"{prefix}encoder.body.0", U - D, SAME)
    slope = net.w[f"{prefix}encoder.body.1.weight"]
    encoded, encoded_vjp = linear(net, f"{prefix}encoder.body.2", prelu(z, slope), SAME)

    def vjp(dy: Floats) -> Floats:
        dz, dslope = prelu_vjp(z, slope, encoded_vjp(dy))
        net.found[f"{prefix}encoder.body.1.weight"] = dslope
        de = z_vjp(dz)
        return U_vjp(dy + de) + low_vjp(D_vjp(-de))

    return U + encoded, vjp
