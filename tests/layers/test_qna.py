"""The layer of QnA against the published module's arrays, and a literal one by the complex step."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nlattn.layers import qna_block, qna_block_vjp
from nlattn.oracle.qna import qna

DATA = Path(__file__).parent.parent / "data"
GOLDEN = sorted(path.stem for path in DATA.glob("qna_*.npz"))


@pytest.mark.parametrize("name", GOLDEN)
def test_the_published_module(name: str) -> None:
    with np.load(DATA / f"{name}.npz") as case:
        arrays = dict(case)
    meta = json.loads(str(arrays["meta"]))
    weights = {key[2:]: x for key, x in arrays.items() if key.startswith("w.")}
    options = {
        "heads": meta["heads"],
        "window": meta["kernel_size"],
        "stride": meta["stride"],
        "padding": meta["padding"],
        "gate": meta["attn_scale"],
        "position": meta["pos_embedding_type"],
        "normalize_queries": meta["normalize_q"],
        "scale_rpe_bias": meta["scale_rpe_bias"],
    }
    y = qna_block(arrays["in.x"], weights, **options)
    np.testing.assert_allclose(y, arrays["out.y"], rtol=1e-9, atol=1e-10)
    dx, dweights = qna_block_vjp(arrays["in.x"], weights, arrays["cot.y"], **options)
    np.testing.assert_allclose(dx, arrays["grad.in.x"], rtol=1e-8, atol=1e-10)
    assert set(dweights) == set(weights)
    for key, gradient in dweights.items():
        np.testing.assert_allclose(gradient, arrays[f"grad.w.{key}"], rtol=1e-8, atol=1e-10)


def literal(x: Any, weights: Any, norm: Any = None, **o: Any) -> Any:
    """The layer, head by head, real or complex; a given `norm` is a constant."""
    h, (kh, kw), w = o["heads"], np.broadcast_to(o["window"], 2), weights
    t, F = w["query"].shape
    d, outputs = F // h, []
    keys, values = x @ w["Wk"], x @ w["to_v.kernel"] + w.get("to_v.bias", 0)
    every = []
    for g in range(h):
        q = w["query"][:, g * d : (g + 1) * d]
        if o.get("normalize_queries", True):
            length = np.sqrt((q * q).sum(-1, keepdims=True)) if norm is None else norm[g]
            q = q / (length + 1e-6)
        every.append(q / np.sqrt(d))
    for g in range(h):
        q, gate, bias = every[g], None, None
        kind = o.get("gate", "normal")
        if kind == "normal":
            gate = w["attn_scale_weights"][0, 0, :, g::h].T.reshape(t, kh, kw)
        elif kind == "normal_elementwise":
            gate = w["attn_scale_weights"][0, 0, 0, g::h][:, None, None] * np.ones((t, kh, kw))
        elif kind == "ones":
            gate = w["attn_scale_pos"][0, 0, :, :, g].T.reshape(t, kh, kw)
        elif kind == "avg":
            gate = np.full((t, kh, kw), 1 / t)
        elif kind == "posneg":
            sign = np.where(np.arange(t) * h + g < t * h / 2, 1.0, -1.0)
            gate = sign[:, None, None] * np.ones((t, kh, kw))
        kind = o.get("position", "relative_pos")
        if kind == "relative_pos":
            bias = w["rpe_bias"][:, g::h].T.reshape(t, kh, kw)
            bias = bias / np.sqrt(d) if o.get("scale_rpe_bias") else bias
        elif kind == "absolute_pos":
            table = w["absolute_pos_embedding"][:, :, g * d : (g + 1) * d]
            bias = (table * q).sum(-1).T.reshape(t, kh, kw)
            bias = bias * len(x) if o.get("parity") else bias
        elif kind == "contextual_pos":
            some = [
                sum(every[f][i] @ w["rpe_bias.kernel"][f, :, :, g] for f in range(h))
                + w["rpe_bias.bias"][:, g]
                for i in range(t)
            ]
            bias = np.array(some).reshape(t, kh, kw)
        rest = {name: o[name] for name in ("window", "stride", "padding") if name in o}
        slices = slice(g * d, (g + 1) * d)
        k, v = keys[..., slices], values[..., slices]
        outputs.append(qna(q, k, v, scale=1.0, bias=bias, gate=gate, **rest))
    return np.concatenate(outputs, -1) @ w["to_out.kernel"] + w.get("to_out.bias", 0)


CASES: list[dict[str, Any]] = [
    {"gate": "normal", "normalize_queries": False},
    {"gate": "normal_elementwise", "position": "absolute_pos"},
    {"gate": "ones", "position": "absolute_pos", "parity": True},
    {"gate": "avg", "position": "contextual_pos"},
    {"gate": "posneg", "scale_rpe_bias": True, "detach_query_norm": True},
    {"gate": "none", "position": "none", "window": (2, 3), "stride": (2, 1), "padding": 1},
    {"gate": "normal", "stride": 3, "padding": 0},
    {"gate": "none", "window": (5, 6), "padding": 0},
]


def layer(options: Any, *, biases: bool = True) -> Any:
    """A small image and random weights."""
    rng = np.random.default_rng(0)
    h, t, d, kind = 2, 2, 3, options.get("gate", "normal")
    kh, kw = np.broadcast_to(options.get("window", 3), 2)
    shapes: dict[str, Any] = {"query": (t, 6), "Wk": (4, 6), "to_v.kernel": (4, 6)}
    shapes |= {"to_out.kernel": (6, 5)}
    if biases:
        shapes |= {"Wk_b": (h, d), "to_v.bias": (6,), "to_out.bias": (5,)}
    if kind == "normal":
        shapes["attn_scale_weights"] = (1, 1, kh * kw, t * h)
    if kind == "normal_elementwise":
        shapes["attn_scale_weights"] = (1, 1, 1, t * h)
    if kind == "ones":
        shapes["attn_scale_pos"] = (1, 1, kh * kw, t, h)
    kind = options.get("position", "relative_pos")
    if kind == "relative_pos":
        shapes["rpe_bias"] = (kh * kw, t * h)
    if kind == "absolute_pos":
        shapes["absolute_pos_embedding"] = (kh * kw, t, 6)
    if kind == "contextual_pos":
        shapes |= {"rpe_bias.kernel": (h, d, kh * kw, h), "rpe_bias.bias": (kh * kw, h)}
    weights = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    return rng.standard_normal((2, 5, 6, 4)), weights, {"heads": h, "window": 3, **options}


@pytest.mark.parametrize("options", CASES, ids=str)
def test_every_kind_of_layer(options: Any) -> None:
    x, weights, options = layer(options)
    y = qna_block(x, weights, **options)
    np.testing.assert_allclose(y, literal(x, weights, **options), atol=1e-12)
    dout = np.random.default_rng(1).standard_normal(y.shape)
    dx, dweights = qna_block_vjp(x, weights, dout, **options)
    assert list(dweights) == list(weights) or set(dweights) == set(weights)
    norm = None
    if options.get("detach_query_norm"):
        split = weights["query"].reshape(2, 2, 3)
        norm = np.sqrt((split**2).sum(-1)).T[..., None]
    for name, gradient in {"x": dx, **dweights}.items():
        assert gradient.shape == np.shape({"x": x, **weights}[name])
        rng = np.random.default_rng(2)
        for index in {tuple(rng.integers(gradient.shape)) for _ in range(8)}:
            moved = {key: np.array(a, complex) for key, a in {"x": x, **weights}.items()}
            moved[name][index] += 1e-30j
            image = moved.pop("x")
            want = (dout * literal(image, moved, norm, **options)).sum().imag / 1e-30
            np.testing.assert_allclose(gradient[index], want, rtol=1e-10, atol=1e-11)


def test_a_query_of_zero_has_a_gradient() -> None:
    x, weights, options = layer({})
    weights["query"][0, :3] = 0
    _, dweights = qna_block_vjp(x, weights, np.ones((2, 5, 6, 5)), **options)
    assert np.isfinite(dweights["query"]).all()


def test_float32_and_shared_axes() -> None:
    x, weights, options = layer({}, biases=False)
    half = {name: w.astype(np.float32) for name, w in weights.items()}
    y = qna_block(x.astype(np.float32)[:, None], half, **options)
    assert (y.dtype, y.shape) == (np.float32, (2, 1, 5, 6, 5))
    np.testing.assert_allclose(y[:, 0], qna_block(x, weights, **options), atol=1e-4)


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"heads": 4}, ValueError, "qna_block: heads=4 does not divide the 6 features of query"),
    ({"gate": "mean"}, ValueError, "qna_block: gate='mean', expected 'normal', "),
    ({"position": "sine"}, ValueError, "qna_block: position='sine', expected 'relative_pos', "),
    ({"gate": "avg"}, ValueError, "qna_block: weights hold 'attn_scale_weights', expected none of"),
    ({"window": 5}, ValueError, "qna_block: attn_scale_weights has shape (1, 1, 9, 4), expected "),
    ({"position": "none"}, ValueError, "qna_block: weights hold 'rpe_bias', expected none of that"),
    ({"parity": 1}, TypeError, "qna_block: parity=1 is no bool"),
    ({"stride": 0}, ValueError, "qna: stride=0, expected at least 1"),
]


@pytest.mark.parametrize(("changed", "error", "text"), REFUSED, ids=lambda x: str(x)[:30])
def test_bad_layers_are_refused_in_words(changed: Any, error: Any, text: str) -> None:
    x, weights, options = layer({})
    with pytest.raises(error, match="^" + re.escape(text)):
        qna_block(x, weights, **{**options, **changed})


def test_more_is_refused_in_words() -> None:
    x, weights, options = layer({"gate": "posneg"})
    weights["query"] = np.ones((1, 3))
    with pytest.raises(ValueError, match="gate='posneg' needs an even number of queries and heads"):
        qna_block(x, weights, **{**options, "heads": 1})
    del weights["query"]
    with pytest.raises(ValueError, match="qna_block: weights lack 'query'"):
        qna_block(x, weights, **options)
    x, weights, options = layer({})
    with pytest.raises(
        ValueError, match=r"dout has shape \(2, 5, 5, 5\), expected \(..., 5, 6, 5\)"
    ):
        qna_block_vjp(x, weights, np.ones((2, 5, 5, 5)), **options)
