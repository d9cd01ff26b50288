"""Neighbourhoods worked by hand, and the gradient of attention to them by the complex step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlattn.oracle.dense import attention
from nlattn.oracle.neighbourhood import (
    neighbourhood,
    neighbourhood_attention,
    neighbourhood_attention_vjp,
    neighbours,
)
from tests.helpers import assert_gradients

RNG = np.random.default_rng(5)
OPTIONS: list[dict[str, Any]] = [
    {"window": 3},
    {"window": (3, 2)},
    {"window": (2, 3), "stride": (1, 2), "causal": (True, False)},
    {"window": (2, 1, 2), "dilation": (1, 2, 2)},
]


def keys(*arguments: Any) -> list[list[int]]:
    return [np.flatnonzero(row).tolist() for row in neighbours(*arguments)]


def test_windows_move_inside_at_borders() -> None:
    assert keys(5, 3) == [[0, 1, 2], [0, 1, 2], [1, 2, 3], [2, 3, 4], [2, 3, 4]]


def test_an_even_window_has_one_more_before_the_query() -> None:
    assert keys(5, 2) == [[0, 1], [0, 1], [1, 2], [2, 3], [3, 4]]


def test_dilated_windows_stay_among_places_of_one_remainder() -> None:
    assert keys(7, 3, 1, 2) == [
        [0, 2, 4], [1, 3, 5], [0, 2, 4], [1, 3, 5], [2, 4, 6], [1, 3, 5], [2, 4, 6],
    ]  # fmt: skip


def test_queries_of_a_stride_share_the_window_of_their_middle() -> None:
    assert keys(6, 3, 2) == [[0, 1, 2], [0, 1, 2], [2, 3, 4], [2, 3, 4], [3, 4, 5], [3, 4, 5]]


def test_causal_windows_end_at_the_query() -> None:
    assert keys(4, 2, 1, 1, True) == [[0], [0, 1], [1, 2], [2, 3]]
    # With a stride of 2 the window of three begins where that of the group's last query does.
    assert keys(5, 3, 2, 1, True) == [[0], [0, 1], [1, 2], [1, 2, 3], [2, 3, 4]]


def test_axes_are_independent() -> None:
    seen = neighbourhood((3, 4), (2, 3))
    rows, columns = neighbours(3, 2), neighbours(4, 3)
    for i in np.ndindex(3, 4):
        for j in np.ndindex(3, 4):
            at = np.ravel_multi_index(i, (3, 4)), np.ravel_multi_index(j, (3, 4))
            assert seen[at] == (rows[i[0], j[0]] and columns[i[1], j[1]])


def test_a_mean_by_hand() -> None:
    """Queries of 0 weigh all neighbours alike."""
    v = np.array([[1.0], [2.0], [4.0], [8.0]])
    out, lse = neighbourhood_attention(0 * v, v, v, window=2, return_lse=True)
    np.testing.assert_allclose(out[:, 0], [1.5, 1.5, 3, 6], rtol=1e-15)
    np.testing.assert_allclose(lse, np.log([2, 2, 2, 2]), rtol=1e-15)


def test_a_window_of_the_whole_grid_is_dense_attention() -> None:
    q, k, v = RNG.standard_normal((3, 2, 3, 4, 5))
    out = neighbourhood_attention(q, k, v, window=(3, 4))
    flat = (x.reshape(2, 12, 5) for x in (q, k, v))
    np.testing.assert_allclose(out.reshape(2, 12, 5), attention(*flat), rtol=1e-14)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_by_the_complex_step(options: dict[str, Any]) -> None:
    axes = np.size(options["window"])
    grid = (2, *(5, 4, 4)[:axes])
    q, k, v, dout = RNG.standard_normal((4, *grid, 2))
    dlse = RNG.standard_normal(grid)

    def loss(*arrays: Any) -> Any:
        out, lse = neighbourhood_attention(*arrays, return_lse=True, **options)
        return (out * dout).sum() + (lse * dlse).sum()

    got = neighbourhood_attention_vjp(q, k, v, dout, dlse=dlse, **options)
    assert_gradients(got, loss, (q, k, v))


def published(length: int, window: int, stride: int, dilation: int, causal: bool) -> Any:
    """Pairs by distance from a centre, which is kept inside: how NATTEN states its masks."""
    seen = np.zeros((length, length), bool)
    for i, j in np.ndindex(length, length):
        group = i // dilation // stride * stride
        last, own, key = (length - 1 - i % dilation) // dilation, i // dilation, j // dilation
        if causal:
            near = min(group + stride - 1, last) - key < window and key <= own
        else:
            left, right = window // 2, (window - 1) // 2
            centre = min(max(min(group + stride // 2, last), left), last - right)
            near = centre - left <= key <= centre + right
        seen[i, j] = near and i % dilation == j % dilation
    return seen


def test_neighbours_are_those_of_the_published_masks() -> None:
    """Every window, stride and dilation that an axis of up to nine takes, causal or not."""
    for length, dilation in np.ndindex(10, 4):
        for window in range(1, length // (dilation + 1) + 1):
            for stride, causal in np.ndindex(window, 2):
                given = length, window, stride + 1, dilation + 1, bool(causal)
                np.testing.assert_array_equal(neighbours(*given), published(*given), str(given))
    axes = [(5, 3, 2, 1, True), (4, 2, 1, 2, False), (3, 3, 3, 1, False)]
    grid, *options = (tuple(x) for x in zip(*axes, strict=True))
    each = [published(*axis) for axis in axes]
    whole = np.einsum("ab,cd,ef->acebdf", *each).reshape(60, 60)
    np.testing.assert_array_equal(neighbourhood(grid, *options), whole)
