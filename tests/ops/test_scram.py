"""SCRAM-style attention: supports against sets, attention against its oracle, known limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nlattn
from nlattn._types import Field, Work
from nlattn.oracle import scram as oracle
from tests.helpers import for_any_threads

KINDS = ("window", "neighbours", "topk", "local", "union")
WEIGHTS = ("softmax", "gaussian", "abspow", "dot")


def field(index: Any, key_grid: tuple[int, int]) -> Field:
    index = np.asarray(index)
    return Field(index, np.zeros(index.shape), Work(0, 0, 0), key_grid)


def arrays(seed: int, *shapes: tuple[int, ...], dtype: Any = np.float64) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def rows(support: Any) -> list[list[int]]:
    return [part.tolist() for part in np.split(support.indices, support.indptr[1:-1])]


@given(
    seed=st.integers(0, 10**6),
    grids=st.tuples(*[st.integers(1, 5)] * 4),
    topk=st.integers(1, 3),
    lead=st.sampled_from([(), (2,), (2, 1)]),
    kind=st.sampled_from([*KINDS, ("topk", "local")]),
    window=st.sampled_from([1, 3, 5]),
    reach=st.integers(0, 2),
    shift=st.booleans(),
    masks=st.tuples(*[st.booleans()] * 3),
)
def test_a_support_is_the_set_it_should_be(
    seed: int,
    grids: Any,
    topk: int,
    lead: Any,
    kind: Any,
    window: int,
    reach: int,
    shift: bool,
    masks: Any,
) -> None:
    rng = np.random.default_rng(seed)
    Hq, Wq, Hk, Wk = grids
    matches = field(rng.integers(-1, Hk * Wk, (*lead, Hq, Wq, topk)), (Hk, Wk))
    options: Any = {"kind": kind, "window": window, "reach": reach, "shift": shift}
    if masks[0]:
        options["key_mask"] = rng.random((*lead, Hk, Wk)) < 0.7
    if masks[1]:
        options["mask"] = rng.random((*lead[:1], *(1,) * len(lead[1:]), *grids)) < 0.7
    got = nlattn.scram_support(matches, **options, causal=masks[2])
    indptr, indices, shape = oracle.scram_support(matches, **options, causal=masks[2])
    assert got.shape == shape
    np.testing.assert_array_equal(got.indptr, indptr)
    np.testing.assert_array_equal(got.indices, indices)
    assert (got.indptr.dtype, got.indices.dtype) == (np.int64, np.int32)
    nlattn.support(*got)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reach", [0, 9])
def test_windows_larger_than_the_grid_hold_every_key(kind: str, reach: int) -> None:
    matches = field(np.zeros((2, 3, 1), int), (2, 4))
    support = nlattn.scram_support(matches, kind=kind, window=2**40 + 1, reach=reach)
    assert rows(support) == [[0] if kind == "topk" else list(range(8))] * 6


def test_one_pixel() -> None:
    one = np.ones((1, 1, 2))
    np.testing.assert_array_equal(nlattn.scram(one, one, 7 * one), 7 * one)
    assert rows(nlattn.scram_support(field(np.zeros((1, 1, 1), int), (1, 1)), kind="union")) == [
        [0]
    ]


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("lead", [(), (2,)])
def test_it_is_its_oracle(lead: tuple[int, ...], weight: str) -> None:
    q, k, v, dout = arrays(0, (*lead, 4, 3, 2), (3, 5, 2), (*lead, 3, 5, 3), (*lead, 4, 3, 3))
    (dlse,) = arrays(1, (*lead, 4, 3))
    key_mask = np.arange(15).reshape(3, 5) % 4 > 0
    options: Any = {"weight": weight, "key_mask": key_mask, "iterations": 2, "topk": 2, "seed": 5}
    options["kind"] = "union" if lead else "window"
    out, lse = nlattn.scram(q, k, v, return_lse=True, **options)
    want, want_lse = oracle.scram(q, k, v, return_lse=True, **options)
    np.testing.assert_allclose(out, want, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(lse, want_lse, rtol=1e-12, atol=1e-13)
    got = nlattn.scram_vjp(q, k, v, dout, dlse=dlse, **options)
    expected = oracle.scram_vjp(q, k, v, dout, dlse=dlse, **options)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


def test_integers_are_exact() -> None:
    """Sums and products of small integers have no rounding, so that all must agree bitwise."""
    rng = np.random.default_rng(2)
    q, k, v = (rng.integers(-4, 5, (4, 4, 4)).astype(float) for _ in range(3))
    single = [x.astype(np.float32) for x in (q, k, v)]
    options: Any = {"weight": "dot", "scale": 1.0, "window": 1, "seed": 3}
    want = oracle.scram(q, k, v, **options)
    np.testing.assert_array_equal(nlattn.scram(q, k, v, **options), want)
    np.testing.assert_array_equal(nlattn.scram(*single, **options), want)


def test_a_window_over_everything_is_dense_attention() -> None:
    q, k, v = arrays(3, (4, 3, 2), (3, 3, 2), (3, 3, 4))
    out = nlattn.scram(q, k, v, window=7)
    want = nlattn.attention(*(x.reshape(-1, x.shape[-1]) for x in (q, k, v)))
    np.testing.assert_allclose(out.reshape(want.shape), want, rtol=1e-13)


def test_the_steps_can_be_taken_apart() -> None:
    q, k, v, dout = arrays(4, (5, 4, 3), (4, 5, 3), (4, 5, 2), (5, 4, 2))
    matches = nlattn.patchmatch(q, k, seed=9)
    support = nlattn.scram_support(matches)
    whole = nlattn.scram(q, k, v, seed=9)
    np.testing.assert_array_equal(nlattn.scram(q, k, v, field=matches), whole)
    np.testing.assert_array_equal(nlattn.scram(q, k, v, support=support), whole)
    flat = (x.reshape(20, -1) for x in (q, k, v))
    np.testing.assert_array_equal(nlattn.sparse_attention(*flat, support), whole.reshape(20, 2))
    for options in ({"seed": 9}, {"support": support}):
        gradients = nlattn.scram_vjp(q, k, v, dout, **options)
        assert [g.shape for g in gradients] == [q.shape, k.shape, v.shape]
    A = nlattn.scram_map(q, k, field=matches)
    assert (A.query_grid, A.key_grid) == ((5, 4), (4, 5))
    np.testing.assert_array_equal(A.to_dense(), nlattn.scram_map(q, k, seed=9).to_dense())
    np.testing.assert_allclose(A @ v.reshape(20, 2), whole.reshape(20, 2), rtol=1e-13)
    nnz = len(support.indices)
    assert A.work.scores == matches.work.scores + nnz
    assert A.work.per_query.sum() == matches.work.per_query.sum() + nnz
    assert nlattn.scram_map(q, k, support=support).work.scores == nnz


def test_without_iterations_the_match_is_random_and_is_copied() -> None:
    q, k, v = arrays(5, (4, 4, 3), (4, 4, 3), (4, 4, 2))
    start = nlattn.patchmatch(q, k, iterations=0, identity=False, seed=1)
    out = nlattn.scram(q, k, v, field=start, window=1)
    np.testing.assert_array_equal(out, v.reshape(16, 2)[start.index[..., 0]])


def test_masked_keys_are_never_used() -> None:
    q, k, v = arrays(6, (2, 4, 4, 3), (4, 4, 3), (4, 4, 2))
    rng = np.random.default_rng(6)
    key_mask = rng.random((2, 4, 4)) < 0.4
    key_mask[1] = False
    v = np.where(key_mask[..., None], v, 1e30)
    out, lse = nlattn.scram(q, k, v, key_mask=key_mask, window=5, return_lse=True)
    assert abs(out).max() < 10
    assert not out[1].any()
    assert np.isneginf(lse[1]).all()
    for gradient in nlattn.scram_vjp(q, k, v, out, key_mask=key_mask):
        assert not np.isnan(gradient).any()
    mask = rng.random((4, 4, 4, 4)) < 0.3
    support = nlattn.scram_support(nlattn.patchmatch(q, k, mask=mask), mask=mask, kind="union")
    p = np.repeat(np.arange(32) % 16, np.diff(support.indptr))
    assert mask.reshape(16, 16)[p, support.indices].all()
    causal = nlattn.scram_map(q[0], k, causal=True, kind="union").to_dense()
    assert not np.triu(causal, 1).any()


def test_a_head_alone_is_a_head_of_many() -> None:
    q, k, v = arrays(7, (2, 4, 4, 3), (2, 4, 4, 3), (2, 4, 4, 2))
    whole = nlattn.scram(q, k, v)
    for b in range(2):
        matches = nlattn.patchmatch(q[b], k[b], first_slice=b)
        np.testing.assert_array_equal(nlattn.scram(q[b], k[b], v[b], field=matches), whole[b])


@pytest.mark.parametrize("factor", [1.0, 0.01])
def test_captured_mass_falls_to_the_share_of_keys_when_attention_is_flat(factor: float) -> None:
    q, k = arrays(8, (8, 8, 16), (8, 8, 16))
    A = nlattn.scram_map(q, k, scale=factor)
    full = nlattn.attention_map(q.reshape(64, 16), k.reshape(64, 16), scale=factor)
    mass = np.exp(A.lse - full.lse)
    inside = (full.to_dense() * (A.to_dense() > 0)).sum(1)
    np.testing.assert_allclose(mass, inside, rtol=1e-12)
    share = np.diff(A.support.indptr) / 64
    if factor == 1.0:
        assert mass.mean() > 0.3
    else:
        np.testing.assert_allclose(mass.mean(), share.mean(), rtol=0.15)


def test_two_equal_peaks_need_two_matches() -> None:
    """Every query has two distant keys of one score: a window holds one of them, `topk` both."""
    rng = np.random.default_rng(9)
    half = 6 * rng.standard_normal((6, 6, 16))
    k = np.concatenate([half, half], axis=1)
    q = half / 6
    full = nlattn.attention_map(q.reshape(36, 16), k.reshape(72, 16), scale=1.0)
    mass = {}
    for kind in ("window", "topk"):
        matches = nlattn.patchmatch(q, k, topk=2, scale=1.0, method="exact")
        A = nlattn.scram_map(q, k, scale=1.0, field=matches, kind=kind)
        mass[kind] = np.exp(A.lse - full.lse).mean()
    assert 0.45 < mass["window"] < 0.6
    assert mass["topk"] > 0.95


@pytest.mark.jit
def test_supports_are_the_same_for_any_number_of_threads() -> None:
    matches = field(np.random.default_rng(10).integers(0, 1600, (40, 40, 2)), (40, 40))
    for_any_threads(lambda: nlattn.scram_support(matches, kind="union")[:2])


GOOD = field(np.zeros((2, 3, 1), int), (4, 5))


@pytest.mark.parametrize(
    ("matches", "options", "error", "text"),
    [
        (
            GOOD,
            {"window": 4},
            ValueError,
            r"window=4 is even, expected an odd width so that the best key is its centre$",
        ),
        (GOOD, {"window": 0}, ValueError, "window=0, expected at least 1"),
        (GOOD, {"reach": -1}, ValueError, "reach=-1, expected at least 0"),
        (GOOD, {"shift": 1}, TypeError, "shift=1 is no bool"),
        (GOOD, {"kind": "box"}, ValueError, "kind='box', expected 'window', 'neighbours', 'topk',"),
        (GOOD, {"kind": ()}, ValueError, "kind is empty, expected at least one"),
        (np.zeros(3), {}, TypeError, "field is a ndarray, expected a Field"),
        (field(np.zeros((2, 3)), (4, 5)), {}, TypeError, "field.index has dtype float64"),
        (
            field(np.zeros((2, 3), int), (4, 5)),
            {},
            ValueError,
            r"field.index has shape \(2, 3\), expected \(..., Hq, Wq, topk\)",
        ),
        (
            field(np.full((2, 3, 1), 20), (4, 5)),
            {},
            ValueError,
            r"field.index\[0, 0, 0\] is 20, expected -1 to 19",
        ),
        (
            field(np.zeros((2, 3, 1), int), (2**16, 2**16)),
            {},
            ValueError,
            r"field.key_grid is \(65536, 65536\), expected \(Hk, Wk\) of less than 2\^31 keys",
        ),
        (GOOD, {"key_mask": np.ones((4, 5))}, TypeError, r"key_mask has dtype float64, expected"),
        (
            GOOD,
            {"key_mask": np.ones((5, 4), bool)},
            ValueError,
            r"key_mask has shape \(5, 4\), expected \(4, 5\) or with leading axes",
        ),
        (
            GOOD,
            {"key_mask": np.ones((2, 4, 5), bool), "mask": np.ones((3, 2, 3, 4, 5), bool)},
            ValueError,
            r"leading axes do not broadcast, got field: \(\), key_mask: \(2,\), mask: \(3,\)",
        ),
        (
            GOOD,
            {"max_bytes": 50, "kind": "topk", "window": 1},
            MemoryError,
            "needs .* B .workspace of reach 0., above max_bytes=50 B; use a smaller window",
        ),
    ],
)
def test_bad_fields_and_options_are_refused(
    matches: Any, options: Any, error: Any, text: str
) -> None:
    with pytest.raises(error, match=f"^scram_support: {text}"):
        nlattn.scram_support(matches, **options)


def test_supports_that_would_not_fit_are_refused_before_they_are_made() -> None:
    big = field(np.zeros((30, 30, 1), int) + 820, (40, 40))
    text = r"scram_support: needs 1.3 MB \(324900 int32 keys\), above max_bytes=1 MB; use a smaller"
    with pytest.raises(MemoryError, match=text):
        nlattn.scram_support(big, window=19, max_bytes=1e6)


def test_options_that_would_be_ignored_are_refused() -> None:
    q, k, v = arrays(0, (2, 3, 1), (4, 5, 1), (4, 5, 1))
    support = nlattn.scram_support(GOOD)
    text = "scram: causal has no effect beside support=; pass it to scram_support"
    with pytest.raises(ValueError, match=text):
        nlattn.scram(q, k, v, support=support, causal=True)
    text = r"scram_map: q has leading axes \(2,\), expected one head"
    with pytest.raises(ValueError, match=text):
        nlattn.scram_map(np.stack([q, q]), k)


def test_a_field_of_other_grids_is_refused() -> None:
    q, k, v = arrays(0, (2, 3, 1), (5, 4, 1), (5, 4, 1))
    text = (
        r"scram: field is of grids \(2, 3\) and \(4, 5\), expected \(2, 3\) of q and \(5, 4\) of k"
    )
    with pytest.raises(ValueError, match=text):
        nlattn.scram(q, k, v, field=GOOD)
