"""`lev_attention`, its map and gradients against their oracle; selections; refusals."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nlattn
from nlattn.oracle import lev as oracle
from nlattn.oracle.dense import attention_stages
from tests.helpers import assert_as_exact_as_numpy, joined

SELECT = ["leverage", "norm", "random", "oracle"]
DTYPES = [(np.float32, np.float64), (np.float64, np.longdouble)]


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


def results(where: Any, inputs: Any, cotangents: Any, options: dict[str, Any]) -> list[Any]:
    dout, dlse = cotangents
    forward = where.lev_attention(*inputs, return_lse=True, **options)
    return [*forward, *where.lev_attention_vjp(*inputs, dout, dlse=dlse, **options)]


@pytest.mark.parametrize(("dtype", "wide"), DTYPES)
def test_it_is_as_exact_as_numpy_for_its_keys(dtype: Any, wide: Any) -> None:
    """Error at most twice that of the plain transcription in the same dtype, plus one spacing."""
    runs = []
    for seed in range(4):
        shapes = (2, 6, 16), (2, 40, 16), (40, 3), (2, 6, 3), (2, 6)
        arrays = [normal(*s, seed=10 * seed + i).astype(dtype) for i, s in enumerate(shapes)]
        options = {"index": oracle.lev_keys(*arrays[:2], keys=9)}
        got = results(nlattn, arrays[:3], arrays[3:], options)
        plain = results(oracle, arrays[:3], arrays[3:], options)
        arrays = [x.astype(wide) for x in arrays]
        exact = results(oracle, arrays[:3], arrays[3:], options)
        for i, (a, b) in enumerate(zip(got, exact, strict=True)):
            assert (a.dtype, a.shape) == (np.float64 if i == 1 else dtype, b.shape)
        runs.append(([x.astype(dtype) for x in got], plain, exact))
    assert_as_exact_as_numpy(*joined(runs))


LEADS: list[tuple[Any, Any, Any, bool]] = [
    ((), (), (), False),
    ((3,), (), (3,), False),
    ((2, 1), (3,), (2, 3), False),
    ((), (2,), (3, 1), False),
    ((0,), (), (), False),
    ((2, 6), (2, 2), (2, 2), True),
    ((2, 6), (2, 2), (2, 3), True),
    ((6,), (), (1,), True),
]


@pytest.mark.parametrize("select", SELECT)
@pytest.mark.parametrize(("of_q", "of_k", "of_v", "gqa"), LEADS)
def test_heads_broadcast_and_groups_share_their_keys(
    of_q: Any, of_k: Any, of_v: Any, gqa: bool, select: str
) -> None:
    inputs = normal(*of_q, 4, 3), normal(*of_k, 9, 3, seed=1), normal(*of_v, 9, 2, seed=2)
    options = {"keys": 4, "select": select, "gqa": gqa, "seed": 5, "scale": 0.9}
    out, lse = oracle.lev_attention(*inputs, return_lse=True, **options)
    cotangents = normal(*out.shape, seed=3), normal(*lse.shape, seed=4)
    got, want = (results(where, inputs, cotangents, options) for where in (nlattn, oracle))
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=1e-13)
    index = nlattn.lev_keys(*inputs[:2], **options)
    assert index.shape == (*of_k, 4)
    np.testing.assert_array_equal(index, oracle.lev_keys(*inputs[:2], **options))


@given(
    n=st.integers(0, 9),
    m=st.integers(0, 12),
    d=st.integers(1, 4),
    keys=st.integers(1, 14),
    select=st.sampled_from(SELECT),
    seed=st.integers(0, 99),
)
def test_any_small_shape(n: int, m: int, d: int, keys: int, select: str, seed: int) -> None:
    inputs = normal(n, d, seed=seed), normal(m, d, seed=seed + 1), normal(m, 2, seed=seed + 2)
    cotangents = normal(n, 2, seed=seed + 3), normal(n, seed=seed + 4)
    index = nlattn.lev_keys(*inputs[:2], keys=keys, select=select, seed=seed)
    assert len(index) == min(keys, m)
    assert (np.diff(index) > 0).all()
    got = results(nlattn, inputs, cotangents, {"keys": keys, "select": select, "seed": seed})
    for a, b in zip(got, results(oracle, inputs, cotangents, {"index": index}), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-13)


def test_all_keys_are_dense_attention() -> None:
    q, k, v = normal(3, 5, 4)
    np.testing.assert_array_equal(nlattn.lev_attention(q, k, v), nlattn.attention(q, k, v))


def test_equal_scores_go_to_the_lowest_key() -> None:
    k = np.repeat(normal(6, 3), 4, axis=0)[np.random.default_rng(0).permutation(24)]
    for select in ("leverage", "norm"):
        index = nlattn.lev_keys(k, k, keys=5, select=select)
        scores = nlattn.leverage_scores(k) if select == "leverage" else (k**2).sum(1)
        want = np.lexsort((np.arange(24), -scores.round(9)))[:5]
        assert index.tolist() == sorted(want.tolist())


def test_scores_of_ones_own_and_keys_themselves() -> None:
    q, k, v = normal(2, 4, 3), normal(2, 9, 3, seed=1), normal(2, 9, 2, seed=2)
    shared, own = np.arange(9.0), normal(2, 9, seed=3)
    assert nlattn.lev_keys(q, k, keys=3, scores=shared).tolist() == [[6, 7, 8]] * 2
    index = nlattn.lev_keys(q, k, keys=3, scores=own)
    want = nlattn.lev_attention(q, k, v, index=index)
    np.testing.assert_array_equal(nlattn.lev_attention(q, k, v, keys=3, scores=own), want)
    np.testing.assert_array_equal(nlattn.lev_attention(q, k, v, index=index[:, ::-1]), want)


def test_what_is_drawn_for_a_head_does_not_depend_on_the_others() -> None:
    k = normal(3, 40, 2)
    all_heads = nlattn.lev_keys(k, k, keys=8, select="random", seed=1)
    np.testing.assert_array_equal(
        nlattn.lev_keys(k[:1], k[:1], keys=8, select="random", seed=1), all_heads[:1]
    )
    assert len({tuple(row) for row in all_heads.tolist()}) == 3


def test_the_best_selection_holds_the_most_mass() -> None:
    q, k = normal(30, 4), normal(200, 4, seed=1) * np.array([3, 1, 1, 0.1])
    P = attention_stages(q, k, k).weights
    mass = {s: P[:, nlattn.lev_keys(q, k, keys=10, select=s)].sum(1).mean() for s in SELECT}
    assert mass["oracle"] == max(mass.values())
    assert mass["random"] < 0.2


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"keys": 0}, ValueError, "keys=0, expected at least 1"),
    ({"keys": 1.5}, TypeError, "keys=1.5 is no integer"),
    (
        {"select": "top"},
        ValueError,
        "select='top', expected 'leverage', 'norm', 'random' or 'oracle'",
    ),
    ({"seed": "x"}, TypeError, "seed='x' is no integer"),
    ({"scale": np.inf}, ValueError, "scale=inf is not finite"),
    ({"scores": np.ones(4)}, ValueError, "scores has shape (4,), expected m=9 of them, from k"),
    (
        {"scores": np.ones((3, 9))},
        ValueError,
        "scores has shape (3, 9), expected (2, m=9), as the heads of k",
    ),
    (
        {"scores": np.full(9, np.nan)},
        ValueError,
        "scores[0] is nan, expected a number for each key",
    ),
    ({"index": [0, 9]}, ValueError, "index[1] is 9, expected 0 to 8"),
    ({"index": [4, 1, 4]}, ValueError, "index holds key 4 twice, expected each key once"),
    ({"index": [0.5]}, TypeError, "index has dtype float64, expected integers"),
    ({"index": 3}, ValueError, "index has shape (), expected (2, s), as the heads of k"),
    (
        {"index": [1], "scores": np.ones(9)},
        ValueError,
        "scores has no place beside index, which says the keys",
    ),
]


@pytest.mark.parametrize(("options", "error", "text"), BAD)
def test_bad_options_are_refused(options: dict[str, Any], error: Any, text: str) -> None:
    q, k, v = normal(2, 4, 3), normal(2, 9, 3), normal(2, 9, 2)
    with pytest.raises(error, match=f"^lev_attention: {re.escape(text)}$"):
        nlattn.lev_attention(q, k, v, **options)


def test_a_map_is_of_one_head() -> None:
    text = "lev_attention_map: q, k have leading axes (2,), expected one head (n, d), (m, d)"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        nlattn.lev_attention_map(normal(2, 4, 3), normal(2, 9, 3))
