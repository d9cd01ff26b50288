"""`leverage_scores` against its oracle: every method, shape, rank and scale; and known mistakes."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import nlattn
from nlattn.oracle import leverage as oracle

METHODS = ["qr", "svd", "gram"]
PLANE = np.arange(1.0, 13).reshape(4, 3)
U = 2.0**-53


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


def conditioned(n: int, d: int, kappa: float, seed: int = 0) -> Any:
    """Keys with singular values from 1 to 1 / kappa, their directions at random."""
    u, v = np.linalg.qr(normal(n, d, seed=seed))[0], np.linalg.qr(normal(d, d, seed=seed + 1))[0]
    return (u * np.geomspace(1, 1 / kappa, d)) @ v


@pytest.mark.filterwarnings("ignore:leverage_scores")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(800, 2, 17), (100, 1, 60), (40, 3, 90)])
def test_few_keys_of_many_channels_have_score_one(shape: tuple[int, ...], method: str) -> None:
    """What their reflections leave shrinks by a rounding each time, until squares are 0."""
    scores = nlattn.leverage_scores(normal(*shape), method=method)
    np.testing.assert_allclose(scores, 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_it_is_as_exact_as_numpy(method: str) -> None:
    """Error at most twice that of a plain way in float64, plus one spacing.

    Plain are the oracle's transcription and, of singular vectors, those of NumPy: as ours they are
    LAPACK's, whose sums differ between processors, and the oracle turns columns by hand.
    """
    errors = []
    for seed in range(4):
        k = normal(2, 60, 5, seed=seed)
        exact = oracle.leverage_scores(k.astype(np.longdouble), method="svd")
        got, plain = (x.leverage_scores(k, method=method) for x in (nlattn, oracle))
        if method == "svd":
            plain = (np.linalg.svd(k, full_matrices=False)[0] ** 2).sum(-1)
        assert got.dtype == np.float64
        errors.append([got - exact, plain - exact])
    mine, theirs = np.sqrt((np.array(errors) ** 2).mean((0, 2, 3)))
    assert mine <= 2 * theirs + np.spacing(exact.max().astype(float))


@pytest.mark.parametrize("kappa", [1e2, 1e4, 1e6, 1e8])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore:leverage_scores. method='gram' cannot tell")
def test_the_error_grows_with_the_condition_number(method: str, kappa: float) -> None:
    k = conditioned(150, 6, kappa)
    want = oracle.leverage_scores(k.astype(np.longdouble), method="svd")
    growth = kappa**2 if method == "gram" else kappa
    error = np.abs(nlattn.leverage_scores(k, method=method) - want).max()
    assert error <= 6 * U * growth


def test_float32_keys_are_taken_as_they_are_and_computed_in_float64() -> None:
    k = conditioned(150, 6, 1e4).astype(np.float32)
    for method in METHODS:
        got = nlattn.leverage_scores(k, method=method)
        assert got.dtype == np.float64
        np.testing.assert_array_equal(got, nlattn.leverage_scores(k.astype(float), method=method))


@given(
    n=st.integers(0, 40),
    d=st.integers(1, 9),
    rank=st.integers(0, 9),
    method=st.sampled_from(METHODS),
    seed=st.integers(0, 99),
)
@pytest.mark.filterwarnings("ignore:leverage_scores")
def test_any_small_shape_and_rank(n: int, d: int, rank: int, method: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    k = rng.integers(-3, 4, (n, rank)).astype(float) @ rng.integers(-3, 4, (rank, d)).astype(float)
    want, known = oracle.leverage_scores(k, return_rank=True)
    rounding = 4 * max(n, d) * U
    assume(known == oracle.leverage_scores(k, rcond=rounding, return_rank=True)[1])
    got, r = nlattn.leverage_scores(k, method=method, return_rank=True)
    assert r == known
    values = np.linalg.svd(k, compute_uv=False)
    kappa = values[0] / values[known - 1] if known else 1.0
    # 12,000 drawn matrices, all methods: up to 28 times this for a score, 13 for the sum of r
    growth = U * (kappa**2 if method == "gram" else kappa)
    np.testing.assert_allclose(got, want, rtol=0, atol=64 * growth)
    np.testing.assert_allclose(got.sum(), r, rtol=64 * growth)
    assert ((got >= 0) & (got <= 1)).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "d"), [(700, 5), (129, 20), (1025, 33)])
def test_several_blocks_parts_and_panels(n: int, d: int, method: str) -> None:
    k = normal(n, d)
    want = np.diag(k @ np.linalg.pinv(k))
    np.testing.assert_allclose(nlattn.leverage_scores(k, method=method), want, atol=1e-13)


def test_leading_axes_are_heads() -> None:
    k = normal(2, 3, 20, 4)
    k[1, 2, :, 3] = k[1, 2, :, 0]
    scores, ranks = nlattn.leverage_scores(k, return_rank=True)
    assert scores.shape == (2, 3, 20)
    assert ranks.tolist() == [[4, 4, 4], [4, 4, 3]]
    np.testing.assert_array_equal(scores[1, 1], nlattn.leverage_scores(k[1, 1]))
    assert nlattn.leverage_scores(k[:0]).shape == (0, 3, 20)


@pytest.mark.parametrize("method", METHODS)
def test_power_of_two_scales_change_no_bit(method: str) -> None:
    """No jitter and no cut-off is absolute."""
    k = normal(50, 4)
    want = nlattn.leverage_scores(k, method=method)
    for power in (-1000, -20, 20, 1000):
        np.testing.assert_array_equal(nlattn.leverage_scores(k * 2.0**power, method=method), want)
    skewed = nlattn.leverage_scores(k * np.array([2.0**300, 1, 2.0**-300, 1]), method=method)
    np.testing.assert_array_equal(skewed, want)


@pytest.mark.parametrize("method", METHODS)
def test_order_and_sign_of_keys_do_not_matter(method: str) -> None:
    k, order = normal(50, 4), np.random.default_rng(1).permutation(50)
    want = nlattn.leverage_scores(k, method=method)
    got = nlattn.leverage_scores((k * np.sign(normal(50, 1)))[order], method=method)
    np.testing.assert_allclose(got, want[order], rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_zero_keys_score_nothing(method: str) -> None:
    scores, rank = nlattn.leverage_scores(np.zeros((5, 3)), method=method, return_rank=True)
    assert rank == 0
    np.testing.assert_array_equal(scores, 0)
    k = normal(9, 3)
    k[4] = 0
    assert nlattn.leverage_scores(k, method=method)[4] == 0


def test_one_huge_key_is_all_that_can_be_told() -> None:
    k = normal(50, 4)
    k[7] = 1e30 * normal(4, seed=1)
    scores, rank = nlattn.leverage_scores(k, return_rank=True)
    assert rank == 1
    np.testing.assert_allclose(scores, np.eye(50)[7], atol=1e-12)


def test_the_limit_of_rank_can_be_set() -> None:
    k = (normal(60, 3) @ normal(3, 5, seed=1)).astype(np.float32)
    assert nlattn.leverage_scores(k, return_rank=True)[1] == 5  # rounding noise counts
    for method in METHODS:
        scores, rank = nlattn.leverage_scores(k, method=method, rcond=1e-5, return_rank=True)
        assert rank == 3
        np.testing.assert_allclose(scores.sum(), 3, rtol=1e-5)


def test_gram_says_when_it_cannot_tell_the_rank() -> None:
    k = normal(60, 3) @ normal(3, 5, seed=1)
    text = "leverage_scores: method='gram' cannot tell the rank, method='qr' was used"
    with pytest.warns(RuntimeWarning, match=re.escape(text)):
        got = nlattn.leverage_scores(k, method="gram")
    np.testing.assert_array_equal(got, nlattn.leverage_scores(k))


def test_independent_keys_are_reported() -> None:
    text = (
        "leverage_scores: 3 independent keys in 4 channels have score 1 each: scores tell nothing"
    )
    with pytest.warns(RuntimeWarning, match=f"^{text}$"):
        scores = nlattn.leverage_scores(normal(3, 4))
    np.testing.assert_allclose(scores, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nlattn.leverage_scores(np.ones((3, 4)))


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"method": "lu"}, ValueError, "method='lu', expected 'qr', 'svd' or 'gram'"),
    ({"rcond": -1.0}, ValueError, "rcond=-1, expected from 0 to less than 1 with method='qr'"),
    ({"rcond": 1}, ValueError, "rcond=1, expected from 0 to less than 1 with method='qr'"),
    (
        {"rcond": 1e-9, "method": "gram"},
        ValueError,
        "rcond=1e-09, expected from 1.05e-08 to less than 1 with method='gram'; "
        "use method='qr' for smaller ones",
    ),
    ({"rcond": "small"}, TypeError, "rcond='small' is no number"),
]


@pytest.mark.parametrize(("options", "error", "text"), BAD)
def test_bad_options_are_refused(options: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=f"^leverage_scores: {re.escape(text)}$"):
        nlattn.leverage_scores(normal(5, 3), **options)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_finite_spoils_its_own_head(method: str, value: float) -> None:
    k = normal(2, 9, 3)
    k[0, 2, 1] = value
    scores, rank = nlattn.leverage_scores(k, method=method, nonfinite="propagate", return_rank=True)
    assert np.isnan(scores[0]).all()
    assert rank.tolist() == [0, 3]
    np.testing.assert_array_equal(scores[1], nlattn.leverage_scores(k[1], method=method))


@pytest.mark.parametrize("method", METHODS)
def test_unpivoted_factors_would_be_wrong(method: str) -> None:
    """A published test expects .998, .779, .364, .859 here, from the first three columns of a Q."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores, rank = nlattn.leverage_scores(PLANE, method=method, return_rank=True)
    assert rank == 2
    np.testing.assert_allclose(scores, [0.7, 0.3, 0.3, 0.7], rtol=1e-12)


@pytest.mark.parametrize("method", ["qr", "svd"])
def test_six_of_ten_dimensions_sum_to_six(method: str) -> None:
    """Unpivoted QR sums to ten, and a cut of 1e-10 on the Gram matrix reports rank ten."""
    k = normal(500, 6) @ normal(6, 10, seed=1)
    for size in (1e-6, 1.0, 1e6):
        scores, rank = nlattn.leverage_scores(size * k, method=method, return_rank=True)
        assert rank == 6
        np.testing.assert_allclose(scores.sum(), 6, rtol=1e-12)


def test_it_is_not_the_norm() -> None:
    """Norms, also of keys times a square orthogonal matrix, are blind to the other keys."""
    k = normal(1000, 8) * np.geomspace(10, 0.01, 8)
    scores, norms = nlattn.leverage_scores(k), (k**2).sum(1)
    best = [set(np.argsort(-x, kind="stable")[:50].tolist()) for x in (scores, norms)]
    assert len(best[0] & best[1]) < 30
    turned = k @ np.linalg.qr(normal(8, 8, seed=1))[0]
    np.testing.assert_allclose(nlattn.leverage_scores(turned), scores, rtol=1e-9)
    np.testing.assert_allclose((turned**2).sum(1), norms)


def test_keys_are_not_centred_and_no_ridge_is_added() -> None:
    """An absolute ridge of 1e-2 makes small keys sum to 6.6 instead of 8."""
    k = 0.01 * normal(500, 8)
    np.testing.assert_allclose(nlattn.leverage_scores(k).sum(), 8, rtol=1e-13)
    moved = nlattn.leverage_scores(k + 1)
    assert np.abs(moved - nlattn.leverage_scores(k)).max() > 1e-4


MATRICES = {"countsketch": oracle.countsketch_matrix, "srht": oracle.hadamard_matrix}


@pytest.mark.parametrize("sketch", MATRICES)
def test_sketched_scores_are_their_oracle(sketch: str) -> None:
    k = np.stack([normal(50, 3), normal(50, 3, seed=1) * np.array([1e9, 1, 1e-9])])
    got = nlattn.approximate_leverage_scores(k, sketch=sketch, rows=20, directions=0, seed=4)
    for b in range(2):
        want = oracle.sketched_leverage_scores(
            k[b] / abs(k[b]).max(0), MATRICES[sketch](50, 20, 4 ^ b)
        )
        np.testing.assert_allclose(got[b], want, rtol=1e-9)


@pytest.mark.jit
@pytest.mark.parametrize("sketch", MATRICES)
def test_the_promise_holds_as_often_as_it_says(sketch: str) -> None:
    """Of 40 seeds at most the promised tenth fails; it is in truth far fewer."""
    k = normal(3000, 2) * np.random.default_rng(1).pareto(2, (3000, 1))
    tau = nlattn.leverage_scores(k)
    failed = 0
    for seed in range(40):
        near = nlattn.approximate_leverage_scores(
            k, delta=0.9, failure=0.1, sketch=sketch, seed=seed
        )
        failed += bool((np.abs(near - tau) > 0.9 * tau).any())
    assert failed <= 4


def test_directions_measure_lengths() -> None:
    k = normal(200, 24)
    tau = nlattn.leverage_scores(k)
    near = nlattn.approximate_leverage_scores(k, directions=16, seed=1)
    ratio = near / tau
    assert abs(ratio.mean() - 1) < 0.1
    assert 0.2 < ratio.std() < 0.5  # sqrt(2 / 16) = .35
    assert (near != nlattn.approximate_leverage_scores(k, directions=16, seed=2)).all()


def test_few_keys_and_channels_are_not_sketched() -> None:
    k = normal(40, 5)
    got = nlattn.approximate_leverage_scores(k)
    np.testing.assert_allclose(got, nlattn.leverage_scores(k), rtol=1e-13)


def test_a_sketch_is_a_filter() -> None:
    """Heavy keys pass at (1 - delta) eps; rescaling to the rank first could lose one."""
    k = normal(3000, 2) * np.random.default_rng(1).pareto(2, (3000, 1))
    heavy = np.flatnonzero(nlattn.leverage_scores(k) >= 0.02)
    near = nlattn.approximate_leverage_scores(k, delta=0.6, rows=1000, seed=3)
    passed = np.flatnonzero(near >= 0.4 * 0.02)
    assert set(heavy) <= set(passed)
    assert 0 < len(heavy) <= len(passed) < 200


def test_rank_survives_a_sketch() -> None:
    k = normal(3000, 2) @ normal(2, 4, seed=1)
    for sketch in MATRICES:
        near = nlattn.approximate_leverage_scores(k, sketch=sketch, rows=200, directions=0)
        np.testing.assert_allclose(near.sum(), 2, rtol=0.5)
    spoilt = np.stack([k, k])
    spoilt[0, 0, 0] = np.nan
    near = nlattn.approximate_leverage_scores(spoilt, rows=200, nonfinite="propagate")
    assert np.isnan(near[0]).all()
    assert not np.isnan(near[1]).any()


SKETCH: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"delta": 1.0}, ValueError, "delta=1, expected less than 1"),
    ({"failure": 0}, ValueError, "failure=0.0, expected a positive number"),
    ({"sketch": "fjlt"}, ValueError, "sketch='fjlt', expected 'countsketch' or 'srht'"),
    ({"rows": 0}, ValueError, "rows=0, expected at least 1"),
    ({"directions": -1}, ValueError, "directions=-1, expected at least 0"),
    (
        {"sketch": "srht", "rows": 4, "max_bytes": 100},
        MemoryError,
        "needs 768 B (two of 16 x 3 float64), above max_bytes=100 B; "
        "use sketch='countsketch', which takes keys in blocks",
    ),
]


@pytest.mark.parametrize(("options", "error", "text"), SKETCH)
def test_bad_options_of_a_sketch_are_refused(options: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=f"^approximate_leverage_scores: {re.escape(text)}$"):
        nlattn.approximate_leverage_scores(normal(9, 3), **options)
