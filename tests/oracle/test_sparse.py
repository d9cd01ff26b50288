"""Sparse attention's oracle: numbers by hand, limits, published arrays, the complex step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nlattn.oracle import dense
from nlattn.oracle.sparse import sparse_attention, sparse_attention_jvp, sparse_attention_vjp

DATA = Path(__file__).parent.parent / "data"
WEIGHTS = ("softmax", "gaussian", "abspow", "dot")
LN3 = np.log(3)


def rows(*keys: list[int], m: int, lead: tuple[int, ...] = ()) -> Any:
    indptr = np.cumsum([0, *map(len, keys)])
    n = len(keys) // int(np.prod(lead))
    return indptr, np.array([key for row in keys for key in row], int), (*lead, n, m)


def full(n: int, m: int) -> Any:
    return rows(*[list(range(m))] * n, m=m)


def some(rng: np.random.Generator, n: int, m: int, lead: tuple[int, ...] = ()) -> Any:
    count = n * int(np.prod(lead, dtype=int))
    keys = [np.flatnonzero(rng.random(m) < 0.6).tolist() for _ in range(count)]
    return rows(*keys, m=m, lead=lead)


@pytest.mark.parametrize(
    ("weight", "key", "out", "lse"),
    [
        ("softmax", [0, LN3], 1 / 4 * 4 + 3 / 4 * 8, np.log(4)),
        ("gaussian", [1, 1 + np.sqrt(LN3)], 3 / 4 * 4 + 1 / 4 * 8, np.log(4 / 3)),
        ("abspow", [1, -2], 1 / 5 * 4 + 4 / 5 * 8, np.log(5)),
        ("dot", [1, -2], (1 * 4 - 2 * 8) / 2, np.log(2)),
    ],
)
def test_numbers_by_hand(weight: str, key: list[float], out: float, lse: float) -> None:
    q, k, v = np.ones((1, 1)), np.array([key]).T, np.array([[4.0], [8.0]])
    scale = None if weight == "gaussian" else 1.0
    got = sparse_attention(q, k, v, full(1, 2), weight=weight, scale=scale, return_lse=True)
    np.testing.assert_allclose(got[0], [[out]], rtol=1e-15)
    np.testing.assert_allclose(got[1], [lse], rtol=1e-15)


def test_a_full_support_is_dense_attention() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal(shape) for shape in ((5, 3), (7, 3), (7, 4)))
    want = dense.attention(q, k, v)
    np.testing.assert_allclose(sparse_attention(q, k, v, full(5, 7)), want, rtol=1e-14)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_a_query_without_keys(weight: str) -> None:
    q, k, v = np.ones((2, 1)), np.ones((3, 1)), np.full((3, 1), 7.0)
    support = rows([], [1], m=3)
    out, lse = sparse_attention(q, k, v, support, weight=weight, return_lse=True)
    np.testing.assert_array_equal(out, [[0], [7]])
    assert lse[0] == -np.inf
    assert lse[1] > -np.inf
    out = sparse_attention(q, k, v, support, weight=weight, masked_rows="nan")
    np.testing.assert_array_equal(out, [[np.nan], [7]])
    for gradient in sparse_attention_vjp(q, k, v, support, np.ones((2, 1)), weight=weight):
        assert not np.isnan(gradient).any()


def test_weights_that_are_all_zero_make_an_empty_row() -> None:
    q, k, v = np.zeros((1, 2)), np.ones((3, 2)), np.ones((3, 1))
    out, lse = sparse_attention(q, k, v, full(1, 3), weight="abspow", return_lse=True)
    assert (out[0, 0], lse[0]) == (0, -np.inf)
    gradients = sparse_attention_vjp(q, k, v, full(1, 3), np.ones((1, 1)), weight="abspow")
    assert not any(np.any(g) for g in gradients)


@pytest.mark.parametrize("dtype", [np.float32, np.longdouble, np.complex128])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_dtype_is_kept(weight: str, dtype: Any) -> None:
    q, k, v = np.ones((2, 2), dtype), np.ones((3, 2), dtype), np.ones((3, 2), dtype)
    out, lse = sparse_attention(q, k, v, full(2, 3), weight=weight, return_lse=True)
    gradients = sparse_attention_vjp(q, k, v, full(2, 3), out, weight=weight)
    assert {x.dtype for x in (out, lse, *gradients)} == {np.dtype(dtype)}


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("lead", [(), (2,)])
def test_gradients_agree_with_the_complex_step(weight: str, lead: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal(shape) for shape in ((*lead, 3, 2), (4, 2), (*lead, 4, 2))]
    dout, dlse = rng.standard_normal((*lead, 3, 2)), rng.standard_normal((*lead, 3))
    support = some(rng, 3, 4, lead)
    options = {"weight": weight, "power": 1.7, "bandwidth": 0.8}
    gradients = sparse_attention_vjp(*arrays, support, dout, dlse=dlse, **options)
    for which, gradient in enumerate(gradients):
        assert gradient.shape == arrays[which].shape
        for at in np.ndindex(gradient.shape):
            stepped = [x.astype(complex) for x in arrays]
            stepped[which][at] += 1e-30j
            out, lse = sparse_attention(*stepped, support, **options, return_lse=True)
            used = np.isfinite(lse)
            slope = (dout * out).sum() + (dlse * np.where(used, lse, 0)).sum()
            np.testing.assert_allclose(gradient[at], slope.imag / 1e-30, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_gradients_agree_with_central_differences(weight: str) -> None:
    rng = np.random.default_rng(2)
    arrays = [
        rng.standard_normal(shape).astype(np.longdouble) for shape in ((3, 2), (4, 2), (4, 2))
    ]
    dout, support = rng.standard_normal((3, 2)), some(rng, 3, 4)
    gradients = sparse_attention_vjp(*arrays, support, dout, weight=weight)
    for which, gradient in enumerate(gradients):
        direction = rng.standard_normal(gradient.shape)
        ends = []
        for step in (1e-6, -1e-6):
            moved = list(arrays)
            moved[which] = moved[which] + step * direction
            ends.append((dout * sparse_attention(*moved, support, weight=weight)).sum())
        slope = float(ends[0] - ends[1]) / 2e-6
        np.testing.assert_allclose(float((gradient * direction).sum()), slope, rtol=1e-8)


@pytest.mark.parametrize("weight", ["softmax", "gaussian", "abspow"])
def test_a_single_key_has_no_gradient_but_its_values(weight: str) -> None:
    rng = np.random.default_rng(3)
    q, k, v, dout = (rng.standard_normal((3, 2)) for _ in range(4))
    dq, dk, dv = sparse_attention_vjp(q, k, v, rows([1], [0], [1], m=3), dout, weight=weight)
    assert not dq.any()
    assert not dk.any()
    np.testing.assert_array_equal(dv, [dout[1], dout[0] + dout[2], [0, 0]])


def test_mass_of_a_support_is_the_ratio_of_normalisers() -> None:
    rng = np.random.default_rng(4)
    q, k, v = rng.standard_normal((6, 3)), rng.standard_normal((9, 3)), np.eye(9)
    support = some(rng, 6, 9)
    P, lse = sparse_attention(q, k, v, full(6, 9), return_lse=True)
    P_S, lse_S = sparse_attention(q, k, v, support, return_lse=True)
    mass = np.exp(lse_S - lse)
    np.testing.assert_allclose(mass, (P * (P_S > 0)).sum(1), rtol=1e-14)
    np.testing.assert_allclose(1 - mass, abs(P - P_S).sum(1) / 2, rtol=1e-13)


def test_it_is_the_published_patch_based_layer() -> None:
    """The authors' own module [cherel2022] with 1 x 1 patches: softmax of minus the distances."""
    case = np.load(DATA / "psal_p1_8x8.npz")
    y, x = case["aux.shift_map"][0].astype(int)
    keys = np.sort((y * 8 + x).reshape(3, 64).T, axis=1)
    assert (np.diff(keys) > 0).all()
    support = (np.arange(0, 3 * 65, 3), keys.ravel(), (64, 64))

    def read(name: str) -> Any:
        return case[name][0].reshape(4, 64).T

    arrays = [read(f"in.{name}") for name in "qkv"]
    out = sparse_attention(*arrays, support, weight="gaussian")
    np.testing.assert_allclose(out, read("out.y"), rtol=1e-9, atol=1e-12)
    gradients = sparse_attention_vjp(*arrays, support, read("cot.y"), weight="gaussian")
    for name, gradient in zip("qkv", gradients, strict=True):
        np.testing.assert_allclose(gradient, read(f"exactgrad.in.{name}"), rtol=1e-9, atol=1e-12)


def test_a_sink_and_a_key_that_counts_twice_by_hand() -> None:
    """Powers 1 and 3, the second twice, and a sink of 3: weights 1/10, 6/10 and 3/10."""
    q, k, v = np.array([[1.0]]), np.array([[0.0], [np.log(3)]]), np.array([[10.0], [5.0]])
    options: Any = {"bias": np.log([1.0, 2.0]), "sinks": np.array(np.log(3)), "scale": 1.0}
    out, lse = sparse_attention(q, k, v, full(1, 2), **options, return_lse=True)
    np.testing.assert_allclose(out, [[4.0]])
    np.testing.assert_allclose(lse, [np.log(10)])
    *_, dbias, dsink = sparse_attention_vjp(q, k, v, full(1, 2), np.ones((1, 1)), **options)
    np.testing.assert_allclose(dbias, [0.6, 0.6])
    np.testing.assert_allclose(dsink, -1.2)


@pytest.mark.parametrize("weight", ["softmax", "gaussian"])
def test_gradients_of_sinks_and_biases_agree_with_the_complex_step(weight: str) -> None:
    rng = np.random.default_rng(0)
    q, k, v, dout = (rng.standard_normal(s) for s in ((2, 4, 3), (5, 3), (5, 2), (2, 4, 2)))
    support, dlse = some(rng, 4, 5), rng.standard_normal((2, 4))
    beside = {"bias": rng.standard_normal(len(support[1])), "sinks": rng.standard_normal(2)}
    got = sparse_attention_vjp(q, k, v, support, dout, dlse=dlse, weight=weight, **beside)
    for (name, x), gradient in zip(beside.items(), got[3:], strict=True):
        for at in np.ndindex(x.shape):
            moved = {n: y.astype(complex) for n, y in beside.items()}
            moved[name][at] += 1e-30j
            wide = (y.astype(complex) for y in (q, k, v))
            out, lse = sparse_attention(*wide, support, weight=weight, **moved, return_lse=True)
            slope = ((dout * out).sum() + (dlse * lse).sum()).imag / 1e-30
            np.testing.assert_allclose(gradient[at], slope, atol=1e-14)


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_forward_mode_agrees_with_the_complex_step(weight: str, dropped: bool) -> None:
    """Of all arrays that the weight takes; a query has one key, and one has none."""
    rng = np.random.default_rng(3)
    support = rows([0, 2, 3], [1], [], [0, 1, 2, 3, 4], [2], [1, 4], [0], [], m=5, lead=(2,))
    shapes = {"q": (2, 4, 3), "k": (5, 3), "v": (2, 5, 2)}
    if weight in ("softmax", "gaussian"):
        shapes |= {"bias": (len(support[1]),), "sinks": (2,)}
    arrays, changes = ({n: rng.standard_normal(s) for n, s in shapes.items()} for _ in range(2))
    options: Any = {"weight": weight, "return_lse": True}
    if dropped:
        options |= {"dropout_mask": np.arange(len(support[1])) % 3 > 0, "dropout_scale": 1.5}
    moved = {n: x + 1e-30j * changes[n] for n, x in arrays.items()}
    along = {f"d{n}": x for n, x in changes.items()}
    got = sparse_attention_jvp(**arrays, support=support, **along, **options)
    for mine, result in zip(
        got, sparse_attention(**moved, support=support, **options), strict=True
    ):
        want = np.where(np.isfinite(result), result.imag, 0) / 1e-30
        np.testing.assert_allclose(mine, want, rtol=0, atol=1e-14 * max(1, abs(want).max()))
