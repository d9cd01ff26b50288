"""Windowed self-attention with relative positions against a literal one, and the complex step."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from nlattn.layers import window_attention_block, window_attention_block_vjp
from nlattn.layers.window_attention import TABLE
from nlattn.oracle import dense


def literal(x: Any, w: Any, heads: int, window: Any, mask: Any = None) -> Any:
    """Head by head; columns are ``[q | k | v]`` of the first head, then of the next."""
    (a, b), d = window, w["to_out.kernel"].shape[0] // heads
    qkv, outputs = x @ w["to_qkv.kernel"] + w.get("to_qkv.bias", 0), []
    for g in range(heads):
        q, k, v = (qkv[..., (3 * g + i) * d : (3 * g + i + 1) * d] for i in range(3))
        bias = np.zeros((a * b, a * b), x.dtype)
        for i, j in np.ndindex(a * b, a * b):
            dy, dx = i // b - j // b, i % b - j % b
            bias[i, j] = w[TABLE][(dy + a - 1) * (2 * b - 1) + dx + b - 1, g]
        outputs.append(dense.attention(q, k, v, bias=bias, mask=mask))
    return np.concatenate(outputs, -1) @ w["to_out.kernel"] + w.get("to_out.bias", 0)


def layer(biases: bool, lead: tuple[int, ...] = (2,)) -> Any:
    rng = np.random.default_rng(0)
    shapes: dict[str, Any] = {"to_qkv.kernel": (5, 18), TABLE: (35, 2), "to_out.kernel": (6, 4)}
    if biases:
        shapes |= {"to_qkv.bias": (18,), "to_out.bias": (4,)}
    weights = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    return rng.standard_normal((*lead, 12, 5)), weights, {"heads": 2, "window": (3, 4)}


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("masked", [None, (12,), (12, 12), (2, 12, 12)])
def test_it_is_the_literal_layer(biases: bool, masked: Any) -> None:
    x, weights, options = layer(biases)
    if masked:
        options["mask"] = np.random.default_rng(1).random(masked) < 0.7
    y = window_attention_block(x, weights, **options)
    np.testing.assert_allclose(y, literal(x, weights, **options), atol=1e-12)
    dout = np.random.default_rng(2).standard_normal(y.shape)
    dx, dweights = window_attention_block_vjp(x, weights, dout, **options)
    assert set(dweights) == set(weights)
    for name, gradient in {"x": dx, **dweights}.items():
        rng = np.random.default_rng(3)
        for index in {tuple(rng.integers(gradient.shape)) for _ in range(6)}:
            moved = {key: np.array(a, complex) for key, a in {"x": x, **weights}.items()}
            moved[name][index] += 1e-30j
            want = (dout * literal(moved.pop("x"), moved, **options)).sum().imag / 1e-30
            np.testing.assert_allclose(gradient[index], want, rtol=1e-10, atol=1e-11)


def test_a_zero_table_is_plain_attention() -> None:
    x, weights, options = layer(False, ())
    weights[TABLE] = np.zeros_like(weights[TABLE])
    q, k, v = np.split((x @ weights["to_qkv.kernel"]).reshape(12, 2, 9).swapaxes(0, 1), 3, -1)
    want = dense.attention(q, k, v).swapaxes(0, 1).reshape(12, 6) @ weights["to_out.kernel"]
    np.testing.assert_allclose(window_attention_block(x, weights, **options), want, atol=1e-12)


def test_bad_layers_are_refused_in_words() -> None:
    x, weights, options = layer(False)
    for changed, text in (
        (
            {"window": 3},
            "window_attention_block: x has shape (2, 12, 5), expected (..., 9, C) from",
        ),
        (
            {"window": (2, 6)},
            f"window_attention_block: {TABLE} has shape (35, 2), expected (33, 2)",
        ),
        ({"heads": 4}, f"window_attention_block: {TABLE} has shape (35, 2), expected (35, 4)"),
        (
            {"mask": np.ones((3, 12, 12), bool)},
            "window_attention_block: mask has shape (3, 12, 12)",
        ),
    ):
        with pytest.raises(ValueError, match="^" + re.escape(text)):
            window_attention_block(x, weights, **{**options, **changed})
    weights[TABLE] = np.ones((35, 4))
    with pytest.raises(ValueError, match="heads=4 does not divide the 6 features of to_out"):
        window_attention_block(x, weights, **{**options, "heads": 4})
