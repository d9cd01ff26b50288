"""The oracle of FAVOR+: numbers worked by hand, invariants, published vectors, gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlattn.oracle import favor as oracle
from tests import published_runs
from tests.helpers import assert_gradients, published

P = np.array([[1.0, 0.0], [0.0, 2.0]])


def test_features_by_hand() -> None:
    """``t = P x - |x|^2 / 2`` with x = (1, 1): -0 and 1."""
    x = np.ones((1, 2))
    plain: Any = {"scale": 1.0, "eps": 0.5}
    root = np.sqrt(2.0)
    got = oracle.positive_features(x, P, stabilizer="none", **plain)
    np.testing.assert_allclose(got, [[1.5 / root, (np.e + 0.5) / root]])
    got = oracle.positive_features(x, P, stabilizer="max", **plain)
    np.testing.assert_allclose(got, [[(np.exp(-2) + 0.5) / root, (np.exp(-1) + 0.5) / root]])
    got = oracle.positive_features(x, P, stabilizer="neutral", **plain)
    np.testing.assert_allclose(got, [[1.5 / np.e / root, (1 + 0.5 / np.e) / root]])


def test_the_maximum_is_per_query_but_joint_over_keys() -> None:
    x = np.array([[1.0, 0.0], [3.0, 0.0]])
    options: Any = {"scale": 1.0, "eps": 0.0, "stabilizer": "max"}
    rows = oracle.positive_features(x, P, **options)[:, 0] * np.sqrt(2)
    np.testing.assert_allclose(rows, np.exp([-0.5, -4.5]))
    joint = oracle.positive_features(x, P, role="key", **options)[:, 0] * np.sqrt(2)
    np.testing.assert_allclose(joint, np.exp([1 - 0.5 - 3, 3 - 4.5 - 3]))


def test_relu_by_hand() -> None:
    x = np.array([[2.0, -1.0]])
    np.testing.assert_allclose(oracle.relu_features(x, P, scale=1.0), [[2.001, 0.001]])


def test_causal_sums_by_hand() -> None:
    """One constant feature: running means, with 1e-6 in the denominator."""
    x, v = np.zeros((3, 2)), np.array([[3.0], [5.0], [10.0]])
    options: Any = {"projection": P[:1], "causal": True, "eps": 0.0, "denominator_eps": 0.5}
    out = oracle.favor_attention(x, x, v, **options)
    np.testing.assert_allclose(out, [[3 / 1.5], [8 / 2.5], [18 / 3.5]])


CASES: list[dict[str, Any]] = [
    {},
    {"stabilizer": "neutral"},
    {"stabilizer": "none", "eps": 0.01},
    {"stabilizer": "neutral", "eps": 0.0, "scale": 0.3},
    {"kernel": "relu"},
    {"kernel": "none"},
    {"causal": True},
    {"causal": True, "stabilizer": "max"},
    {"causal": True, "kernel": "relu"},
    {"causal": True, "kernel": "none"},
]


def arguments(options: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    rng = np.random.default_rng(1)
    m = 4 if options.get("causal") else 5
    q, k, v = (rng.standard_normal((2, *shape)) for shape in ((4, 3), (m, 3), (m, 2)))
    projection = None if options.get("kernel") == "none" else rng.standard_normal((5, 3))
    return [q, k, v], {**options, "projection": projection}


@pytest.mark.parametrize("options", CASES, ids=str)
def test_gradients_agree_with_the_complex_step(options: dict[str, Any]) -> None:
    inputs, options = arguments(options)
    dout = np.random.default_rng(2).standard_normal((2, 4, 2))
    got = oracle.favor_attention_vjp(*inputs, dout, **options)
    assert_gradients(got, lambda *x: (dout * oracle.favor_attention(*x, **options)).sum(), inputs)


@pytest.mark.parametrize("name", ["favor_softmax_2heads", "favor_softmax_cross_n_ne_m"])
def test_published_modules(name: str) -> None:
    data, _ = published(name)
    inputs = [data[f"in.{x}"] for x in "qk"]
    phi_q, phi_k = oracle.features(*inputs, projection=data["w.projection_matrix"])
    np.testing.assert_allclose(phi_q, data["aux.phi_q"], rtol=1e-9)
    np.testing.assert_allclose(phi_k, data["aux.phi_k"], rtol=1e-9)
    published_runs.favor(oracle, name)


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_of_shared_keys_are_sums_over_heads(causal: bool) -> None:
    rng = np.random.default_rng(8)
    q, dout = rng.standard_normal((2, 3, 6, 5)), rng.standard_normal((2, 3, 6, 4))
    k, v, P = rng.standard_normal((6, 5)), rng.standard_normal((6, 4)), rng.standard_normal((7, 5))
    options = {"projection": P, "causal": causal}
    shared = oracle.favor_attention_vjp(q, k, v, dout, **options)
    each = oracle.favor_attention_vjp(
        q, *(np.tile(x, (2, 3, 1, 1)) for x in (k, v)), dout, **options
    )
    for x, y in zip(shared, each, strict=True):
        np.testing.assert_allclose(x, y if x.ndim == y.ndim else y.sum((0, 1)), rtol=1e-12)
