"""Certified attention whose keys have a bias: within the promise, for any biases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import nlattn
from nlattn import certified_attention, certified_attention_map
from nlattn.engines import certified as engine
from nlattn.engines import key_bias
from nlattn.oracle import certified as oracle
from tests.ops.test_certified import MANY, always_down_the_tree, assert_promise, smooth
from tests.ops.test_certified_vjp import FACTOR, arrays
from tests.ops.test_nearest import keys_of

BIASES = ("plain", "equal", "large and equal", "tiny", "wide", "one far below", "one far above")


@pytest.fixture(autouse=True)
def _trees_of_few_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_FEW", 0)
    monkeypatch.setattr(engine, "_MANY", 0)


def biases_of(kind: str, m: int, rng: np.random.Generator) -> np.ndarray:
    b = rng.standard_normal((1, m))
    if kind in ("equal", "large and equal"):
        b[:] = 3.3 if kind == "equal" else -123456.789
    b *= {"tiny": 1e-30, "wide": 1e3}.get(kind, 1.0)
    if kind in ("one far below", "one far above"):
        b[0, rng.integers(m)] = -1e9 if kind == "one far below" else 1e5
    return b


@given(
    kind=st.sampled_from(BIASES),
    keys=st.sampled_from(["normal", "clusters", "copies", "integers", "disguised", "one far"]),
    weight=st.sampled_from(["softmax", "gaussian"]),
    n=st.integers(1, 60),
    m=st.integers(1, 150),
    d=st.integers(1, 5),
    sharp=st.sampled_from([-1.0, 0.0, 1e-25, 0.01, 1.0, 30.0]),
    tolerance=st.sampled_from([0.3, 1e-3, 1e-6]),
    single=st.booleans(),
    hidden=st.sampled_from(["", "some", "all"]),
    masked=st.sampled_from(["", "keys", "pairs", "causal"]),
    forced=st.booleans(),
    seed=st.integers(0, 2**32),
)
@example("wide", "clusters", "gaussian", 9, 70, 2, 1.0, 1e-6, True, "some", "", True, 0)
@example("one far below", "integers", "softmax", 9, 70, 2, 1.0, 1e-3, True, "", "pairs", True, 0)
@settings(max_examples=MANY // 35 if MANY else 60)
def test_the_promise_holds(
    kind: str,
    keys: str,
    weight: str,
    n: int,
    m: int,
    d: int,
    sharp: float,
    tolerance: float,
    single: bool,
    hidden: str,
    masked: str,
    forced: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    dtype = np.float32 if single else np.float64
    q, k = (x.astype(dtype) for x in keys_of(keys, n, m, d, rng))
    v = (rng.standard_normal((m, 2)) + rng.choice([0, 100])).astype(dtype)
    bias = biases_of(kind, m, rng).astype(dtype)
    if hidden:
        bias[rng.random(bias.shape) < (0.4 if hidden == "some" else 2)] = -np.inf
    width = abs(sharp) ** -0.5 if sharp else 1e30
    options: dict[str, Any] = {"weight": weight, "scale": sharp, "bandwidth": width}
    options |= {"bias": bias, "causal": masked == "causal"}
    if masked in ("keys", "pairs"):
        options["mask"] = rng.random((n if masked == "pairs" else 1, m)) < 0.7
    with pytest.MonkeyPatch.context() as patch:
        if forced:
            always_down_the_tree(patch)
        missed = assert_promise(q, k, v, tolerance, **options)
    assert (missed <= tolerance + rounded(q, k, bias, options)).all()


def rounded(q: Any, k: Any, bias: Any, options: dict[str, Any]) -> float:
    """What rounding takes beyond the tolerance: of scores, and of biases in 47 bits."""
    of_q, of_k = (np.linalg.norm(x.astype(float), axis=1).max(initial=0) for x in (q, k))
    size = abs(options["scale"]) * of_q * of_k
    if options["weight"] == "gaussian":
        size = 4 * ((of_q + of_k) / options["bandwidth"]) ** 2
    b = bias[np.isfinite(bias)].astype(float)
    spread = float(np.ptp(b)) if b.size else 0.0  # of biases: two more channels, and their blur
    size, blur = size + 4 * spread, 4 * (2.0**-47 + 2.0**-50) * spread
    return float(np.expm1(min(700.0, 2.0**-50 * (q.shape[1] + 10) * size + blur)))


def test_numbers_worked_by_hand() -> None:
    q, k = np.array([[1.0]]), np.log([[1.0], [2], [5]])
    v, bias = np.array([[9.0], [0], [18]]), np.log([[3.0, 0.5, 1]])
    some = {"scale": 1.0, "bias": bias, "return_lse": True}
    for f in (oracle.certified_attention, certified_attention):
        out, lse = f(q, k, v, **some)
        np.testing.assert_allclose(out, [[13.0]])  # (3 9 + 1 0 + 5 18) / 9
        np.testing.assert_allclose(lse, [np.log(9)])
    bias[0, 2], v = -np.inf, np.array([[8.0], [4], [1e9]])
    one = np.ones((1, 1))
    for f in (oracle.certified_attention_vjp, nlattn.certified_attention_vjp):
        *_, dv, db = f(q, k, v, one, scale=1.0, bias=bias)
        np.testing.assert_allclose(dv, [[0.75], [0.25], [0]])
        np.testing.assert_allclose(db, [[0.75, -0.75, 0]])  # P (v - 7)
    out, lse, missed = certified_attention(
        q, k, v, bias=np.full(3, -np.inf), return_lse=True, return_missed=True
    )
    assert (out[0, 0], lse[0], missed[0]) == (0, -np.inf, 0)


@pytest.mark.jit
@pytest.mark.parametrize("weight", ["softmax", "gaussian"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_keys_with_a_bias_go_down_the_tree(
    weight: str, dtype: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (q, k, v, _), options = arrays(weight, "")
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    bias = np.random.default_rng(2).uniform(-4, 4, len(k)).astype(dtype)
    bias[::7] = -np.inf
    monkeypatch.setattr(engine, "_pays", lambda *_: True)
    missed = assert_promise(q, k, v, 1e-3, bias=bias, **options)
    A = certified_attention_map(q, k, bias=bias, tolerance=1e-3, **options)
    assert A.dtype == dtype
    assert A._ground.parts[0].tree.points.dtype == dtype
    assert A.work.per_query.min() < 0.5 * len(k)
    assert 0 < missed.max() <= 1e-3
    wide = (x.astype(np.float64) for x in (q, k))
    exact = oracle.certified_attention(*wide, np.eye(len(k)), bias=bias, **options)
    assert (np.abs(A.rows(np.arange(len(q))) - exact).sum(1) <= 2e-3).all()
    g = np.ones((len(q), 1), dtype)
    low, high = A.adjoint_bounds(g)
    assert ((low <= exact.T @ g) & (exact.T @ g <= high)).all()
    weights, keys = A.topk(1)
    np.testing.assert_array_equal(keys[:, 0], exact.argmax(1))
    np.testing.assert_allclose(weights[:, 0], exact.max(1), rtol=2e-3)
    best = A.scores_of(keys[:, 0])
    np.testing.assert_allclose(np.exp(best - A.lse), exact.max(1), rtol=2e-3)
    A.save(tmp_path / "map.npz")
    B = nlattn.load_map(tmp_path / "map.npz")
    np.testing.assert_array_equal(A @ v, B @ v)
    np.testing.assert_array_equal(A.lse, B.lse)


@pytest.mark.jit
@pytest.mark.parametrize("weight", ["softmax", "gaussian"])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
def test_gradients_are_within_their_bounds(
    weight: str, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    always_down_the_tree(monkeypatch)
    (q, k, v, dout), options = arrays(weight, "")
    bias = np.random.default_rng(3).uniform(-4, 4, (1, len(k)))
    bias[0, ::5] = -np.inf
    options |= {"bias": bias}
    got = nlattn.certified_attention_vjp(q, k, v, dout, tolerance=tolerance, **options)
    want = oracle.certified_attention_vjp(q, k, v, dout, **options)
    shown = np.isfinite(bias[0])
    reach = np.ptp(dout @ v[shown].T, axis=1)
    of_q = 1.5 * 2 * FACTOR * tolerance * reach[:, None] * np.ptp(k, axis=0)
    assert (np.abs(got[0] - want[0]) <= of_q + 1e-10).all()
    size = np.abs(q) if weight == "softmax" else np.abs(q[:, None] - k).max(1)
    of_k = 3 * 2 * FACTOR * tolerance * (reach[:, None] * size).sum(0)
    assert (np.abs(got[1] - want[1]).sum(0) <= of_k + 1e-9).all()
    assert (np.abs(got[2] - want[2]).sum(0) <= 2 * tolerance * np.abs(dout).sum(0) + 1e-11).all()
    error = np.abs(got[3] - want[3])
    assert error.sum() <= 3 * tolerance * reach.sum() + 1e-10
    assert error.max() > 1e-12  # something is left out
    rng = np.random.default_rng(1)
    dq, dk, dv, db = (1e-3 * rng.standard_normal(x.shape) for x in (q, k, v, bias))
    got, lse = nlattn.certified_attention_jvp(
        q, k, v, dq, dk, dv, dbias=db, tolerance=tolerance, return_lse=True, **options
    )
    want, want_lse = oracle.certified_attention_jvp(
        q, k, v, dq, dk, dv, dbias=db, return_lse=True, **options
    )
    if weight == "softmax":
        changes = 2 * FACTOR * (q @ dk.T + dq @ k.T) + db
    else:
        changes = -2 * FACTOR * ((q[:, None] - k) * (dq[:, None] - dk)).sum(-1) + db
    reach = np.ptp(changes[:, shown], axis=1)
    room = tolerance * (1.5 * reach[:, None] * np.ptp(v, axis=0) + np.ptp(dv, axis=0))
    assert (np.abs(got - want) <= room + 1e-10).all()
    assert (np.abs(lse - want_lse) <= tolerance * reach + 1e-10).all()


def test_biases_of_heads_and_one_for_all_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    f, rng = smooth(14, 3, np.float64), np.random.default_rng(4)
    v, dout = rng.standard_normal((2, 3, len(f), 2))
    q = np.stack([f, f[::-1], -f])
    options = {"weight": "gaussian", "bandwidth": 0.05, "tolerance": 1e-9}
    for shape in ((3, 1, len(f)), (1, len(f)), (3, 1, 1), ()):
        options["bias"] = rng.standard_normal(shape)
        want = oracle.certified_attention_vjp(q, f, v, dout, **options)[3]
        if shape[-1:] != (len(f),):
            want = want.sum(-1, keepdims=True)
        want = want if len(shape) == 3 else want.sum(0)
        for down in (False, True):
            with monkeypatch.context() as patch:
                if down:
                    always_down_the_tree(patch)
                got = nlattn.certified_attention_vjp(q, f, v, dout, **options)[3]
            assert got.shape == shape
            np.testing.assert_allclose(got, want.reshape(shape), rtol=0, atol=1e-6)


def test_what_rounding_leaves_of_a_bias_must_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 alone a bias of thousands would miss a small tolerance, and not say so."""
    rng = np.random.default_rng(5)
    q, k, v = (rng.standard_normal((40, 2)).astype(np.float32) for _ in range(3))
    bias = (8000 + rng.standard_normal(40) - [4000, 0] * 20).astype(np.float32)
    for options in ({"scale": 1.1}, {"weight": "gaussian", "bandwidth": 1.3}):
        assert_promise(q, k, v, 1e-6, bias=bias, **options)
    for name in ("_products", "_heights"):
        made = getattr(key_bias, name)

        def rounded(b: Any, x: Any, *shown: Any, made: Any = made) -> Any:
            *before, ends, slope, _ = made(b, x, *shown)
            ends[:, 1] = 0
            return *before, ends, slope, x.factor * b * (-1 if x.kind else 1)

        monkeypatch.setattr(key_bias, name, rounded)
    for options in ({"scale": 1.1}, {"weight": "gaussian", "bandwidth": 1.3}):
        with pytest.raises(AssertionError):
            assert_promise(q, k, v, 1e-6, bias=bias, **options)


def test_bad_biases_are_named() -> None:
    q, k, v = np.zeros((6, 2)), np.zeros((5, 2)), np.zeros((5, 1))
    text = r"certified_attention: bias has shape \(6, 5\), expected one that broadcasts to \(1, 5\)"
    with pytest.raises(ValueError, match=text):
        certified_attention(q, k, v, bias=np.zeros((6, 5)))
    with pytest.raises(ValueError, match=r"bias\[0, 2\] is nan, expected finite values or -inf"):
        certified_attention(q, k, v, bias=[[0.0, 1, np.nan, 2, 3]])
    with pytest.raises(
        TypeError, match="arrays must share one dtype, got q: float64, bias: float32"
    ):
        certified_attention_map(q, k, bias=np.zeros(5, np.float32))
    given = q, k, v, q, k, v
    with pytest.raises(ValueError, match=r"dbias has shape \(5,\), expected nothing as bias has"):
        nlattn.certified_attention_jvp(*given, dbias=np.zeros(5))
    out = certified_attention(q, k, v, bias=np.full(5, np.nan), nonfinite="propagate")
    assert np.isnan(out).all()
