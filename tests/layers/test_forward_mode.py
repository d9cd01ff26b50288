"""Forward mode of layers: gradients transposed, literal layers by the complex step, slopes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlattn import layers
from nlattn.layers import _cross_scale_parts as parts
from nlattn.layers._dual import Dual
from tests.layers import test_cross_scale, test_pam, test_qna, test_qna_upsample
from tests.layers import test_window_attention as windows
from tests.layers.blocks import (
    caffe2_weights,
    efficient_weights,
    enlca_weights,
    nonlocal_weights,
    original_weights,
    port_weights,
)

FIXED = ("running_mean", "running_var", "num_batches_tracked", "nl_bn_rm", "nl_bn_riv",
    "escape_NaN", "projection_matrix")  # fmt: skip
RNG = np.random.default_rng(0)
SMALL, LARGE = RNG.standard_normal((2, 4, 6, 8)), RNG.standard_normal((2, 8, 7, 8))
SIX, VOLUME = RNG.standard_normal((2, 5, 4, 6)), RNG.standard_normal((1, 2, 4, 3, 6))


def upsampled(gate: str, position: str) -> tuple[Any, ...]:
    x, weights, _ = test_qna_upsample.case(gate, position)
    options = {"heads": 2, "scale": 2, "window": 3, "gate": gate, "position": position}
    return "qna_upsample_block", x, weights, options


def crossed(name: str, shapes: dict[str, str], **options: Any) -> tuple[Any, ...]:
    return name, RNG.standard_normal((1, 3, 4, 2)), test_cross_scale.drawn(shapes), options


def windowed() -> tuple[Any, ...]:
    x, weights, options = windows.layer(True)
    return "window_attention_block", x, weights, options


CASES: list[tuple[Any, ...]] = [
    ("nonlocal_block", SIX, nonlocal_weights("embedded_gaussian", norm=True),
     {"pairwise": "embedded_gaussian"}),
    ("nonlocal_block", SIX, nonlocal_weights("gaussian", subsample=True, norm=True),
     {"pairwise": "gaussian", "subsample": True, "training": True}),
    ("nonlocal_block", SIX, nonlocal_weights("concatenation"), {"pairwise": "concatenation"}),
    ("nonlocal_block", VOLUME, caffe2_weights("bn"),
     {"pairwise": "dot_product", "convention": "caffe2", "subsample": True}),
    ("nonlocal_block", VOLUME, caffe2_weights("affine"),
     {"pairwise": "embedded_gaussian", "convention": "caffe2"}),
    ("sagan_block", SMALL, port_weights(), {}),
    ("sagan_block", SMALL, original_weights(), {"form": "original"}),
    ("refined_block", SMALL, port_weights(), {}),
    ("efficient_attention_block", SMALL, efficient_weights(8, 7, 4), {"heads": 2, "parity": True}),
    ("efficient_attention_block", SMALL, efficient_weights(8),
     {"heads": 4, "normalization": "scaling"}),
    ("enlca_block", LARGE, enlca_weights(), {"res_scale": 0.7}),
    ("enlca_block", LARGE, enlca_weights(), {"training": True}),
    ("pam_block", *test_pam.flat(), {"splits": 2, "normalize": True}),
    upsampled("normal", "relative_pos"), upsampled("ones", "contextual_pos"),
    windowed(),
    crossed("cross_scale_block", parts.of_block(), scale=2, pad="reflect"),
    crossed("cross_scale_block", parts.of_block(), scale=3, patch=1, overlap="mass"),
    crossed("inscale_block", parts.of_inscale()),
    crossed("multi_source_projection", parts.of_projection(2), scale=2),
    crossed("sem_cell", parts.of_cell(4), scale=4),
]  # fmt: skip
NAMED = pytest.mark.parametrize(
    ("name", "x", "weights", "options"), CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)]
)


def directions(x: Any, weights: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    rng = np.random.default_rng(1)
    along = {n: rng.standard_normal(np.shape(w)) for n, w in weights.items()}
    along = {n: w for n, w in along.items() if not n.endswith(FIXED)}
    return rng.standard_normal(x.shape), along


def listed(result: Any) -> list[Any]:
    """Results that are arrays, without running statistics."""
    some = result if isinstance(result, tuple) else (result,)
    return [np.asarray(y) for y in some if not isinstance(y, dict)]


def adjoint(name: str, x: Any, weights: Any, cotangents: list[Any], options: Any) -> Any:
    """Gradients of all results."""
    first, *rest = cotangents
    if name == "enlca_block" and rest:
        return layers.enlca_block_vjp(x, weights, first, dloss=float(rest[0]), **options)
    return getattr(layers, f"{name}_vjp")(x, weights, first, *rest, **options)


@NAMED
def test_it_is_the_transpose_of_the_gradient(name: str, x: Any, weights: Any, options: Any) -> None:
    dx, along = directions(x, weights)
    changes = listed(layers.block_jvp(getattr(layers, name), x, weights, dx, along, **options))
    rng = np.random.default_rng(2)
    cotangents = [rng.standard_normal(y.shape) for y in changes]
    gx, gw = adjoint(name, x, weights, cotangents, options)
    assert set(gw) == set(along)
    pairs = [(gx, dx), *((gw[n], along[n]) for n in gw)]
    right, size = (sum(f(g * way).sum() for g, way in pairs) for f in (np.asarray, abs))
    left = sum((y * c).sum() for y, c in zip(changes, cotangents, strict=True))
    assert abs(left - right) <= 1e-11 * size


@NAMED
def test_it_is_a_difference(name: str, x: Any, weights: Any, options: Any) -> None:
    """Central ones, whose error is of the step's square."""
    dx, along = directions(x, weights)
    block, h = getattr(layers, name), 1e-6
    changes = listed(layers.block_jvp(block, x, weights, dx, along, **options))

    def at(t: float) -> list[Any]:
        moved = {n: w + t * along[n] if n in along else w for n, w in weights.items()}
        return listed(block(x + t * dx, moved, **options))

    for change, above, below in zip(changes, at(h), at(-h), strict=True):
        scale = max(1, abs(change).max(initial=0))
        np.testing.assert_allclose(change, (above - below) / (2 * h), rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("gate", ["normal", "posneg"])
@pytest.mark.parametrize("position", ["relative_pos", "absolute_pos", "contextual_pos"])
def test_the_literal_layer_of_qna(gate: str, position: str) -> None:
    """By the complex step, kinds of gates and positions in turn."""
    options = {"heads": 2, "window": 3, "stride": 2, "gate": gate, "position": position}
    x, weights, _ = test_qna.layer(options)
    dx, along = directions(x, weights)
    moved = {n: w + 1e-30j * along[n] for n, w in weights.items()}
    want = test_qna.literal(x + 1e-30j * dx, moved, **options).imag / 1e-30
    got = layers.block_jvp(layers.qna_block, x, weights, dx, along, **options)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-11)


def test_the_literal_layer_of_windows() -> None:
    x, weights, options = windows.layer(True)
    options["mask"] = np.random.default_rng(1).random((2, 12, 12)) < 0.7
    dx, along = directions(x, weights)
    moved = {n: w + 1e-30j * along[n] for n, w in weights.items()}
    want = windows.literal(x + 1e-30j * dx, moved, **options).imag / 1e-30
    got = layers.block_jvp(layers.window_attention_block, x, weights, dx, along, **options)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-11)


def test_a_norm_that_gradients_hold_is_held() -> None:
    options = {"heads": 2, "window": 3, "detach_query_norm": True}
    x, weights, _ = test_qna.layer({"heads": 2, "window": 3})
    dx, along = directions(x, weights)
    change = layers.block_jvp(layers.qna_block, x, weights, dx, along, **options)
    gx, gw = layers.qna_block_vjp(x, weights, change, **options)
    right = (gx * dx).sum() + sum((gw[n] * along[n]).sum() for n in gw)
    np.testing.assert_allclose((change * change).sum(), right, rtol=1e-11)


def test_every_layer_with_a_gradient_is_here() -> None:
    with_gradient = {n.removesuffix("_vjp") for n in vars(layers) if n.endswith("_vjp")}
    assert with_gradient == {case[0] for case in CASES} | {"qna_block"}


def test_what_does_not_move_has_no_change() -> None:
    weights = port_weights()
    none = layers.block_jvp(layers.sagan_block, SMALL, weights, None)
    np.testing.assert_array_equal(none, 0 * SMALL)
    assert none.dtype == SMALL.dtype
    gain = {"gamma": np.ones(1)}
    change = layers.block_jvp(layers.sagan_block, SMALL, weights, None, gain)
    y = layers.sagan_block(SMALL, {**weights, **gain}) - SMALL
    np.testing.assert_allclose(change, y, rtol=1e-12, atol=1e-13)
    options = {"pairwise": "gaussian", "training": True}
    block = nonlocal_weights("gaussian", norm=True)
    _, buffers = layers.block_jvp(layers.nonlocal_block, SIX, block, SIX, **options)
    assert set(buffers) == {"W.1.running_mean", "W.1.running_var"}


def test_bad_changes_are_refused_in_words() -> None:
    x, w = SMALL, port_weights()

    def call(block: Any = layers.sagan_block, dx: Any = x, dweights: Any = None) -> Any:
        return layers.block_jvp(block, x, w, dx, dweights)

    with pytest.raises(TypeError, match=r"^block_jvp: block is <function sum.*, expected a layer"):
        call(np.sum)
    with pytest.raises(ValueError, match=r"^block_jvp: dx has shape \(4, 6, 8\), expected \(2, 4"):
        call(dx=x[0])
    with pytest.raises(TypeError, match=r"^block_jvp: arrays must share one dtype, got x: float64"):
        call(dx=x.astype(np.float32))
    with pytest.raises(ValueError, match=r"^block_jvp: dweights\['g'\] is of no weight, expected"):
        call(dweights={"g": x})
    with pytest.raises(ValueError, match=r"^block_jvp: dweights\['gamma'\] has shape \(2,\)"):
        call(dweights={"gamma": np.ones(2)})
    with pytest.raises(ValueError, match=r"^sagan_block: dx\[0, 0, 0, 0\] is nan, expected finite"):
        call(dx=np.full_like(x, np.nan))
    weights = enlca_weights()
    fixed = {"attn_fn.projection_matrix": weights["attn_fn.projection_matrix"]}
    with pytest.raises(ValueError, match=r"projection_matrix'\] has no place: that weight is held"):
        layers.block_jvp(layers.enlca_block, LARGE, weights, LARGE, fixed)


def test_what_has_no_rule_is_an_error() -> None:
    """Nothing that moves is held fixed in silence."""
    moving = Dual(np.ones(3), np.ones(3))
    for function in (np.asarray, np.tanh, np.median, np.ascontiguousarray):
        with pytest.raises(TypeError):
            function(moving)
