"""The lattice filter by hand, on the published module's runs, and by its own invariants."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlattn.oracle import permutohedral as oracle
from nlattn.oracle.permutohedral import permutohedral_attention, permutohedral_attention_vjp
from tests import published_runs
from tests.golden import FORWARD
from tests.helpers import assert_gradients, published

RUNS = ("pam_op_d1_n15_coincident", "pam_op_d3_n40", "pam_op_d5_n200", "pam_ties_d3_n40")


def sets(n: int, m: int, d: int, e: int = 2, seed: int = 0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(shape) for shape in ((n, d), (m, d), (m, e)))  # type: ignore[return-value]


def filter_matrix(f: Any, g: Any = None, **options: Any) -> Any:
    """The published filter as a matrix, from the points f to the points g."""
    g = f if g is None else g
    return permutohedral_attention(g, f, np.eye(len(f)), normalize=False, **options)


def at(u: list[float]) -> Any:
    """Features of one channel whose first embedded coordinate is u."""
    return np.array(u)[:, None] * np.sqrt(3) / 2


def test_one_and_two_points_by_hand() -> None:
    np.testing.assert_allclose(filter_matrix(at([0.25])), [[37 / 48]], rtol=1e-15)
    want = [[25 / 32, 11 / 48], [11 / 48, 83 / 96]]
    np.testing.assert_allclose(filter_matrix(at([0.25, 2.25])), want, rtol=1e-15)
    far = filter_matrix(at([0.25, 3.25]))  # their lattice points do not touch
    np.testing.assert_allclose(np.diag(far), [0.7708333333333333] * 2, rtol=1e-15)


@pytest.mark.parametrize("name", RUNS)
def test_the_published_runs(name: str) -> None:
    data, _ = published(name)
    f = np.ascontiguousarray(data["in.f"][0].T)
    rem0, rank = oracle.simplices(f)
    np.testing.assert_array_equal(rem0, data["aux.rem0"])
    np.testing.assert_array_equal(rank, data["aux.rank"])
    np.testing.assert_allclose(
        oracle.barycentric(f, rem0, rank), data["aux.barycentric"], **FORWARD
    )
    points = oracle.vertices(rem0, rank)
    found = oracle.lattice_of(points, points, "published", True)
    np.testing.assert_array_equal(found.points, data["aux.vertices"])
    published_runs.permutohedral(oracle, name)


@pytest.mark.parametrize("d", [1, 2, 3, 5, 8])
def test_a_point_is_the_weighted_mean_of_its_vertices(d: int) -> None:
    f = 3 * np.random.default_rng(d).standard_normal((40, d))
    f[:4] = 0
    rem0, rank = oracle.simplices(f)
    b, corners = oracle.barycentric(f, rem0, rank), oracle.vertices(rem0, rank)
    assert (b > -1e-14).all()
    np.testing.assert_allclose(b.sum(-1), 1, rtol=1e-14)
    np.testing.assert_allclose((b[..., None] * corners).sum(1), oracle.embed(f), atol=1e-13)
    assert (corners.sum(-1) == 0).all()
    assert ((corners - np.arange(d + 1)[:, None]) % (d + 1) == 0).all()
    assert (np.sort(rank, -1) == np.arange(d + 1)).all()


@pytest.mark.parametrize("d", [1, 2])
def test_weights_are_a_gaussian_of_variance_one(d: int) -> None:
    """The filter of the complete lattice has the second moment that its factor was chosen for."""
    steps = np.stack(np.meshgrid(*[np.arange(-3, 3.01, 0.25)] * d), -1).reshape(-1, d)
    rng = np.random.default_rng(0)
    f = steps + 0.01 * rng.standard_normal(steps.shape)
    start = 0.2 * rng.standard_normal((40, d))
    A = permutohedral_attention(start, f, np.eye(len(f)), lattice="complete")
    offsets = f[None] - start[:, None]
    moment = (A[..., None] * offsets**2).sum(1).mean()
    assert moment == pytest.approx(1, rel=0.1)


def test_rows_sum_to_one_and_one_point_is_its_value() -> None:
    q, k, v = sets(9, 12, 3)
    np.testing.assert_allclose(permutohedral_attention(q, k, np.ones((12, 1))), 1, rtol=1e-14)
    np.testing.assert_allclose(permutohedral_attention(q[:1], q[:1], v[:1]), v[:1], rtol=1e-15)


@pytest.mark.parametrize("lattice", ["published", "complete"])
@pytest.mark.parametrize("d", [1, 2, 4])
def test_lattice_steps_and_order_change_nothing(d: int, lattice: str) -> None:
    q, k, v = sets(7, 9, d)
    want = permutohedral_attention(q, k, v, lattice=lattice)
    E = oracle.embedding(d)
    step = np.array([d + 1, -(d + 1), *[0] * (d - 1)]) @ E / (E[:, 0] @ E[:, 0])
    moved = permutohedral_attention(q + step, k + step, v, lattice=lattice)
    np.testing.assert_allclose(moved, want, rtol=1e-11, atol=1e-13)
    rows, keys = np.random.default_rng(1).permutation(7), np.random.default_rng(2).permutation(9)
    mixed = permutohedral_attention(q[rows], k[keys], v[keys], lattice=lattice)
    np.testing.assert_allclose(mixed, want[rows], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_the_complete_lattice_is_symmetric_and_needs_no_vertices_of_queries(d: int) -> None:
    q, k, v = sets(8, 11, d)
    A = filter_matrix(k, lattice="complete")
    np.testing.assert_allclose(A, A.T, rtol=1e-13, atol=1e-17)
    with_them = permutohedral_attention(q, k, v, lattice="complete")
    without = permutohedral_attention(q, k, v, lattice="complete", query_vertices=False)
    np.testing.assert_allclose(with_them, without, rtol=1e-13)
    alone = [permutohedral_attention(q[i : i + 1], k, v, lattice="complete")[0] for i in range(8)]
    np.testing.assert_allclose(with_them, alone, rtol=1e-13)


def test_missing_points_make_the_published_filter_unsymmetric_and_jump() -> None:
    f = sets(60, 1, 3)[0]
    A = filter_matrix(f)
    assert 1e-3 < np.linalg.norm(A - A.T) / np.linalg.norm(A) < 0.1
    f = np.zeros((30, 3))
    f[1:] = 1.5 * np.random.default_rng(1).standard_normal((29, 3))
    rows = []
    for end in (-1e-9, 1e-9):  # 0 is a lattice point, where many simplices meet
        f[0] = end * np.array([1.0, 2.0, -0.5])
        rows.append([filter_matrix(f, lattice=kind)[0] for kind in ("published", "complete")])
    jump = [abs(a - b).max() for a, b in zip(*rows, strict=True)]
    assert jump[1] < 1e-8 < 1e-3 < jump[0]


def test_queries_are_points_without_values() -> None:
    """Inserted queries give what the filter of all points gives with value 0 at the queries."""
    q, k, v = sets(6, 9, 2)
    both, zero = np.concatenate([k, q]), np.zeros((6, 3))
    padded = np.concatenate([np.concatenate([v, np.ones((9, 1))], 1), zero])
    F = permutohedral_attention(both, both, padded, normalize=False)[9:]
    np.testing.assert_allclose(permutohedral_attention(q, k, v), F[:, :2] / F[:, 2:], rtol=1e-13)


def test_a_query_far_from_every_key_gives_zero() -> None:
    q, k, v = sets(3, 5, 2)
    q[1] = 100
    for inserted in (True, False):
        out, lse = permutohedral_attention(q, k, v, query_vertices=inserted, return_lse=True)
        assert not out[1].any()
        assert lse[1] == -np.inf
        gradients = permutohedral_attention_vjp(q, k, v, np.ones((3, 2)), query_vertices=inserted)
        assert not gradients[0][1].any()
        assert all(np.isfinite(g).all() for g in gradients)


def test_given_simplices_decide() -> None:
    q, k, v = sets(5, 8, 3)
    given = oracle.simplices(q), oracle.simplices(k)
    out = permutohedral_attention(q, k, v, q_simplices=given[0], k_simplices=given[1])
    np.testing.assert_array_equal(out, permutohedral_attention(q, k, v))
    f = np.zeros((1, 3))  # a vertex of many simplices
    rem0, rank = oracle.simplices(f)
    other = rem0, rank[:, ::-1].copy()
    np.testing.assert_allclose(oracle.barycentric(f, *other), [[1, 0, 0, 0]], atol=1e-15)
    assert not np.array_equal(oracle.vertices(*other), oracle.vertices(rem0, rank))


def test_the_softmax_is_a_gaussian_of_weighted_keys() -> None:
    q, k, v = sets(6, 40, 2)
    scores = 0.4 * q @ k.T
    P = np.exp(scores - scores.max(1, keepdims=True))
    P /= P.sum(1, keepdims=True)
    out, lse = permutohedral_attention(
        q, k, v, weight="softmax", scale=0.4, lattice="complete", return_lse=True
    )
    assert np.linalg.norm(out - P @ v) < 0.2 * np.linalg.norm(P @ v)
    np.testing.assert_allclose(lse, np.log(np.exp(scores).sum(1)), atol=0.4)
    longer = permutohedral_attention(q, k, v, weight="softmax", scale=0.4, query_vertices=False)
    assert longer.shape == (6, 2)


@pytest.mark.parametrize("d", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "options",
    [
        {"normalize": False},
        {},
        {"query_vertices": False},
        {"lattice": "complete"},
        {"weight": "softmax", "scale": 0.7},
    ],
    ids=str,
)
def test_gradients_are_the_complex_step(d: int, options: dict[str, Any]) -> None:
    if d == 5 and options.get("lattice") == "complete":
        return  # slow, and 1 to 3 channels take every path
    q, k, v = sets(4, 5, d, seed=d)
    q, k = q / 2, k / 2
    dout = np.random.default_rng(9).standard_normal((4, 2))
    dlse = None if options.get("normalize") is False else np.array([1.0, -0.5, 2.0, 0.3])

    def loss(q: Any, k: Any, v: Any) -> Any:
        out, lse = permutohedral_attention(q, k, v, **options, return_lse=True)
        known = np.isfinite(lse.real)
        return (dout * out).sum() + (0 if dlse is None else (dlse[known] * lse[known]).sum())

    got = permutohedral_attention_vjp(q, k, v, dout, dlse=dlse, **options)
    assert_gradients(got, loss, (q, k, v), 4e-14)


def test_heads_longdouble_and_strides() -> None:
    q, k, v = sets(5, 6, 2)
    heads = np.stack([v, 2 * v, -v])
    out = permutohedral_attention(q, k, heads)
    np.testing.assert_allclose(out[2], -out[0], rtol=1e-15)
    wide = permutohedral_attention(*(x.astype(np.longdouble) for x in (q, k, v)))
    assert wide.dtype == np.longdouble
    np.testing.assert_allclose(out[0], wide.astype(float), rtol=1e-13)
    np.testing.assert_array_equal(permutohedral_attention(q[::-1], k, v), out[0][::-1])
    gradients = permutohedral_attention_vjp(q, k, heads, np.ones_like(out))
    assert [g.shape for g in gradients] == [q.shape, k.shape, heads.shape]
    gradients = permutohedral_attention_vjp(q[None][:0], k[None], v, np.ones((0, 5, 2)))
    assert [g.shape for g in gradients] == [(0, 5, 2), (1, 6, 2), (6, 2)]
