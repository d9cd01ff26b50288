"""Leverage from a factorisation: its error is as large as it says, or said to be unknown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nlattn
from nlattn.engines.whitened import U, _row_errors, factor, first_root, triangle

PAIR = [[1.797e308, -1.797e308], [1.797e308, -1.797e308], [1.25e187, 3e175]]


def test_nothing_is_certified_in_a_direction_that_longer_keys_round():
    """Two equal keys leave rounding in the other direction, 1e16 times a third key's length."""
    whitening = factor(np.array(PAIR))
    truth = np.array([0.5, 0.5, 1.0])  # the third is the only one out of their line
    assert np.all(abs(np.sqrt(whitening.tau) - np.sqrt(truth)) <= whitening.error)


@pytest.mark.parametrize("p", [2.0, 4.0])
def test_its_weight_is_within_the_bounds(p: float):
    bounds = nlattn.sensitivity_bounds(np.array(PAIR), p)
    assert bounds.upper[2] == 1.0  # a query along (1, 1) sees it alone


def test_graded_keys_are_certified_to_their_last_digits():
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((400, 8)) * 10.0 ** rng.uniform(-8, 8, (400, 1))
    assert factor(keys).error.max() < 1e-12


def random(shape: tuple[int, int], condition: float = 1.0) -> Any:
    """Keys whose singular values fall from 1 to 1 / condition."""
    rng = np.random.default_rng(1)
    left, right = (np.linalg.qr(rng.standard_normal((n, shape[1])))[0] for n in shape)
    return left * np.geomspace(1, 1 / condition, shape[1]) @ right.T


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("n", [12, 3000])
@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_a_factorisation(n: int, zero: bool, weighted: bool):
    """By Gram matrices; with a channel of zeros by QR."""
    k = random((n, 4), 100)
    k[:, 2] *= not zero
    row = np.geomspace(1, 3, n) if weighted else np.empty(0)
    K = k * row[:, None] if weighted else k
    k.flags.writeable = row.flags.writeable = False
    w = factor(k, row)
    X = K @ w.whiten
    assert w.rank == 4 - zero
    assert (w.rows is not None) == zero
    np.testing.assert_allclose(X.T @ X, np.eye(w.rank), atol=1e-12)
    np.testing.assert_allclose(X @ w.root, K, atol=1e-13)
    np.testing.assert_allclose((X**2).sum(1), w.tau, atol=1e-12)
    np.testing.assert_allclose(w.steep, np.linalg.norm(w.whiten, 2))
    if w.rows is not None:
        np.testing.assert_allclose(w.rows, X, atol=1e-12)


@pytest.mark.parametrize(("condition", "by_gram"), [(1e5, True), (1e7, False)])
def test_the_condition_decides_how(condition: float, by_gram: bool):
    k = random((40, 3), condition)
    w = factor(k)
    assert (w.rows is None) == by_gram
    assert 3 * U <= w.error.max() <= 1e3 * condition * U
    sure = np.linalg.svd(k.astype(np.longdouble).astype(float))[0][:, :3]
    assert (abs(np.sqrt(w.tau) - np.sqrt((sure**2).sum(1))) <= w.error + condition * U).all()


def test_nothing_whitens_nothing():
    w = factor(np.zeros((3, 2)))
    assert (w.whiten.shape, w.root.shape, w.basis(np.zeros((3, 2))).shape) == (
        (2, 0),
        (0, 2),
        (3, 0),
    )
    assert (w.rank, w.steep) == (0, 0)
    np.testing.assert_array_equal([w.tau, w.error], 0)
    assert factor(np.array([[5e-324, 0.0], [0.0, 0.0]])).steep == 1e300  # 1 / 5e-324 overflows


def test_a_key_without_digits_has_an_error_of_1():
    k = np.array([[1.0, 0, 0], [1, 1, 0], [1e-300, 0, 0], [0, 0, 0]])
    w = factor(k * 1e10)
    np.testing.assert_array_equal(w.error[2:], [1, 0])
    assert w.error[:2].max() < 1e-14


@pytest.mark.parametrize(("apart", "rank"), [(1e-10, 2), (4e-16, 1)])
def test_rounding_is_no_direction(apart: float, rank: int):
    k = np.ones((30, 2))
    k[5, 1] += apart
    assert factor(k).rank == rank


def test_errors_by_hand():
    """Two orthogonal keys of length 1, all of whose leverage is 1: 16 units, and little more."""
    one = np.ones(2)
    np.testing.assert_allclose(_row_errors(one, one, one, U), 16 * U, rtol=1e-5)
    # halves: the rest is a root of a half each, to rounding
    half = _row_errors(one / 2, one, one, U)
    np.testing.assert_allclose(half, 16 * U * (1 + 2 * 2 * np.sqrt(0.5)), rtol=1e-5)
    np.testing.assert_array_equal(_row_errors(one, 1e300 * one, 1e10 * one, U), 1)


def test_a_first_root_inverts():
    k = random((9, 3), 50)
    root = first_root(k.T @ k, np.ones(3))
    assert root is not None
    np.testing.assert_allclose(root.whiten @ root.root, np.eye(3), atol=1e-13)
    np.testing.assert_allclose(root.whiten.T @ (k.T @ k) @ root.whiten, np.eye(3), atol=1e-11)
    near = np.ldexp(k, -(np.frexp((k**2).sum(0))[1] // 2))
    np.testing.assert_allclose(root.condition, np.linalg.cond(near), rtol=1e-9)
    for G in (np.full((2, 2), np.inf), np.diag([1.0, 0]), np.array([[1, 1], [1, 1 + 1e-15]])):
        assert first_root(G, np.ones(2)) is None


def test_a_triangle_keeps_the_digits_of_small_rows():
    k = random((6, 2)) * 10.0 ** np.array([[0], [-3], [-9], [4], [0], [-20]])
    R = triangle(k)
    assert R.shape == (2, 2)
    np.testing.assert_allclose(R.T @ R, k.T @ k, rtol=1e-14)
    alone = triangle(np.array([[1e-9, 0], [0, 1e9], [0, 0]]))
    np.testing.assert_array_equal(np.sort(abs(alone), axis=None), [0, 0, 1e-9, 1e9])
