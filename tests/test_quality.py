"""`compare`: figures worked by hand, the identities of restricted attention, honest intervals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlattn import quality
from nlattn._types import Work
from nlattn.engines.estimates import proportion
from nlattn.maps.base import AttentionMap
from nlattn.quality import compare, sample


class Given(AttentionMap):
    """A map of given weights and scores."""

    kind = "given"

    def __init__(self, weights: Any, scores: Any = None):
        self.weights = np.asarray(weights, float)
        with np.errstate(divide="ignore"):
            self.values = np.log(self.weights) if scores is None else np.asarray(scores, float)
        super().__init__(float, np.zeros(len(self.weights)), self.weights.shape[1], Work(0, 0, 0))

    def _rows(self, index):
        return self.weights[index]

    def _scores(self, index):
        return self.values[index]

    def _apply(self, x): ...
    def _apply_adjoint(self, x): ...
    def _topk(self, k): ...
    def state(self): ...

    nbytes = 0

    @classmethod
    def from_state(cls, state): ...


def softmax(scores: Any) -> Any:
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def restricted(scores: Any, support: Any) -> Given:
    inside = np.where(support, scores, -np.inf)
    return Given(softmax(inside), inside)


def test_figures_worked_by_hand():
    exact = np.array([[0.5, 0.25, 0.25, 0.0], [0.1, 0.2, 0.3, 0.4]])
    other = np.array([[2 / 3, 1 / 3, 0, 0], [0, 1, 0, 0]])
    v = np.array([[1.0], [0], [0], [2]])
    r = compare(Given(other), exact, v, k=2)
    assert (r.rows, r.of, r.k, r.support) == (2, 2, 2, 1.5)
    assert r.recall == (0.5, 0.0, 0.5, 0.5)
    # row 0: {0, one of the tied 1 and 2}: both found; row 1: {3, 2}: none found.
    assert r.recall_k.value == 0.5
    # deviation of log(.1 .2 .3 .4), population
    deviation = np.log([0.1, 0.2, 0.3, 0.4]).std()
    assert r.gap.value == pytest.approx((0 + math.log(2) / deviation) / 2)
    assert r.gap_p95 == pytest.approx(math.log(2) / deviation)
    assert r.mass.value == pytest.approx((0.75 + 0.2) / 2)
    assert r.mass_p5 == pytest.approx(0.2)
    assert r.mass_best == pytest.approx((0.75 + 0.4) / 2)
    assert r.mass_random == pytest.approx((2 / 3 + 1 / 4) / 2)
    assert r.tv.value == pytest.approx((0.25 + 0.8) / 2)
    assert r.kl.value == pytest.approx((-math.log(0.75) - math.log(0.2)) / 2)
    assert r.effective == pytest.approx((1 / 0.375 + 1 / 0.3) / 2)
    # outputs: exact .5 and .9, other 2/3 and 0
    assert r.output is not None
    assert r.output.value == pytest.approx(math.sqrt((1 / 36 + 0.81) / (0.25 + 0.81)))
    assert r.output_max == pytest.approx(0.9)
    assert r.flat


def test_a_map_equals_itself():
    scores = np.random.default_rng(0).standard_normal((6, 9))
    A = Given(softmax(scores), scores)
    r = compare(A, A, np.ones((9, 2)), k=9)
    assert r.recall.value == r.recall_k.value == 1
    assert r.mass.value == pytest.approx(1)
    assert r.gap.value == r.tv.value == r.output_max == 0
    assert r.kl.value == pytest.approx(0, abs=1e-15)
    assert r.output == (0, 0, 0, 0)


@given(st.integers(0, 2**32), st.integers(1, 7), st.floats(0.01, 8))
def test_identities_of_a_restricted_row(seed: int, kept: int, spread: float):
    rng = np.random.default_rng(seed)
    scores = spread * rng.standard_normal((3, 8))
    support = rng.random((3, 8)).argsort(1) < kept
    A, exact = restricted(scores, support), softmax(scores)
    r = compare(A, Given(exact, scores), k=3)
    captured = (exact * support).sum(1)
    assert r.tv.value == pytest.approx(1 - captured.mean(), abs=1e-14)
    assert r.mass.value == pytest.approx(captured.mean(), rel=1e-13)
    assert r.kl.value == pytest.approx(-np.log(captured).mean(), rel=1e-10, abs=1e-13)
    assert r.mass_p5 <= r.mass.value <= r.mass_best + 1e-15
    best = np.argsort(-scores, 1)[:, :3]
    assert r.recall_k.value == pytest.approx(np.take_along_axis(support, best, 1).mean())


def test_ties_count_as_found():
    scores = np.array([[1.0, 3, 3, 0], [2, 2, 2, 2]])
    support = np.array([[False, False, True, True], [True, False, False, False]])
    r = compare(restricted(scores, support), Given(softmax(scores), scores), k=1)
    assert r.recall.value == r.recall_k.value == 1
    assert r.gap.value == 0


def test_rows_without_attention_are_left_out_and_lost_rows_count():
    exact = np.array([[0.0, 0], [0.5, 0.5], [1, 0]])
    other = np.array([[0.0, 0], [0, 0], [1, 0]])
    r = compare(Given(other), exact, k=1)
    assert (r.rows, r.of) == (2, 3)
    assert r.recall == (0.5, 0, 0.5, 0.5)
    assert r.mass.value == 0.5
    assert r.kl == (math.inf, math.inf, 0, math.inf)
    assert r.output is None
    with pytest.raises(ValueError, match="attends to nothing"):
        compare(Given(other[:1]), exact[:1], k=1)


def test_fewer_keys_than_best_ones_asked_for():
    scores = np.array([[1.0, 2, -np.inf, -np.inf]])
    support = np.array([[True, False, False, False]])
    assert (
        compare(restricted(scores, support), Given(softmax(scores), scores), k=3).recall_k[0] == 0.5
    )


def test_underflowed_weights_keep_their_divergence():
    scores = np.array([[0.0, -2000.0]])
    A = restricted(scores, np.array([[False, True]]))
    r = compare(A, Given(softmax(scores), scores), k=1)
    assert r.kl.value == pytest.approx(2000)
    assert r.mass.value == 0
    assert not r.flat


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(5)
    scores = 2 * rng.standard_normal((240, 12))
    near = scores + 0.5 * rng.standard_normal(scores.shape)
    support = near.argsort(1) >= 9
    A, B = restricted(scores, support), Given(softmax(scores), scores)
    v = rng.standard_normal((12, 3))
    truth = compare(A, B, v, rows=240, k=4)
    held = np.zeros(6)
    errors = []
    for seed in range(100):
        r = compare(A, B, v, rows=60, seed=seed, k=4)
        assert r.rows == 60
        assert r.output is not None
        for i, name in enumerate(("recall", "recall_k", "gap", "mass", "tv", "output")):
            e = getattr(r, name)
            held[i] += e.low <= getattr(truth, name).value <= e.high
        errors.append((r.mass.value, r.mass.error, r.output.value, r.output.error))
    assert held.min() >= 86  # of 95 expected: 4 standard deviations
    values = np.array(errors)
    assert values[:, 0].std() == pytest.approx(values[:, 1].mean(), rel=0.3)
    assert values[:, 2].std() == pytest.approx(values[:, 3].mean(), rel=0.3)


def test_wilson_by_hand():
    # 8 of 10 drawn from so many that the correction is nil: (.4902, .9433), Wilson 1927
    e = proportion(np.array([1.0] * 8 + [0] * 2), 10**9)
    assert (e.low, e.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert proportion(np.ones(4), 4) == (1, 0, 1, 1)


def test_one_row_says_that_it_knows_little():
    scores = np.random.default_rng(1).standard_normal((5, 4))
    r = compare(Given(softmax(scores), scores), softmax(scores) ** 1, np.eye(4), rows=1, k=1)
    assert r.mass.error == r.output.error == math.inf
    assert r.recall.low < 0.3


def test_rows_may_be_chosen():
    scores = np.random.default_rng(0).standard_normal((9, 5))
    A, B = Given(softmax(scores), scores), softmax(scores + 0.1)
    r = compare(A, B, rows=np.array([7, 2]), k=1)
    assert (r.rows, r.of) == (2, 9)
    drawn = compare(A, B, rows=2, k=1, seed=1)
    assert compare(A, B, rows=sample(9, 2, 1), k=1) == drawn
    for wrong in (np.array([1, 1]), np.array([9]), np.array([-1])):
        with pytest.raises(ValueError, match="compare: rows holds doubles or leaves 0 to 8"):
            compare(A, B, rows=wrong)
    assert compare(A, B, rows=[7, 2], k=1) == r
    with pytest.raises(TypeError, match="rows has dtype float64, expected integers"):
        compare(A, B, rows=np.array([1.0]))


def test_rows_are_drawn_by_hash():
    known = [0x78AE5A9A6B5FD45E, 0x2D6527BA78AF243F]
    assert quality._keys(0, 2).tolist() == known
    assert np.array_equal(sample(5, 9, 0), np.arange(5))
    a, b = sample(1000, 50, 0), sample(1000, 50, 1)
    assert len(set(a)) == 50
    assert (np.diff(a) > 0).all()
    assert not np.array_equal(a, b)
    assert np.array_equal(a, sample(1000, 50, 0))
    assert set(sample(1000, 20, 0)) <= set(a)


def test_outputs_of_nothing():
    zero = np.zeros((4, 2))
    A = Given(np.eye(4))
    assert compare(A, np.eye(4), zero, k=1).output == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"B": np.ones((2, 3))}, r"compare: B has shape \(2, 3\), expected \(3, 3\) from A"),
        ({"v": np.ones(3)}, r"compare: v has shape \(3,\), expected \(m, e\) with m=3 from A"),
        ({"v": np.ones((2, 1))}, r"compare: v has shape \(2, 1\), expected"),
        ({"B": Given(np.eye(2, 3)), "A": Given(np.eye(3, 2))}, r"from A; its rows are keys"),
        ({"v": np.ones((2, 1)), "A": Given(np.eye(2, 3)), "B": np.eye(2, 3)}, "rows are queries"),
        ({"rows": 0}, "compare: rows=0, expected at least 1"),
        ({"k": 0}, "compare: k=0, expected at least 1"),
        ({"seed": -1}, "compare: seed=-1, expected at least 0"),
        ({"B": np.full((3, 3), np.nan)}, "compare: B holds weights that are negative or not fin"),
        ({"B": -np.eye(3)}, "compare: B holds weights that are negative"),
        (
            {"A": Given(np.zeros((0, 3))), "B": np.zeros((0, 3))},
            r"A has shape \(0, 3\), expected so",
        ),
        (
            {"A": Given(np.zeros((3, 0))), "B": np.zeros((3, 0))},
            r"A has shape \(3, 0\), expected so",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, text: str):
    arguments = {"A": Given(np.eye(3)), "B": np.eye(3), "v": None, "rows": 3, "k": 1, **change}
    with pytest.raises(ValueError, match=text):
        compare(**arguments)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"B": None}, r"compare: B has shape \(\)"),
        ({"B": np.ma.masked_less(np.eye(3), 1)}, "compare: B is a masked array"),
        ({"B": np.eye(3, dtype=int)}, r"compare: B has dtype int64, .*convert it"),
        ({"v": np.eye(3) * 1j}, "compare: v is complex"),
        ({"seed": 0.5}, "compare: seed=0.5 is no integer"),
    ],
)
def test_what_holds_no_numbers_is_refused(change: dict, text: str):
    arguments = {"A": Given(np.eye(3)), "B": np.eye(3), "v": None, "rows": 3, "k": 1, **change}
    with pytest.raises((TypeError, ValueError), match=text):
        compare(**arguments)


def test_weights_may_be_a_list():
    A = Given(np.eye(3))
    assert compare(A, np.eye(3).tolist(), k=1) == compare(A, np.eye(3), k=1)


def test_swapped_maps_are_noticed():
    text = "compare: A is a ndarray, expected the map to judge; it is B that may be an array"
    with pytest.raises(TypeError, match=text):
        compare(np.eye(3), Given(np.eye(3)))
