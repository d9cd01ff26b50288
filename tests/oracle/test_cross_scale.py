"""The oracle of cross-scale attention: numbers by hand, published arrays, the complex step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlattn.oracle import cross_scale as oracle
from tests import published_runs

OPTIONS: list[dict[str, Any]] = [
    {},
    {"overlap": "mass"},
    {"overlap": "divide", "divisor": 5.0},
    {"patch": 1},
    {"patch": 5, "overlap": "mass"},
    {"scale": 1},
    {"scale": 3, "temperature": 1.0},
    {"crop": "published", "overlap": "divide"},
    {"crop": "published", "patch": 5},
    {"floor": 2.5},
    {"assign": "argmax"},
]


def arrays(seed: int, scale: int = 2, **_: Any) -> list[Any]:
    rng = np.random.default_rng(seed)
    shapes = (4, 3, 2), (2, 3, 2), (2 * scale, 3 * scale, 2)
    return [rng.standard_normal(shape) for shape in shapes]


@pytest.mark.parametrize("name", ["csnl_s2_6x8", "csnl_s3_6x9"])
def test_it_is_the_published_module(name: str) -> None:
    published_runs.cross_scale(oracle, name)


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_one_pixel_patches_are_plain_attention(scale: int) -> None:
    q, k, v = arrays(0, scale)
    flat_q, flat_k = q.reshape(12, 2), k.reshape(6, 2)
    S = 10 * flat_q @ (flat_k / np.linalg.norm(flat_k, axis=1, keepdims=True)).T
    P = np.exp(S) / np.exp(S).sum(1, keepdims=True)
    cells = v.reshape(2, scale, 3, scale, 2).swapaxes(1, 2).reshape(6, -1)
    want = (P @ cells).reshape(4, 3, scale, scale, 2).swapaxes(1, 2).reshape(4 * scale, -1, 2)
    for overlap in ("average", "mass"):
        out = oracle.cross_scale_attention(q, k, v, scale=scale, patch=1, overlap=overlap)
        np.testing.assert_allclose(out, want, rtol=1e-12)


def test_what_overlaps_do_to_a_constant() -> None:
    q, k, _ = arrays(1)
    v = np.full((4, 6, 1), 3.0)
    mass = oracle.cross_scale_attention(q, k, v, scale=2, overlap="mass")
    np.testing.assert_allclose(mass, 3)
    average = oracle.cross_scale_attention(q, k, v, scale=2)
    assert average.max() <= 3 + 1e-12
    assert average.min() < 2
    divided = oracle.cross_scale_attention(q, k, v, scale=2, overlap="divide", divisor=6.0)
    np.testing.assert_allclose(divided[0, 0] * 6, average[0, 0] * 4)
    np.testing.assert_allclose(divided[3, 3] * 6, average[3, 3] * 9)


def test_keys_have_no_length_and_heat_chooses_one() -> None:
    q, k, v = arrays(2)
    out = oracle.cross_scale_attention(q, k, v, scale=2)
    np.testing.assert_allclose(oracle.cross_scale_attention(q, 7 * k, v, scale=2), out)
    np.testing.assert_allclose(
        oracle.cross_scale_attention(3 * q, k, v, scale=2, temperature=10 / 3), out
    )
    hot = oracle.cross_scale_attention(q, k, v, scale=2, temperature=1e5)
    np.testing.assert_allclose(
        oracle.cross_scale_attention(q, k, v, scale=2, assign="argmax"), hot, rtol=1e-6
    )
    flat = oracle.cross_scale_attention(0 * q, k, v, scale=2, patch=1, assign="argmax")
    np.testing.assert_array_equal(flat, np.tile(v[:2, :2], (4, 3, 1)))  # ties: the first


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_agree_with_the_complex_step(options: dict[str, Any]) -> None:
    options = {"scale": 2, **options}
    given = arrays(3, **options)
    out = oracle.cross_scale_attention(*given, **options)
    dout = np.random.default_rng(4).standard_normal(out.shape)
    gradients = oracle.cross_scale_attention_vjp(*given, dout, **options)
    for which, gradient in enumerate(gradients):
        for at in np.ndindex(gradient.shape):
            stepped = [x.astype(complex) for x in given]
            stepped[which][at] += 1e-30j
            slope = (dout * oracle.cross_scale_attention(*stepped, **options)).sum().imag / 1e-30
            np.testing.assert_allclose(gradient[at], slope, rtol=1e-10, atol=1e-12)


def test_zero_keys_have_finite_gradients() -> None:
    q, k, v = arrays(5)
    k[:] = 0
    dout = np.ones((8, 6, 2))
    for gradient in oracle.cross_scale_attention_vjp(q, k, v, dout, scale=2):
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("pad", ["edge", "reflect", "zero"])
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_downscaling(scale: int, pad: str) -> None:
    rng = np.random.default_rng(6)
    x = rng.standard_normal((2, 5, 7, 2))
    out = oracle.downscale(x, scale, pad=pad)
    assert out.shape == (2, -(-5 // scale), -(-7 // scale), 2)
    first = {
        1: x[:, 0, 0],
        2: x[:, :2, :2].mean((1, 2)),
        3: x[:, 1, 1],
        4: x[:, 1:3, 1:3].mean((1, 2)),
    }
    np.testing.assert_allclose(out[:, 0, 0], first[scale])
    dout = rng.standard_normal(out.shape)
    back = oracle.downscale_vjp(x, dout, scale, pad=pad)
    y = rng.standard_normal(x.shape)
    np.testing.assert_allclose((back * y).sum(), (dout * oracle.downscale(y, scale, pad=pad)).sum())


@pytest.mark.parametrize("dtype", [np.float32, np.longdouble, np.complex128])
def test_the_dtype_is_kept(dtype: Any) -> None:
    given = [x.astype(dtype) for x in arrays(7)]
    for overlap in ("average", "mass", "divide"):
        out = oracle.cross_scale_attention(*given, scale=2, overlap=overlap)
        gradients = oracle.cross_scale_attention_vjp(*given, out, scale=2, overlap=overlap)
        assert {x.dtype for x in (out, *gradients)} == {np.dtype(dtype)}


def test_gradients_of_shared_keys_are_sums_over_pictures() -> None:
    rng = np.random.default_rng(8)
    q, k, v = (rng.standard_normal(s) for s in ((2, 2, 4, 3, 3), (3, 3, 3), (6, 6, 2)))
    dout = rng.standard_normal((2, 2, 8, 6, 2))
    shared = oracle.cross_scale_attention_vjp(q, k, v, dout, scale=2)
    whole = (np.tile(x, (2, 2, 1, 1, 1)) for x in (k, v))
    each = oracle.cross_scale_attention_vjp(q, *whole, dout, scale=2)
    for x, y in zip(shared, each, strict=True):
        np.testing.assert_allclose(x, y if x.ndim == y.ndim else y.sum((0, 1)), rtol=1e-12)
