"""Every operator at the edges of its formats: right, or refused in words; and what was wrong once.

A part of the edges, or all with NLATTN_THOROUGH=1.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

import nlattn
from nlattn.conformance.table import OpSpec
from nlattn.engines.magnitude import RangeLaw, ranged
from tests.ranges import KINDS, edges, wrong

EACH = 1 if os.environ.get("NLATTN_THOROUGH") else 40
FLOATS = (np.float32, np.float64)


def name(value: Any) -> str | None:
    return value.name if isinstance(value, OpSpec) else None


@pytest.mark.jit
@pytest.mark.parametrize(("spec", "kind"), KINDS, ids=name)
def test_numbers_at_the_edges(spec: OpSpec, kind: Any) -> None:
    first = sum(map(ord, spec.name + kind)) % EACH
    found = {repr(e): wrong(e) for e in list(edges(spec, kind))[first::EACH]}
    assert found
    assert not {edge: what for edge, what in found.items() if what}


def arrays(*shapes: tuple[int, ...], dtype: Any = np.float32) -> Any:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


@pytest.mark.parametrize("value", [1e39, -1e39, 1e300])
def test_an_option_beyond_the_format_is_refused_in_words(value: float) -> None:
    q, k, v = arrays((3, 2), (4, 2), (4, 2))
    grids = arrays((2, 2, 1), (2, 2, 1), (4, 4, 1))
    text = r"a magnitude of at most 3.40282e\+38, the largest float32"
    for option in ("scale", "softcap"):
        with pytest.raises(ValueError, match=f"^attention: {option}=.*, expected {text}$"):
            nlattn.attention(q, k, v, **{option: value})
    with pytest.raises(ValueError, match=r"^cross_scale_attention: temperature=.*float32$"):
        nlattn.cross_scale_attention(*grids, scale=2, temperature=value)


def test_scores_beyond_float64_are_refused_in_words() -> None:
    q, k, v = arrays((3, 2), (4, 2), (4, 2), dtype=float)
    with pytest.raises(ValueError, match=r"at most 1\.79769e\+308, the largest float64$"):
        nlattn.attention(q * 1e200, k * 1e200, v)


def test_ties_share_where_scores_overflow() -> None:
    q, k = np.array([[3e38, 0]], np.float32), np.array([[3e38, 0], [3e38, 1], [1, 0]], np.float32)
    out = nlattn.attention(q, k, np.array([[1], [3], [9]], np.float32))
    np.testing.assert_array_equal(out, [[2]])


@pytest.mark.parametrize("factor", [1e-30, 1e-22, 1e-17, 1e19, 1e30, 1e38])
def test_cosines_do_not_depend_on_lengths(factor: float) -> None:
    q, k = arrays((4, 5, 6), (5, 4, 6))
    plain = nlattn.patchmatch(q, k, score="cosine")
    lengths = np.array([1, 1, factor, 1, factor], np.float32)
    for a, b in ((np.float32(factor / 8), 1), (1, lengths[:, None, None])):
        found = nlattn.patchmatch(q * a, k * b, score="cosine")
        np.testing.assert_array_equal(found.index, plain.index)
        np.testing.assert_allclose(found.score, plain.score, rtol=1e-6)
    none = nlattn.patchmatch(0 * q, k * np.float32(1e-30), score="cosine")
    np.testing.assert_array_equal(none.score, 0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("factor", [2.0**-60, 2.0**60, 2.0**100])
def test_pictures_and_their_noise_in_other_units(factor: float, dtype: Any) -> None:
    (image,) = arrays((6, 7, 2), dtype=dtype)
    plain = nlattn.nl_means(image, sigma=0.5)
    scaled = nlattn.nl_means(image * dtype(factor), sigma=0.5 * factor)
    spacing = np.finfo(dtype).eps * 16  # one of them may be computed in float64
    np.testing.assert_allclose(scaled / dtype(factor), plain, rtol=0, atol=spacing * 4)


def test_noise_and_bandwidth_beyond_their_squares() -> None:
    (image,) = arrays((5, 5, 1), dtype=float)
    flat = nlattn.nl_means(image, sigma=1e155, aggregate="pixel")
    np.testing.assert_allclose(nlattn.nl_means(image, sigma=1e6, aggregate="pixel"), flat)
    np.testing.assert_allclose(nlattn.nl_means(image, sigma=0.1, h=1e200, aggregate="pixel"), flat)


def test_distances_over_a_small_bandwidth_rank_as_over_one() -> None:
    q, k = arrays((4, 4, 3), (4, 4, 3), dtype=float)
    plain = nlattn.patchmatch(q, k, score="neg_l2")
    near = nlattn.patchmatch(q, k, score="neg_l2", bandwidth=1e-200)
    np.testing.assert_array_equal(near.index, plain.index)


@pytest.mark.parametrize("factor", [5e-324, 1e-310, 1e-200, 1e150, 1e300])
def test_leverage_of_denormal_and_huge_keys(factor: float) -> None:
    K = np.round(8 * np.random.default_rng(0).standard_normal((12, 3)))
    for method in ("qr", "svd", "gram"):
        scores, rank = nlattn.leverage_scores(K * factor, method=method, return_rank=True)
        assert rank == 3
        np.testing.assert_allclose(scores, nlattn.leverage_scores(K), rtol=1e-9)
    whole = nlattn.universal_set(K, 0.3).keys
    np.testing.assert_array_equal(nlattn.universal_set(K * factor, 0.3).keys, whole)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_map_keeps_its_gates_where_scores_are_in_other_units(dtype: Any) -> None:
    q, k, v, gate = arrays((2, 3), (4, 5, 3), (4, 5, 2), (2, 3, 3), dtype=dtype)
    factor, gate = dtype(2.0 ** (np.finfo(dtype).maxexp - 8)), dtype(6) * gate
    want = nlattn.qna(q, k, v, window=3, gate=gate, scale=1.0)
    A = nlattn.qna_map(q * factor, k, window=3, gate=gate, scale=float(1 / factor))
    np.testing.assert_allclose(A @ v.reshape(-1, 2), want.reshape(-1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", FLOATS)
def test_gradients_of_biases_and_sinks_grow_with_values(dtype: Any) -> None:
    q, k, v, dout, bias = arrays((3, 4), (5, 4), (5, 2), (3, 2), (3, 5), dtype=dtype)
    words: Any = {"bias": bias, "sinks": dtype(0.5)}
    factor = dtype(2.0 ** (14 - np.finfo(dtype).maxexp))
    plain = nlattn.attention_vjp(q, k, v, dout, **words)
    small = nlattn.attention_vjp(q, k, v * factor, dout, **words)
    assert len(plain) == 5
    for i in (0, 1, 3, 4):
        np.testing.assert_allclose(small[i] / factor, plain[i], rtol=1e-3)


def test_ordinary_numbers_are_left_as_they_are() -> None:
    seen = []

    @ranged(RangeLaw(("v",), {"scale": "q k"}, upper=("q k", "scale q k", "v")))
    def product(q: Any, k: Any, v: Any, *, scale: float = 1.0) -> Any:
        seen.append((q, scale))
        return scale * (q * k).sum() * v

    q, k, v = arrays((3,), (3,), (3,))
    product(q, k, v)
    assert seen[-1][0] is q
    got = product(q * np.float32(2e38), k * np.float32(1e-5), v, scale=1e-38)
    assert seen[-1][0].dtype == np.float64
    assert got.dtype == np.float32
    want = 1e-38 * ((q * np.float32(2e38)).astype(float) * (k * np.float32(1e-5))).sum() * v
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("factor", [1e-17, 1e17])
def test_a_photograph_in_other_units(factor: float) -> None:
    """What is made of a picture's features does not depend on the unit of its colours."""
    picture = nlattn.images.resize(nlattn.images.photograph(), 14, 16)
    exact = np.float32(2.0 ** round(np.log2(factor)))
    made = []
    for image in (picture, picture * exact):
        features = nlattn.images.patch_features(image, patch=3, channels=6)
        q, k = nlattn.images.queries_and_keys(features)
        scale = nlattn.images.softmax_scale(q, k, keys=8.0)
        found = nlattn.patchmatch(q, k, seed=2)
        out = nlattn.scram(q, k, features, field=found, scale=scale)
        noise = 0.1 * float(exact if image is not picture else 1)
        made.append((found.index, out, nlattn.nl_means(image, sigma=noise)))
    for a, b in zip(*made, strict=True):
        if a.dtype.kind == "i":
            assert (a == b).mean() > 0.98  # ties alone may fall otherwise
        else:
            near = 1e-3  # a tie that falls otherwise is less
            np.testing.assert_allclose(a / abs(a).max(), b / abs(b).max(), rtol=0, atol=near)
