"""Random weights of every layer, and derivatives to compare gradients with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nlattn import layers


def convs(rng: Any, shapes: dict[str, tuple[int, int]], axes: int = 2) -> dict[str, Any]:
    """Weight and bias of 1x1 convolutions, ``{name: (out, in)}``."""
    weights = {}
    for name, (out, inner) in shapes.items():
        weights[f"{name}.weight"] = rng.standard_normal((out, inner, *[1] * axes))
        weights[f"{name}.bias"] = rng.standard_normal(out)
    return weights


def nonlocal_weights(
    pairwise: str, axes: int = 2, subsample: bool = False, norm: bool = False, C: int = 6
) -> dict[str, Any]:
    """Of the port."""
    rng, c, inner = np.random.default_rng(0), C // 2, ".0" if subsample else ""
    shapes = {f"g{inner}": (c, C), "W.0" if norm else "W": (C, c)}
    if pairwise != "gaussian":
        shapes |= {"theta": (c, C), f"phi{inner}": (c, C)}
    weights = convs(rng, shapes, axes)
    if pairwise == "concatenation":
        weights["concat_project.0.weight"] = rng.standard_normal((1, 2 * c, *[1] * axes))
    if norm:
        weights |= {f"W.1.{name}": rng.standard_normal(C) for name in ("weight", "bias")}
        weights["W.1.running_mean"] = rng.standard_normal(C)
        weights["W.1.running_var"] = rng.random(C) + 0.5
        weights["W.1.num_batches_tracked"] = np.array(3)
    return weights


def caffe2_weights(norm: str, C: int = 6) -> dict[str, Any]:
    """Of the original; `norm` is "bn", "affine" or empty."""
    rng, c = np.random.default_rng(0), C // 2
    weights = {}
    for name, out, inner in (("theta", c, C), ("phi", c, C), ("g", c, C), ("out", C, c)):
        weights[f"nl_{name}_w"] = rng.standard_normal((out, inner, 1, 1, 1))
        weights[f"nl_{name}_b"] = rng.standard_normal(out)
    if norm:
        weights |= {f"nl_bn_{name}": rng.standard_normal(C) for name in "sb"}
    if norm == "bn":
        weights |= {"nl_bn_rm": rng.standard_normal(C), "nl_bn_riv": rng.random(C) + 0.5}
    return weights


def port_weights(C: int = 8) -> dict[str, Any]:
    """Of SAGAN's port and of refined self-attention."""
    shapes = {"query_conv": (C // 8, C), "key_conv": (C // 8, C), "value_conv": (C, C)}
    rng = np.random.default_rng(0)
    return {"gamma": rng.standard_normal(1), **convs(rng, shapes)}


def original_weights(C: int = 8) -> dict[str, Any]:
    """Of SAGAN's original form."""
    rng = np.random.default_rng(0)
    shapes = {"theta": (C, C // 8), "phi": (C, C // 8), "g": (C, C // 2), "attn": (C // 2, C)}
    weights = {f"sn_conv_{n}.w": rng.standard_normal((1, 1, *s)) for n, s in shapes.items()}
    return {**weights, "sigma_ratio": np.array(0.7)}


def efficient_weights(C: int = 6, d_k: int = 8, d_v: int = 12) -> dict[str, Any]:
    """Of Efficient Attention."""
    shapes = {"queries": (d_k, C), "keys": (d_k, C), "values": (d_v, C), "reprojection": (C, d_v)}
    return convs(np.random.default_rng(0), shapes)


def enlca_weights(C: int = 8, d: int = 2, r: int = 6) -> dict[str, Any]:
    """Of ENLCA."""
    rng = np.random.default_rng(0)
    names = {"conv_match1.0": (d, C), "conv_match2.0": (d, C), "conv_assembly.0": (C, C)}
    return {**convs(rng, names), "attn_fn.projection_matrix": rng.standard_normal((r, d))}


def assert_slopes(
    block: str, x: Any, weights: dict[str, Any], dout: Any, still: Any = (), **options: Any
) -> None:
    """Gradients along a random direction of each array agree with central differences."""
    dx, dweights = getattr(layers, f"{block}_vjp")(x, weights, dout, **options)
    floating = {name for name, w in weights.items() if np.asarray(w).dtype.kind == "f"}
    assert dweights.keys() == floating - set(still)
    rng, h = np.random.default_rng(1), 1e-5

    def value(x: Any, w: dict[str, Any]) -> Any:
        y = getattr(layers, block)(x, w, **options)
        return (dout * (y[0] if isinstance(y, tuple) else y)).sum()

    def check(gradient: Any, direction: Any, f: Callable[[float], Any], what: str) -> None:
        want = (f(h) - f(-h)) / (2 * h)
        got = (gradient * direction).sum()
        scale = np.sqrt((gradient**2).sum() * (direction**2).sum())
        assert abs(got - want) <= 1e-7 * max(1, scale), (what, got, want)

    direction = rng.standard_normal(x.shape)
    check(dx, direction, lambda t: value(x + t * direction, weights), "x")
    for name, gradient in dweights.items():
        assert gradient.shape == np.shape(weights[name])
        assert gradient.dtype == weights[name].dtype
        d = rng.standard_normal(gradient.shape)
        check(
            gradient,
            d,
            lambda t, n=name, d=d: value(x, {**weights, n: weights[n] + t * d}),  # type: ignore[misc]
            name,
        )
