"""`enla` and `enlca_loss` against their oracles, and what must hold of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nlattn
from nlattn.engines import contrastive, factored
from nlattn.oracle import enla as oracle
from tests import published_runs
from tests.helpers import assert_as_exact_as_numpy

CASES: list[dict[str, Any]] = [{}, {"amplification": None}, {"amplification": 2.0, "eps": 0.0}]
LOSSES: list[dict[str, Any]] = [
    {},
    {"margin": 3.0},
    {"amplification": None, "margin": 2.0},
    {"positives": 3, "negatives": (4, 9)},
]


def arrays(dtype: Any, m: int = 90) -> list[Any]:
    rng = np.random.default_rng(0)
    shapes = (2, 40, 6), (2, m, 6), (2, m, 3), (2, 40, 3), (10, 6)
    made = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    made[1][0, 3] *= 1e-6  # shorter than the floor
    return made


def results(module: Any, inputs: list[Any], options: dict[str, Any]) -> list[Any]:
    q, k, v, dout, projection = inputs
    options = {**options, "projection": projection}
    return [module.enla(q, k, v, **options), *module.enla_vjp(q, k, v, dout, **options)]


def losses(module: Any, inputs: list[Any], options: dict[str, Any]) -> list[Any]:
    q, k, dout = inputs
    return [module.enlca_loss(q, k, **options), *module.enlca_loss_vjp(q, k, dout, **options)]


@pytest.mark.parametrize(("dtype", "wide"), [(np.float32, np.float64), (np.float64, np.longdouble)])
@pytest.mark.parametrize("options", CASES, ids=str)
def test_it_is_as_exact_as_numpy(
    options: dict[str, Any], dtype: Any, wide: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factored, "CHUNK", 32)
    inputs = arrays(dtype)
    exact = results(oracle, [x.astype(wide) for x in inputs], options)
    assert_as_exact_as_numpy(
        results(nlattn, inputs, options), results(oracle, inputs, options), exact
    )


def test_the_published_operator() -> None:
    published_runs.enla(nlattn)


def test_only_directions_matter() -> None:
    q, k, v, _, projection = arrays(np.float64)
    k[0, 3] *= 1e6
    rng = np.random.default_rng(1)
    scaled = [x * rng.uniform(0.1, 10, (*x.shape[:2], 1)) for x in (q, k)]
    got = nlattn.enla(*scaled, v, projection=projection)
    want = nlattn.enla(q, k, v, projection=projection)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)


def test_rows_of_the_projection_may_be_in_any_order() -> None:
    q, k, v, _, projection = arrays(np.float64)
    want = nlattn.enla(q, k, v, projection=projection)
    got = nlattn.enla(q, k, v, projection=projection[::-1])
    np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-14)


def test_equal_features_give_the_mean() -> None:
    q, k, v, _, projection = arrays(np.float64)
    k[0, 3] *= 1e6
    out = nlattn.enla(q, k, v, projection=0 * projection, eps=0.0)
    mean = np.broadcast_to(v.mean(1, keepdims=True), out.shape)
    np.testing.assert_allclose(out, mean, rtol=1e-12)


def test_zero_vectors_and_logits_of_any_size_are_finite() -> None:
    q, k, v, dout, projection = arrays(np.float32)
    q[0, 0], k[1, 2] = 0, 0
    for options in ({}, {"amplification": None}):
        spread = 1 if not options else 1e3
        inputs = [spread * q, spread * k, v, dout, projection]
        assert all(np.isfinite(x).all() for x in results(nlattn, inputs, options))


def test_the_map_is_the_operator() -> None:
    q, k, v, dout, projection = arrays(np.float64)
    one = nlattn.enla_map(q[0], k[0], projection=projection)
    dense = one.to_dense()
    np.testing.assert_allclose(dense.sum(1), 1, rtol=1e-13)
    np.testing.assert_allclose(one @ v[0], nlattn.enla(q[0], k[0], v[0], projection=projection))
    np.testing.assert_allclose(one.T @ dout[0], dense.T @ dout[0], atol=1e-13)


@pytest.mark.parametrize(("dtype", "wide"), [(np.float32, np.float64), (np.float64, np.longdouble)])
@pytest.mark.parametrize("options", LOSSES, ids=str)
def test_the_loss_is_as_exact_as_numpy(
    options: dict[str, Any], dtype: Any, wide: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrastive, "_SCORES", 1 << 10)
    inputs = [*arrays(dtype)[:2], np.array([1.0, -2.0], dtype)]
    exact = losses(oracle, [x.astype(wide) for x in inputs], options)
    assert_as_exact_as_numpy(
        losses(nlattn, inputs, options), losses(oracle, inputs, options), exact
    )


@pytest.mark.parametrize("m", [51, 64, 65, 66, 200])
def test_ranks_are_fixed_counts(m: int) -> None:
    """With 50 < m < 65 keys the negatives are the ranks from 50 to the last."""
    q, k = arrays(np.float64, m)[:2]
    got = nlattn.enlca_loss(q, k, margin=3.0)
    np.testing.assert_allclose(got, oracle.enlca_loss(q, k, margin=3.0), rtol=1e-14)
    order = np.random.default_rng(0).permutation(m)
    np.testing.assert_allclose(nlattn.enlca_loss(q, k[:, order], margin=3.0), got, rtol=1e-14)


def test_the_published_loss() -> None:
    published_runs.enlca_loss(nlattn, "enlca_train_9x8")


def test_ties_at_a_border_go_to_the_lowest_key() -> None:
    q, k = np.ones((1, 1)), np.zeros((7, 1))
    k[3] = 1.0
    options: Any = {"amplification": None, "positives": 2, "negatives": (3, 5), "margin": 9.0}
    _, dk = nlattn.enlca_loss_vjp(q, k, np.array(1.0), **options)
    np.testing.assert_array_equal(dk[:, 0] != 0, [1, 0, 1, 1, 1, 0, 0])
    np.testing.assert_allclose(dk, oracle.enlca_loss_vjp(q, k, np.array(1.0), **options)[1])


def test_scores_are_sorted_as_logits_and_do_not_overflow() -> None:
    q, k, dout = *arrays(np.float32)[:2], np.ones(2, np.float32)
    for spread in (1e4, -1e4):
        got = losses(nlattn, [spread * q, k, dout], {"amplification": None})
        assert all(np.isfinite(x).all() for x in got)


def test_too_few_keys() -> None:
    q, k = arrays(np.float64, 35)[:2]
    with pytest.raises(ValueError, match="enlca_loss: 35 positions, expected at least 51 for the "):
        nlattn.enlca_loss(q, k)
    assert np.isnan(nlattn.enlca_loss(q, k, parity=True)).all()
    for gradient in nlattn.enlca_loss_vjp(q, k, np.ones(2), parity=True):
        assert np.isnan(gradient).all()
    assert np.isnan(nlattn.enlca_loss_jvp(q, k, q, k, parity=True)).all()


def test_bad_options_are_refused_in_words() -> None:
    q, k, v, _, projection = arrays(np.float64)
    for options, text in (
        ({"amplification": 0.0}, "enla: amplification=0.0, expected a positive number"),
        ({"floor": -1.0}, "enla: floor=-1.0, expected a positive number"),
        ({"eps": -1.0}, "enla: eps=-1.0, expected at least 0"),
    ):
        with pytest.raises(ValueError, match=text):
            nlattn.enla(q, k, v, projection=projection, **options)
    for options, error, text in (
        ({"positives": 0}, ValueError, "positives=0, expected at least 1"),
        ({"negatives": (5, 9)}, ValueError, r"negatives\[0\]=5, expected at least 15"),
        ({"negatives": (50, 50)}, ValueError, r"negatives\[1\]=50, expected at least 51"),
        ({"negatives": 50}, TypeError, "negatives=50, expected two ranks"),
        ({"eps": -1.0}, ValueError, "eps=-1.0, expected at least 0"),
    ):
        with pytest.raises(error, match="enlca_loss: " + text):
            nlattn.enlca_loss(q, k, **options)
    with pytest.raises(ValueError, match="enlca_loss: q has 0 rows"):
        nlattn.enlca_loss(q[:, :0], k)


def test_without_keys_there_is_nothing() -> None:
    q, k, w = np.ones((4, 3)), np.empty((0, 3)), np.ones((6, 3))
    np.testing.assert_array_equal(nlattn.enla(q, k, k, projection=w), np.zeros((4, 3)))
    dq, dk, dv = nlattn.enla_vjp(q, k, k, np.ones((4, 3)), projection=w)
    np.testing.assert_array_equal(dq, np.zeros((4, 3)))
    assert dk.shape == dv.shape == (0, 3)
