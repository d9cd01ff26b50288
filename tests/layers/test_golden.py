"""Layers reproduce the published modules: outputs, maps, and every gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlattn import layers
from tests import golden
from tests.golden import FORWARD

BLOCKS: dict[str, tuple[str, dict[str, Any]]] = {
    "nl_gaussian_plain_5x7": ("nonlocal_block", {"pairwise": "gaussian"}),
    "nl_dot_product_plain_5x7": ("nonlocal_block", {"pairwise": "dot_product"}),
    "nl_concatenation_plain_5x7": ("nonlocal_block", {"pairwise": "concatenation"}),
    "nl_embedded_gaussian_subsample_bn_eval_7x6": (
        "nonlocal_block",
        {"pairwise": "embedded_gaussian", "subsample": True},
    ),
    "nlc2_softmax_affine_2frames": (
        "nonlocal_block",
        {"pairwise": "embedded_gaussian", "convention": "caffe2", "subsample": True},
    ),
    "sagan_sa_5x7": ("sagan_block", {}),
    "sagan_tf_6x8": ("sagan_block", {"form": "original"}),
    "refined_sa_5x7": ("refined_block", {}),
    "ea_softmax_1head": ("efficient_attention_block", {}),
    "ea_softmax_2heads": ("efficient_attention_block", {"heads": 2}),
    "ea_scaling_1head": ("efficient_attention_block", {"normalization": "scaling"}),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_layer_reproduces_the_published_module(name: str) -> None:
    block, options = BLOCKS[name]
    data = golden.load(name)
    y = getattr(layers, block)(data["in.x"], data.weights, **options)
    np.testing.assert_allclose(y, data["out.y"], **FORWARD)
    pull = getattr(layers, f"{block}_vjp")
    golden.assert_gradients(pull(data["in.x"], data.weights, data["cot.y"], **options), data)


@pytest.mark.parametrize(
    ("name", "training"), [("enlca_eval_7x9", False), ("enlca_train_9x8", True)]
)
def test_enlca_reproduces_the_published_module_and_its_loss(name: str, training: bool) -> None:
    data = golden.load(name)
    x, w, dout = data["in.x"], data.weights, data["cot.y"]
    y = layers.enlca_block(x, w, training=training)
    if training:
        y, loss = y
        assert loss.shape == ()
        np.testing.assert_allclose(loss, data["out.loss"], **FORWARD)
        of_loss = layers.enlca_block_vjp(x, w, np.zeros_like(x), dloss=1.0, training=True)
        golden.assert_gradients(of_loss, data, "gradloss")
        both = layers.enlca_block_vjp(x, w, dout, dloss=-2.0, training=True)[0]
        want = data["grad.in.x"] - 2 * data["gradloss.in.x"]
        np.testing.assert_allclose(both, want, **golden.GRADIENT)
    np.testing.assert_allclose(y, data["out.y"], **FORWARD)
    golden.assert_gradients(layers.enlca_block_vjp(x, w, dout, training=training), data)


@pytest.mark.parametrize(
    "name", [n for n in BLOCKS if {"out.nl_map", "out.attention"} & golden.load(n).arrays.keys()]
)
def test_the_map_of_a_layer_is_that_of_the_published_module(name: str) -> None:
    block, options = BLOCKS[name]
    data = golden.load(name)
    maps = data.arrays.get("out.nl_map", data.arrays.get("out.attention"))
    for x, want in zip(data["in.x"], maps, strict=True):
        A = getattr(layers, f"{block}_map")(x, data.weights, **options)
        assert A.query_grid == x.shape[:2]
        assert np.prod(A.key_grid) == want.shape[1]
        np.testing.assert_allclose(A.to_dense(), want, **FORWARD)


@pytest.mark.parametrize("name", BLOCKS)
def test_single_precision_stays_near(name: str) -> None:
    block, options = BLOCKS[name]
    data = golden.load(name)
    weights = {
        key: w if w.dtype.kind == "i" else w.astype(np.float32) for key, w in data.weights.items()
    }
    y = getattr(layers, block)(data["in.x"].astype(np.float32), weights, **options)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, data["out.y"], rtol=1e-4, atol=1e-5)
