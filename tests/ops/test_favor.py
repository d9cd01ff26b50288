"""`favor_attention` and its features against their oracle, and the statistics of the estimate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nlattn
from nlattn.engines import factored
from nlattn.oracle import favor as oracle
from tests import published_runs
from tests.helpers import assert_as_exact_as_numpy, published

CASES: list[dict[str, Any]] = [
    {},
    {"stabilizer_gradient": "detached"},
    {"stabilizer": "neutral"},
    {"stabilizer": "none", "eps": 0.0, "scale": 0.3},
    {"stabilizer": "neutral", "eps": 0.0},
    {"kernel": "relu"},
    {"kernel": "none"},
    {"causal": True},
    {"causal": True, "stabilizer": "none"},
    {"causal": True, "stabilizer": "max"},
    {"causal": True, "stabilizer": "max", "stabilizer_gradient": "detached"},
    {"causal": True, "kernel": "relu", "denominator_eps": 0.1},
    {"causal": True, "kernel": "none"},
]


def arguments(options: dict[str, Any], dtype: Any, n: int = 70) -> list[Any]:
    rng = np.random.default_rng(0)
    m = n if options.get("causal") else n + 30
    shapes = (2, n, 6), (2, m, 6), (2, m, 3), (2, n, 3), (10, 6)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def results(module: Any, inputs: list[Any], options: dict[str, Any]) -> list[Any]:
    q, k, v, dout, projection = inputs
    if options.get("kernel") == "none":
        projection = None
    forward = {key: x for key, x in options.items() if key != "stabilizer_gradient"}
    out = module.favor_attention(q, k, v, projection=projection, **forward)
    gradients = module.favor_attention_vjp(q, k, v, dout, projection=projection, **options)
    return [out, *gradients]


@pytest.mark.parametrize(("dtype", "wide"), [(np.float32, np.float64), (np.float64, np.longdouble)])
@pytest.mark.parametrize("options", CASES, ids=str)
def test_it_is_as_exact_as_numpy(
    options: dict[str, Any], dtype: Any, wide: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factored, "CHUNK", 32)
    inputs = arguments(options, dtype)
    exact = results(oracle, [x.astype(wide) for x in inputs], options)
    assert_as_exact_as_numpy(
        results(nlattn, inputs, options), results(oracle, inputs, options), exact
    )


@pytest.mark.parametrize("name", ["favor_softmax_2heads", "favor_softmax_cross_n_ne_m"])
def test_published_modules(name: str) -> None:
    data, _ = published(name)
    projection = data["w.projection_matrix"]
    for x, role in (("q", "query"), ("k", "key")):
        phi = nlattn.positive_features(data[f"in.{x}"], projection, stabilizer="max", role=role)
        np.testing.assert_allclose(phi, data[f"aux.phi_{x}"], rtol=1e-9)
    published_runs.favor(nlattn, name)


@pytest.mark.parametrize("role", ["query", "key"])
@pytest.mark.parametrize("stabilizer", ["neutral", "max", "none"])
def test_features_against_the_oracle(stabilizer: str, role: str) -> None:
    q, _, _, _, projection = arguments({}, np.float64)
    options: Any = {"stabilizer": stabilizer, "role": role, "eps": 0.02, "scale": 0.7}
    got = nlattn.positive_features(q, projection, **options)
    np.testing.assert_allclose(got, oracle.positive_features(q, projection, **options), rtol=1e-12)


def test_given_features() -> None:
    rng = np.random.default_rng(0)
    phi_q, phi_k, v = rng.random((2, 7, 4)), rng.random((2, 9, 4)), rng.standard_normal((2, 9, 3))
    got = nlattn.linear_attention(phi_q, phi_k, v)
    np.testing.assert_allclose(
        got, oracle.linear_attention(phi_q, phi_k, v), rtol=1e-13, atol=1e-15
    )


@pytest.mark.parametrize(
    "options", [c for c in CASES[:7] if "stabilizer_gradient" not in c], ids=str
)
def test_the_map_is_the_operator(options: dict[str, Any]) -> None:
    q, k, v, dout, projection = arguments(options, np.float64)
    q, k, v, dout = (x[0] for x in (q, k, v, dout))
    options = {**options, "projection": None if options.get("kernel") == "none" else projection}
    one = nlattn.favor_attention_map(q, k, **options)
    dense = one.to_dense()
    np.testing.assert_allclose(dense.sum(1), 1, rtol=1e-13)
    np.testing.assert_allclose(one @ v, nlattn.favor_attention(q, k, v, **options), atol=1e-14)
    np.testing.assert_allclose(one.T @ dout, dense.T @ dout, atol=1e-13)
    np.testing.assert_allclose(np.exp(one.scores([4]) - one.lse[4]), one.rows([4]), rtol=1e-12)


def test_the_normaliser_is_that_of_the_estimated_exponentials() -> None:
    """``lse`` is comparable with dense attention's: nothing of the maxima is left in it."""
    q, k, _, _, projection = arguments({}, np.float64)
    for stabilizer in ("neutral", "none"):
        options: Any = {"stabilizer": stabilizer, "eps": 0.01}
        phi = [
            oracle.positive_features(x[0], projection, eps=0.01, stabilizer="none") for x in (q, k)
        ]
        want = np.log(phi[0] @ phi[1].sum(0))
        got = nlattn.favor_attention_map(q[0], k[0], projection=projection, **options).lse
        np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("norms", ["chi", "sqrt_d"])
def test_directions_are_orthogonal_in_blocks(norms: str) -> None:
    projection = nlattn.orthogonal_features(5, 13, 7, norms=norms)
    assert projection.shape == (13, 5)
    lengths = np.linalg.norm(projection, axis=1)
    if norms == "sqrt_d":
        np.testing.assert_allclose(lengths, np.sqrt(5), rtol=1e-15)
    for first in range(0, 13, 5):
        block = projection[first : first + 5] / lengths[first : first + 5, None]
        np.testing.assert_allclose(block @ block.T, np.eye(len(block)), atol=1e-14)
    np.testing.assert_array_equal(projection, nlattn.orthogonal_features(5, 13, 7, norms=norms))
    assert (projection != nlattn.orthogonal_features(5, 13, 8, norms=norms)).all()


# Each z is a mean of independent draws over its own standard error; |z| < 5 is missed by chance
# once in 1.7 million, so for the seven below once in 250,000 choices of seeds.
FALSE_ALARM_Z = 5.0


def z_score(draws: Any, truth: float) -> float:
    return float((np.mean(draws) - truth) / (np.std(draws, ddof=1) / np.sqrt(len(draws))))


@pytest.mark.parametrize("d", [4, 8, 64])
def test_the_diagonal_of_a_block_has_mean_zero(d: int) -> None:
    """Without the sign of R's diagonal it would be negative: that Q is not Haar."""
    draws = [
        np.diag(nlattn.orthogonal_features(d, d, seed, norms="sqrt_d")).mean()
        for seed in range(400)
    ]
    assert abs(z_score(draws, 0)) < FALSE_ALARM_Z


@pytest.mark.parametrize("d", [4, 8, 64])
def test_features_are_unbiased_for_the_exponential(d: int) -> None:
    """At q = k along an axis, where missing signs bias the estimate by 24 % at d = 4."""
    x = np.eye(1, d)
    draws = []
    for seed in range(600):
        projection = nlattn.orthogonal_features(d, 2 * d, seed)
        phi = nlattn.positive_features(x, projection, scale=1.0, eps=0, stabilizer="none")
        draws.append((phi @ phi.T)[0, 0])
    assert abs(z_score(draws, np.e)) < FALSE_ALARM_Z


@pytest.mark.jit
def test_the_error_falls_as_one_over_root_r() -> None:
    """16 times the features: a quarter of the error, in the mean over 40 projections."""
    rng = np.random.default_rng(3)
    q, k, v = (0.5 * rng.standard_normal((30, 8)) for _ in range(3))
    exact = nlattn.attention(q, k, v)
    errors = []
    for r in (64, 1024):
        squares = 0.0
        for seed in range(40):
            projection = nlattn.orthogonal_features(8, r, seed)
            out = nlattn.favor_attention(q, k, v, projection=projection, eps=0.0)
            squares += float(((out - exact) ** 2).mean())
        errors.append(np.sqrt(squares / 40))
    assert 3.3 < errors[0] / errors[1] < 4.9


def test_a_causal_row_ignores_what_comes_later() -> None:
    q, k, v, _, projection = arguments({"causal": True}, np.float64, n=150)
    changed = k.copy(), v.copy()
    for x in changed:
        x[:, 100:] += 5
    for stabilizer, exactly in (("none", True), ("neutral", False), ("max", None)):
        options: Any = {"projection": projection, "causal": True, "stabilizer": stabilizer}
        before = nlattn.favor_attention(q, k, v, **options)[:, :100]
        after = nlattn.favor_attention(q, *changed, **options)[:, :100]
        if exactly:
            np.testing.assert_array_equal(before, after)
        elif exactly is None:  # the published leak through the joint maximum and eps
            assert abs(before - after).max() > 1e-6
        else:
            np.testing.assert_allclose(before, after, rtol=0, atol=1e-13)


def test_one_causal_row_is_its_value() -> None:
    q, k, v, _, projection = arguments({"causal": True}, np.float64, n=1)
    out = nlattn.favor_attention(q, k, v, projection=projection, causal=True, denominator_eps=0.0)
    np.testing.assert_allclose(out, v, rtol=1e-14)


@pytest.mark.parametrize("options", CASES[2:9], ids=str)
def test_large_inputs_do_not_overflow(options: dict[str, Any]) -> None:
    if options.get("stabilizer") == "none":
        return  # the bare formula, which may
    q, k, v, dout, projection = (x.astype(np.float32) for x in arguments(options, np.float64))
    for spread in (1e3, 1e-8):
        inputs = [spread * q, spread * k, v, dout, projection]
        if options.get("eps") == 0.0 and spread > 1:
            continue  # without eps rows have no estimate at all, 0/0
        assert all(np.isfinite(x).all() for x in results(nlattn, inputs, options))


def test_bad_options_are_refused_in_words() -> None:
    q, k, v, _, projection = arguments({}, np.float64)
    given: Any = {"projection": projection}
    for options, error, text in (
        (
            {},
            ValueError,
            "projection is needed, (r, d) as of orthogonal_features with kernel='softmax'",
        ),
        ({**given, "kernel": "none"}, ValueError, "projection is refused with kernel='none'"),
        (
            {**given, "kernel": "exp"},
            ValueError,
            "kernel='exp', expected 'softmax', 'relu' or 'none'",
        ),
        (
            {"projection": projection[:, :5]},
            ValueError,
            "projection has shape (10, 5), expected (r, d) with d=6 from q",
        ),
        (
            {**given, "causal": True},
            ValueError,
            "causal=True needs as many keys as queries, got n=70 queries and m=100 keys",
        ),
        ({**given, "eps": -1.0}, ValueError, "eps=-1.0, expected at least 0"),
        (
            {**given, "stabilizer": "row"},
            ValueError,
            "stabilizer='row', expected 'neutral', 'max' or 'none'",
        ),
    ):
        with pytest.raises(error) as caught:
            nlattn.favor_attention(q, k, v, **options)
        assert str(caught.value) == "favor_attention: " + text
    for arguments_, text in (
        ((0, 4, 0), "d=0, expected at least 1"),
        ((4, 4, -1), "seed=-1, expected at least 0"),
    ):
        with pytest.raises(ValueError, match="orthogonal_features: " + text):
            nlattn.orthogonal_features(*arguments_)


@pytest.mark.parametrize("kernel", ["softmax", "relu"])
def test_without_keys_there_is_nothing(kernel: str) -> None:
    q, w = np.ones((4, 3)), np.ones((6, 3))
    k, v = np.empty((0, 3)), np.empty((0, 2))
    options = {"projection": w, "kernel": kernel}
    np.testing.assert_array_equal(nlattn.favor_attention(q, k, v, **options), np.zeros((4, 2)))
    dq, dk, dv = nlattn.favor_attention_vjp(q, k, v, np.ones((4, 2)), **options)
    np.testing.assert_array_equal(dq, np.zeros((4, 3)))
    assert (dk.shape, dv.shape) == ((0, 3), (0, 2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    "options", [{}, {"causal": True, "denominator_eps": 0.1}, {"kernel": "relu"}], ids=str
)
def test_what_values_share_does_not_spoil_gradients(
    options: dict[str, Any], sign: int, dtype: Any
) -> None:
    """Sums over keys cancel there: rounded first, they would err more than the plain lines."""
    rng = np.random.default_rng(5)
    q, k, v, dout = (rng.standard_normal((17, c)).astype(dtype) for c in (5, 5, 3, 3))
    arrays = {"q": q, "k": k, "v": (sign * (1 + v / 64)).astype(dtype), "dout": dout}
    projection = rng.standard_normal((11, 5)).astype(dtype)
    wide = {name: x.astype(np.longdouble) for name, x in arrays.items()}
    given = {**options, "projection": projection.astype(np.longdouble)}
    truth = oracle.favor_attention_vjp(**wide, **given)[:2]
    plain = oracle.favor_attention_vjp(**arrays, **options, projection=projection)[:2]
    got = nlattn.favor_attention_vjp(**arrays, **options, projection=projection)[:2]
    for mine, other, want in zip(got, plain, truth, strict=True):
        mine, other = (np.sqrt(((x - want) ** 2).mean()) for x in (mine, other))
        assert mine < other  # else 1.5 to 3 times as much


def test_offsets_are_exact_and_leave_other_values_alone() -> None:
    y = np.array([[[1.0, -3, 2, np.nan, 1, 0], [2, -1.6, 5, 1, np.inf, 0]]])
    assert factored.offset(y).tolist() == [[[1, -1.6, 0, 0, 0, 0]]]
    assert factored.offset(np.full((1, 2, 1), np.inf)).tolist() == [[[0]]]
    assert factored.offset(y[:, :0]).tolist() == [[[0] * 6]]
    assert factored.relative(y, np.zeros((1, 1, 6))) is y  # no copy
