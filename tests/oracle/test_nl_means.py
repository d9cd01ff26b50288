"""The oracle of non-local means: numbers by hand, invariants, the complex step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlattn.oracle.nl_means import nl_means, nl_means_vjp, patches, votes, window_support

MODES = [(a, s) for a in ("patch", "pixel") for s in ("max", "one", "zero")]


def picture(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


def test_numbers_by_hand() -> None:
    u = np.array([[[0.0], [1.0], [3.0]]])
    options: dict[str, Any] = {"sigma": 0.5, "h": 1.0, "patch_size": 1, "patch_distance": 1}
    a, b = np.exp(-0.5), np.exp(-3.5)  # excess of 1 and of 4 over 2 sigma^2
    got = nl_means(u, aggregate="pixel", **options).ravel()
    np.testing.assert_allclose(got, [1 / 2, (a + 3 * b) / (2 * a + b), (1 + 3) / 2])
    got = nl_means(u, aggregate="pixel", self_weight="one", **options).ravel()
    np.testing.assert_allclose(got[0], a / (1 + a))
    got = nl_means(u, aggregate="pixel", self_weight="zero", **options).ravel()
    np.testing.assert_allclose(got, [1, 3 * b / (a + b), 1])
    np.testing.assert_array_equal(
        nl_means(u, aggregate="patch", **options), nl_means(u, aggregate="pixel", **options)
    )


def test_patches_are_reflected_and_vote() -> None:
    u = np.arange(6.0).reshape(2, 3, 1)
    F = patches(u, 3)
    assert F[0].tolist() == [4, 3, 4, 1, 0, 1, 4, 3, 4]
    np.testing.assert_array_equal(votes(F, 2, 3, 3), u)
    assert window_support(1, 3, 1)[1].tolist() == [0, 1, 0, 1, 2, 1, 2]


@pytest.mark.parametrize(("aggregate", "self_weight"), MODES)
def test_what_a_mean_must_do(aggregate: str, self_weight: str) -> None:
    u = picture(0, 5, 6, 2)
    options: dict[str, Any] = {
        "sigma": 0.4, "h": 1.1, "patch_size": 3, "patch_distance": 2,
        "aggregate": aggregate, "self_weight": self_weight,
    }  # fmt: skip
    out = nl_means(u, **options)
    assert (out >= u.min((0, 1))).all()
    assert (out <= u.max((0, 1))).all()
    np.testing.assert_allclose(nl_means(u + 3, **options), out + 3)
    np.testing.assert_allclose(nl_means(u[::-1], **options), out[::-1])
    np.testing.assert_allclose(
        nl_means(u.swapaxes(0, 1), **options), out.swapaxes(0, 1), rtol=1e-12
    )
    flat = np.full((4, 3, 1), 7.0)
    np.testing.assert_allclose(nl_means(flat, **options), flat)
    options.update(sigma=0.0, h=0.0)
    np.testing.assert_allclose(nl_means(u, **options), u)


def test_a_full_support_is_a_window_that_reaches_everywhere() -> None:
    u = picture(1, 4, 3, 1)
    full = np.arange(13) * 12, np.tile(np.arange(12), 12), (12, 12)
    np.testing.assert_array_equal(
        nl_means(u, sigma=0.5, support=full), nl_means(u, sigma=0.5, patch_distance=9)
    )


@pytest.mark.parametrize(("aggregate", "self_weight"), MODES)
@pytest.mark.parametrize("patch_size", [1, 3])
def test_gradients_agree_with_the_complex_step(
    aggregate: str, self_weight: str, patch_size: int
) -> None:
    u, dout = picture(2, 4, 3, 2), picture(3, 4, 3, 2)
    options: dict[str, Any] = {
        "sigma": 0.5, "h": 0.9, "patch_size": patch_size, "patch_distance": 1,
        "aggregate": aggregate, "self_weight": self_weight,
    }  # fmt: skip
    gradient = nl_means_vjp(u, dout, **options)
    for at in np.ndindex(u.shape):
        stepped = u.astype(complex)
        stepped[at] += 1e-30j
        slope = (dout * nl_means(stepped, **options)).sum().imag / 1e-30
        np.testing.assert_allclose(gradient[at], slope, rtol=1e-12, atol=1e-14)


def test_alone_a_pixel_keeps_its_value_and_gradient() -> None:
    u, dout = picture(4, 2, 2, 1), picture(5, 2, 2, 1)
    none = np.zeros(5, int), np.zeros(0, int), (4, 4)
    for weight in ("max", "one", "zero"):
        options: dict[str, Any] = {"sigma": 0.0, "self_weight": weight, "support": none}
        np.testing.assert_allclose(nl_means(u, aggregate="pixel", **options), u)
        np.testing.assert_allclose(nl_means_vjp(u, dout, aggregate="pixel", **options), dout)
        np.testing.assert_allclose(nl_means(u, aggregate="patch", **options), u)


@pytest.mark.parametrize("dtype", [np.float32, np.longdouble, np.complex128])
def test_the_dtype_is_kept(dtype: Any) -> None:
    u = picture(6, 2, 3, 1).astype(dtype)
    for aggregate in ("patch", "pixel"):
        assert nl_means(u, sigma=0.5, aggregate=aggregate).dtype == dtype
        assert nl_means_vjp(u, u, sigma=0.5, aggregate=aggregate).dtype == dtype


def test_each_picture_has_its_own_support() -> None:
    u = picture(7, 2, 2, 2, 1)
    indptr = np.concatenate([[0], np.cumsum([1] * 4 + [4] * 4)])
    indices = np.concatenate([np.arange(4), np.tile(np.arange(4), 4)])
    out = nl_means(u, sigma=0.5, support=(indptr, indices, (2, 4, 4)))
    np.testing.assert_allclose(out[0], u[0])
    np.testing.assert_array_equal(out[1], nl_means(u[1], sigma=0.5))
