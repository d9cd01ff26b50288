"""The non-local block in every variant: against its formula, differences, and its invariants."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from nlattn import layers
from nlattn.oracle import nonlocal_mean as oracle
from tests.layers.blocks import assert_slopes, caffe2_weights, nonlocal_weights

PAIRWISE = ("gaussian", "embedded_gaussian", "dot_product", "concatenation")
GRIDS = {1: (7,), 2: (3, 5), 3: (2, 3, 4)}
RNG = np.random.default_rng(0)


def pooled(x: Any, axes: int) -> Any:
    """Largest of pairs along each spatial axis (not along time), what is left over dropped."""
    for axis in range(2 if axes == 3 else 1, axes + 1):
        pairs = x.take(range(x.shape[axis] // 2 * 2), axis)
        x = np.maximum(
            pairs.take(range(0, pairs.shape[axis], 2), axis),
            pairs.take(range(1, pairs.shape[axis], 2), axis),
        )
    return x


def formula(x: Any, w: dict[str, Any], pairwise: str, subsample: bool, training: bool) -> Any:
    """The port, written out."""
    axes, inner = x.ndim - 2, ".0" if subsample else ""

    def conv(z: Any, name: str) -> Any:
        weight = w[f"{name}.weight"]
        return np.einsum("...c,oc->...o", z, weight.reshape(weight.shape[:2])) + w[f"{name}.bias"]

    embedded = pairwise != "gaussian"
    theta = conv(x, "theta") if embedded else x
    phi, g = (conv(x, f"phi{inner}") if embedded else x), conv(x, f"g{inner}")
    if subsample:
        phi, g = pooled(phi, axes), pooled(g, axes)
    q, k, v = (z.reshape(len(x), -1, z.shape[-1]) for z in (theta, phi, g))
    weight = w["concat_project.0.weight"].reshape(-1) if pairwise == "concatenation" else None
    mean = oracle.nonlocal_mean(q, k, v, pairwise=pairwise, weight=weight)
    mean = mean.reshape(*x.shape[:-1], -1)
    if "W.weight" in w:
        return x + conv(mean, "W")
    out = conv(mean, "W.0")
    every = tuple(range(axes + 1))
    m = out.mean(every) if training else w["W.1.running_mean"]
    s = out.var(every) if training else w["W.1.running_var"]
    return x + (out - m) / np.sqrt(s + 1e-5) * w["W.1.weight"] + w["W.1.bias"]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("subsample", [False, True])
@pytest.mark.parametrize("pairwise", PAIRWISE)
@pytest.mark.parametrize("axes", GRIDS)
def test_every_variant_is_its_formula(
    axes: int, pairwise: str, subsample: bool, norm: bool, training: bool
) -> None:
    w = nonlocal_weights(pairwise, axes, subsample, norm)
    x = RNG.standard_normal((2, *GRIDS[axes], 6))
    y = layers.nonlocal_block(x, w, pairwise=pairwise, subsample=subsample, training=training)
    if training:
        y, buffers = y
        assert len(buffers) == (3 if norm else 0)
    want = formula(x, w, pairwise, subsample, training)
    np.testing.assert_allclose(y, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("pairwise", "axes", "subsample", "norm", "training"),
    [
        ("gaussian", 2, True, True, True),
        ("gaussian", 1, False, False, False),
        ("embedded_gaussian", 3, True, True, True),
        ("dot_product", 1, True, True, False),
        ("concatenation", 2, True, True, True),
    ],
)
def test_gradients_agree_with_differences(
    pairwise: str, axes: int, subsample: bool, norm: bool, training: bool
) -> None:
    w = nonlocal_weights(pairwise, axes, subsample, norm)
    x, dout = RNG.standard_normal((2, 2, *GRIDS[axes], 6))
    options = {"pairwise": pairwise, "subsample": subsample, "training": training}
    still = ("W.1.running_mean", "W.1.running_var")
    assert_slopes("nonlocal_block", x, w, dout, still, **options)


@pytest.mark.parametrize("pairwise", ["embedded_gaussian", "dot_product"])
@pytest.mark.parametrize("norm", ["", "affine", "bn"])
@pytest.mark.parametrize("training", [False, True])
def test_the_original_pools_its_input(pairwise: str, norm: str, training: bool) -> None:
    """And divides softmax scores by the root of the inner channels."""
    w = caffe2_weights(norm)
    x, dout = RNG.standard_normal((2, 1, 2, 3, 4, 6))
    options = {"pairwise": pairwise, "convention": "caffe2", "training": training}

    def conv(z: Any, name: str) -> Any:
        return z @ w[f"nl_{name}_w"].reshape(w[f"nl_{name}_w"].shape[:2]).T + w[f"nl_{name}_b"]

    for subsample in (False, True):
        y = layers.nonlocal_block(x, w, subsample=subsample, **options)
        small = pooled(x, 3) if subsample else x
        q, k, v = (
            z.reshape(1, -1, 3) for z in (conv(x, "theta"), conv(small, "phi"), conv(small, "g"))
        )
        if pairwise == "embedded_gaussian":
            q = q / np.sqrt(3)
        out = conv(oracle.nonlocal_mean(q, k, v, pairwise=pairwise).reshape(1, 2, 3, 4, 3), "out")
        if norm == "bn":
            every = (0, 1, 2, 3)
            m = out.mean(every) if training else w["nl_bn_rm"]
            s = out.var(every) if training else w["nl_bn_riv"]
            out = (out - m) / np.sqrt(s + 1.0000001e-5)
        if norm:
            out = out * w["nl_bn_s"] + w["nl_bn_b"]
        np.testing.assert_allclose(y[0] if training else y, x + out, rtol=1e-10, atol=1e-12)
    still = ("nl_bn_rm", "nl_bn_riv")
    assert_slopes("nonlocal_block", x, w, dout, still, subsample=True, **options)


def test_training_moves_the_statistics() -> None:
    w = nonlocal_weights("dot_product", norm=True)
    x = RNG.standard_normal((2, 3, 5, 6))
    _, buffers = layers.nonlocal_block(x, w, pairwise="dot_product", training=True)
    plain = {k.replace("W.0", "W"): v for k, v in w.items() if not k.startswith("W.1.")}
    out = layers.nonlocal_block(x, plain, pairwise="dot_product") - x
    mean, variance = out.mean((0, 1, 2)), out.var((0, 1, 2), ddof=1)
    assert buffers.keys() == {
        f"W.1.{n}" for n in ("running_mean", "running_var", "num_batches_tracked")
    }
    np.testing.assert_allclose(
        buffers["W.1.running_mean"], 0.9 * w["W.1.running_mean"] + 0.1 * mean
    )
    np.testing.assert_allclose(
        buffers["W.1.running_var"], 0.9 * w["W.1.running_var"] + 0.1 * variance
    )
    assert buffers["W.1.num_batches_tracked"] == 4
    assert w["W.1.num_batches_tracked"] == 3
    kept = caffe2_weights("bn")
    frames = RNG.standard_normal((1, 2, 3, 4, 6))
    options = {"pairwise": "dot_product", "convention": "caffe2", "training": True}
    assert layers.nonlocal_block(frames, kept, **options)[1].keys() == {"nl_bn_rm", "nl_bn_riv"}


@pytest.mark.parametrize("norm", [False, True])
def test_a_block_starts_as_the_identity(norm: bool) -> None:
    w = nonlocal_weights("embedded_gaussian", norm=norm)
    for name in ("W.1.weight", "W.1.bias") if norm else ("W.weight", "W.bias"):
        w[name] = np.zeros_like(w[name])
    x = RNG.standard_normal((3, 5, 6))
    np.testing.assert_array_equal(layers.nonlocal_block(x, w, pairwise="embedded_gaussian"), x)


@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_strips_of_any_number_of_axes_agree(pairwise: str) -> None:
    x = RNG.standard_normal((7, 6))
    want = layers.nonlocal_block(x, nonlocal_weights(pairwise, 1), pairwise=pairwise)
    for axes, shape in ((2, (1, 7, 6)), (3, (1, 1, 7, 6))):
        w = nonlocal_weights(pairwise, axes)
        y = layers.nonlocal_block(x.reshape(shape), w, pairwise=pairwise)
        np.testing.assert_allclose(y.reshape(7, 6), want, rtol=1e-12)


def test_the_bias_of_the_keys_means_nothing_to_a_softmax() -> None:
    for subsample, name in ((False, "phi.bias"), (True, "phi.0.bias")):
        w = nonlocal_weights("embedded_gaussian", subsample=subsample)
        x = RNG.standard_normal((4, 5, 6))
        options = {"pairwise": "embedded_gaussian", "subsample": subsample}
        want = layers.nonlocal_block(x, w, **options)
        moved = {**w, name: w[name] + 3}
        np.testing.assert_allclose(layers.nonlocal_block(x, moved, **options), want, atol=1e-11)
        _, dw = layers.nonlocal_block_vjp(x, w, x, **options)
        np.testing.assert_allclose(dw[name], 0, atol=1e-11)


def test_the_published_kernel_of_concatenation_has_two_axes() -> None:
    w = nonlocal_weights("concatenation", axes=1)
    x = RNG.standard_normal((7, 6))
    want = layers.nonlocal_block(x, w, pairwise="concatenation")
    flat = {**w, "concat_project.0.weight": w["concat_project.0.weight"][..., None]}
    np.testing.assert_array_equal(layers.nonlocal_block(x, flat, pairwise="concatenation"), want)
    _, dw = layers.nonlocal_block_vjp(x, flat, x, pairwise="concatenation")
    assert dw["concat_project.0.weight"].shape == (1, 6, 1, 1)


def test_leading_axes_and_layouts() -> None:
    w = nonlocal_weights("embedded_gaussian")
    x = RNG.standard_normal((2, 3, 4, 5, 6))
    whole = layers.nonlocal_block(x, w, pairwise="embedded_gaussian")
    assert whole.shape == x.shape
    for b in np.ndindex(2, 3):
        one = layers.nonlocal_block(x[b], w, pairwise="embedded_gaussian")
        np.testing.assert_array_equal(whole[b], one)
    strided = np.repeat(x, 2, axis=-1)[..., ::2].astype(">f8")
    np.testing.assert_array_equal(
        layers.nonlocal_block(strided, w, pairwise="embedded_gaussian"), whole
    )
    assert layers.nonlocal_block(x[:0], w, pairwise="embedded_gaussian").shape == (0, 3, 4, 5, 6)


def test_half_precision_is_float32_rounded_once() -> None:
    w = {k: v.astype(np.float16) for k, v in nonlocal_weights("dot_product").items()}
    x = RNG.standard_normal((4, 5, 6)).astype(np.float16)
    wide = {k: v.astype(np.float32) for k, v in w.items()}
    y = layers.nonlocal_block(x, w, pairwise="dot_product")
    want = layers.nonlocal_block(x.astype(np.float32), wide, pairwise="dot_product")
    np.testing.assert_array_equal(y, want.astype(np.float16))
    dx, dw = layers.nonlocal_block_vjp(x, w, x, pairwise="dot_product")
    assert {dx.dtype, *(g.dtype for g in dw.values())} == {np.dtype(np.float16)}


def test_large_logits_do_not_overflow() -> None:
    w = nonlocal_weights("embedded_gaussian")
    w["theta.weight"] = 1e4 * w["theta.weight"]
    x = RNG.standard_normal((4, 5, 6)).astype(np.float32)
    w = {k: v.astype(np.float32) for k, v in w.items()}
    assert np.isfinite(layers.nonlocal_block(x, w, pairwise="embedded_gaussian")).all()
    dx, _ = layers.nonlocal_block_vjp(x, w, x, pairwise="embedded_gaussian")
    assert np.isfinite(dx).all()
    gaussian = {k: v for k, v in w.items() if k[0] in "gW"}
    assert np.isfinite(layers.nonlocal_block(1e4 * x, gaussian, pairwise="gaussian")).all()


IMAGE = np.ones((4, 5, 6))
GOOD = nonlocal_weights("embedded_gaussian")
REFUSED: list[tuple[Any, Any, dict[str, Any], str]] = [
    (
        IMAGE,
        {k: v for k, v in GOOD.items() if k[0] != "g"} | {"G.weight": 1},
        {},
        "weights lack 'g.weight', 'g.bias'; weights hold 'G.weight', expected none of that name",
    ),
    (
        IMAGE,
        GOOD,
        {"subsample": True},
        "weights lack 'g.0.weight', 'g.0.bias', 'phi.0.weight', 'phi.0.bias'; weights hold "
        "'g.weight', 'g.bias', 'phi.weight', 'phi.bias', expected none of that name",
    ),
    (
        IMAGE,
        {**GOOD, "theta.weight": np.ones((2, 6, 1, 1))},
        {},
        "theta.weight has shape (2, 6, 1, 1), expected (c, C, 1, 1) with c=3 from g.weight, "
        "C=6 from x",
    ),
    (IMAGE[:0], GOOD, {}, "x has shape (0, 5, 6), expected at least one pixel"),
    (IMAGE[..., :0], GOOD, {}, "x has 0 channels, expected at least 1"),
    (IMAGE[0], GOOD, {}, "x has shape (5, 6), expected (H, W, C) or with leading axes"),
    (IMAGE, GOOD, {"pairwise": "softmax"}, "pairwise='softmax', expected 'gaussian', 'emb"),
    (IMAGE, GOOD, {"convention": "tf"}, "convention='tf', expected 'pytorch' or 'caffe2'"),
    (
        IMAGE,
        GOOD,
        {"convention": "caffe2", "pairwise": "gaussian"},
        "pairwise='gaussian', expected 'embedded_gaussian' or 'dot_product' of convention='caffe2'",
    ),
    (
        IMAGE[:1],
        nonlocal_weights("embedded_gaussian", subsample=True),
        {"subsample": True},
        "x has a grid of (1, 5), expected at least (2, 2) with subsample=True",
    ),
    (
        IMAGE[:1, :1],
        nonlocal_weights("embedded_gaussian", norm=True),
        {"training": True},
        "x has 1 positions in all, expected at least 2 with training=True: a variance needs them",
    ),
    (IMAGE * np.nan, GOOD, {}, "x[0, 0, 0] is nan, expected finite values"),
]


@pytest.mark.parametrize(("x", "weights", "options", "text"), REFUSED, ids=lambda x: str(x)[:20])
def test_bad_calls_are_refused_in_words(x: Any, weights: Any, options: Any, text: str) -> None:
    with pytest.raises(ValueError, match=f"^nonlocal_block: {re.escape(text)}"):
        layers.nonlocal_block(x, weights, **{"pairwise": "embedded_gaussian", **options})


def test_flags_are_bools_and_weights_a_mapping() -> None:
    for bad in ({"subsample": 1}, {"training": "yes"}):
        with pytest.raises(TypeError, match=r"^nonlocal_block: .* is no bool"):
            layers.nonlocal_block(IMAGE, GOOD, pairwise="embedded_gaussian", **bad)
    with pytest.raises(TypeError, match=r"^nonlocal_block: weights is a list, expected a mapping"):
        layers.nonlocal_block(IMAGE, [], pairwise="embedded_gaussian")
    with pytest.raises(ValueError, match=r"map: x has leading axes \(2,\), expected one image"):
        layers.nonlocal_block_map(np.ones((2, 4, 5, 6)), GOOD, pairwise="embedded_gaussian")
