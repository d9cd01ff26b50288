"""`sparse_attention` against its oracle, its limits, and every way to get a support wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nlattn
from nlattn._types import Support
from nlattn.oracle import sparse as oracle
from tests.helpers import for_any_threads

WEIGHTS = ("softmax", "gaussian", "abspow", "dot")
OPTIONS = {"power": 1.5, "bandwidth": 1.3}


def random_support(rng: Any, n: int, m: int, lead: tuple[int, ...] = (), p: float = 0.5) -> Support:
    return nlattn.support_from_index(
        np.where(rng.random((*lead, n, m)) < p, rng.permutation(m), -1), m
    )


def arrays(rng: Any, dtype: Any, *shapes: tuple[int, ...]) -> list[Any]:
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


LEADS: list[Any] = [((), ()), ((2, 3), (3,)), ((2, 3), ()), ((2, 3), (2, 1)), ((0,), ())]


@pytest.mark.parametrize(("dtype", "wide"), [(np.float32, np.float64), (np.float64, np.longdouble)])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_it_is_as_exact_as_numpy(weight: str, dtype: Any, wide: Any) -> None:
    """Error at most twice that of the plain transcription in the same dtype, plus one spacing."""
    got, plain, exact = [], [], []
    for seed, (lead, heads) in enumerate(LEADS):
        rng = np.random.default_rng(seed)
        shapes = (*lead, 6, 17), (*lead[1:], 9, 17), (*lead[:1], *(1,) * len(lead[1:]), 9, 3)
        inputs = arrays(rng, dtype, *shapes)
        cotangents = arrays(rng, dtype, (*lead, 6, 3), (*lead, 6))
        support = random_support(rng, 6, 9, heads)
        got.append(results(nlattn, weight, inputs, support, cotangents))
        plain.append(results(oracle, weight, inputs, support, cotangents))
        inputs, cotangents = ([x.astype(wide) for x in xs] for xs in (inputs, cotangents))
        exact.append(results(oracle, weight, inputs, support, cotangents))

    by_result = (zip(*calls, strict=True) for calls in (got, plain, exact))
    for runs in zip(*by_result, strict=True):
        for a, b in zip(*runs[:2], strict=True):
            assert a.shape == b.shape
            assert a.dtype in (b.dtype, np.float64)
        a, b, c = (np.concatenate([x.ravel() for x in run]) for run in runs)
        np.testing.assert_array_equal(np.isneginf(a), np.isneginf(c))
        kept = np.isfinite(c)
        error, allowed = (np.sqrt(((x[kept] - c[kept]) ** 2).mean()) for x in (a.astype(dtype), b))
        assert error <= 2 * allowed + np.spacing(dtype(abs(c[kept]).max()))


def results(module: Any, weight: str, inputs: Any, support: Any, cotangents: Any) -> list[Any]:
    """Output, normaliser and the three gradients."""
    options: Any = {"weight": weight, **OPTIONS}
    dout, dlse = cotangents
    out = module.sparse_attention(*inputs, support, return_lse=True, **options)
    return [*out, *module.sparse_attention_vjp(*inputs, support, dout, dlse=dlse, **options)]


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(0, 6),
    m=st.integers(1, 6),
    p=st.floats(0, 1),
    weight=st.sampled_from(WEIGHTS),
)
def test_any_support_fits(seed: int, n: int, m: int, p: float, weight: str) -> None:
    rng = np.random.default_rng(seed)
    q, k, v, dout = arrays(rng, np.float64, (n, 2), (m, 2), (m, 2), (n, 2))
    support = random_support(rng, n, m, p=p)
    got = nlattn.sparse_attention(q, k, v, support, weight=weight)
    want = oracle.sparse_attention(q, k, v, support, weight=weight)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)
    got = nlattn.sparse_attention_vjp(q, k, v, support, dout, weight=weight)
    want = oracle.sparse_attention_vjp(q, k, v, support, dout, weight=weight)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12 * max(1, abs(b).max(initial=0)))


def test_a_full_support_is_dense_attention() -> None:
    rng = np.random.default_rng(0)
    q, k, v, dout = arrays(rng, np.float64, (5, 3), (8, 3), (8, 2), (5, 2))
    full = nlattn.support_from_index(np.tile(np.arange(8), (5, 1)), 8)
    out, lse = nlattn.sparse_attention(q, k, v, full, return_lse=True)
    want, want_lse = nlattn.attention(q, k, v, return_lse=True)
    np.testing.assert_allclose(out, want, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(lse, want_lse, rtol=1e-13)
    for a, b in zip(
        nlattn.sparse_attention_vjp(q, k, v, full, dout),
        nlattn.attention_vjp(q, k, v, dout),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("weight", ["softmax", "gaussian", "abspow"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_single_key_gives_its_value_and_no_gradient(weight: str, dtype: Any) -> None:
    rng = np.random.default_rng(1)
    q, k, v, dout = arrays(rng, dtype, (6, 4), (5, 4), (5, 3), (6, 3))
    keys = rng.integers(0, 5, (6, 1))
    support = nlattn.support_from_index(keys, 5)
    out = nlattn.sparse_attention(q, k, v, support, weight=weight)
    np.testing.assert_array_equal(out, v[keys[:, 0]])
    dq, dk, _ = nlattn.sparse_attention_vjp(q, k, v, support, dout, weight=weight)
    assert not dq.any()
    assert not dk.any()


def test_softmax_does_not_overflow() -> None:
    q, k, v = np.full((1, 1), 1e3), np.array([[1e3], [-1e3]]), np.array([[1.0], [2.0]])
    full = nlattn.support_from_index([[0, 1]], 2)
    out, lse = nlattn.sparse_attention(q, k, v, full, return_lse=True)
    assert (out[0, 0], lse[0]) == (1, 1e6)


def test_rows_without_keys() -> None:
    rng = np.random.default_rng(2)
    q, k, v = arrays(rng, np.float32, (2, 3, 2), (4, 2), (4, 2))
    support = nlattn.support_from_index([[0, 1], [-1, -1], [3, -1]], 4)
    out, lse = nlattn.sparse_attention(q, k, v, support, return_lse=True)
    assert not out[:, 1].any()
    assert np.isneginf(lse[:, 1]).all()
    out = nlattn.sparse_attention(q, k, v, support, masked_rows="nan")
    np.testing.assert_array_equal(np.isnan(out).all(-1), [[False, True, False]] * 2)
    text = (
        r"sparse_attention: query \[0, 1\] has no key with a weight; "
        "masked_rows='zero' or 'nan' lets it pass"
    )
    with pytest.raises(ValueError, match=text):
        nlattn.sparse_attention(q, k, v, support, masked_rows="raise")


def test_no_keys_at_all() -> None:
    q, k, v = np.ones((2, 3)), np.ones((0, 3)), np.ones((0, 4))
    support = nlattn.support([0, 0, 0], [], (2, 0))
    assert not nlattn.sparse_attention(q, k, v, support).any()
    dq, dk, dv = nlattn.sparse_attention_vjp(q, k, v, support, np.ones((2, 4)))
    assert not dq.any()
    assert (dk.shape, dv.shape) == ((0, 3), (0, 4))


def test_supports_from_index_are_sorted_sets() -> None:
    support = nlattn.support_from_index([[3, -1, 0, 3], [-1, -1, -1, -1], [2, 1, 0, 3]], 4)
    assert support.indptr.tolist() == [0, 2, 2, 6]
    assert support.indices.tolist() == [0, 3, 0, 1, 2, 3]
    assert support.shape == (3, 4)
    assert (support.indptr.dtype, support.indices.dtype) == (np.int64, np.int32)
    assert not support.indices.flags.writeable


def test_conventions_of_index_tables() -> None:
    """Negative keys are none, keys beyond are refused or none, a window is joined to the list."""
    support = nlattn.support_from_index(np.array([[-7, 9, 1]], np.int32), 4, beyond="empty")
    assert support.indices.tolist() == [1]
    table = [[3, -1, 3], [0, 0, 0], [-1, -1, -1]]
    support, counts = nlattn.support_from_index(table, 4, window=(1, 0), return_counts=True)
    assert [x.tolist() for x in np.split(support.indices, support.indptr[1:-1])] == [
        [0, 3],
        [0, 1],
        [1, 2],
    ]
    assert counts.tolist() == [1, 2, 4, 1, 1, 1]
    support = nlattn.support_from_index(
        table, 4, window=(1, 1), causal=True, causal_offset=1, return_counts=False
    )
    assert support.indptr.tolist() == [0, 2, 5, 7]
    assert support.indices.tolist() == [0, 1, 0, 1, 2, 2, 3]
    empty = nlattn.support_from_index(np.full((2, 3, 0), -1), 5)
    assert (empty.shape, empty.indptr[-1]) == ((2, 3, 5), 0)


@pytest.mark.parametrize("dtype", ["u1", "u8", "i1", ">i2"])
def test_index_tables_are_of_any_integers(dtype: str) -> None:
    table = np.array([[2, 0], [1, 1]], dtype)
    support = nlattn.support_from_index(table, 300, window=(1, 0), causal=True)
    assert support.indices.tolist() == [0, 0, 1]
    if np.dtype(dtype).kind == "u":
        table[0, 0] = np.iinfo(dtype).max
        assert nlattn.support_from_index(table, 3, beyond="empty").indices.tolist() == [0, 1]


def test_windows_beyond_memory_are_refused() -> None:
    text = r"support_from_index: needs 240 GB \(windows of 2000000001 keys\), above max_bytes=4 GB"
    with pytest.raises(MemoryError, match=text):
        nlattn.support_from_index([[0]] * 5, 2**31 - 1, window=(10**9, 10**9))


def test_a_key_counts_as_often_as_it_is_named() -> None:
    """As if it stood in the list of keys so often; the gradient of a copy is a share."""
    rng = np.random.default_rng(0)
    q, k, v, dout = arrays(rng, np.float64, (3, 4), (5, 4), (5, 2), (3, 2))
    table = np.array([[0, 1, 1, 1], [4, -1, 4, 2], [3, 3, 3, 3]])
    support, counts = nlattn.support_from_index(table, 5, return_counts=True)
    bias = np.log(counts)
    got = nlattn.sparse_attention(q, k, v, support, bias=bias, return_lse=True)
    for i, keys in enumerate(table):
        S = keys[keys >= 0]
        want = nlattn.attention(q[i : i + 1], k[S], v[S], return_lse=True)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a[i], b[0], rtol=1e-13)
    *_, dbias = nlattn.sparse_attention_vjp(q, k, v, support, dout, bias=bias)
    assert dbias.shape == bias.shape


@pytest.mark.parametrize("weight", ["softmax", "gaussian"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sinks_and_biases_of_edges(weight: str, dtype: Any) -> None:
    rng = np.random.default_rng(3)
    inputs = arrays(rng, dtype, (2, 3, 6, 5), (3, 9, 5), (2, 1, 9, 4))
    dout, dlse = arrays(rng, dtype, (2, 3, 6, 4), (2, 3, 6))
    support = random_support(rng, 6, 9, (3,), p=0.3)
    sinks, bias = arrays(rng, dtype, (3,), support.indices.shape)
    options: dict[str, Any] = {"weight": weight, "sinks": sinks, "bias": bias}
    got = nlattn.sparse_attention(*inputs, support, **options, return_lse=True)
    got += nlattn.sparse_attention_vjp(*inputs, support, dout, dlse=dlse, **options)
    wide = [x.astype(np.longdouble) for x in (*inputs, dout, dlse)]
    options |= {"sinks": sinks.astype(np.longdouble), "bias": bias.astype(np.longdouble)}
    want = oracle.sparse_attention(*wide[:3], support, **options, return_lse=True)
    want += oracle.sparse_attention_vjp(*wide[:3], support, wide[3], dlse=wide[4], **options)
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        bound = 40 * np.finfo(dtype).eps  # of sums of some ten terms near 1
        np.testing.assert_allclose(a, b, rtol=bound, atol=bound)


def test_a_sink_takes_a_row_without_keys() -> None:
    x, support = np.ones((2, 1)), nlattn.support_from_index([[-1], [0]], 2)
    options: dict[str, Any] = {"return_lse": True, "masked_rows": "nan"}
    out, lse = nlattn.sparse_attention(x, x, x, support, sinks=np.array(1.0), **options)
    np.testing.assert_allclose(out, [[0], [0.5]])
    np.testing.assert_allclose(lse, [1, 1 + np.log(2)])
    out, lse = nlattn.sparse_attention(x, x, x, support, sinks=np.array(-np.inf), **options)
    np.testing.assert_array_equal(np.isnan(out), [[True], [False]])
    np.testing.assert_array_equal(lse, [-np.inf, 1])
    with pytest.raises(ValueError, match="sinks has no place in weight='dot', expected 'softmax'"):
        nlattn.sparse_attention(x, x, x, support, sinks=np.array(1.0), weight="dot")
    with pytest.raises(ValueError, match=r"bias has shape \(2,\), expected \(1,\), one for each"):
        nlattn.sparse_attention(x, x, x, support, bias=np.zeros(2))


def test_it_is_what_flashmla_says_of_its_sparse_kernel() -> None:
    """Keys of -1 or beyond are none, values are the first channels of keys, the sink scales out.

    Its reference divides by the keys' sum, multiplies by ``exp(lse) / (exp(lse) + exp(sink))``, and
    returns lse without the sink.
    """
    rng = np.random.default_rng(0)
    h, n, m, d, e = 3, 4, 7, 6, 4
    q, kv = rng.standard_normal((h, n, d)), rng.standard_normal((m, d))
    table = np.array([[0, 3, -1, 9], [6, 5, 4, 3], [-1, -1, 7, 8], [2, 7, 1, -1]])
    sinks = np.array([-np.inf, 0.5, 2.0])
    support = nlattn.support_from_index(table, m, beyond="empty")
    out = nlattn.sparse_attention(q, kv, kv[:, :e], support, sinks=sinks)
    _, lse = nlattn.sparse_attention(q, kv, kv[:, :e], support, return_lse=True)
    for i, row in enumerate(table):
        keys = kv[[j for j in row if 0 <= j < m]]
        powers = np.exp(q[:, i] @ keys.T / np.sqrt(d))
        total = powers.sum(1)
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(lse[:, i], np.log(total), rtol=1e-13)
        want = powers @ keys[:, :e] / np.where(total == 0, 1, total + np.exp(sinks))[:, None]
        np.testing.assert_allclose(out[:, i], want, rtol=1e-12)


def test_thousands_of_queries_that_choose_one_key() -> None:
    """Its gradient is a sum of all queries, the same bits on any number of threads."""
    rng = np.random.default_rng(0)
    n, m = 3000, 40
    q, k, v, dout = arrays(rng, np.float32, (n, 8), (m, 8), (m, 4), (n, 4))
    index = np.concatenate([np.full((n, 1), 7), rng.integers(0, m, (n, 2))], 1)
    support = nlattn.support_from_index(index, m)
    got = for_any_threads(lambda: nlattn.sparse_attention_vjp(q, k, v, support, dout))
    mask = np.zeros((n, m), bool)
    np.put_along_axis(mask, index, True, 1)
    want = nlattn.attention_vjp(*(x.astype(np.float64) for x in (q, k, v, dout)), mask=mask)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6 * abs(b).max())


BAD_SUPPORTS: list[tuple[Any, Any, Any, str]] = [
    ([0, 2, 1], [0], (2, 3), r"support.indptr falls at row 1, expected no decrease"),
    ([0, 1], [0], (2, 3), r"support.indptr has shape \(2,\), expected \(3,\)"),
    ([1, 1, 1], [0], (2, 3), r"support.indptr runs from 1 to 1, expected 0 to the 1 indices"),
    ([0, 1, 1], [[0]], (2, 3), r"support.indices has shape \(1, 1\), expected \(nnz,\)"),
    ([0, 1, 2], [0, 3], (2, 3), r"support row 1 holds key 3, expected 0 to 2"),
    ([0, 0, 1], [-1], (2, 3), r"support row 1 holds key -1, expected 0 to 2"),
    ([0, 1, 3], [2, 1, 1], (2, 3), r"support row 1 holds key 1 after 1, expected ascending keys"),
    ([0, 2, 2], [2, 1], (2, 3), r"support row 0 holds key 1 after 2, expected ascending keys"),
    ([0, 0], [], (3,), r"support.shape is \(3,\), expected \(..., n, m\) with m below 2\^31"),
    ([0, 0], [], (1, 2**31), r"support.shape is \(1, 2147483648\), expected"),
    ([0], [], (-1, 2), r"support.shape=-1, expected at least 0"),
]


@pytest.mark.parametrize(("indptr", "indices", "shape", "text"), BAD_SUPPORTS)
def test_bad_supports_are_refused(indptr: Any, indices: Any, shape: Any, text: str) -> None:
    if text.startswith("support.indptr falls"):
        indices = [0] * indptr[-1]
    with pytest.raises(ValueError, match=f"^support: {text}"):
        nlattn.support(indptr, indices, shape)
    by_hand = Support(np.array(indptr), np.array(indices, np.int32), shape)
    with pytest.raises(ValueError, match=f"^sparse_attention: {text}"):
        nlattn.sparse_attention(np.ones((2, 1)), np.ones((3, 1)), np.ones((3, 1)), by_hand)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: nlattn.support([0.0], [], (0, 1)), TypeError, "support: support.indptr has dtype"),
        (
            lambda: nlattn.support_from_index([0, 1], 4),
            ValueError,
            r"support_from_index: index has shape \(2,\), expected \(..., n, width\)",
        ),
        (
            lambda: nlattn.support_from_index([[0, 4]], 4),
            ValueError,
            r"support_from_index: index\[0, 1\] is 4, expected below 4; beyond='empty'",
        ),
        (
            lambda: nlattn.support_from_index([[0.5]], 4),
            TypeError,
            "support_from_index: index has dtype float64, expected integers",
        ),
        (
            lambda: nlattn.support_from_index([[0]], 0),
            ValueError,
            "support_from_index: n_keys=0, expected at least 1",
        ),
    ],
)
def test_constructors_say_what_is_wrong(call: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize(
    ("support", "options", "error", "text"),
    [
        ([1, 2], {}, TypeError, r"support is a list, expected a Support as from support\(\)"),
        (
            nlattn.support([0, 0], [], (1, 4)),
            {},
            ValueError,
            r"support has shape \(1, 4\), expected \(..., n, m\) with n=1 from q, m=3 from k",
        ),
        (
            nlattn.support([0, 0, 0], [], (2, 1, 3)),
            {},
            ValueError,
            r"support has leading axes \(2,\), expected axes that broadcast to \(\)",
        ),
        (None, {"weight": "exp"}, ValueError, "weight='exp', expected 'softmax', 'gaussian',"),
        (None, {"masked_rows": "skip"}, ValueError, "masked_rows='skip', expected 'zero', 'nan'"),
        (None, {"bandwidth": 0}, ValueError, "bandwidth=0.0, expected a positive number"),
        (None, {"power": -1.0}, ValueError, "power=-1.0, expected a positive number"),
        (
            None,
            {"weight": "gaussian", "scale": 2.0},
            ValueError,
            "scale=2.0 has no place in weight='gaussian'; use bandwidth",
        ),
    ],
)
def test_bad_options_are_refused(support: Any, options: Any, error: Any, text: str) -> None:
    support = nlattn.support([0, 0], [], (1, 3)) if support is None else support
    with pytest.raises(error, match=f"^sparse_attention: {text}"):
        nlattn.sparse_attention(
            np.ones((1, 1)), np.ones((3, 1)), np.ones((3, 1)), support, **options
        )


def test_a_map_is_one_head() -> None:
    support = nlattn.support([0, 0], [], (1, 3))
    text = r"sparse_attention_map: q has leading axes \(2,\), expected one head \(n, d\)"
    with pytest.raises(ValueError, match=text):
        nlattn.sparse_attention_map(np.ones((2, 1, 1)), np.ones((3, 1)), support)
