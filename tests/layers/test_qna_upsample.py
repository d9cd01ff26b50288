"""The upsampling layer of QnA: its phases are layers, its gradient the complex step's."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from nlattn import layers

OPTIONS: dict[str, Any] = {"heads": 2, "window": 3}


def case(gate: str = "normal", position: str = "relative_pos") -> tuple[Any, dict[str, Any], Any]:
    rng = np.random.default_rng(0)
    shapes = {
        "query": (4, 2, 6),
        "Wk": (5, 6),
        "to_v.kernel": (5, 6),
        "to_v.bias": (6,),
        "to_out.kernel": (6, 3),
        "to_out.bias": (3,),
    }
    shapes |= {
        "normal": {"attn_scale_weights": (4, 1, 1, 9, 4)},
        "ones": {"attn_scale_pos": (4, 1, 1, 9, 2, 2)},
    }.get(gate, {})
    shapes |= {
        "relative_pos": {"rpe_bias": (4, 9, 4)},
        "contextual_pos": {"rpe_bias.kernel": (4, 2, 3, 9, 2), "rpe_bias.bias": (4, 9, 2)},
    }.get(position, {})
    weights = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    return rng.standard_normal((2, 3, 4, 5)), weights, rng.standard_normal((2, 6, 8, 3))


KINDS = [("normal", "relative_pos"), ("ones", "contextual_pos"), ("posneg", "none")]


@pytest.mark.parametrize(("gate", "position"), KINDS)
def test_each_phase_is_a_layer(gate: str, position: str) -> None:
    x, weights, _ = case(gate, position)
    options = {**OPTIONS, "gate": gate, "position": position}
    y = layers.qna_upsample_block(x, weights, scale=2, **options)
    assert y.shape == (2, 6, 8, 3)
    own = ("query", "rpe", "attn")
    for f in range(4):
        phase = {name: w[f] if name.startswith(own) else w for name, w in weights.items()}
        want = layers.qna_block(x, phase, **options)
        np.testing.assert_array_equal(y[:, f // 2 :: 2, f % 2 :: 2], want)


@pytest.mark.parametrize(("gate", "position"), KINDS)
def test_gradients_are_slopes(gate: str, position: str) -> None:
    x, weights, dout = case(gate, position)
    options = {**OPTIONS, "gate": gate, "position": position, "scale": 2}
    dx, dweights = layers.qna_upsample_block_vjp(x, weights, dout, **options)
    assert set(dweights) == set(weights)
    rng = np.random.default_rng(1)
    for name, gradient in {"x": dx, **dweights}.items():
        way = rng.standard_normal(gradient.shape)
        sides = []
        for step in (1e-5, -1e-5):
            moved = {**weights, name: weights[name] + step * way} if name != "x" else weights
            at = x + step * way if name == "x" else x
            sides.append((dout * layers.qna_upsample_block(at, moved, **options)).sum())
        slope = (sides[0] - sides[1]) / 2e-5
        # a central difference errs by step^2 and by rounding over step: about 1e-9 of the terms
        assert (gradient * way).sum() == pytest.approx(slope, rel=1e-6, abs=1e-6)


def test_bad_input_is_refused_in_words() -> None:
    x, weights, dout = case()
    text = "weights['query'] has shape (4, 2, 6), expected (9, ...) from scale=3"
    with pytest.raises(ValueError, match=f"^qna_upsample_block: {re.escape(text)}$"):
        layers.qna_upsample_block(x, weights, scale=3, **OPTIONS)
    with pytest.raises(ValueError, match="window=2 is even"):
        layers.qna_upsample_block(x, weights, heads=2, window=2, scale=2)
    text = "dout has shape (2, 5, 8, 3), expected (..., 6, 8, Cout) from scale=2"
    with pytest.raises(ValueError, match=f"^qna_upsample_block_vjp: {re.escape(text)}$"):
        layers.qna_upsample_block_vjp(x, weights, dout[:, 1:], scale=2, **OPTIONS)
