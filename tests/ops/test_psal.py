"""`psal`, its map and gradients against the oracle for given matches; its search and masks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nlattn
from nlattn import Field, Work
from nlattn.oracle import psal as oracle
from tests.helpers import assert_as_exact_as_numpy, joined

DATA = Path(__file__).parent.parent / "data"
DTYPES = [(np.float32, np.float64), (np.float64, np.longdouble)]
OPTIONS: list[dict[str, Any]] = [
    {"patch": 1},
    {"patch": 3, "temperature": 3.0},
    {"patch": 3, "aggregate": True, "temperature": 8.0},
    {"patch": 3, "aggregate": True, "dedup": True, "border": "edge", "temperature": 8.0},
    {"patch": 5, "aggregate": True, "temperature": 20.0},
]


def given(index: Any, grid: tuple[int, int]) -> Field:
    return Field(index, np.zeros(index.shape), Work(0, 0, 0), grid)


def case(seed: int, dtype: Any = np.float64, lead: tuple[int, ...] = ()) -> Any:
    rng = np.random.default_rng(seed)
    shapes = (4, 5, 3), (5, 4, 3), (5, 4, 2), (4, 5, 2)
    arrays = [rng.standard_normal((*lead, *shape)).astype(dtype) for shape in shapes]
    index = rng.integers(-1, 20, (*lead, 4, 5, 3))
    index[..., 0, 0, :] = -1
    return arrays, given(index, (5, 4))


def results(arrays: Any, field: Field, options: Any) -> list[Any]:
    forward = nlattn.psal(*arrays[:3], field=field, **options)
    return [forward, *nlattn.psal_vjp(*arrays, field=field, **options)]


def literal(arrays: Any, field: Field, options: Any) -> list[Any]:
    q, k, v, dout = arrays
    forward = oracle.psal(q, k, v, field.index, **options)
    return [forward, *oracle.psal_vjp(q, k, v, field.index, dout, **options)]


@pytest.mark.parametrize(("dtype", "wide"), DTYPES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_is_as_exact_as_numpy(options: Any, dtype: Any, wide: Any) -> None:
    """Error at most twice that of the plain transcription in the same dtype, plus one spacing."""
    runs = []
    for seed in range(3):
        arrays, field = case(seed, dtype)
        exact = literal([x.astype(wide) for x in arrays], field, options)
        got, plain = results(arrays, field, options), literal(arrays, field, options)
        assert [(x.dtype, x.shape) for x in got] == [(dtype, x.shape) for x in exact]
        runs.append((got, plain, exact))
    assert_as_exact_as_numpy(*joined(runs))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_leading_axes_and_one_field_for_all(options: Any) -> None:
    arrays, field = case(0, lead=(2,))
    got = results(arrays, field, options)
    for b in range(2):
        one = literal([x[b] for x in arrays], given(field.index[b], (5, 4)), options)
        for a, want in zip(got, one, strict=True):
            np.testing.assert_allclose(a[b], want, atol=1e-12)
    shared = given(field.index[0], (5, 4))
    mixed = [arrays[0], arrays[1][0], arrays[2][:1], arrays[3]]
    out, dq, dk, dv = results(mixed, shared, options)
    each = [
        literal([arrays[0][b], mixed[1], mixed[2][0], arrays[3][b]], shared, options)
        for b in (0, 1)
    ]
    np.testing.assert_allclose(out, [each[0][0], each[1][0]], atol=1e-12)
    np.testing.assert_allclose(dq, [each[0][1], each[1][1]], atol=1e-12)
    np.testing.assert_allclose(dk, each[0][2] + each[1][2], atol=1e-12)
    np.testing.assert_allclose(dv[0], each[0][3] + each[1][3], atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_map_is_the_operator(options: Any) -> None:
    (q, k, v, dout), field = case(0)
    A = nlattn.psal_map(q, k, field=field, **options)
    out, _, _, dv = literal([q, k, v, dout], field, options)
    np.testing.assert_allclose(A @ v.reshape(20, 2), out.reshape(20, 2), atol=1e-13)
    np.testing.assert_allclose(A.T @ dout.reshape(20, 2), dv.reshape(20, 2), atol=1e-13)
    assert (A.query_grid, A.key_grid) == ((4, 5), (5, 4))
    assert np.isneginf(A.lse[0]) or options.get("aggregate")
    weights, scores = A.rows(np.arange(20)), A.scores(np.arange(20))
    np.testing.assert_allclose(weights.sum(1), np.isfinite(A.lse), atol=1e-14)
    some = weights > 0
    relative = (scores - np.where(np.isfinite(A.lse), A.lse, 0)[:, None])[some]
    np.testing.assert_allclose(np.exp(relative), weights[some], rtol=1e-12)
    assert A.work.scores == int((field.index >= 0).sum())


def test_the_published_layer() -> None:
    case = np.load(DATA / "psal_p1_8x8.npz")
    y, x = case["aux.shift_map"][0].astype(int)
    field = given(np.moveaxis(y * 8 + x, 0, -1), (8, 8))
    arrays = [np.moveaxis(case[n][0], 0, -1) for n in ("in.q", "in.k", "in.v", "cot.y")]
    out, *gradients = results(arrays, field, {"patch": 1})
    want = np.moveaxis(case["out.y"][0], 0, -1)
    np.testing.assert_allclose(out, want, rtol=1e-9, atol=1e-10)
    for name, gradient in zip("qkv", gradients, strict=True):
        want = np.moveaxis(case[f"exactgrad.in.{name}"][0], 0, -1)
        np.testing.assert_allclose(gradient, want, rtol=1e-8, atol=1e-10)


def test_the_search_finds_a_shifted_copy() -> None:
    """The nearest patch is the pixel itself; its value comes back when the temperature is low."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((9, 9, 2))
    moved = np.roll(image, (1, -2), axis=(0, 1))
    out = nlattn.psal(moved, image, image, temperature=1e-3, seed=1, iterations=6)
    np.testing.assert_allclose(out[2:-2, 2:-3], moved[2:-2, 2:-3], atol=1e-6)
    field = nlattn.patchmatch(moved, image, topk=3, patch=3, score="neg_l2", seed=1, iterations=6)
    again = nlattn.psal(moved, image, image, temperature=1e-3, field=field)
    np.testing.assert_array_equal(again, out)


def test_only_known_patches_are_matched() -> None:
    """A hole of one pixel bars nine patches, and its value is never used."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((7, 8, 2))
    known = np.ones((7, 8), bool)
    known[3, 4] = False
    for aggregate in (False, True):
        A = nlattn.psal_map(image, image, key_mask=known, aggregate=aggregate, topk=2)
        used = (A.to_dense() > 0).any(0).reshape(7, 8)
        assert not used[3, 4]
        assert aggregate or not used[2:5, 3:6].any()
    one = nlattn.psal_map(image, image, key_mask=known, patch=1)
    assert not (one.to_dense() > 0).any(0).reshape(7, 8)[3, 4]
    brute = oracle.costs(image, image, np.broadcast_to(np.arange(56), (7, 8, 56)), 3)
    barred = np.zeros((7, 8), bool)
    barred[2:5, 3:6] = True
    brute[..., barred.ravel()] = np.inf
    want = np.argsort(brute, axis=-1, kind="stable")[..., :2]
    field = nlattn.patchmatch(
        image, image, topk=2, patch=3, score="neg_l2", key_mask=~barred, method="exact"
    )
    np.testing.assert_array_equal(field.index, want)


def test_a_single_match_teaches_nothing() -> None:
    (q, k, v, dout), _ = case(0)
    dq, dk, dv = nlattn.psal_vjp(q, k, v, dout, topk=1, patch=1)
    np.testing.assert_array_equal(dq, 0)
    np.testing.assert_array_equal(dk, 0)
    assert abs(dv).max() > 0


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"patch": 2},
        ValueError,
        "psal: patch=2 is even, expected an odd width so that its centre is",
    ),
    ({"topk": 0}, ValueError, "psal: topk=0, expected at least 1"),
    ({"temperature": 0}, ValueError, "psal: temperature=0.0, expected a positive number"),
    ({"aggregate": 1}, TypeError, "psal: aggregate=1 is no bool"),
    ({"border": "wrap"}, ValueError, "psal: border='wrap', expected 'reflect' or 'edge'"),
    ({"field": 3}, TypeError, "psal: field is a int, expected a Field"),
    (
        {"field": given(np.zeros((4, 4, 1), int), (5, 4))},
        ValueError,
        "psal: field is of grids (4, 4) and (5, 4), expected (4, 5) of q and (5, 4) of k",
    ),
    (
        {"field": given(np.zeros((3, 4, 5, 1), int), (5, 4))},
        ValueError,
        "psal: field has leading axes (3,), expected axes that broadcast to ()",
    ),
    ({"key_mask": np.ones((5, 4))}, TypeError, "psal: key_mask has dtype float64, expected bool"),
    (
        {"key_mask": np.ones((4, 5), bool)},
        ValueError,
        "psal: key_mask has shape (4, 5), expected (..., 5, 4)",
    ),
    ({"max_bytes": 100}, MemoryError, "psal: needs 20.2 kB (3 votes and a patch for each of 20 q"),
]


@pytest.mark.parametrize(("options", "error", "text"), REFUSED, ids=lambda x: str(x)[:30])
def test_bad_options_are_refused_in_words(options: Any, error: Any, text: str) -> None:
    (q, k, v, _), _ = case(0)
    with pytest.raises(error, match="^" + re.escape(text)):
        nlattn.psal(q, k, v, **options)


def test_a_map_is_of_one_head() -> None:
    (q, k, _, _), _ = case(0, lead=(1,))
    with pytest.raises(ValueError, match=r"psal_map: q, k have leading axes \(1,\), expected one"):
        nlattn.psal_map(q, k)
