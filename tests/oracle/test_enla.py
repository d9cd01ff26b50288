"""The oracle of ENLA and of its contrastive loss: numbers by hand, published vectors, gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlattn.oracle import enla as oracle
from tests import published_runs
from tests.helpers import assert_gradients, published

SMALL: Any = {"positives": 2, "negatives": (3, 5)}


def test_amplified_unit_vectors_by_hand() -> None:
    x = np.array([[3.0, 4.0], [0.0, 0.0], [3e-6, 4e-6]])
    got = oracle.amplify(x, 4.0, 5e-5)
    np.testing.assert_allclose(got, [[1.2, 1.6], [0, 0], [0.12, 0.16]])


def test_equal_features_give_the_mean() -> None:
    v = np.array([[1.0], [5.0]])
    x = np.array([[1.0, 2.0], [3.0, -1.0]])
    out = oracle.enla(x, x, v, projection=np.zeros((3, 2)), eps=0.0)
    np.testing.assert_allclose(out, [[3], [3]])


def test_the_loss_by_hand() -> None:
    """Logits log 4, log 2 and log 1: best over last is 4."""
    q, k = np.array([[1.0]]), np.log([[1.0], [4.0], [2.0]])
    options: Any = {"amplification": None, "positives": 1, "negatives": (2, 5), "eps": 0.0}
    loss = oracle.enlca_loss(q, k, margin=2.0, **options)
    np.testing.assert_allclose(loss, 2 - np.log(4))
    assert oracle.enlca_loss(q, k, margin=1.0, **options) == 0


@pytest.mark.parametrize("amplification", [6.0, None])
def test_gradients_agree_with_the_complex_step(amplification: float | None) -> None:
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((2, *shape)) for shape in ((4, 3), (5, 3), (5, 2)))
    k[0, 0] = 1e-5, 0, 2e-5  # below the floor
    dout, projection = rng.standard_normal((2, 4, 2)), rng.standard_normal((6, 3))
    options: Any = {"projection": projection, "amplification": amplification}
    got = oracle.enla_vjp(q, k, v, dout, **options)
    # a short vector's gradient is 1/floor times larger, and its rounding with it
    assert_gradients(got, lambda *x: (dout * oracle.enla(*x, **options)).sum(), [q, k, v], 1e-14)


@pytest.mark.parametrize("amplification", [6.0, None])
def test_gradients_of_the_loss_agree_with_the_complex_step(amplification: float | None) -> None:
    rng = np.random.default_rng(2)
    q, k, dout = rng.standard_normal((2, 5, 3)), rng.standard_normal((2, 6, 3)), np.array([1, -2.0])
    options: Any = {"amplification": amplification, **SMALL, "margin": 4.0}
    got = oracle.enlca_loss_vjp(q, k, dout, **options)
    assert any(g.any() for g in got)
    assert_gradients(got, lambda *x: (dout * oracle.enlca_loss(*x, **options)).sum(), [q, k])


def test_the_published_operator() -> None:
    published_runs.enla(oracle)


@pytest.mark.parametrize("name", ["enlca_eval_7x9", "enlca_train_9x8"])
def test_published_modules(name: str) -> None:
    """``y = x + 0.1 enla`` between 1x1 convolutions."""
    data, _ = published(name)
    q, k, v = published_runs.projected(data, published_runs.ENLCA)
    out = oracle.enla(q, k, v, projection=data["w.attn_fn.projection_matrix"])
    x = data["in.x"].reshape(*data["in.x"].shape[:2], -1)
    published_runs.assert_output(data, x.swapaxes(1, 2) + 0.1 * out)


def test_the_published_loss() -> None:
    published_runs.enlca_loss(oracle, "enlca_train_9x8")
