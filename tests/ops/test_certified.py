"""Certified attention: the truth lies within what is promised, for any keys and queries."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import nlattn
from nlattn import attention, attention_vjp, certified_attention, certified_attention_map
from nlattn.engines import certified as engine
from nlattn.engines import certified_once, exhaustive
from nlattn.kernels.certified_arrays import MOVED, ROOT
from nlattn.oracle import certified as oracle
from tests.helpers import for_any_threads
from tests.ops.test_nearest import KINDS, keys_of

MANY = int(os.environ.get("NLATTN_CERTIFIED_ROWS", "0"))
"""Generated rows at nightly size, a million; a few thousand otherwise."""
_OVERFLOWING = ("far", "huge")  # scores of which the oracle's exponentials are 0/0


@pytest.fixture(autouse=True)
def _trees_of_few_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are tried, and left to dense attention where that is faster."""
    monkeypatch.setattr(engine, "_FEW", 0)
    monkeypatch.setattr(engine, "_MANY", 0)


def smooth(side: int, d: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    """Features that vary slowly over a grid, as those of images."""
    x = np.random.default_rng(seed).standard_normal((side, side, d)).cumsum(0).cumsum(1)
    return (x / np.abs(x).max()).reshape(-1, d).astype(dtype)


def always_down_the_tree(patch: pytest.MonkeyPatch) -> None:
    """Whatever it costs: of few keys dense attention is cheaper, and no tree would be tried."""
    terms = engine.terms
    patch.setattr(engine, "_pays", lambda *_: True)
    patch.setattr(engine, "_SINGLE", 0)

    def patient(*given: Any) -> Any:
        found = terms(*given)
        return found._replace(most=1 << 60) if found.most else found

    patch.setattr(engine, "terms", patient)


def assert_promise(q: Any, k: Any, v: Any, tolerance: float, **options: Any) -> Any:
    """Outputs and lse are as near to the truth as is said, and `missed` is within the tolerance."""
    returned = certified_attention(
        q, k, v, tolerance=tolerance, return_lse=True, return_missed=True, **options
    )
    out, lse, missed = returned
    wide = [np.asarray(x, np.longdouble) for x in (q, k, v)]
    truth, exact = oracle.certified_attention(*wide, return_lse=True, **options)
    span = np.ptp(v.astype(np.float64), axis=-2, keepdims=True)
    spacing = np.spacing(np.abs(truth).astype(q.dtype))
    assert (np.abs(out - truth) <= missed[..., None] * span + spacing).all()
    some = np.isfinite(exact)
    np.testing.assert_array_equal(np.isneginf(lse), ~some)
    slack = -np.log1p(-np.minimum(missed, 0.999))[some] + 1e-15 * np.abs(exact[some])
    assert (np.abs(lse[some] - exact[some]) <= slack).all()
    return missed


@given(
    kind=st.sampled_from([kind for kind in KINDS if kind not in _OVERFLOWING]),
    weight=st.sampled_from(["softmax", "gaussian"]),
    n=st.integers(1, 70),
    m=st.integers(1, 200),
    d=st.integers(1, 6),
    sharp=st.sampled_from([0.01, 1.0, 10.0, 1000.0]),
    tolerance=st.sampled_from([0.3, 1e-2, 1e-3, 1e-6, 1e-10]),
    single=st.booleans(),
    masked=st.sampled_from(["", "keys", "pairs", "causal"]),
    forced=st.booleans(),
    seed=st.integers(0, 2**32),
)
@example("one far", "gaussian", 1, 1, 1, 1.0, 0.3, True, "", True, 0)
@example("one far", "gaussian", 3, 9, 2, 10.0, 1e-3, True, "", True, 0)
@example("one far", "gaussian", 1, 1, 1, 0.01, 0.3, True, "", False, 0)
@settings(max_examples=MANY // 35 if MANY else 60)
def test_the_promise_holds(
    kind: str,
    weight: str,
    n: int,
    m: int,
    d: int,
    sharp: float,
    tolerance: float,
    single: bool,
    masked: str,
    forced: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    dtype = np.float32 if single else np.float64
    with np.errstate(under="ignore"):
        q, k = (x.astype(dtype) for x in keys_of(kind, n, m, d, rng))
    v = (rng.standard_normal((m, 2)) + rng.choice([0, 100])).astype(dtype)
    options: dict[str, Any] = {"weight": weight, "scale": sharp, "bandwidth": sharp**-0.5}
    if masked == "causal":
        options["causal"] = True
    elif masked:
        options["mask"] = rng.random((n if masked == "pairs" else 1, m)) < 0.7
    with pytest.MonkeyPatch.context() as patch:
        if forced:
            always_down_the_tree(patch)
        missed = assert_promise(q, k, v, tolerance, **options)
    size = max(1.0, float(np.abs(q).max()), float(np.abs(k).max())) ** 2 * sharp
    if tolerance > 1e-12 * size:  # else float64 cannot keep it
        assert (missed <= tolerance).all()


@pytest.mark.jit
@pytest.mark.parametrize("weight", ["softmax", "gaussian"])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-7])
def test_smooth_features_go_down_the_tree(weight: str, tolerance: float) -> None:
    f = smooth(40, 5)
    options = {"weight": weight, "scale": 3e3, "bandwidth": 0.02}
    q, k = f, f
    if weight == "softmax":
        q = np.concatenate([f, np.ones_like(f[:, :1])], 1)
        k = np.concatenate([f, -(f**2).sum(1, keepdims=True) / 2], 1)
    ground = engine.survey(_slice(q, k, weight), tolerance)
    assert ground.parts
    assert not len(ground.dense)
    missed = assert_promise(q, k, smooth(40, 3, seed=1), tolerance, **options)
    assert (missed <= tolerance).all()
    assert missed.max() > 0


def _slice(q: Any, k: Any, weight: str) -> engine.Slice:
    none = np.zeros(0, bool), np.zeros((0, 0), bool)
    for x in (q, k, *none):
        x.flags.writeable = False
    kind, factor = ("softmax", "gaussian").index(weight), 3e3 if weight == "softmax" else 0.02**-2
    return engine.Slice(q, k, kind, factor, *none, False)


@pytest.mark.jit
def test_a_smaller_tolerance_misses_less_and_looks_at_more() -> None:
    f = smooth(48, 4, np.float64)  # in one precision throughout
    maps = [
        certified_attention_map(f, f, tolerance=t, weight="gaussian", bandwidth=0.02)
        for t in (0.1, 1e-2, 1e-3, 1e-5)
    ]
    work = [A.work.scores for A in maps]
    assert work == sorted(work)
    assert work[0] < 0.5 * len(f) ** 2
    missed = [A.missed.mean() for A in maps]
    assert missed == sorted(missed, reverse=True)


@pytest.mark.jit
def test_equal_keys_are_summed_at_once() -> None:
    k = np.repeat(smooth(4, 3, np.float64), 200, axis=0)
    v = np.random.default_rng(0).standard_normal((len(k), 2))
    options = {"weight": "gaussian", "bandwidth": 0.05}
    assert_promise(k, k, v, 1e-6, **options)
    A = certified_attention_map(k, k, tolerance=1e-6, **options)
    assert A.work.scores < 0.1 * len(k) ** 2


def test_tolerance_zero_is_dense_attention() -> None:
    q, k, v = np.random.default_rng(3).standard_normal((3, 2, 40, 4)).astype(np.float32)
    out, lse = certified_attention(q, k, v, tolerance=0, causal=True, return_lse=True)
    want, want_lse = attention(q, k, v, causal=True, return_lse=True)
    np.testing.assert_allclose(out, want, rtol=0, atol=4e-7)  # values are centred
    np.testing.assert_array_equal(lse, want_lse)


@pytest.mark.jit
def test_random_features_are_left_to_dense_attention() -> None:
    q, k = np.random.default_rng(4).standard_normal((2, 2048, 16)).astype(np.float32)
    A = certified_attention_map(q, k)
    dense = nlattn.attention_map(q, k)
    assert A.work.scores <= 1.3 * dense.work.scores
    v = smooth(46, 2)[: len(k)]
    np.testing.assert_allclose(A @ v, dense @ v, rtol=0, atol=1e-6)


def test_no_tree_of_all_is_planted_where_none_can_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = np.random.default_rng(9).standard_normal((2, 300, 16)).astype(np.float32)
    planted, plant = [], engine._planted

    def counted(ground: Any, *given: Any) -> Any:
        planted.append(len(ground.slice.k))
        return plant(ground, *given)

    monkeypatch.setattr(engine, "_planted", counted)
    monkeypatch.setattr(engine, "_FEW", 301)
    assert_promise(q, k, k, 1e-3)
    assert not planted
    monkeypatch.setattr(engine, "_FEW", 0)
    monkeypatch.setattr(engine, "_MANY", 400)
    for masks in ({}, {"mask": np.arange(300) % 3 > 0}, {"causal": True}):
        assert_promise(q, k, k, 1e-3, **masks)
        assert planted.pop() <= 75
        assert not planted
    monkeypatch.setattr(engine, "_MANY", 1300)
    x = np.repeat(smooth(4, 3), 80, axis=0)  # equal keys are summed at once
    certified_attention_map(x, x, weight="gaussian", bandwidth=0.05)
    assert planted == [320, 1280]


@pytest.mark.parametrize("masked", ["", "keys", "pairs", "causal"])
def test_many_keys_are_summed_some_at_a_time(monkeypatch: pytest.MonkeyPatch, masked: str) -> None:
    rng = np.random.default_rng(11)
    q, k, v = (rng.standard_normal((90, d)).astype(np.float32) for d in (3, 3, 2))
    monkeypatch.setattr(exhaustive, "_ROW", 32)
    options: dict[str, Any] = {"causal": True} if masked == "causal" else {}
    if masked in ("keys", "pairs"):
        options["mask"] = rng.random((90 if masked == "pairs" else 1, 90)) < 0.05
    for weight in ("softmax", "gaussian"):
        missed = assert_promise(q, k, v, 1e-3, weight=weight, **options)
        assert (missed < 1e-4).all()


def test_only_queries_that_float32_cannot_keep_are_float64() -> None:
    rng = np.random.default_rng(12)
    q, k = rng.standard_normal((2, 120, 24)).astype(np.float32)
    q[::3] *= 40
    A = certified_attention_map(q, k, tolerance=1e-4)
    wide = A._ground.dense_wide
    assert wide[::3].all()
    assert not wide[1::3].any()
    x, y = (z.astype(np.float64) for z in (q, k))
    exact = oracle.certified_attention(x, y, np.eye(120))
    assert (np.abs(A.rows(np.arange(120)) - exact).sum(1) <= 2e-4).all()
    g = rng.standard_normal((120, 2)).astype(np.float32)
    assert (np.abs(A.T @ g - exact.T @ g).sum(0) <= 2e-4 * np.abs(g).sum(0)).all()
    one = certified_attention_map(
        q[:1, :1] * 0 + np.float32(0.3456), k[:1, :1] * 0 + 821618, scale=1e3
    )
    np.testing.assert_allclose(one.T @ g[:1], g[:1], rtol=1e-6)
    missed = assert_promise(q, k, k, 1e-4)
    assert (missed[wide] < 1e-10).all()
    assert (missed <= 1e-4).all()


def test_leading_channels_bound_the_rounding_of_a_score() -> None:
    """A chain of multiply-adds rounds what is summed so far: less than the whole, each time."""
    rng = np.random.default_rng(13)
    for d in (1, 3, 8, 33):
        q, k = (rng.standard_normal((50, d)) * 0.5 ** np.arange(d)[::-1] for _ in "qk")
        x = _slice(q.astype(np.float32), k.astype(np.float32), "softmax")._replace(factor=50.0)
        plain, sharp = exhaustive.rounding(x, np.float32), exhaustive.rounding(x, np.float32, 0)
        assert (sharp <= plain).all()
        exact = 50 * (x.q.astype(float) @ x.k.T.astype(float))
        scores = exhaustive.rows(x, np.arange(50), normalise=False)
        assert (np.abs(scores - exact).max(1) <= sharp).all()
        if d == 33:
            assert sharp.mean() < 0.7 * plain.mean()


@pytest.mark.jit
@pytest.mark.parametrize(("scale", "tolerance"), [(1e7, 1e-2), (1e7, 1e-4), (1e9, 1e-2)])
def test_exponents_that_float32_does_not_tell_apart_go_down_its_tree(
    scale: float, tolerance: float
) -> None:
    """The nearest key is one of float64, and no float32 exponent makes a key the nearest."""
    rng = np.random.default_rng(3)
    k = smooth(24, 4)
    q = (k + 0.02 * rng.standard_normal(k.shape)).astype(np.float32)
    x = _slice(q, k, "gaussian")._replace(factor=scale)
    ground = engine.survey(x, tolerance)
    assert [part.tree.shorts.dtype for part in ground.parts if part.mixed] == [np.float32]
    assert len(ground.dense) < len(q) / 4
    assert_promise(q, k, smooth(24, 3, seed=1), tolerance, weight="gaussian", bandwidth=scale**-0.5)


@pytest.mark.parametrize(
    ("dtype", "mixed"), [(np.float32, False), (np.float32, True), (np.float64, False)]
)
def test_a_tree_takes_less_than_twice_its_keys(dtype: Any, mixed: bool) -> None:
    """Points, short ones and boxes are of the dtype of the keys, whatever the tolerance."""
    f = (smooth(24, 33) * 0.7 ** np.arange(33)).astype(dtype)
    x = _slice(f, f, "gaussian")
    ground = engine.survey(x, 1e-3)
    part = engine._part(ground, engine._planted(ground), mixed, np.arange(len(f)))
    held = sum(a.nbytes for a in (*part.tree, part.given.heights) if isinstance(a, np.ndarray))
    assert held < 1.9 * f.nbytes
    assert not mixed or np.shares_memory(part.given.keys, x.k)


def test_queries_that_are_alike_are_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    always_down_the_tree(monkeypatch)
    f, v, asked = smooth(20, 3), smooth(20, 2, seed=1), []
    which = np.random.default_rng(0).integers(0, len(f), 2 * len(f))
    survey = engine.survey
    monkeypatch.setattr(engine, "survey", lambda x, t: asked.append(len(x.q)) or survey(x, t))
    options = {"weight": "gaussian", "bandwidth": 0.02}
    assert_promise(f[which], f, v, 1e-3, **options)
    out = certified_attention(f[which], f, v, **options)
    for i in range(5):
        assert (out[which == which[i]] == out[i]).all()
    certified_attention(f[which], f, v, mask=np.ones((1, len(f)), bool), **options)
    certified_attention(f[which], f, v, mask=np.ones((len(which), len(f)), bool), **options)
    once = len(np.unique(which))
    assert asked == [once, once, once, len(which)]


def test_queries_that_a_sum_does_not_tell_apart_are_all_asked() -> None:
    x = np.array([[1.0, 0], [1, 1e-300], [1, 0], [1, 0]])
    for found in certified_once.alike(x):
        np.testing.assert_array_equal(found, np.arange(4))
    first, which = certified_once.alike(x[[0, 2, 3]])
    assert first.tolist() == [0]
    assert which.tolist() == [0, 0, 0]


def test_sums_of_vast_values_do_not_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are up to exp(30) in their unit, and float32 ends at 3e38."""
    always_down_the_tree(monkeypatch)
    f = np.random.default_rng(8).integers(-2, 3, (114, 1)).astype(np.float32)
    v = (1e30 * smooth(11, 2)[:114]).astype(np.float32)
    for sharp in (0.1, 0.2, 0.44, 1.0):
        assert_promise(f[:23] + np.float32(0.5), f, v, 1e-2, weight="gaussian", bandwidth=sharp)


def test_progress_is_told() -> None:
    f, told = smooth(20, 3), []
    options = {"weight": "gaussian", "bandwidth": 0.02}
    with pytest.MonkeyPatch.context() as patch:
        always_down_the_tree(patch)
        certified_attention(f, f, f, progress=lambda *at: told.append(at), **options)
    assert told
    assert told[-1][0] == told[-1][1]


def test_the_map_answers_as_a_dense_one() -> None:
    rng = np.random.default_rng(5)
    q, k, v, g = (rng.standard_normal(s) for s in ((30, 3), (41, 3), (41, 2), (30, 2)))
    A, B = certified_attention_map(q, k, tolerance=1e-9), nlattn.attention_map(q, k)
    near = {"rtol": 0, "atol": 1e-8}  # the tolerance times ranges of a few units
    np.testing.assert_allclose(A @ v, B @ v, **near)
    np.testing.assert_allclose(A.T @ g, B.T @ g, **near)
    np.testing.assert_allclose(A.rows([3, 7]), B.rows([3, 7]), **near)
    np.testing.assert_allclose(A.lse, B.lse, **near)
    weights, keys = A.topk(4)
    want, want_keys = B.topk(4)
    np.testing.assert_array_equal(keys, want_keys)
    np.testing.assert_allclose(weights, want, **near)
    assert (A.missed <= 1e-9).all()


@pytest.mark.parametrize("weight", ["softmax", "gaussian"])
def test_gradients_are_those_of_all_keys(weight: str) -> None:
    rng = np.random.default_rng(6)
    q, k, v, dout = (rng.standard_normal((2, *s)) for s in ((5, 3), (6, 3), (6, 2), (5, 2)))
    options = {"weight": weight, "bandwidth": 1.3, "causal": True}
    got = nlattn.certified_attention_vjp(q, k, v, dout, **options)
    for a, b in zip(got, oracle.certified_attention_vjp(q, k, v, dout, **options), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)
    if weight == "softmax":
        for a, b in zip(got, attention_vjp(q, k, v, dout, causal=True), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.jit
def test_same_bits_for_any_number_of_threads() -> None:
    f = smooth(32, 4)
    options = {"weight": "gaussian", "bandwidth": 0.02, "return_missed": True}
    for_any_threads(lambda: certified_attention(f, f, f, **options))


def test_bounds_must_be_widened_by_their_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its part for rounding, `missed` of points far from their centre is a lie."""
    rng = np.random.default_rng(7)
    k = (rng.standard_normal((64, 3)) * [1, 1, 1e-3] + [0, 0, 30]).astype(np.float32)
    v = rng.standard_normal((64, 1)).astype(np.float32)
    options = {"weight": "gaussian", "bandwidth": 1e-3}
    assert_promise(k, k, v, 0.3, **options)
    numbers, terms = engine._numbers, engine.terms

    def blind(*arguments: Any) -> Any:
        found, top, slack = numbers(*arguments)
        found[:, [MOVED, ROOT]] = 0
        return found, top, slack

    monkeypatch.setattr(engine, "_numbers", blind)
    monkeypatch.setattr(engine, "terms", lambda *a: terms(*a)._replace(u=0.0))
    monkeypatch.setattr(exhaustive, "rounding", lambda x, *_: np.zeros(len(x.q)))
    with pytest.raises(AssertionError):
        assert_promise(k, k, v, 0.3, **options)


def test_bad_arguments_are_named() -> None:
    q, k, v = np.zeros((6, 2)), np.zeros((5, 2)), np.zeros((5, 1))
    for value in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"tolerance=.* is a share of the weights, expected 0"):
            certified_attention(q, k, v, tolerance=value)
    with pytest.raises(
        ValueError, match="certified_attention: weight='dot', expected 'softmax' or"
    ):
        certified_attention(q, k, v, weight="dot")
    with pytest.raises(MemoryError, match=r"certified_attention: needs .* split q"):
        certified_attention(q, k, v, max_bytes=10)
    assert (certified_attention(q, k[:0], v[:0]) == 0).all()
    assert certified_attention(q[:0], k, v).shape == (0, 1)
    nan = np.full((6, 2), np.nan)
    assert np.isnan(certified_attention(nan, k, v, nonfinite="propagate")).all()
