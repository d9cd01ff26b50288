"""The permutohedral attention module: the published run, two dimensions, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlattn import layers
from nlattn.oracle.permutohedral import permutohedral_attention
from tests import golden
from tests.golden import FORWARD


def test_the_published_module() -> None:
    data = golden.load("pam_module_split2_3x4x5")
    x, w = data["in.x"], data.weights
    np.testing.assert_allclose(layers.pam_block(x, w, splits=2), data["out.y"], **FORWARD)
    golden.assert_gradients(layers.pam_block_vjp(x, w, data["cot.y"], splits=2), data)
    twice = layers.pam_block(np.concatenate([x, x[:, ::-1]]), w, splits=2)
    np.testing.assert_array_equal(twice[:1], layers.pam_block(x, w, splits=2))


def flat(C: int = 3, F: int = 4, E: int = 6, seed: int = 0) -> tuple[Any, dict[str, Any]]:
    rng = np.random.default_rng(seed)
    shapes = {
        "scaling_spatial": (1, 2, 1, 1),
        "conv_feat.weight": (F, C + 2, 1, 1),
        "conv_feat.bias": (F,),
        "conv_desc.weight": (E, C, 1, 1),
        "conv_desc.bias": (E,),
    }
    weights = {name: 0.5 * rng.standard_normal(shape) for name, shape in shapes.items()}
    return rng.standard_normal((2, 5, 4, C)), weights


@pytest.mark.parametrize("normalize", [False, True])
def test_an_image_step_by_step(normalize: bool) -> None:
    x, w = flat()
    y = layers.pam_block(x, w, splits=2, normalize=normalize)
    assert y.shape == (2, 5, 4, 6)
    rows, columns = np.mgrid[-2:3, -2:2]
    places = np.stack([rows, columns], -1) * w["scaling_spatial"].ravel()
    for image, got in zip(x, y, strict=True):
        placed = np.concatenate([image, places], -1)
        z = placed @ w["conv_feat.weight"][..., 0, 0].T + w["conv_feat.bias"]
        f = np.where(z > 0, z, 0.01 * z).reshape(20, 4)
        v = (image @ w["conv_desc.weight"][..., 0, 0].T + w["conv_desc.bias"]).reshape(20, 6)
        for t in range(2):
            own = f[:, 2 * t : 2 * t + 2]
            want = permutohedral_attention(own, own, v[:, 3 * t : 3 * t + 3], normalize=normalize)
            np.testing.assert_allclose(
                got.reshape(20, 6)[:, 3 * t : 3 * t + 3], want, rtol=1e-12, atol=1e-13
            )


@pytest.mark.parametrize("normalize", [False, True])
def test_gradients_are_central_differences(normalize: bool) -> None:
    x, w = flat(seed=3)
    rng = np.random.default_rng(1)
    dout = rng.standard_normal((2, 5, 4, 6))
    options: dict[str, Any] = {"splits": 2, "normalize": normalize}
    dx, dw = layers.pam_block_vjp(x, w, dout, **options)
    assert dw.keys() == w.keys()

    def loss(x: Any, w: Any) -> Any:
        return (dout * layers.pam_block(x, w, **options)).sum()

    for name, gradient in (("x", dx), *dw.items()):
        base = x if name == "x" else w[name]
        step = 1e-7 * rng.standard_normal(base.shape)
        ends = [
            loss(x + s * step, w) if name == "x" else loss(x, {**w, name: base + s * step})
            for s in (1, -1)
        ]
        want = (ends[0] - ends[1]) / 2
        assert (gradient * step).sum() == pytest.approx(want, rel=2e-5, abs=1e-13), name


def test_single_precision_stays_near() -> None:
    x, w = flat()
    single = {name: y.astype(np.float32) for name, y in w.items()}
    y = layers.pam_block(x.astype(np.float32), single)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, layers.pam_block(x, w), rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_named() -> None:
    x, w = flat()
    with pytest.raises(
        ValueError, match=r"scaling_spatial has shape \(2,\), expected \(1, 2, 1, 1"
    ):
        layers.pam_block(x, {**w, "scaling_spatial": np.ones(2)})
    with pytest.raises(
        ValueError, match=r"conv_feat.weight has 4 channels, expected a multiple of"
    ):
        layers.pam_block(x, w, splits=3)
    with pytest.raises(ValueError, match=r"conv_feat.weight has shape .*expected \(F, 5, 1, 1\)"):
        layers.pam_block(x, {**w, "conv_feat.weight": np.ones((4, 3, 1, 1))})
    with pytest.raises(ValueError, match=r"weights lack 'conv_desc.bias'"):
        layers.pam_block(x, {name: y for name, y in w.items() if name != "conv_desc.bias"})
    three = np.ones((1, 3, 1, 1, 1))
    with pytest.raises(ValueError, match=r"x has shape .*expected \(T, H, W, C\)"):
        layers.pam_block(x[0], {**w, "scaling_spatial": three})
