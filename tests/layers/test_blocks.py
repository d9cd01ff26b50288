"""SAGAN, refined, Efficient Attention and ENLCA blocks: invariants, differences, bad calls."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import nlattn
from nlattn import layers
from tests.layers.blocks import (
    assert_slopes,
    efficient_weights,
    enlca_weights,
    original_weights,
    port_weights,
)

RNG = np.random.default_rng(0)
IMAGE = RNG.standard_normal((4, 6, 8))


@pytest.mark.parametrize(
    ("block", "weights", "gain", "options"),
    [
        ("sagan_block", port_weights(), "gamma", {}),
        ("sagan_block", original_weights(), "sigma_ratio", {"form": "original"}),
        ("refined_block", port_weights(), "gamma", {}),
    ],
)
def test_a_gain_of_zero_is_the_identity_and_still_has_its_gradient(
    block: str, weights: dict[str, Any], gain: str, options: dict[str, Any]
) -> None:
    at_zero = {**weights, gain: np.zeros_like(weights[gain])}
    np.testing.assert_array_equal(getattr(layers, block)(IMAGE, at_zero, **options), IMAGE)
    at_one = {**weights, gain: np.ones_like(weights[gain])}
    slope = (IMAGE * (getattr(layers, block)(IMAGE, at_one, **options) - IMAGE)).sum()
    _, dweights = getattr(layers, f"{block}_vjp")(IMAGE, at_zero, IMAGE, **options)
    np.testing.assert_allclose(dweights[gain], slope, rtol=1e-12)
    for name in dweights.keys() - {gain}:
        np.testing.assert_array_equal(dweights[name], 0)


@pytest.mark.parametrize(
    ("block", "weights", "options"),
    [
        ("sagan_block", port_weights(), {}),
        ("sagan_block", original_weights(), {"form": "original"}),
        ("refined_block", port_weights(), {}),
        ("efficient_attention_block", efficient_weights(8), {"heads": 4}),
        ("efficient_attention_block", efficient_weights(8, 7, 4), {"heads": 2, "parity": True}),
        (
            "efficient_attention_block",
            efficient_weights(8),
            {"heads": 2, "normalization": "scaling"},
        ),
        ("enlca_block", enlca_weights(), {"res_scale": 1.0}),
    ],
)
def test_gradients_agree_with_differences(
    block: str, weights: dict[str, Any], options: dict[str, Any]
) -> None:
    x, dout = np.random.default_rng(2).standard_normal((2, 2, 4, 4, 8))
    assert_slopes(block, x, weights, dout, ("attn_fn.projection_matrix",), **options)


def test_the_key_bias_means_nothing_to_a_softmax() -> None:
    _, dw = layers.sagan_block_vjp(IMAGE, port_weights(), IMAGE)
    np.testing.assert_allclose(dw["key_conv.bias"], 0, atol=1e-11)
    _, dw = layers.efficient_attention_block_vjp(IMAGE, efficient_weights(8), IMAGE)
    np.testing.assert_allclose(dw["keys.bias"], 0, atol=1e-11)


def test_four_heads_on_a_strip_are_four_operators() -> None:
    w, x = efficient_weights(), RNG.standard_normal((1, 9, 6))
    conv = {
        n: x[0] @ w[f"{n}.weight"][..., 0, 0].T + w[f"{n}.bias"]
        for n in ("queries", "keys", "values")
    }
    out = np.concatenate(
        [
            nlattn.efficient_attention(
                conv["queries"][:, 2 * i : 2 * i + 2],
                conv["keys"][:, 2 * i : 2 * i + 2],
                conv["values"][:, 3 * i : 3 * i + 3],
            )
            for i in range(4)
        ],
        axis=1,
    )
    want = x[0] + out @ w["reprojection.weight"][..., 0, 0].T + w["reprojection.bias"]
    np.testing.assert_allclose(layers.efficient_attention_block(x, w, heads=4)[0], want)
    one = layers.efficient_attention_block(x, w)
    assert abs(one[0] - want).max() > 1e-3


def test_channels_that_heads_leave_over_are_unused_on_request() -> None:
    w, x = efficient_weights(d_k=8, d_v=6), RNG.standard_normal((3, 5, 6))
    y = layers.efficient_attention_block(x, w, heads=3, parity=True)
    fewer = {k: v[:6] if k.startswith(("queries", "keys")) else v for k, v in w.items()}
    np.testing.assert_allclose(y, layers.efficient_attention_block(x, fewer, heads=3))
    _, dw = layers.efficient_attention_block_vjp(x, w, x, heads=3, parity=True)
    for name in ("queries.weight", "queries.bias", "keys.weight", "keys.bias"):
        np.testing.assert_array_equal(dw[name][6:], 0)
        assert abs(dw[name][:6]).max() > 0 or name == "keys.bias"


def test_large_logits_do_not_overflow() -> None:
    x = (1e4 * RNG.standard_normal((3, 5, 8))).astype(np.float32)
    for block, weights in (
        ("sagan_block", port_weights()),
        ("efficient_attention_block", efficient_weights(8)),
        ("enlca_block", enlca_weights()),
    ):
        w = {k: v.astype(np.float32) for k, v in weights.items()}
        assert np.isfinite(getattr(layers, block)(x, w)).all()
        dx, _ = getattr(layers, f"{block}_vjp")(x, w, x)
        assert np.isfinite(dx).all()


@pytest.mark.parametrize(("height", "width"), [(7, 8), (6, 12)])
def test_the_loss_is_the_mean_over_images(height: int, width: int) -> None:
    """56 positions have six negatives, 72 all fifteen."""
    w, x = enlca_weights(), RNG.standard_normal((2, height, width, 8))
    y, loss = layers.enlca_block(x, w, training=True)
    np.testing.assert_array_equal(y, layers.enlca_block(x, w))
    each = [layers.enlca_block(one, w, training=True)[1] for one in x]
    np.testing.assert_allclose(loss, np.mean(each))
    assert loss.dtype == np.float64


def test_maps_are_of_one_image() -> None:
    for block, weights, options in (
        ("sagan_block_map", port_weights(), {}),
        ("sagan_block_map", original_weights(), {"form": "original"}),
        ("refined_block_map", port_weights(), {}),
    ):
        A = getattr(layers, block)(IMAGE, weights, **options)
        assert A.query_grid == (4, 6)
        assert A.key_grid == ((2, 3) if options else (4, 6))
        with pytest.raises(ValueError, match=r"has leading axes \(1,\), expected one image"):
            getattr(layers, block)(IMAGE[None], weights, **options)


ORIGINAL = {"form": "original"}
REFUSED: list[tuple[str, Any, Any, dict[str, Any], str]] = [
    ("sagan_block", IMAGE[..., :7], port_weights(), {}, "x has 7 channels, expected at least 8:"),
    ("refined_block", IMAGE[..., :7], port_weights(), {}, "x has 7 channels, expected at least 8:"),
    ("sagan_block", IMAGE, port_weights(), {"form": "tf"}, "form='tf', expected 'port' or 'orig"),
    (
        "sagan_block",
        IMAGE[:3],
        original_weights(),
        ORIGINAL,
        "x is 3 x 6, expected even sizes, since form='original' pools 2 x 2",
    ),
    (
        "sagan_block",
        IMAGE,
        port_weights(),
        ORIGINAL,
        "weights lack 'sn_conv_theta.w', 'sn_conv_phi.w', 'sn_conv_g.w', 'sn_conv_attn.w', "
        "'sigma_ratio'; weights hold 'gamma', 'query_conv.weight', 'query_conv.bias', "
        "'key_conv.weight', 'key_conv.bias', 'value_conv.weight', 'value_conv.bias', expected",
    ),
    (
        "refined_block",
        IMAGE,
        port_weights(16),
        {},
        "query_conv.weight has shape (2, 16, 1, 1), expected (1, C, 1, 1) with C=8 from x; "
        "query_conv.bias has shape (2,), expected (1,); ",
    ),
    (
        "efficient_attention_block",
        IMAGE,
        efficient_weights(8),
        {"heads": 3},
        "heads=3 does not divide the d_k=8 channels of queries and keys; parity=True leaves the "
        "last ones unused",
    ),
    (
        "efficient_attention_block",
        IMAGE,
        efficient_weights(8),
        {"heads": 5, "parity": True},
        "heads=5 does not divide the d_v=12 channels of values",
    ),
    (
        "efficient_attention_block",
        IMAGE,
        efficient_weights(8),
        {"heads": 12, "parity": True},
        "heads=12 does not divide the d_k=8 channels of queries and keys",
    ),
    (
        "efficient_attention_block",
        IMAGE,
        efficient_weights(8),
        {"normalization": "sum"},
        "normalization='sum', expected 'softmax' or 'scaling'",
    ),
    (
        "enlca_block",
        RNG.standard_normal((5, 7, 8)),
        enlca_weights(),
        {"training": True},
        "35 positions, expected at least 51 for the negatives at rank 50; training=False",
    ),
    (
        "enlca_block",
        RNG.standard_normal((0, 8, 8, 8)),
        enlca_weights(),
        {"training": True},
        "x has leading axes (0,), expected images for a mean loss",
    ),
    ("enlca_block", IMAGE, enlca_weights(), {"res_scale": np.inf}, "res_scale=inf is not finite"),
]


@pytest.mark.parametrize(
    ("block", "x", "weights", "options", "text"), REFUSED, ids=lambda x: str(x)[:20]
)
def test_bad_calls_are_refused_in_words(
    block: str, x: Any, weights: Any, options: Any, text: str
) -> None:
    with pytest.raises(ValueError, match=f"^{block}: {re.escape(text)}"):
        getattr(layers, block)(x, weights, **options)


def test_a_cotangent_of_the_loss_needs_the_loss() -> None:
    x, w = RNG.standard_normal((8, 8, 8)), enlca_weights()
    with pytest.raises(ValueError, match=r"dloss=1\.0 has no meaning without training=True"):
        layers.enlca_block_vjp(x, w, x, dloss=1.0)
