"""The factored map: weights from two thin matrices, ranked, applied, saved."""

from __future__ import annotations

import numpy as np
import pytest

from nlattn._types import Work
from nlattn.maps.factored import FactoredMap
from nlattn.maps.io import KINDS


def small(dtype: type = np.float64) -> FactoredMap:
    rng = np.random.default_rng(0)
    left, right = rng.random((6, 3)).astype(dtype), rng.random((8, 3)).astype(dtype)
    norm = left @ right.sum(0)
    return FactoredMap(
        left / norm[:, None], right, np.log(norm.astype(float)), Work(0, 42, 336), (2, 3), (2, 4)
    )


def test_rows_products_and_ranks_agree_with_the_matrix() -> None:
    one = small()
    dense = one.left @ one.right.T
    np.testing.assert_allclose(one.to_dense(), dense, rtol=1e-15)
    np.testing.assert_array_equal(one.rows([[4], [1]])[:, 0], one.to_dense()[[4, 1]])
    x, y = np.arange(8.0), np.arange(12.0).reshape(6, 2)
    np.testing.assert_allclose(one @ x, dense @ x, rtol=1e-14)
    np.testing.assert_allclose(one.T @ y, dense.T @ y, rtol=1e-14)
    np.testing.assert_allclose(np.exp(one.scores([2]) - one.lse[2]), one.rows([2]), rtol=1e-14)
    values, keys = one.topk(8)
    np.testing.assert_array_equal(keys, np.argsort(-one.to_dense(), axis=1, kind="stable"))
    np.testing.assert_array_equal(values, np.take_along_axis(one.to_dense(), keys, 1))
    assert one.nbytes == 8 * (6 * 3 + 8 * 3 + 6)


def test_equal_weights_are_ranked_by_key() -> None:
    one = FactoredMap(np.ones((2, 1)), np.ones((5, 1)), None, Work(0, 7, 56))
    np.testing.assert_array_equal(one.topk(3)[1], [[0, 1, 2], [0, 1, 2]])


def test_a_state_that_does_not_fit_is_refused() -> None:
    state = small().state()
    assert KINDS["factored"] is FactoredMap
    for name, value, text in (
        ("right", state["right"][:, :2], "right is float64"),
        ("right", state["right"].astype(np.float32), "left is float64 and right float32"),
        ("lse", state["lse"][:3], "lse is"),
    ):
        with pytest.raises(ValueError, match=text):
            FactoredMap.from_state({**state, name: value})
