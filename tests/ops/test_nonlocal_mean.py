"""`nonlocal_mean`, its map and its gradients against the oracle, over forms, shapes and sizes."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nlattn
from nlattn.kernels.concatenation import KEYS, QUERIES
from nlattn.oracle import nonlocal_mean as oracle
from tests.helpers import assert_as_exact_as_numpy, for_any_threads, joined

PAIRWISE = ("gaussian", "embedded_gaussian", "dot_product", "concatenation")
DTYPES = [(np.float32, np.float64), (np.float64, np.longdouble)]


def options(pairwise: str, d: int, dtype: Any = np.float64, seed: int = 0) -> dict[str, Any]:
    if pairwise == "concatenation":
        weight = np.random.default_rng(seed).standard_normal(2 * d).astype(dtype)
        return {"pairwise": pairwise, "weight": weight}
    return {"pairwise": pairwise, **({} if pairwise == "dot_product" else {"scale": 0.7})}


def results(where: Any, inputs: Any, dout: Any, some: dict[str, Any]) -> list[Any]:
    return [where.nonlocal_mean(*inputs, **some), *where.nonlocal_mean_vjp(*inputs, dout, **some)]


def widened(some: dict[str, Any], wide: Any) -> dict[str, Any]:
    return {k: x.astype(wide) if k == "weight" else x for k, x in some.items()}


@pytest.mark.parametrize(("dtype", "wide"), DTYPES)
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_it_is_as_exact_as_numpy(pairwise: str, dtype: Any, wide: Any) -> None:
    """Error at most twice that of the plain transcription in the same dtype, plus one spacing."""
    runs = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        shapes = (2, 6, 16), (2, 9, 16), (9, 3), (2, 6, 3)
        *inputs, dout = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
        some = options(pairwise, 16, dtype, seed)
        got, plain = results(nlattn, inputs, dout, some), results(oracle, inputs, dout, some)
        wider = [x.astype(wide) for x in inputs]
        exact = results(oracle, wider, dout.astype(wide), widened(some, wide))
        for a, b in zip(got, exact, strict=True):
            assert (a.dtype, a.shape) == (dtype, b.shape)
        runs.append((got, plain, exact))
    assert_as_exact_as_numpy(*joined(runs))


@pytest.mark.parametrize(("dtype", "wide"), DTYPES)
@pytest.mark.parametrize("size", [1e4, 1e8])
@pytest.mark.parametrize("seed", range(3))
def test_large_numbers_that_cancel(size: float, seed: int, dtype: Any, wide: Any) -> None:
    """a near size and b near -size: their sums are of size 1, those of prefixes are not."""
    rng = np.random.default_rng(seed)
    n, m, d = 40, 50, 2
    q, k = rng.standard_normal((n, d)), rng.standard_normal((m, d))
    q[:, 0] += size
    k[:, 0] += size
    v, dout = rng.standard_normal((m, 3)), rng.standard_normal((n, 3))
    weight = np.array([1, 0.5, -1, 0.5])
    *inputs, dout, weight = (x.astype(dtype) for x in (q, k, v, dout, weight))
    some = {"pairwise": "concatenation", "weight": weight}
    wider = [x.astype(wide) for x in inputs]
    got, plain = results(nlattn, inputs, dout, some), results(oracle, inputs, dout, some)
    exact = results(oracle, wider, dout.astype(wide), widened(some, wide))
    assert_as_exact_as_numpy(got, plain, exact)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("pairwise", ["gaussian", "embedded_gaussian"])
def test_large_scores_do_not_overflow(pairwise: str, dtype: Any) -> None:
    x = (1e4 * np.eye(3)).astype(dtype)
    np.testing.assert_array_equal(nlattn.nonlocal_mean(x, x, x, pairwise=pairwise), x)
    gradients = nlattn.nonlocal_mean_vjp(x, x, x, x, pairwise=pairwise)
    assert all(np.isfinite(g).all() for g in gradients)


LEADS = [((), (), ()), ((3,), (), (3,)), ((2, 1), (3,), (2, 3)), ((0,), (), ()), ((2,), (1,), (1,))]


@pytest.mark.parametrize("pairwise", PAIRWISE)
@pytest.mark.parametrize(("of_q", "of_k", "of_v"), LEADS)
def test_leading_axes_broadcast_and_gradients_keep_shapes(
    of_q: Any, of_k: Any, of_v: Any, pairwise: str
) -> None:
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(s) for s in ((*of_q, 4, 3), (*of_k, 5, 3), (*of_v, 5, 2))]
    dout = rng.standard_normal((*np.broadcast_shapes(of_q, of_k, of_v), 4, 2))
    some = options(pairwise, 3)
    got, want = results(nlattn, inputs, dout, some), results(oracle, inputs, dout, some)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-13)


@given(
    n=st.integers(0, 40),
    m=st.integers(0, 9),
    d=st.integers(1, 5),
    e=st.integers(1, 20),
    pairwise=st.sampled_from(PAIRWISE),
    ties=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_small_shape(
    n: int, m: int, d: int, e: int, pairwise: str, ties: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    q, k = rng.standard_normal((2, n, d)), rng.standard_normal((2, m, d))
    v, dout = rng.standard_normal((2, m, e)), rng.standard_normal((2, n, e))
    some = options(pairwise, d, seed=seed)
    if ties:  # sums that are exactly 0, and equal keys
        q, k = q.round(), k.round()
        some = {name: x.round() if name == "weight" else x for name, x in some.items()}
    got, want = results(nlattn, (q, k, v), dout, some), results(oracle, (q, k, v), dout, some)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-13, rtol=2e-13)


@pytest.mark.parametrize("pairwise", ["dot_product", "concatenation"])
@pytest.mark.parametrize(("n", "m"), [(QUERIES + 3, KEYS + 5), (3, 2 * KEYS), (KEYS + 1, 2)])
def test_several_blocks(pairwise: str, n: int, m: int) -> None:
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, n, 2)), rng.standard_normal((2, m, 2))
    v, dout = rng.standard_normal((2, m, 1)), rng.standard_normal((2, n, 1))
    some = options(pairwise, 2)
    got, want = results(nlattn, (q, k, v), dout, some), results(oracle, (q, k, v), dout, some)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12, rtol=1e-12)


@pytest.mark.jit
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_any_number_of_threads_gives_the_same_bits(pairwise: str, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    shapes = (2, 700, 5), (2, 2 * KEYS + 7, 5), (2, 2 * KEYS + 7, 3), (2, 700, 3)
    *inputs, dout = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    some = options(pairwise, 5, dtype)
    for_any_threads(lambda: results(nlattn, inputs, dout, some))


@pytest.mark.parametrize("pairwise", ["dot_product", "concatenation"])
def test_layouts_and_batches_give_the_same_bits(pairwise: str) -> None:
    rng = np.random.default_rng(0)
    q, k, v, dout = (rng.standard_normal((3, *s)) for s in ((5, 3), (7, 3), (7, 2), (5, 2)))
    some = options(pairwise, 3)
    whole = results(nlattn, (q, k, v), dout, some)
    odd = [np.repeat(x, 2, -1)[..., ::2].astype(">f8") for x in (q, k, v, dout)]
    for a, b in zip(whole, results(nlattn, odd[:3], odd[3], some), strict=True):
        np.testing.assert_array_equal(a, b)
    for i in range(3):
        one = results(nlattn, (q[i], k[i], v[i]), dout[i], some)
        for a, b in zip(whole[:4], one[:4], strict=True):
            np.testing.assert_array_equal(a[i], b)


@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_what_is_not_a_number_passes_on_request(pairwise: str, name: str) -> None:
    arrays = {"q": np.ones((2, 3)), "k": np.ones((4, 3)), "v": np.ones((4, 2))}
    arrays[name] = arrays[name] * np.nan
    some = {**options(pairwise, 3), "nonfinite": "propagate"}
    if pairwise == "concatenation":
        some["weight"] = np.ones(6)
    assert np.isnan(nlattn.nonlocal_mean(**arrays, **some)).all()


def test_dot_product_is_refined_self_attention() -> None:
    """Three names for one algebra, each with its own oracle."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 12, 4))
    out = nlattn.nonlocal_mean(q, k, v, pairwise="dot_product")
    for other in (
        nlattn.refined_self_attention(q, k, v),
        nlattn.efficient_attention(q, k, v, normalization="scaling"),
    ):
        np.testing.assert_allclose(other, out, atol=1e-14)


def test_concatenation_far_from_its_kink() -> None:
    """Without a positive sum exactly 0; with all positive the mean of ``(a + b) v``."""
    rng = np.random.default_rng(0)
    q, k, v = rng.random((5, 3)), rng.random((7, 3)), rng.standard_normal((7, 2))
    weight = rng.random(6)
    for result in results(
        nlattn, (q, k, v), np.ones((5, 2)), {"pairwise": "concatenation", "weight": -weight}
    ):
        np.testing.assert_array_equal(result, 0)
    more = nlattn.nonlocal_mean(q, k, v, pairwise="concatenation", weight=weight)
    affine = (q @ weight[:3])[:, None] * v.mean(0) + ((k @ weight[3:])[:, None] * v).mean(0)
    np.testing.assert_allclose(more, affine, rtol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_a_map_is_the_operator(pairwise: str, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((6, 3)).astype(dtype), rng.standard_normal((8, 3)).astype(dtype)
    v, g = rng.standard_normal((8, 2)).astype(dtype), rng.standard_normal((6, 2)).astype(dtype)
    some = options(pairwise, 3, dtype)
    A = nlattn.nonlocal_mean_map(q, k, **some, query_grid=(2, 3), key_grid=(4, 2))
    assert (A.dtype, A.shape, A.query_grid, A.key_grid) == (dtype, (6, 8), (2, 3), (4, 2))
    small = 1e-6 if dtype == np.float32 else 1e-14
    weight = some.get("weight")
    f = oracle.scores(q, k, pairwise, some.get("scale", 1.0), weight)
    dense = oracle.weights(f, pairwise)
    np.testing.assert_allclose(A.to_dense(), dense, atol=small)
    np.testing.assert_allclose(A @ v, nlattn.nonlocal_mean(q, k, v, **some), atol=3 * small)
    np.testing.assert_allclose(A.T @ g, dense.T @ g, atol=3 * small)
    assert A.work.multiply_adds > 0
    assert A.normalised == (pairwise in oracle.SOFTMAX)


def test_a_map_of_two_vectors() -> None:
    """a = (1, -2), b = (0.5, 3, -1, 3): weights relu(a + b) / 4, ties to the lowest key."""
    q, k = np.array([[1.0], [-2.0]]), np.array([[0.5], [3.0], [-1.0], [3.0]])
    A = nlattn.nonlocal_mean_map(q, k, pairwise="concatenation", weight=np.ones(2))
    np.testing.assert_array_equal(A.scores([0, 1]), [[1.5, 4, 0, 4], [0, 1, 0, 1]])
    np.testing.assert_array_equal(A.rows(0), [0.375, 1, 0, 1])
    values, keys = A.topk(3)
    np.testing.assert_array_equal(keys, [[1, 3, 0], [1, 3, -1]])
    np.testing.assert_array_equal(values, [[1, 1, 0.375], [0.25, 0.25, 0]])
    with pytest.raises(AttributeError, match="need not sum to 1, so there is no log-sum-exp; use"):
        _ = A.lse
    state = A.state()
    for name, text in (("a", "a is float32"), ("like", "the map int64|like is int64")):
        bad = {**state, name: state[name].astype(np.float32 if name == "a" else np.int64)}
        with pytest.raises(ValueError, match=text):
            type(A).from_state(bad)


def test_what_overflows_is_infinite_not_nothing() -> None:
    q, k, v = np.array([[1e200]]), np.array([[0.0], [1.0]]), np.array([[1e200], [1.0]])
    out = nlattn.nonlocal_mean(q, k, v, pairwise="concatenation", weight=np.ones(2))
    assert out[0, 0] == np.inf
    v = np.array([[1e305], [1.0]])  # splits overflow, the result does not
    out = nlattn.nonlocal_mean(k, k, v, pairwise="concatenation", weight=np.ones(2))
    np.testing.assert_allclose(out, [[0.5], [5e304]])


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"pairwise": "gauss"},
        "nonlocal_mean: pairwise='gauss', expected 'gaussian', 'embedded_gaussian', "
        "'dot_product' or 'concatenation'",
    ),
    ({"scale": np.nan}, "nonlocal_mean: scale=nan is not finite"),
    (
        {"pairwise": "dot_product", "scale": 0.5},
        "nonlocal_mean: scale=0.5 has no place in pairwise='dot_product'; multiply q by it",
    ),
    (
        {"pairwise": "concatenation"},
        "nonlocal_mean: weight is missing, expected (2 d,) with pairwise='concatenation'",
    ),
    (
        {"weight": np.ones(4)},
        "nonlocal_mean: weight has no place in pairwise='embedded_gaussian', expected None",
    ),
    (
        {"pairwise": "concatenation", "weight": np.ones(3)},
        "nonlocal_mean: weight has shape (3,), expected (4,): twice d=2 from q",
    ),
    (
        {"pairwise": "concatenation", "weight": np.array([1, np.inf, 0, 0])},
        "nonlocal_mean: weight[1] is inf, expected finite values",
    ),
]


@pytest.mark.parametrize(("some", "text"), REFUSED, ids=lambda x: str(x)[:30])
def test_bad_options_are_refused_in_words(some: Any, text: str) -> None:
    q, k = np.ones((3, 2)), np.ones((4, 2))
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        nlattn.nonlocal_mean(q, k, k, **some)


def test_a_map_is_of_one_head() -> None:
    q = np.ones((2, 3, 2))
    with pytest.raises(ValueError, match=r"nonlocal_mean_map: q, k have leading axes \(2,\), exp"):
        nlattn.nonlocal_mean_map(q, q)


def test_softmax_forms_to_a_tolerance() -> None:
    q, k, v = np.random.default_rng(8).standard_normal((3, 2, 30, 4))
    want = nlattn.nonlocal_mean(q, k, v, scale=3.0)
    got = nlattn.nonlocal_mean(q, k, v, scale=3.0, tolerance=1e-3)
    assert (np.abs(got - want) <= 1e-3 * np.ptp(v, axis=1, keepdims=True)).all()
    A = nlattn.nonlocal_mean_map(q[0], k[0], pairwise="gaussian", tolerance=1e-6, query_grid=(5, 6))
    assert A.kind == "certified"
    assert A.query_grid == (5, 6)
    with pytest.raises(ValueError, match=r"nonlocal_mean: tolerance=1.0 is a share of the weights"):
        nlattn.nonlocal_mean(q, k, v, tolerance=1)
    with pytest.raises(ValueError, match=r"tolerance=0.1 has no place in pairwise='dot_product'"):
        nlattn.nonlocal_mean(q, k, v, pairwise="dot_product", tolerance=0.1)
