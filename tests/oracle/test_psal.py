"""The oracle of attention on nearest patches: by hand, published arrays, the complex step."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nlattn.oracle.psal import costs, psal, psal_vjp, speak, votes

DATA = Path(__file__).parent.parent / "data"
LOG3 = np.log(3.0)


def test_two_matches_by_hand() -> None:
    """Costs 0 and log 3 weigh 3/4 and 1/4; at twice the temperature log 3 is half as much."""
    q = np.zeros((1, 1, 1))
    k, v = np.array([[[0.0], [np.sqrt(LOG3)]]]), np.array([[[4.0], [8.0]]])
    index = np.array([[[1, 0]]])
    np.testing.assert_allclose(psal(q, k, v, index, patch=1), [[[5.0]]])
    warm = psal(q, k, v, index, patch=1, temperature=2.0)
    np.testing.assert_allclose(warm, [[[4 + 4 / (1 + np.sqrt(3))]]])
    twice = psal(q, k, v, np.array([[[1, 0, 0]]]), patch=1)
    np.testing.assert_allclose(twice, [[[(4 * 6 + 8) / 7]]])
    once = psal(q, k, v, np.array([[[1, 0, 0]]]), patch=1, dedup=True)
    np.testing.assert_allclose(once, [[[5.0]]])


def test_costs_of_patches_by_hand() -> None:
    """Reflected: the patch of pixel 0 of (a, b) is (b, a, b)."""
    q, k = np.array([[[1.0], [2.0]]]), np.array([[[0.0], [5.0]]])
    got = costs(q, k, np.array([[[0, -1], [0, 1]]]), 3)
    column = np.array([[2.0, 1, 2], [1.0, 2, 1]])
    key = np.array([[5.0, 0, 5], [0.0, 5, 0]])
    want = [[3 * ((column[0] - key[0]) ** 2).sum(), 0]]
    want.append([3 * ((column[1] - key[j]) ** 2).sum() for j in (0, 1)])
    np.testing.assert_allclose(got[0], want)


def test_votes_by_hand() -> None:
    """Three pixels, matched to 2, 1 and 0: their patches also speak for the keys beside those."""
    index = np.array([[[2], [1], [0]]])
    assert votes(index, (1, 3), 0) == [[((0, x, 0), 2 - x)] for x in range(3)]
    got = votes(index, (1, 3), 1)
    assert got[0] == [((0, 0, 0), 2), ((0, 1, 0), 0)]
    assert got[1] == [((0, 1, 0), 1)]
    assert got[2] == [((0, 1, 0), 2), ((0, 2, 0), 0)]


def published(name: str, *names: str) -> Any:
    case = np.load(DATA / name)
    y, x = case["aux.shift_map"][0].astype(int)
    arrays = [np.moveaxis(case[n][0], 0, -1) for n in names]
    return np.moveaxis(y * y.shape[-1] + x, 0, -1), arrays, case


def test_the_published_layer_of_single_pixels() -> None:
    index, arrays, case = published("psal_p1_8x8.npz", "in.q", "in.k", "in.v", "cot.y", "out.y")
    *inputs, dout, out = arrays
    np.testing.assert_allclose(psal(*inputs, index, patch=1), out, rtol=1e-9, atol=1e-10)
    gradients = psal_vjp(*inputs, index, dout, patch=1)
    for name, gradient in zip("qkv", gradients, strict=True):
        want = np.moveaxis(case[f"exactgrad.in.{name}"][0], 0, -1)
        np.testing.assert_allclose(gradient, want, rtol=1e-8, atol=1e-10)


def published_votes(c: Any, index: Any, i: int, j: int) -> Any:
    """Weight of every key for pixel (i, j): maps of costs and of places are padded with 10."""
    H, W, topk = index.shape
    total = np.zeros((H, W))
    for a, b, t in product((-1, 0, 1), (-1, 0, 1), range(topk)):
        y, x, row, column, cost = i + a, j + b, 10, 10, 10.0
        if 0 <= y < H and 0 <= x < W:
            row, column = divmod(int(index[y, x, t]), W)
            cost = c[y, x, t]
        total[np.clip(row - a, 0, H - 1), np.clip(column - b, 0, W - 1)] += np.exp(-cost)
    return total.reshape(-1) / total.sum()


def test_the_published_layer_with_votes() -> None:
    """Ours inside; at the border the published code has costs of 0 and votes from outside."""
    names = ("in.q", "in.k", "in.v", "cot.y", "out.y", "grad.in.v", "aux.cost_map")
    index, arrays, _ = published("psal_p3_aggregation.npz", *names)
    q, k, v, dout, out, dv, c = arrays
    inner = (slice(1, -1), slice(1, -1))
    np.testing.assert_allclose(costs(q, k, index, 3)[inner], c[inner], rtol=1e-9)
    got = speak(c, v, index, 1)
    np.testing.assert_allclose(got[inner], out[inner], rtol=1e-9, atol=1e-10)
    units = np.eye(v.shape[0] * v.shape[1]).reshape(*v.shape[:2], -1)
    weights = speak(c, units, index, 1)
    outside = np.ones(v.shape[:2], bool)
    outside[inner] = False
    for i, j in np.argwhere(outside):
        weights[i, j] = published_votes(c, index, i, j)
    whole = np.einsum("ijm,me->ije", weights, v.reshape(-1, v.shape[-1]))
    np.testing.assert_allclose(whole, out, rtol=1e-9, atol=1e-10)
    gradient = np.einsum("ijm,ije->me", weights, dout).reshape(v.shape)
    np.testing.assert_allclose(gradient, dv, rtol=1e-8, atol=1e-10)


CASES: list[dict[str, Any]] = [
    {"patch": 1, "temperature": 0.5},
    {"patch": 3},
    {"patch": 3, "aggregate": True, "temperature": 4.0},
    {"patch": 3, "aggregate": True, "dedup": True, "border": "edge", "temperature": 9.0},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_gradients_agree_with_the_complex_step(options: Any) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal(s) for s in ((3, 4, 2), (4, 3, 2), (4, 3, 3)))
    index, dout = rng.integers(-1, 12, (3, 4, 2)), rng.standard_normal((3, 4, 3))
    index[0, 0] = -1
    arrays = {"q": q, "k": k, "v": v}
    for name, gradient in zip("qkv", psal_vjp(q, k, v, index, dout, **options), strict=True):
        want = np.zeros_like(arrays[name])
        for place in np.ndindex(want.shape):
            moved = {key: x.astype(complex) for key, x in arrays.items()}
            moved[name][place] += 1e-30j
            want[place] = (dout * psal(**moved, index=index, **options)).sum().imag / 1e-30
        np.testing.assert_allclose(gradient, want, rtol=0, atol=1e-13 * max(1, abs(want).max()))
