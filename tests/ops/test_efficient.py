"""`efficient_attention` against its oracle, and what must hold of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nlattn
from nlattn.engines import factored
from nlattn.oracle import efficient as oracle
from tests import published_runs
from tests.helpers import assert_as_exact_as_numpy

MASK = np.arange(70) % 3 > 0
CASES: list[dict[str, Any]] = [
    {"normalization": normalization, "mask": mask}
    for normalization in ("softmax", "scaling")
    for mask in (None, MASK)
]
NAMES = ["softmax", "softmax, mask", "scaling", "scaling, mask"]


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks also in small cases."""
    monkeypatch.setattr(factored, "CHUNK", 32)


def results(module: Any, inputs: list[Any], options: dict[str, Any]) -> list[Any]:
    *arrays, dout = inputs
    return [
        module.efficient_attention(*arrays, **options),
        module.efficient_context(*arrays[1:], **options),
        *module.efficient_attention_vjp(*arrays, dout, **options),
    ]


def arrays(dtype: Any, seed: int = 0, spread: float = 1.0) -> list[Any]:
    rng = np.random.default_rng(seed)
    shapes = (2, 40, 9), (2, 70, 9), (2, 70, 5), (2, 40, 5)
    return [(spread * rng.standard_normal(shape)).astype(dtype) for shape in shapes]


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize(("dtype", "wide"), [(np.float32, np.float64), (np.float64, np.longdouble)])
@pytest.mark.parametrize("options", CASES, ids=NAMES)
def test_it_is_as_exact_as_numpy(options: dict[str, Any], dtype: Any, wide: Any) -> None:
    inputs = arrays(dtype)
    exact = results(oracle, [x.astype(wide) for x in inputs], options)
    assert_as_exact_as_numpy(
        results(nlattn, inputs, options), results(oracle, inputs, options), exact
    )


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("options", CASES[:2], ids=NAMES[:2])
def test_logits_of_1e4_do_not_overflow(options: dict[str, Any]) -> None:
    """Softmaxes saturate, so dq and dk are differences of equal numbers: theirs is the rounding."""
    q, k, v, dout = arrays(np.float32)
    inputs = [1e4 * q, 1e4 * k, v, dout]
    exact = results(oracle, [x.astype(np.longdouble) for x in inputs], options)
    got, plain = results(nlattn, inputs, options), results(oracle, inputs, options)
    assert_as_exact_as_numpy([*got[:2], got[4]], [*plain[:2], plain[4]], [*exact[:2], exact[4]])
    context, out = exact[1], exact[0]
    terms = abs(dout).sum(-1).max() * abs(out).max(), abs(v).sum(-1).max() * abs(context).max() * 40
    for gradient, want, size in zip(got[2:4], exact[2:4], terms, strict=True):
        assert abs(gradient - want).max() <= 4 * np.finfo(np.float32).eps * size


def test_a_masked_key_of_any_size_takes_no_part() -> None:
    q, k, v, dout = arrays(np.float64)
    k[:, 0], v[:, 0] = 1e4, 1e300
    for options in CASES[1::2]:
        got = nlattn.efficient_attention(q, k, v, **options)
        plain = {"normalization": options["normalization"]}
        want = nlattn.efficient_attention(q, k[:, MASK], v[:, MASK], **plain)
        np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-15)
        _, dk, dv = nlattn.efficient_attention_vjp(q, k, v, dout, **options)
        assert not dk[:, ~MASK].any()
        assert not dv[:, ~MASK].any()
        one = nlattn.efficient_attention_map(q[0], k[0], **options)
        assert not one.to_dense()[:, ~MASK].any()


@pytest.mark.parametrize("normalization", ["softmax", "scaling"])
def test_no_key_left(normalization: str) -> None:
    q, k, v, dout = arrays(np.float64)
    options: Any = {"normalization": normalization, "mask": MASK & False}
    assert not nlattn.efficient_attention(q, k, v, **options).any()
    for gradient in nlattn.efficient_attention_vjp(q, k, v, dout, **options):
        assert not gradient.any()
    one = nlattn.efficient_attention_map(q[0], k[0], **options)
    assert not one.to_dense().any()
    if one.normalised:
        assert np.isneginf(one.lse).all()


def test_the_mask_may_differ_between_slices() -> None:
    q, k, v, _ = arrays(np.float64)
    masks = np.stack([MASK, ~MASK])
    got = nlattn.efficient_attention(q, k, v, mask=masks)
    for b in range(2):
        want = nlattn.efficient_attention(q[b], k[b], v[b], mask=masks[b])
        np.testing.assert_array_equal(got[b], want)


def test_invariants_of_the_softmax_form() -> None:
    q, k, v, dout = arrays(np.float64)
    out = nlattn.efficient_attention(q, k, v)
    rng = np.random.default_rng(1)
    shifted = nlattn.efficient_attention(q + rng.normal(size=(2, 40, 1)), k + rng.normal(size=9), v)
    np.testing.assert_allclose(shifted, out, atol=1e-14)
    order = rng.permutation(70)
    np.testing.assert_allclose(
        nlattn.efficient_attention(q, k[:, order], v[:, order]), out, atol=1e-14
    )
    constant = np.broadcast_to(v[:, :1], v.shape)
    got = nlattn.efficient_attention(q, k, constant)
    np.testing.assert_allclose(got, np.broadcast_to(v[:, :1], got.shape), rtol=1e-14)
    assert (out <= v.max(1, keepdims=True)).all()
    assert (out >= v.min(1, keepdims=True)).all()
    dq, dk, _ = nlattn.efficient_attention_vjp(q, k, v, dout)
    np.testing.assert_allclose(dq.sum(-1), 0, atol=1e-14)
    np.testing.assert_allclose(dk.sum(-2), 0, atol=1e-14)
    one = nlattn.efficient_attention(q[..., :1], k[..., :1], v)
    np.testing.assert_array_equal(one, np.broadcast_to(one[:, :1], one.shape))
    np.testing.assert_allclose(
        nlattn.efficient_attention(q, k[:, :1], v[:, :1]), got * 0 + v[:, :1]
    )


def test_scaling_is_refined_self_attention() -> None:
    inputs = arrays(np.float64)
    got = nlattn.efficient_attention(*inputs[:3], normalization="scaling")
    np.testing.assert_array_equal(got, nlattn.refined_self_attention(*inputs[:3]))


@pytest.mark.parametrize("options", CASES, ids=NAMES)
def test_the_map_is_the_operator(options: dict[str, Any]) -> None:
    q, k, v, dout = (x[0] for x in arrays(np.float64))
    one = nlattn.efficient_attention_map(q, k, **options, query_grid=(5, 8), key_grid=(7, 10))
    dense = one.to_dense()
    want = oracle.efficient_attention(q, k, np.eye(70), **options)
    np.testing.assert_allclose(dense, want, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(one @ v, nlattn.efficient_attention(q, k, v, **options), atol=1e-14)
    np.testing.assert_allclose(one.T @ dout, dense.T @ dout, atol=1e-14)
    assert one.query_grid == (5, 8)
    if options["normalization"] == "softmax":
        np.testing.assert_allclose(dense.sum(1), 1, rtol=1e-14)
        np.testing.assert_array_equal(one.lse, 0)
    else:
        assert not hasattr(one, "lse")
        with pytest.raises(AttributeError, match=r"attention_map.lse: weights .* use rows\(\)"):
            _ = one.lse


@pytest.mark.parametrize("name", ["ea_softmax_1head", "ea_softmax_2heads", "ea_scaling_1head"])
def test_published_modules(name: str) -> None:
    """Values pass through the reprojection linearly, so gradients are checked by the layer."""
    published_runs.efficient(nlattn, name)


def test_bad_options_are_refused_in_words() -> None:
    q, k, v, _ = arrays(np.float64)
    for options, error, text in (
        (
            {"normalization": "sum"},
            ValueError,
            "normalization='sum', expected 'softmax' or 'scaling'",
        ),
        ({"mask": np.ones(70)}, TypeError, "mask has dtype float64, expected bool"),
        (
            {"mask": np.ones((3, 70), bool)},
            ValueError,
            r"mask has shape \(3, 70\), expected one that broadcasts to \(2, 70\)",
        ),
        ({"mask": np.ones(69, bool)}, ValueError, "mask has shape"),
    ):
        with pytest.raises(error, match="efficient_attention: " + text):  # type: ignore[call-overload]
            nlattn.efficient_attention(q, k, v, **options)
    with pytest.raises(ValueError, match=r"efficient_attention_map: q, k have leading axes \(2,\)"):
        nlattn.efficient_attention_map(q, k)
    with pytest.raises(TypeError, match="causal"):
        nlattn.efficient_attention(q, k, v, causal=True)  # type: ignore[call-arg]
