"""`cross_scale_attention` against its oracle, its map, its limits, and wrong calls."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nlattn
from nlattn.oracle import cross_scale as oracle
from tests import published_runs
from tests.helpers import assert_as_exact_as_numpy, joined

OPTIONS: list[dict[str, Any]] = [
    {"scale": 2},
    {"scale": 2, "overlap": "mass"},
    {"scale": 3, "overlap": "divide", "divisor": 5.0},
    {"scale": 2, "patch": 1, "temperature": 1.0},
    {"scale": 1, "patch": 5, "overlap": "mass"},
    {"scale": 4, "patch": 7},
    {"scale": 2, "crop": "published", "overlap": "divide"},
    {"scale": 2, "crop": "published", "patch": 5, "overlap": "mass"},
    {"scale": 2, "crop": "published", "patch": 1},
    {"scale": 2, "floor": 4.0},
    {"scale": 2, "assign": "argmax"},
]


def arrays(seed: int, scale: int, dtype: Any = np.float64, grids: Any = (5, 4, 3, 4)) -> list[Any]:
    rng = np.random.default_rng(seed)
    H, W, h, w = grids
    shapes = (H, W, 3), (h, w, 3), (scale * h, scale * w, 2)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def results(module: Any, given_: Any, dout: Any, options: dict[str, Any]) -> list[Any]:
    out = module.cross_scale_attention(*given_, **options)
    return [out, *module.cross_scale_attention_vjp(*given_, dout, **options)]


@pytest.mark.parametrize(("dtype", "wide"), [(np.float32, np.float64), (np.float64, np.longdouble)])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_is_as_exact_as_numpy(options: dict[str, Any], dtype: Any, wide: Any) -> None:
    """Error at most twice that of the plain transcription in the same dtype, plus one spacing."""
    runs = []
    for seed in range(3):
        inputs = arrays(seed, options["scale"], dtype)
        shape = oracle.cross_scale_attention(*inputs, **options).shape
        dout = np.random.default_rng(seed + 9).standard_normal(shape).astype(dtype)
        got, plain = results(nlattn, inputs, dout, options), results(oracle, inputs, dout, options)
        exact = results(oracle, [x.astype(wide) for x in inputs], dout.astype(wide), options)
        assert [(x.dtype, x.shape) for x in got] == [(dtype, x.shape) for x in exact]
        runs.append((got, plain, exact))
    assert_as_exact_as_numpy(*joined(runs))


@given(
    seed=st.integers(0, 10**6),
    grids=st.tuples(*[st.integers(1, 4)] * 4),
    scale=st.integers(1, 3),
    patch=st.sampled_from([1, 3, 5]),
    overlap=st.sampled_from(["average", "mass", "divide"]),
)
def test_any_grids(seed: int, grids: Any, scale: int, patch: int, overlap: str) -> None:
    inputs = arrays(seed, scale, grids=grids)
    options = {"scale": scale, "patch": patch, "overlap": overlap, "temperature": 2.0}
    dout = np.random.default_rng(seed + 1).standard_normal((scale * grids[0], scale * grids[1], 2))
    for a, b in zip(*(results(m, inputs, dout, options) for m in (nlattn, oracle)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11 * max(1, abs(b).max()))


@pytest.mark.parametrize("name", ["csnl_s2_6x8", "csnl_s3_6x9"])
def test_it_is_the_published_operator(name: str) -> None:
    published_runs.cross_scale(nlattn, name)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_map_is_the_operator(options: dict[str, Any]) -> None:
    q, k, v = arrays(1, options["scale"])
    A = nlattn.cross_scale_attention_map(q, k, **options)
    out = nlattn.cross_scale_attention(q, k, v, **options)
    assert (A.query_grid, A.key_grid) == (out.shape[:2], v.shape[:2])
    np.testing.assert_allclose(A @ v.reshape(-1, 2), out.reshape(-1, 2), rtol=1e-12, atol=1e-14)
    dense = A.to_dense()
    np.testing.assert_allclose(dense @ v.reshape(-1, 2), out.reshape(-1, 2), rtol=1e-9, atol=1e-12)
    dout = np.random.default_rng(2).standard_normal((A.shape[0], 2))
    np.testing.assert_allclose(A.T @ dout, dense.T @ dout, rtol=1e-9, atol=1e-12)
    some = [3, 0, A.shape[0] - 1]
    np.testing.assert_array_equal(A.rows(some), dense[some])
    assert A.work.scores == 5 * 4 * 12
    if options.get("overlap") == "mass" and options.get("patch") != 5:
        np.testing.assert_allclose(dense.sum(1), 1)
    with pytest.raises(AttributeError, match=r"attention_map.lse: a row of cross-scale attention"):
        _ = A.lse
    with np.errstate(divide="ignore"):
        np.testing.assert_array_equal(A.scores(some), np.log(dense[some]))


def test_a_repeated_tile_gives_a_repeated_result() -> None:
    tile = np.random.default_rng(3).standard_normal((2, 2, 3))
    q, k = np.tile(tile, (6, 6, 1)), np.tile(tile, (4, 4, 1))
    v = np.tile(np.random.default_rng(4).standard_normal((4, 4, 1)), (4, 4, 1))
    out = nlattn.cross_scale_attention(q, k, v, scale=2)
    inner = out[4:-4, 4:-4]
    np.testing.assert_allclose(inner[:4, :4], inner[4:8, 8:12], rtol=1e-9, atol=1e-12)


def test_zero_patches_have_finite_gradients() -> None:
    q, k, v = arrays(5, 2, np.float32)
    k[:, :3] = 0
    out = nlattn.cross_scale_attention(q, k, v, scale=2)
    for keys in (k, 0 * k):
        for gradient in nlattn.cross_scale_attention_vjp(q, keys, v, out, scale=2):
            assert np.isfinite(gradient).all()


@pytest.mark.parametrize("pad", ["edge", "reflect", "zero", "error"])
@pytest.mark.parametrize("scale", [1, 2, 3, 4, 5])
def test_downscaling(scale: int, pad: str) -> None:
    shape = (2, 2 * scale, 3 * scale, 2) if pad == "error" else (2, 5, 7, 2)
    x = np.random.default_rng(6).standard_normal(shape)
    out = nlattn.downscale(x, scale, pad=pad)
    known = "edge" if pad == "error" else pad
    np.testing.assert_allclose(out, oracle.downscale(x, scale, pad=known), rtol=1e-14)
    back = nlattn.downscale_vjp(x, out, scale, pad=pad)
    np.testing.assert_allclose(back, oracle.downscale_vjp(x, out, scale, pad=known), atol=1e-15)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"scale": 0}, ValueError, "scale=0, expected at least 1"),
        ({"scale": 1.5}, TypeError, "scale=1.5 is no integer"),
        ({"scale": 3}, ValueError, "v has grid (6, 8), expected (9, 12), 3 times that of k"),
        ({"patch": 2}, ValueError, "patch=2 is even, expected an odd width so that its centre is"),
        ({"floor": 0}, ValueError, "floor=0.0, expected a positive number"),
        ({"overlap": "sum"}, ValueError, "overlap='sum', expected 'average', 'mass' or 'divide'"),
        ({"divisor": -6}, ValueError, "divisor=-6.0, expected a positive number"),
        ({"assign": "hard"}, ValueError, "assign='hard', expected 'softmax' or 'argmax'"),
        ({"crop": "none"}, ValueError, "crop='none', expected 'exact' or 'published'"),
        ({"max_bytes": 2000}, MemoryError, "needs 3.84 kB (10 rows of 4 x 12 weights), above"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], error: Any, text: str) -> None:
    q, k, v = arrays(7, 2)
    with pytest.raises(error, match=f"^cross_scale_attention: {re.escape(text)}"):
        nlattn.cross_scale_attention(q, k, v, **{"scale": 2, **options})


def test_shapes_that_do_not_fit_are_refused() -> None:
    q, k, v = arrays(8, 2)
    with pytest.raises(
        ValueError, match=r"dout has grid \(4, 4\), expected \(10, 8\) as the output"
    ):
        nlattn.cross_scale_attention_vjp(q, k, v, np.ones((4, 4, 2)), scale=2)
    text = r"q has 2 x 4 pixels, of which crop='published' with patch=1 leaves none"
    with pytest.raises(ValueError, match=text):
        nlattn.cross_scale_attention(q[:2], k, v, scale=2, patch=1, crop="published")
    text = r"cross_scale_attention_map: q has leading axes \(1,\), expected one picture"
    with pytest.raises(ValueError, match=text):
        nlattn.cross_scale_attention_map(q[None], k, scale=2)
    text = "downscale: x has 5 x 4 pixels, expected multiples of scale=2; pad='edge' allows any"
    with pytest.raises(ValueError, match=text):
        nlattn.downscale(q, 2, pad="error")
    with pytest.raises(ValueError, match=r"dout has grid \(5, 4\), expected \(3, 2\) for scale=2"):
        nlattn.downscale_vjp(q, q, 2)
