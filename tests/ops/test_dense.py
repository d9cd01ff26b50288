"""`attention` and its gradients against their oracle, over shapes, options and layouts."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nlattn
from nlattn.oracle import dense as oracle
from tests.helpers import for_any_threads

DTYPES = [(np.float32, np.float64), (np.float64, np.longdouble)]


def normal(rng: Any, dtype: Any, *shapes: tuple[int, ...]) -> list[Any]:
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


class Case(NamedTuple):
    """What options are made for: a generator, dtype, heads, queries and keys."""

    rng: Any
    dtype: Any
    h: int
    n: int
    m: int

    def normal(self, *shape: int) -> Any:
        return self.rng.standard_normal(shape).astype(self.dtype)

    def slopes(self) -> Any:
        return np.linspace(0.5, 0.1, self.h).astype(self.dtype)

    def lengths(self, most: int) -> Any:
        return self.rng.integers(0, most + 1, self.h)

    def starts(self, most: int) -> Any:
        """Four sequences, one of them empty, and some padding."""
        return np.array([0, most // 3, most // 3, most // 2, most - most // 8])

    def holes(self, *shape: int) -> Any:
        """A bias with -inf in places, and everywhere in one row."""
        bias = self.normal(*shape)
        bias[self.rng.random(shape) < 0.2] = -np.inf
        bias[..., -1:, :] = -np.inf
        return bias

    def pattern(self, *shape: int) -> Any:
        return self.rng.random(shape) < 0.6


OPTIONS: dict[str, Callable[[Case], dict[str, Any]]] = {
    "plain": lambda _: {},
    "scale": lambda _: {"scale": -1.7},
    "softcap": lambda _: {"softcap": 1.3, "scale": 2.0},
    "small softcap": lambda _: {"softcap": 0.2},
    "bias": lambda c: {"bias": c.holes(c.n, c.m)},
    "bias of heads": lambda c: {"bias": c.holes(c.h, c.n, c.m)},
    "bias of keys": lambda c: {"bias": c.normal(c.h, 1, c.m)},
    "bias of queries": lambda c: {"bias": c.normal(c.n, 1)},
    "bias of nothing": lambda c: {"bias": c.dtype(0.5)},
    "mask": lambda c: {"mask": c.pattern(c.n, c.m)},
    "mask of heads": lambda c: {"mask": c.pattern(c.h, 1, c.m)},
    "mask of keys": lambda c: {"mask": c.pattern(c.m)},
    "mask of queries": lambda c: {"mask": c.pattern(c.n, 1)},
    "causal": lambda _: {"causal": True},
    "causal ahead": lambda _: {"causal": True, "causal_offset": 3},
    "causal behind": lambda _: {"causal": True, "causal_offset": -2},
    "window": lambda _: {"window": (1, 2)},
    "open window": lambda _: {"window": (None, 0)},
    "from the corner": lambda _: {"causal": True, "causal_offset": "bottom-right"},
    "offsets": lambda c: {"causal": True, "causal_offset": np.arange(c.h) - 1, "alibi": c.slopes()},
    "moved window": lambda _: {"window": (1, 1), "window_about": "offset", "causal_offset": 2},
    "lengths": lambda c: {
        "key_lengths": c.lengths(c.m),
        "query_lengths": c.lengths(c.n),
    },
    "lengths from the corner": lambda c: {
        "key_lengths": c.lengths(c.m),
        "query_lengths": c.lengths(c.n),
        "causal": True,
        "causal_offset": "bottom-right",
        "window": (2, 0),
        "window_about": "offset",
    },
    "packed": lambda c: {"cu_seqlens_q": c.starts(c.n), "cu_seqlens_k": c.starts(c.m)},
    "packed and causal": lambda c: {
        "cu_seqlens_q": c.starts(c.n),
        "cu_seqlens_k": c.starts(c.m),
        "causal": True,
        "causal_offset": "bottom-right",
        "window": (2, 1),
        "alibi": c.slopes(),
        "sinks": c.normal(c.h),
    },
    "sinks": lambda c: {"sinks": c.normal(c.h), "mask": c.pattern(c.n, c.m)},
    "no sink and a large one": lambda c: {
        "sinks": np.where(np.arange(c.h), 9, -np.inf).astype(c.dtype)
    },
    "sinks and lengths": lambda c: {
        "sinks": c.normal(1),
        "key_lengths": c.lengths(c.m),
        "query_lengths": c.n // 2,
    },
    "alibi": lambda c: {"alibi": c.slopes()},
    "base 2": lambda c: {"lse_base": "2", "sinks": c.normal(c.h)},
    "dropout": lambda c: {"dropout_mask": c.pattern(c.h, c.n, c.m), "dropout_scale": 1.25},
    "dropout of keys": lambda c: {"dropout_mask": c.pattern(c.m), "mask": c.pattern(c.n, c.m)},
    "blocks": lambda c: {"mask": c.pattern(c.h, -(-c.n // 2), -(-c.m // 4)), "mask_block": (2, 4)},
    "blocks of keys": lambda c: {"mask": c.pattern(1, -(-c.m // 5)), "mask_block": 5},
    "normalised": lambda _: {"qk_norm": 0.3, "scale": 2.0},
    "all of a decoder": lambda c: {
        "softcap": 2.0,
        "bias": c.normal(c.h, c.n, c.m),
        "mask": c.pattern(-(-c.n // 2), -(-c.m // 5)),
        "mask_block": (2, 5),
        "causal": True,
        "causal_offset": "bottom-right",
        "window": (4, 1),
        "window_about": "offset",
        "key_lengths": c.lengths(c.m),
        "query_lengths": c.lengths(c.n),
        "sinks": c.normal(c.h),
        "alibi": c.slopes(),
        "qk_norm": 1e-6,
        "dropout_mask": c.pattern(c.n, c.m),
        "dropout_scale": 1.5,
        "lse_base": "2",
    },
    "all": lambda c: {
        "softcap": 2.0,
        "bias": c.holes(c.h, c.n, c.m),
        "mask": c.pattern(c.n, c.m),
        "causal": True,
        "causal_offset": 1,
        "window": (3, None),
    },
}


def results(where: Any, inputs: Any, cotangents: Any, options: dict[str, Any]) -> list[Any]:
    dout, dlse = cotangents
    forward = where.attention(*inputs, return_lse=True, **options)
    return [*forward, *where.attention_vjp(*inputs, dout, dlse=dlse, **options)]


WIDE = ("bias", "sinks", "alibi")


def assert_as_exact(got: Any, plain: Any, exact: Any) -> None:
    """Root mean square error at most twice that of `plain`, plus one spacing."""
    dtype = plain.dtype.type
    kept = np.isfinite(exact)
    error, allowed = (np.sqrt(((x[kept] - exact[kept]) ** 2).mean()) for x in (got, plain))
    if kept.sum() < 20:  # too few to have an average: the sum of all scores' gradients
        allowed = 100 * np.finfo(dtype).eps
    assert error <= 2 * allowed + np.spacing(dtype(abs(exact[kept]).max(initial=0)))


def widened(options: dict[str, Any], wide: Any) -> dict[str, Any]:
    return {k: np.asarray(x, wide) if k in WIDE else x for k, x in options.items()}


@pytest.mark.parametrize(("dtype", "wide"), DTYPES)
@pytest.mark.parametrize("name", OPTIONS)
def test_it_is_as_exact_as_numpy(name: str, dtype: Any, wide: Any) -> None:
    """Error at most twice that of the plain transcription in the same dtype, plus one spacing."""
    runs = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        h, n, m, d, e = 2, 6, 9, 16, 3
        inputs = normal(rng, dtype, (h, n, d), (h, m, d), (m, e))
        cotangents = normal(rng, dtype, (h, n, e), (h, n))
        options = OPTIONS[name](Case(rng, dtype, h, n, m))
        got = results(nlattn, inputs, cotangents, options)
        plain = results(oracle, inputs, cotangents, options)
        inputs, cotangents = ([x.astype(wide) for x in xs] for xs in (inputs, cotangents))
        exact = results(oracle, inputs, cotangents, widened(options, wide))
        for i, (a, b) in enumerate(zip(got, exact, strict=True)):
            assert (a.dtype, a.shape) == (np.float64 if i == 1 else dtype, b.shape)
        runs.append((got, plain, exact))
    for x in range(len(runs[0][0])):
        a, b, c = (np.concatenate([np.ravel(run[i][x]) for run in runs]) for i in range(3))
        np.testing.assert_array_equal(np.isneginf(a), np.isneginf(c))
        assert_as_exact(a, b, c)


LEADS = [((), (), ()), ((3,), (), (3,)), ((2, 1), (3,), (2, 3)), ((0,), (), ()), ((2,), (1,), (1,))]


@pytest.mark.parametrize(("of_q", "of_k", "of_v"), LEADS)
def test_leading_axes_broadcast_and_gradients_keep_shapes(of_q: Any, of_k: Any, of_v: Any) -> None:
    rng = np.random.default_rng(0)
    inputs = normal(rng, np.float64, (*of_q, 4, 3), (*of_k, 5, 3), (*of_v, 5, 2))
    lead = np.broadcast_shapes(of_q, of_k, of_v)
    cotangents = normal(rng, np.float64, (*lead, 4, 2), (*lead, 4))
    options = {"bias": rng.standard_normal((*lead[-1:], 1, 5))}
    got = results(nlattn, inputs, cotangents, options)
    for a, b in zip(got, results(oracle, inputs, cotangents, options), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-13)


def test_query_heads_share_key_heads() -> None:
    rng = np.random.default_rng(0)
    inputs = normal(rng, np.float64, (2, 6, 4, 3), (2, 2, 5, 3), (2, 5, 2))
    cotangents = normal(rng, np.float64, (2, 6, 4, 2), (2, 6, 4))
    options = {"gqa": True, "causal": True}
    got = results(nlattn, inputs, cotangents, options)
    for a, b in zip(got, results(oracle, inputs, cotangents, options), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-13)


@given(
    n=st.integers(0, 70),
    m=st.integers(0, 9),
    d=st.integers(1, 5),
    e=st.integers(1, 40),
    name=st.sampled_from(sorted(OPTIONS)),
    seed=st.integers(0, 99),
)
def test_any_small_shape(n: int, m: int, d: int, e: int, name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    inputs = normal(rng, np.float64, (2, n, d), (2, m, d), (2, m, e))
    cotangents = normal(rng, np.float64, (2, n, e), (2, n))
    options = OPTIONS[name](Case(rng, np.float64, 2, n, m))
    got = results(nlattn, inputs, cotangents, options)
    for a, b in zip(got, results(oracle, inputs, cotangents, options), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-13, rtol=2e-13)


@pytest.mark.parametrize("options", [{"window": (1, 255)}, {"mask": np.arange(258) > 256}])
def test_two_blocks_of_keys(options: dict[str, Any]) -> None:
    """Some panels of queries reach only one block."""
    rng = np.random.default_rng(0)
    inputs = normal(rng, np.float64, (33, 1), (258, 1), (258, 1))
    cotangents = normal(rng, np.float64, (33, 1), (33,))
    options = {"softcap": 2.0, **options}
    got = results(nlattn, inputs, cotangents, options)
    for a, b in zip(got, results(oracle, inputs, cotangents, options), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-13)


@pytest.mark.jit
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPTIONS)
def test_many_tiles(name: str, dtype: Any) -> None:
    """Several tiles and blocks, none of them whole, and every number of threads the same bits."""
    rng = np.random.default_rng(0)
    n, m = 330, 520
    inputs = normal(rng, dtype, (2, n, 33), (2, m, 33), (2, m, 34))
    cotangents = normal(rng, dtype, (2, n, 34), (2, n))
    options = OPTIONS[name](Case(rng, dtype, 2, n, m))
    got = for_any_threads(lambda: results(nlattn, inputs, cotangents, options))
    plain = exact = results(oracle, inputs, cotangents, options)
    if dtype == np.float32:
        inputs, cotangents = ([x.astype(float) for x in xs] for xs in (inputs, cotangents))
        exact = results(oracle, inputs, cotangents, widened(options, float))
    for a, b, c in zip(got, plain, exact, strict=True):
        if dtype == np.float64:
            np.testing.assert_allclose(a, c, atol=1e-12, rtol=1e-11)
        else:
            assert_as_exact(a, b, c)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_large_scores_do_not_overflow(dtype: Any, size: float) -> None:
    q, k = np.eye(3, dtype=dtype), np.eye(3, dtype=dtype)
    v = np.arange(6, dtype=dtype).reshape(3, 2)
    out, lse = nlattn.attention(q, k, v, scale=size, return_lse=True)
    np.testing.assert_array_equal(out, v)
    np.testing.assert_array_equal(lse, np.full(3, size, dtype))
    out = nlattn.attention(q, k, v, scale=-size)
    np.testing.assert_allclose(out, (v.sum(0) - v) / 2)


def test_rows_that_may_attend_to_nothing() -> None:
    x = np.ones((2, 3, 2))
    mask = np.array([True, False, True])[:, None]
    out, lse = nlattn.attention(x, x, x, mask=mask, return_lse=True)
    np.testing.assert_array_equal(out[:, 1], 0)
    np.testing.assert_array_equal(lse[:, 1], -np.inf)
    out = nlattn.attention(x, x, x, mask=mask, masked_rows="nan")
    np.testing.assert_array_equal(np.isnan(out).all(-1), [[False, True, False]] * 2)
    with pytest.raises(ValueError, match=re.escape("attention: query (0, 1) may attend to no key")):
        nlattn.attention(x, x, x, mask=mask, masked_rows="raise")
    assert nlattn.attention(x, x, x, masked_rows="raise").shape == x.shape
    for masked_rows in ("zero", "nan"):
        dq, _, _ = nlattn.attention_vjp(x, x, x, x, mask=mask, masked_rows=masked_rows)
        np.testing.assert_array_equal(dq[:, 1], 0)


def test_values_that_are_not_finite_reach_only_their_rows() -> None:
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 4, 3))
    q[2, 1] = np.nan
    out, lse = nlattn.attention(q, k, v, nonfinite="propagate", return_lse=True)
    np.testing.assert_array_equal(np.isnan(out).all(1), [False, False, True, False])
    assert np.isnan(lse[2])
    mask = np.array([True, True, False, True])
    out = nlattn.attention(k, q, v, mask=mask, nonfinite="propagate")
    np.testing.assert_allclose(out, nlattn.attention(k, q[mask], v[mask]), atol=1e-15)


def test_a_broadcast_mask_is_not_expanded() -> None:
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 2, 4, 3))
    mask = np.array([True, False, True, True])
    huge = np.broadcast_to(mask, (2, 4, 4))
    np.testing.assert_array_equal(
        nlattn.attention(q, k, v, mask=huge), nlattn.attention(q, k, v, mask=mask)
    )


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"mask": np.ones((3, 4))},
        TypeError,
        "attention: mask has dtype float64, expected bool, True where a key may be used; "
        "mask != 0 if it is 1 there, mask == 0 if it is 0 there and -inf elsewhere",
    ),
    (
        {"mask": np.ones((3, 4), int)},
        TypeError,
        "attention: mask has dtype int64, expected bool, True where a key may be used; "
        "convert it with mask.astype(bool)",
    ),
    (
        {"mask": np.ma.masked_array([True])},
        TypeError,
        "attention: mask is a masked array, expected bool; use mask.filled()",
    ),
    (
        {"mask": np.ones((2, 3, 4), bool)},
        ValueError,
        "attention: mask has shape (2, 3, 4), expected one that broadcasts to (3, 4)",
    ),
    (
        {"bias": np.ones((3, 5))},
        ValueError,
        "attention: bias has shape (3, 5), expected one that broadcasts to (3, 4)",
    ),
    (
        {"bias": np.ones(4, np.float32)},
        TypeError,
        "attention: arrays must share one dtype, got q: float64, bias: float32",
    ),
    (
        {"bias": np.array([0, 0, np.inf, 0])},
        ValueError,
        "attention: bias[2] is inf, expected finite values or -inf",
    ),
    ({"softcap": 0.0}, ValueError, "attention: softcap=0.0, expected a positive number"),
    ({"scale": np.inf}, ValueError, "attention: scale=inf is not finite"),
    ({"scale": np.timedelta64(1, "s")}, TypeError, "scale=np.timedelta64(1,'s') is no number"),
    ({"causal": 1}, TypeError, "attention: causal=1 is no bool"),
    ({"causal": True, "causal_offset": 1.5}, TypeError, "attention: causal_offset=1.5 is no"),
    (
        {"causal_offset": 2},
        ValueError,
        "causal_offset=2 has no meaning without causal=True, alibi or window",
    ),
    ({"window": 3}, TypeError, "attention: window=3, expected (left, right)"),
    ({"window": (-1, 2)}, ValueError, "attention: window[0]=-1, expected at least 0"),
    ({"window": (0, 1.0)}, TypeError, "attention: window[1]=1.0 is no integer"),
    (
        {"masked_rows": "skip"},
        ValueError,
        "attention: masked_rows='skip', expected 'zero', 'nan' or 'raise'",
    ),
    ({"gqa": True}, ValueError, "attention: q has no head axis, which gqa=True needs"),
]


@pytest.mark.parametrize(("options", "error", "text"), REFUSED, ids=lambda x: str(x)[:30])
def test_bad_options_are_refused_in_words(options: Any, error: Any, text: str) -> None:
    q, k = np.ones((3, 2)), np.ones((4, 2))
    with pytest.raises(error, match="^.*" + re.escape(text)):
        nlattn.attention(q, k, k, **options)


def test_half_a_bias_is_rounded_once() -> None:
    rng = np.random.default_rng(0)
    q, k, v, bias = (x.astype(np.float16) for x in rng.standard_normal((4, 3, 3)))
    *_, dbias = nlattn.attention_vjp(q, k, v, v, bias=bias)
    wide = [x.astype(np.float32) for x in (q, k, v, v)]
    *_, want = nlattn.attention_vjp(*wide, bias=bias.astype(np.float32))
    np.testing.assert_array_equal(dbias, want.astype(np.float16))
    assert dbias.dtype == np.float16
