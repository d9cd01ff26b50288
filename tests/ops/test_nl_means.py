"""`nl_means` against its oracle, what it does to pictures, and every way to call it wrong."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nlattn
from nlattn import images
from nlattn.oracle import nl_means as oracle
from tests.helpers import assert_as_exact_as_numpy, joined

MODES = [(a, s) for a in ("patch", "pixel") for s in ("max", "one", "zero")]
SMALL: dict[str, Any] = {"sigma": 0.6, "h": 1.0, "patch_size": 3, "patch_distance": 2}


def picture(seed: int, *shape: int, dtype: Any = np.float64) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def some(seed: int, n: int, lead: tuple[int, ...] = ()) -> Any:
    rng = np.random.default_rng(seed)
    return nlattn.support_from_index(np.where(rng.random((*lead, n, n)) < 0.3, np.arange(n), -1), n)


def results(module: Any, u: Any, dout: Any, options: dict[str, Any]) -> list[Any]:
    return [module.nl_means(u, **options), module.nl_means_vjp(u, dout, **options)]


@pytest.mark.parametrize(("dtype", "wide"), [(np.float32, np.float64), (np.float64, np.longdouble)])
@pytest.mark.parametrize("given_support", [False, True])
@pytest.mark.parametrize(("aggregate", "self_weight"), MODES)
def test_it_is_as_exact_as_numpy(
    aggregate: str, self_weight: str, given_support: bool, dtype: Any, wide: Any
) -> None:
    """Error at most twice that of the plain transcription in the same dtype, plus one spacing."""
    options = {**SMALL, "aggregate": aggregate, "self_weight": self_weight}
    runs = []
    for seed in range(2):
        u, dout = picture(seed, 5, 6, 2, dtype=dtype), picture(seed + 9, 5, 6, 2, dtype=dtype)
        if given_support:
            options["support"] = some(seed, 30)
        got, plain = results(nlattn, u, dout, options), results(oracle, u, dout, options)
        exact = results(oracle, u.astype(wide), dout.astype(wide), options)
        runs.append((got, plain, exact))
        assert [x.dtype for x in got] == [dtype, dtype]
    assert_as_exact_as_numpy(*joined(runs))


@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3)),
    patch=st.sampled_from([1, 3, 5]),
    distance=st.integers(0, 6),
    mode=st.sampled_from(MODES),
)
def test_any_picture_patch_and_window(
    seed: int, shape: Any, patch: int, distance: int, mode: Any
) -> None:
    """Windows larger than the picture and patches larger than it among them."""
    u, dout = picture(seed, *shape), picture(seed + 1, *shape)
    options = dict(zip(("aggregate", "self_weight"), mode, strict=True))
    options |= {"sigma": 0.5, "h": 0.8, "patch_size": patch, "patch_distance": distance}
    for a, b in zip(*(results(m, u, dout, options) for m in (nlattn, oracle)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("aggregate", ["patch", "pixel"])
@pytest.mark.parametrize(
    "options",
    [
        {"search": "window", "topk": 4},
        {"search": "window", "topk": 4, "select": "statistical"},
        {"search": "patchmatch", "topk": 3},
        pytest.param(
            {"search": "patchmatch", "topk": 3, "select": "statistical"}, marks=pytest.mark.jit
        ),
        {"search": "union", "topk": 3},
        pytest.param({"search": "union", "patch_distance": 1}, marks=pytest.mark.jit),
    ],
    ids=lambda o: "-".join(map(str, o.values())),
)
def test_a_search_is_its_support(options: dict[str, Any], aggregate: str) -> None:
    u, dout = picture(0, 2, 6, 7, 2), picture(1, 2, 6, 7, 2)
    common = {**SMALL, **options}
    choice = {k: x for k, x in common.items() if k != "h"}
    support = nlattn.nl_means_support(u, **choice)
    assert support.shape == (2, 42, 42)
    mean = {"h": 1.0, "aggregate": aggregate}
    out = nlattn.nl_means(u, **common, aggregate=aggregate)
    want = oracle.nl_means(u, sigma=0.6, patch_size=3, support=support, **mean)
    np.testing.assert_allclose(out, want, rtol=1e-11)
    again = nlattn.nl_means(u, sigma=0.6, patch_size=3, support=support, **mean)
    np.testing.assert_allclose(again, out, rtol=1e-12)
    gradient = nlattn.nl_means_vjp(u, dout, **common, aggregate=aggregate)
    want = oracle.nl_means_vjp(u, dout, sigma=0.6, patch_size=3, support=support, **mean)
    np.testing.assert_allclose(gradient, want, rtol=1e-9, atol=1e-11)


def test_the_few_of_a_window_are_those_that_were_asked_for() -> None:
    u = picture(2, 6, 5, 1)
    F = oracle.patches(u, 3)
    d2 = ((F[:, None] - F) ** 2).mean(-1)
    indptr, indices, _ = oracle.window_support(6, 5, 2)
    for select, aim in (("nearest", 0.0), ("statistical", 2 * 0.6**2)):
        support = nlattn.nl_means_support(
            u, sigma=0.6, patch_size=3, patch_distance=2, topk=3, select=select
        )
        for i in range(30):
            window = indices[indptr[i] : indptr[i + 1]]
            others = window[window != i]
            want = others[np.argsort(abs(d2[i, others] - aim))[:3]]
            got = support.indices[support.indptr[i] : support.indptr[i + 1]]
            assert set(got) == {i, *want}


@pytest.mark.jit
def test_patchmatch_finds_the_nearest_patches() -> None:
    u = picture(3, 8, 8, 1)
    F = oracle.patches(u, 3)
    d2 = ((F[:, None] - F) ** 2).mean(-1) + 1e9 * np.eye(64)
    support = nlattn.nl_means_support(u, patch_size=3, search="patchmatch", topk=4, iterations=40)
    hits = [
        np.isin(np.argsort(row)[:4], support.indices[support.indptr[i] : support.indptr[i + 1]])
        for i, row in enumerate(d2)
    ]
    assert np.mean(hits) > 0.95


@pytest.mark.parametrize("self_weight", ["max", "one", "zero"])
def test_a_map_is_the_mean_of_pixels(self_weight: str) -> None:
    u = picture(4, 5, 6, 2)
    for options in ({}, {"search": "union", "topk": 2}, {"support": some(4, 30)}):
        options = {**SMALL, **options, "self_weight": self_weight}
        A = nlattn.nl_means_map(u, **options)
        want = nlattn.nl_means(u, aggregate="pixel", **options).reshape(30, 2)
        np.testing.assert_allclose(A @ u.reshape(30, 2), want, rtol=1e-12)
        np.testing.assert_allclose(A @ np.ones(30), 1)
        assert (A.query_grid, A.key_grid) == ((5, 6), (5, 6))
        assert A.work.scores == len(A.support.indices)
    with pytest.raises(ValueError, match=r"nl_means_map: image has leading axes \(2,\), expected"):
        nlattn.nl_means_map(np.stack([u, u]), **SMALL)


@pytest.mark.parametrize(
    "search",
    ["window", *(pytest.param(name, marks=pytest.mark.jit) for name in ("patchmatch", "union"))],
)
def test_invariants(search: str) -> None:
    u = picture(5, 9, 8, 2)
    options: dict[str, Any] = {**SMALL, "search": search}
    out = nlattn.nl_means(u, **options)
    assert (out >= u.min((0, 1)) - 1e-12).all()
    assert (out <= u.max((0, 1)) + 1e-12).all()
    np.testing.assert_allclose(nlattn.nl_means(u + 8, **options), out + 8, rtol=1e-9)
    np.testing.assert_allclose(nlattn.nl_means(0 * u + 5, **options), 0 * u + 5, rtol=1e-14)
    options.update(sigma=0.0, h=0.0)
    np.testing.assert_allclose(nlattn.nl_means(u, **options), u, rtol=1e-14)
    np.testing.assert_allclose(nlattn.nl_means_vjp(u, u, **options), u, rtol=1e-14)


def test_flips_and_turns_commute() -> None:
    u = picture(6, 7, 9, 1)
    out = nlattn.nl_means(u, **SMALL, topk=5)
    for turn in (lambda x: x[::-1], lambda x: x[:, ::-1], lambda x: x.swapaxes(0, 1)):
        np.testing.assert_allclose(nlattn.nl_means(turn(u), **SMALL, topk=5), turn(out), rtol=1e-12)


@pytest.mark.jit
def test_near_matches_are_chosen_by_their_noise() -> None:
    """The variance that is left of pure noise: far above 1/17 for the nearest of a window."""
    noise = picture(7, 24, 24, 1)
    options: dict[str, Any] = {
        "sigma": 1.0, "h": 50.0, "patch_size": 3, "patch_distance": 8, "topk": 16,
        "aggregate": "pixel",
    }  # fmt: skip
    nearest, statistical = (
        nlattn.nl_means(noise, select=select, **options).var()
        for select in ("nearest", "statistical")
    )
    assert nearest > 2 * statistical
    assert statistical < 0.15


@pytest.mark.jit
def test_it_denoises_the_photograph() -> None:
    clean = images.photograph()[100:228, 160:288]
    noisy = clean + (25 / 255) * picture(8, *clean.shape, dtype=np.float32)
    error = [((x - clean) ** 2).mean() for x in (noisy, nlattn.nl_means(noisy, sigma=25 / 255))]
    assert error[1] < error[0] / 6


def test_levels_and_where_the_channels_are() -> None:
    u = (picture(9, 6, 7, 3) * 40 + 120).clip(0, 255).astype(np.uint8)
    out = nlattn.nl_means(u, sigma=20, data_range=255, patch_size=3)
    assert out.dtype == np.uint8
    floats = nlattn.nl_means(u.astype(np.float32), sigma=20, patch_size=3)
    np.testing.assert_array_equal(out, np.rint(floats).astype(np.uint8))
    deep = u.astype(np.uint16)
    options = {"sigma": 20, "data_range": 65535}
    want, got = (
        nlattn.nl_means(x, **options) for x in (deep, deep.astype(deep.dtype.newbyteorder()))
    )
    np.testing.assert_array_equal(got, want)
    assert got.dtype == want.dtype
    fractions = nlattn.nl_means(u, sigma=20 / 255, data_range=1, patch_size=3)
    assert abs(fractions.astype(int) - out).max() <= 1
    first = nlattn.nl_means(floats.transpose(2, 0, 1), sigma=20, channel_axis=0)
    np.testing.assert_array_equal(
        first.transpose(1, 2, 0), nlattn.nl_means(floats, sigma=20, channel_axis=-1)
    )
    grey = floats[:, :, 0]
    want = nlattn.nl_means(grey[:, :, None], sigma=20)[:, :, 0]
    for options in ({}, {"channel_axis": None}):
        np.testing.assert_array_equal(nlattn.nl_means(grey, sigma=20, **options), want)
    gradient = nlattn.nl_means_vjp(grey, grey, sigma=20)
    assert gradient.shape == grey.shape


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"sigma": -1.0}, ValueError, "sigma=-1.0 is negative, expected the noise's deviation"),
        ({"h": -0.5}, ValueError, "h=-0.5 is negative, expected a bandwidth"),
        ({"patch_size": 4}, ValueError, "patch_size=4 is even, expected an odd width so that"),
        ({"patch_distance": -1}, ValueError, "patch_distance=-1, expected at least 0"),
        ({"search": "all"}, ValueError, "search='all', expected 'window', 'patchmatch' or 'union'"),
        ({"select": "best"}, ValueError, "select='best', expected 'nearest' or 'statistical'"),
        ({"topk": 64}, ValueError, "topk=64, expected at most 63"),
        ({"aggregate": "mean"}, ValueError, "aggregate='mean', expected 'patch' or 'pixel'"),
        ({"self_weight": "no"}, ValueError, "self_weight='no', expected 'max', 'one' or 'zero'"),
        (
            {"select": "statistical"},
            ValueError,
            "select='statistical' chooses topk keys, and topk is not given; topk=16 chooses 16",
        ),
        (
            {"fast_mode": False},
            ValueError,
            "fast_mode=False weighs the pixels of a patch by a Gaussian, which is not offered",
        ),
        (
            {"data_range": 255},
            ValueError,
            "data_range=255 is for pictures of uint8 or uint16; floats are measured as sigma is",
        ),
        ({"channel_axis": 3}, ValueError, "channel_axis=3 is outside the 3 axes of image"),
        (
            {"channel_axis": None},
            ValueError,
            "image has shape (4, 5, 2), expected (H, W) with channel_axis=None; "
            "give a stack a channel axis, image[..., None]",
        ),
        (
            {"support": some(0, 3)},
            ValueError,
            "support has shape (3, 3), expected (..., n, n) with n=20 pixels",
        ),
        (
            {"support": some(0, 20, (2,))},
            ValueError,
            "support has leading axes (2,), expected axes that broadcast to ()",
        ),
        ({"search": "patchmatch", "max_bytes": 100}, MemoryError, "needs 13.6 kB (16 keys of 20"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], error: Any, text: str) -> None:
    with pytest.raises(error, match=f"^nl_means: {re.escape(text)}"):
        nlattn.nl_means(picture(0, 4, 5, 2), **{"sigma": 1.0, **options})


def test_bytes_need_a_range() -> None:
    text = (
        "nl_means: image is uint8 and its range is not stated; data_range=255 says that sigma and "
        "h are in levels, data_range=1 that they are fractions of the range"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        nlattn.nl_means(np.zeros((4, 4, 3), np.uint8), sigma=20)


@pytest.mark.parametrize("kind", ["map", "vjp"])
def test_what_would_not_fit_is_refused(kind: str) -> None:
    u = np.zeros((8, 8, 1))
    arguments = (u, u) if kind == "vjp" else (u,)
    with pytest.raises(MemoryError, match=f"^nl_means_{kind}: needs .* above max_bytes=10 kB; "):
        getattr(nlattn, f"nl_means_{kind}")(*arguments, sigma=1.0, max_bytes=1e4)


def test_channels_that_stand_first_are_noticed() -> None:
    text = (
        r"image has shape \(3, 9, 20\), expected channels last; channel_axis=0 says that they are"
    )
    with pytest.raises(ValueError, match=text):
        nlattn.nl_means(np.ones((3, 9, 20)), sigma=0.1)
    assert nlattn.nl_means(np.ones((3, 9, 20)), sigma=0.1, channel_axis=0).shape == (3, 9, 20)
