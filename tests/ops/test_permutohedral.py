"""The lattice filter on compiled kernels, against its oracle and by what must not change it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nlattn
from nlattn import permutohedral_attention, permutohedral_attention_map, permutohedral_attention_vjp
from nlattn._types import Simplices
from nlattn.engines import lattice as lattices
from nlattn.oracle import permutohedral as oracle
from tests import published_runs
from tests.helpers import assert_as_exact_as_numpy, for_any_threads, published

RUNS = ("pam_op_d1_n15_coincident", "pam_op_d3_n40", "pam_op_d5_n200", "pam_ties_d3_n40")
OPTIONS: list[dict[str, Any]] = [
    {},
    {"normalize": False},
    {"query_vertices": False},
    {"lattice": "complete"},
    {"weight": "softmax"},
    {"weight": "softmax", "scale": 0.3, "query_vertices": False},
]


def sets(n: int, m: int, d: int, e: int = 2, seed: int = 0, lead: Any = ()) -> Any:
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((*lead, *s)) for s in ((n, d), (m, d), (m, e), (n, e)))


@pytest.mark.parametrize("name", RUNS)
def test_the_published_runs(name: str) -> None:
    data, _ = published(name)
    f = np.ascontiguousarray(data["in.f"][0].T)
    found = nlattn.permutohedral_simplices(f)
    np.testing.assert_array_equal(found.rem0, data["aux.rem0"])
    np.testing.assert_array_equal(found.rank, data["aux.rank"])
    assert permutohedral_attention_map(f, f).points == len(data["aux.vertices"])
    published_runs.permutohedral(nlattn, name)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("d", [1, 2, 3, 6])
def test_results_gradients_and_map_are_the_oracles(d: int, options: dict[str, Any]) -> None:
    if d == 6 and "lattice" in options:
        return
    q, k, _, _ = sets(9, 12, d, lead=(2,), seed=d)
    _, _, v, dout = sets(9, 12, d, lead=(3, 2))
    normalised = options.get("normalize", True)
    more = {"return_lse": True} if normalised else {}
    got = permutohedral_attention(q, k, v, **options, **more)
    want = oracle.permutohedral_attention(q, k, v, **options, **more)
    for a, b in zip(*((x if normalised else (x,)) for x in (got, want)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-14)
    extra = {"dlse": np.random.default_rng(1).standard_normal((3, 2, 9))} if normalised else {}
    gradients = permutohedral_attention_vjp(q, k, v, dout, **options, **extra)
    wanted = oracle.permutohedral_attention_vjp(q, k, v, dout, **options, **extra)
    for a, b in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)

    A = permutohedral_attention_map(q[1], k[1], **options)
    dense = A.to_dense()
    one = got[0][2, 1] if normalised else got[2, 1]
    np.testing.assert_allclose(A @ v[2, 1], one, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(dense @ v[2, 1], one, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(A.T @ dout[0, 0], dense.T @ dout[0, 0], rtol=1e-12, atol=1e-13)
    if normalised:
        np.testing.assert_array_equal(A.lse, got[1][2, 1])
        some = A.scores([3])[0]
        kept = some > -np.inf
        np.testing.assert_allclose(np.exp(some[kept] - A.lse[3]), dense[3][kept], rtol=1e-12)
    else:
        with pytest.raises(AttributeError, match="published filter are divided by nothing"):
            _ = A.lse


def test_single_precision_is_as_exact_as_numpy() -> None:
    q, k, v, dout = (x.astype(np.float32) for x in sets(60, 70, 3, 4))
    chosen = {
        "q_simplices": nlattn.permutohedral_simplices(q),
        "k_simplices": nlattn.permutohedral_simplices(k),
    }
    wide = [x.astype(np.float64) for x in (q, k, v, dout)]
    got = permutohedral_attention(q, k, v)
    plain = oracle.permutohedral_attention(q, k, v, **chosen)
    assert_as_exact_as_numpy([got], [plain], [oracle.permutohedral_attention(*wide[:3])])
    gradients = permutohedral_attention_vjp(q, k, v, dout)
    plains = oracle.permutohedral_attention_vjp(q, k, v, dout, **chosen)
    assert_as_exact_as_numpy(gradients, plains, oracle.permutohedral_attention_vjp(*wide))


def test_bits_do_not_depend_on_threads_or_on_the_batch() -> None:
    q, k, v, dout = sets(700, 900, 3, 3)
    out, *_ = for_any_threads(
        lambda: (permutohedral_attention(q, k, v), *permutohedral_attention_vjp(q, k, v, dout))
    )
    batch = [np.stack([x, x[::-1]]) for x in (q, k, v)]
    both = permutohedral_attention(*batch)
    np.testing.assert_array_equal(both[0], out)
    np.testing.assert_array_equal(both[1], permutohedral_attention(*(x[1] for x in batch)))


def test_sets_without_points() -> None:
    q, k, v, dout = sets(4, 5, 2)
    out, lse = permutohedral_attention(q, k[:0], v[:0], return_lse=True)
    assert not out.any()
    assert (lse == -np.inf).all()
    assert permutohedral_attention(q[:0], k, v).shape == (0, 2)
    dq, dk, dv = permutohedral_attention_vjp(q, k[:0], v[:0], dout)
    assert not dq.any()
    assert dk.shape == (0, 2) == dv.shape
    assert permutohedral_attention_map(q[:0], k).to_dense().shape == (0, 5)
    one = permutohedral_attention(q[:1], q[:1], v[:1])
    np.testing.assert_allclose(one, v[:1], rtol=1e-15)


def test_equal_points_share_their_simplex() -> None:
    q, k, v, _ = sets(3, 4, 3)
    out = permutohedral_attention(np.repeat(q, 2, 0), np.repeat(k, 3, 0), np.repeat(v, 3, 0))
    np.testing.assert_allclose(out[::2], permutohedral_attention(q, k, v), rtol=1e-14)
    np.testing.assert_array_equal(out[::2], out[1::2])


def test_a_query_on_a_border_gets_nothing_through_corners_of_no_weight() -> None:
    """Weights of rounding once made such a query the mean of far keys, with gradients of noise."""
    rng = np.random.default_rng(211)
    for _ in range(60):
        q, k = np.rint(rng.standard_normal((8, 2))), np.rint(rng.standard_normal((4, 2)))
        v, dout = rng.standard_normal((4, 1)), rng.standard_normal((8, 1))
        out, lse = permutohedral_attention(q, k, v, return_lse=True)
        assert (lse[lse > -np.inf] > -20).all()
        assert not out[lse == -np.inf].any()
        got = permutohedral_attention_vjp(q, k, v, dout)
        want = oracle.permutohedral_attention_vjp(q, k, v, dout)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def test_non_finite_features_reach_what_they_weigh() -> None:
    q, k, v, _ = sets(4, 5, 2)
    q[1, 0] = np.nan
    out = permutohedral_attention(q, k, v, nonfinite="propagate")
    assert np.isnan(out[1]).all()
    assert np.isfinite(out[[0, 2, 3]]).all()
    q[1, 0], k[2, 1] = 0, np.inf
    assert np.isnan(permutohedral_attention(q, k, v, nonfinite="propagate")).all()
    assert nlattn.permutohedral_simplices(k, nonfinite="propagate").rem0[2].tolist() == [0, 0, 0]


def test_far_and_tiny_features() -> None:
    q, k, v, _ = sets(6, 6, 3)
    tiny = permutohedral_attention(q * 1e-310, k * 1e-310, v)
    np.testing.assert_allclose(tiny, np.tile(v.mean(0), (6, 1)), rtol=1e-13)
    step = np.array([4.0, -4, 0, 0]) @ oracle.embedding(3) * (3 / 32) * 2.0**32
    want = permutohedral_attention(q, k, v)
    moved = permutohedral_attention(q + step, k + step, v)
    np.testing.assert_allclose(moved, want, rtol=1e-3, atol=1e-4)
    k[2, 1] = 1e20
    with pytest.raises(ValueError, match=r"k\[2, 1\] is 1e\+20, expected at most 1.41e\+14 in mag"):
        permutohedral_attention(q, k, v)


def test_keys_of_rows_that_do_not_fit_one_word() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(-(2**50), 2**50, (500, 12))
    rows = np.concatenate([rows, rows[::2], rows[::3] + 1])
    found, number = lattices.numbered(rows)
    want, inverse = np.unique(rows, axis=0, return_inverse=True)
    np.testing.assert_array_equal(found, want)
    np.testing.assert_array_equal(number, inverse)


@pytest.mark.parametrize("options", OPTIONS[:4], ids=str)
def test_maps_that_do_not_fit_are_refused(options: dict[str, Any]) -> None:
    q, k, *_ = sets(8, 6, 2)
    A = permutohedral_attention_map(q.astype(np.float32), k.astype(np.float32), **options)
    state = A.state()
    for name, wrong in (
        ("points", state["points"][::-1]),
        ("at_keys", state["at_keys"] + 1000),
        ("k_weights", state["k_weights"].astype(np.float32)),
        ("dtype", np.zeros(0, np.float16)),
    ):
        with pytest.raises(ValueError, match=r".{8}"):
            type(A).from_state({**state, name: wrong})


def bad(what: str) -> dict[str, Any]:
    good = nlattn.permutohedral_simplices(sets(4, 5, 2)[1])
    far = nlattn.permutohedral_simplices(sets(4, 5, 2)[1] + 3)
    return {
        "type": {"k_simplices": [1, 2]},
        "floats": {"k_simplices": Simplices(good.rem0 + 0.0, good.rank)},
        "shape": {"k_simplices": Simplices(good.rem0[:3], good.rank)},
        "rem0": {"k_simplices": Simplices(good.rem0 + 1, good.rank)},
        "rank": {"k_simplices": Simplices(good.rem0, good.rank // 2)},
        "far": {"k_simplices": far},
        "scale": {"scale": 0.5},
        "negative": {"weight": "softmax", "scale": -1.0},
        "weight": {"weight": "cosine"},
        "lattice": {"lattice": "whole"},
        "divided": {"weight": "softmax", "normalize": False},
        "lse": {"normalize": False, "return_lse": True},
    }[what]


@pytest.mark.parametrize(
    ("what", "error", "text"),
    [
        ("type", TypeError, "k_simplices is a list, expected Simplices as from permutohedral_simp"),
        ("floats", TypeError, "k_simplices.rem0 has dtype float64, expected integers"),
        (
            "shape",
            ValueError,
            r"k_simplices.rem0 has shape \(3, 3\), expected one that broadcasts to \(5, 3\)",
        ),
        (
            "rem0",
            ValueError,
            r"k_simplices.rem0 holds \[.*\], expected multiples of 3 that sum to 0",
        ),
        (
            "rank",
            ValueError,
            r"k_simplices.rank holds \[.*\], expected a permutation of 0..2 in every row",
        ),
        ("far", ValueError, "k_simplices row 0 is not the simplex of k: its point has weight -"),
        ("scale", ValueError, "scale=0.5 has no place in weight='gaussian'; divide the features"),
        ("negative", ValueError, "scale=-1.0, expected a positive number"),
        ("weight", ValueError, "weight='cosine', expected 'softmax' or 'gaussian'"),
        ("lattice", ValueError, "lattice='whole', expected 'published' or 'complete'"),
        ("divided", ValueError, "normalize=False has no place in weight='softmax', which divides"),
        ("lse", ValueError, "return_lse=True has no place in normalize=False"),
    ],
)
def test_bad_options_are_refused_in_words(what: str, error: Any, text: str) -> None:
    q, k, v, _ = sets(4, 5, 2)
    with pytest.raises(error, match=f"^permutohedral_attention: {text}"):
        permutohedral_attention(q, k, v, **bad(what))


def test_what_would_not_fit_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.broadcast_to(np.zeros((1, 60)), (100_000, 60)).astype(np.float32)
    with pytest.raises(MemoryError, match=r"100000 points of 60 channels.*use fewer channels"):
        permutohedral_attention_map(x, x)
    monkeypatch.setattr(lattices, "MAX_BYTES", 1e6)
    x = np.random.default_rng(0).standard_normal((100, 6))
    with pytest.raises(MemoryError, match=r"lattice points and their neighbours.*'published'"):
        permutohedral_attention(x, x, x, lattice="complete")


def test_work_is_counted_and_grows_with_points() -> None:
    def work(n: int) -> Any:
        f = np.random.default_rng(0).standard_normal((n, 2))
        return permutohedral_attention_map(f, f).work

    nlattn.assert_complexity(work, "n")
    q, k, _, _ = sets(1, 1, 3)
    A = permutohedral_attention_map(q + 50, k)
    assert A.points == 8
    edges = 2 * 2 * 6  # each pair of a simplex's vertices that differ by one axis: none, or more
    assert A.work.multiply_adds <= 2 * 4 * (3 + 1) + edges


@settings(max_examples=60)
@given(
    st.integers(1, 4),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from([0.3, 1.0, 4.0]),
    st.integers(0, 10**6),
    st.booleans(),
    st.booleans(),
)
def test_points_may_come_in_any_order_and_the_map_has_its_transpose(
    d: int, n: int, m: int, spread: float, seed: int, normalize: bool, whole_numbers: bool
) -> None:
    q, k, v, g = sets(n, m, d, 2, seed)
    q, k = spread * q, spread * k
    if whole_numbers:  # many ties, and points on borders
        q, k = np.rint(q), np.rint(k)
    options = {"normalize": normalize}
    want = oracle.permutohedral_attention(q, k, v, **options)
    out = permutohedral_attention(q, k, v, **options)
    np.testing.assert_allclose(out, want, rtol=1e-12, atol=1e-14)
    A = permutohedral_attention_map(q, k, **options)
    np.testing.assert_allclose((g * (A @ v)).sum(), ((A.T @ g) * v).sum(), atol=1e-11)
    rng = np.random.default_rng(seed)
    rows, keys = rng.permutation(n), rng.permutation(m)
    mixed = permutohedral_attention(q[rows], k[keys], v[keys], **options)
    np.testing.assert_allclose(mixed, out[rows], rtol=1e-11, atol=1e-13)
