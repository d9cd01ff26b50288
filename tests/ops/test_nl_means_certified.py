"""Non-local means over all pixels, to a stated tolerance."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

import nlattn
from nlattn import images
from nlattn.engines import certified, certified_means
from nlattn.oracle import nl_means as oracle

ALL: dict[str, Any] = {"support": "certified"}


def picture(H: int, W: int, dtype: Any = np.float64, noise: float = 0.05) -> Any:
    rng = np.random.default_rng(0)
    u = rng.standard_normal((H, W, 2)).cumsum(0).cumsum(1)
    return (u / np.abs(u).max() + noise * rng.standard_normal(u.shape)).astype(dtype)


@pytest.mark.parametrize(
    ("aggregate", "self_weight"), [*product(("patch", "pixel"), ("max", "one", "zero"))]
)
def test_all_pixels_to_a_tolerance(aggregate: str, self_weight: str) -> None:
    how: dict[str, Any] = {"aggregate": aggregate, "self_weight": self_weight, "patch_size": 3}
    for dtype, tolerance, h in product((np.float32, np.float64), (0.1, 1e-6, 0.0), (0.02, 0.2)):
        u = picture(7, 6, dtype)
        u[:3, 3:] = 0.5  # equal patches, the pixel's own among them
        options = {"sigma": 0.03, "h": h, **how}
        got = nlattn.nl_means(u, tolerance=tolerance, **ALL, **options)
        want = oracle.nl_means(u.astype(np.float64), **ALL, **options)
        # rounding of a pixel that is a mean of 9, beside what its weights may misplace
        slack = (tolerance + 16 * np.finfo(dtype).eps) * np.ptp(u, (0, 1))
        assert (np.abs(got - want) <= slack + 16 * np.spacing(np.abs(want).astype(dtype))).all()


@pytest.mark.jit
def test_flat_parts_of_a_noisy_picture_are_not_all_looked_at() -> None:
    u = images.photograph()[:96:2, 160:256:2].astype(np.float64)
    u = u + 0.02 * np.random.default_rng(1).standard_normal(u.shape)
    looked = []
    attend = certified.attend

    def counted(*given: Any) -> Any:
        found = attend(*given)
        looked.append(found.seen.mean())
        assert (found.missed <= 5e-4).all()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certified_means.certified, "attend", counted)
        got = nlattn.nl_means(u, sigma=0.02, **ALL)
    assert looked[0] < 0.7 * u.shape[0] * u.shape[1]
    window = nlattn.nl_means(u, sigma=0.02, patch_distance=48)
    assert np.abs(got - window).max() <= 1e-3 * np.ptp(u)


def test_pixels_like_no_other_stay_as_they_are() -> None:
    u = np.arange(12.0).reshape(3, 4, 1) ** 2 * 100
    for own in ("max", "one", "zero"):
        got = nlattn.nl_means(u, sigma=0.1, patch_size=1, self_weight=own, **ALL)
        np.testing.assert_allclose(got, u, rtol=1e-13)
    one = np.full((1, 1, 1), 3.0)
    assert nlattn.nl_means(one, sigma=0.1, patch_size=1, **ALL) == 3


def test_maps_and_gradients_are_of_all_pixels() -> None:
    u = picture(4, 5)
    options = {"sigma": 0.1, "patch_size": 3}
    far = {"patch_distance": 5, **options}
    A, B = nlattn.nl_means_map(u, **ALL, **options), nlattn.nl_means_map(u, **far)
    np.testing.assert_array_equal(A.to_dense(), B.to_dense())
    for f in (nlattn.nl_means_vjp, nlattn.nl_means_jvp):
        g = np.ones_like(u)
        got, want = f(u, g, **ALL, **options), f(u, g, **far)
        np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-15)  # of other sums


def test_what_it_cannot_do_is_said() -> None:
    u = picture(4, 5)
    with pytest.raises(ValueError, match=r"nl_means: support='all', expected 'certified'"):
        nlattn.nl_means(u, sigma=0.1, support="all")
    with pytest.raises(ValueError, match=r"tolerance=1.0 is a share of the weights, expected 0 to"):
        nlattn.nl_means(u, sigma=0.1, tolerance=1, **ALL)
    with pytest.raises(
        ValueError, match=r"h=0.0 has no bounds of weights with support='certified'"
    ):
        nlattn.nl_means(u, sigma=0, **ALL)
    with pytest.raises(MemoryError, match=r"nl_means: needs .* \(points and sums of 20 pixels\)"):
        nlattn.nl_means(u, sigma=0.1, max_bytes=100, **ALL)
    with pytest.raises(
        MemoryError, match=r"nl_means_vjp: needs .* \(the weights of all 20 x 20 pixels"
    ):
        nlattn.nl_means_vjp(u, u, sigma=0.1, patch_size=1, max_bytes=12500, **ALL)
