"""Learned queries in windows against their oracle, over shapes, options and sizes of logits."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nlattn
from nlattn.engines import window as engine
from nlattn.oracle import qna as oracle
from tests.helpers import for_any_threads

DTYPES = [(np.float32, np.float64), (np.float64, np.longdouble)]
OPTIONS: list[dict[str, Any]] = [
    {"window": 3},
    {"window": (2, 3), "stride": (2, 1), "padding": (1, 0)},
    {"window": 4},
    {"window": 7, "stride": 2},
    {"window": 1, "padding": 0},
    {"window": 2, "stride": 3, "padding": 3},
    {"window": 3, "stride": (1, 2), "scale": -0.7},
]
TABLES = ["", "bias", "gate", "bias gate", "constant"]


@pytest.fixture(autouse=True)
def many_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of small arrays, too."""
    monkeypatch.setattr(engine, "ROWS", 2)
    monkeypatch.setattr(engine, "LANES", 8)


def case(rng: Any, options: Any, some: str, dtype: Any, size: float = 1, e: int = 3) -> Any:
    """Arrays, tables of bias and gate, and a cotangent."""
    window = np.broadcast_to(options["window"], 2)
    shapes = (2, 2, 16), (5, 6, 16), (2, 5, 6, e)
    q, k, v = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    tables = {}
    if "bias" in some:
        tables["bias"] = size * rng.standard_normal((2, *window)).astype(dtype)
    if "gate" in some:
        tables["gate"] = rng.standard_normal((2, 2, *window)).astype(dtype)
    if some == "constant":
        tables["bias"] = np.full((2, *window), 3, dtype)
        tables["gate"] = np.full((2, *window), [[[-2]], [[0.5]]], dtype)
    arrays = [dtype(size) * q, k, v]
    dout = rng.standard_normal(oracle.qna(*arrays, **options).shape).astype(dtype)
    return [*arrays, dout], {**tables, **options}


def results(where: Any, arrays: Any, options: Any) -> list[Any]:
    return [where.qna(*arrays[:3], **options), *where.qna_vjp(*arrays, **options)]


def widened(x: Any, wide: Any) -> Any:
    return {
        key: value.astype(wide) if isinstance(value, np.ndarray) else value
        for key, value in x.items()
    }


@pytest.mark.parametrize(("dtype", "wide"), DTYPES)
@pytest.mark.parametrize("some", TABLES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_is_as_exact_as_numpy(options: Any, some: str, dtype: Any, wide: Any) -> None:
    """Error at most twice that of the plain transcription in the same dtype, plus one spacing."""
    runs = []
    for seed in range(3):
        arrays, given = case(np.random.default_rng(seed), options, some, dtype)
        got, plain = results(nlattn, arrays, given), results(oracle, arrays, given)
        exact = results(oracle, [x.astype(wide) for x in arrays], widened(given, wide))
        runs.append((got, plain, exact))
    for x in range(6):
        if runs[0][2][x] is None:
            assert runs[0][0][x] is None
            continue
        assert (runs[0][0][x].dtype, runs[0][0][x].shape) == (dtype, runs[0][2][x].shape)
        got, plain, exact = (np.concatenate([run[i][x].ravel() for run in runs]) for i in range(3))
        scale = np.sqrt((exact**2).mean())
        error, allowed = (np.sqrt(((y - exact) ** 2).mean()) for y in (got, plain))
        if exact.size < 100 or options["window"] == 1:  # too few, or exactly 0: no average error
            allowed = 100 * np.finfo(dtype).eps
        assert error <= 2 * allowed + np.spacing(dtype(max(scale, abs(exact).max())))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [30, 1e4])
@pytest.mark.parametrize("some", ["", "bias gate"])
@pytest.mark.parametrize("options", OPTIONS[:4], ids=str)
def test_large_logits_lose_no_window(options: Any, some: str, size: float, dtype: Any) -> None:
    """Whatever the size of scores and bias, every window has its own maximum."""
    arrays, given = case(np.random.default_rng(0), options, some, dtype, size)
    rounded = [np.round(x) if i < 2 else x for i, x in enumerate(arrays)]  # so that sums are exact
    given = {**given, "scale": 1.0}
    if "bias" in given:
        given["bias"] = np.round(given["bias"])
    got = results(nlattn, rounded, given)
    want = results(
        oracle, [x.astype(np.longdouble) for x in rounded], widened(given, np.longdouble)
    )
    tolerance = 60 * np.finfo(dtype).eps
    np.testing.assert_allclose(got[0], want[0], rtol=0, atol=tolerance * abs(want[0]).max())
    for a, b, factor in zip(got[1:], want[1:], (1, size, 1, 1, 1), strict=True):
        if b is not None:
            atol = 30 * tolerance * factor * max(1, abs(b).max())
            np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("dtype", "row"),
    [(np.float32, [0, -50, -50, -100]), (np.float64, [0, -300, -300, -720])],
)
def test_weights_far_below_the_top_of_a_tile_have_gradients(dtype: Any, row: list[float]) -> None:
    """``exp(-100)`` and ``exp(-720)`` of the top are 0; in its windows the last key weighs more."""
    q, dout = np.ones((1, 1), dtype), np.ones((1, 4, 1), dtype)
    k, v = np.array(row, dtype).reshape(1, 4, 1), np.arange(1, 5, dtype=dtype).reshape(1, 4, 1)
    got = nlattn.qna_vjp(q, k, v, dout, window=3, scale=1.0)
    exact = oracle.qna_vjp(*(x.astype(np.longdouble) for x in (q, k, v, dout)), window=3, scale=1.0)
    digits = -row[3] * np.finfo(dtype).eps  # an exponent's rounding
    for a, b in zip(got[1:3], exact[1:3], strict=True):
        assert b[0, 3, 0] > 0
        np.testing.assert_allclose(a[0, 3], b[0, 3].astype(float), rtol=digits)


@given(
    H=st.integers(1, 6),
    W=st.integers(1, 6),
    window=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    e=st.sampled_from([1, 2, 8, 17]),
    some=st.sampled_from(TABLES),
    seed=st.integers(0, 99),
)
def test_any_small_geometry(
    H: int, W: int, window: Any, stride: Any, padding: Any, e: int, some: str, seed: int
) -> None:
    padding = tuple(
        max(p, -(-(n - size) // 2)) for p, n, size in zip(padding, window, (H, W), strict=True)
    )
    rng = np.random.default_rng(seed)
    options = {"window": window, "stride": stride, "padding": padding}
    q, k, v = (rng.standard_normal(shape) for shape in ((2, 3), (H, W, 3), (H, W, e)))
    for name in ("bias", "gate"):
        if name in some:
            options[name] = rng.standard_normal((2, *window))
    want = oracle.qna(q, k, v, **options)
    dout = rng.standard_normal(want.shape)
    got = results(nlattn, [q, k, v, dout], options)
    for a, b in zip(got, [want, *oracle.qna_vjp(q, k, v, dout, **options)], strict=True):
        if b is not None:
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.jit
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("some", TABLES)
def test_many_threads_and_whole_tiles(
    some: str, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal(s).astype(dtype) for s in ((3, 8), (70, 90, 8), (70, 90, 24)))
    options: dict[str, Any] = {"window": 7, "stride": 2}
    for name in ("bias", "gate"):
        if name in some:
            options[name] = rng.standard_normal((3, 7, 7)).astype(dtype)
    arrays = [q, k, v, rng.standard_normal((35, 45, 24)).astype(dtype)]
    got = for_any_threads(lambda: results(nlattn, arrays, options))
    wide = [x.astype(np.float64) for x in arrays]
    for a, c in zip(got, results(oracle, wide, widened(options, float)), strict=True):
        if c is not None:
            atol = 100 * np.finfo(dtype).eps * abs(c).max()
            np.testing.assert_allclose(a, c, rtol=0, atol=atol)


def test_invariants() -> None:
    rng = np.random.default_rng(0)
    arrays, options = case(rng, OPTIONS[0], "bias gate", np.float64)
    q, k, v, _ = arrays
    bias, gate = options["bias"], options["gate"]
    ones = np.ones_like(v)
    np.testing.assert_allclose(nlattn.qna(q, k, ones, window=3, bias=bias), 2, rtol=1e-14)
    whole = nlattn.qna(q, k, v, window=3, bias=bias, gate=gate)
    single = [
        nlattn.qna(q[:, [i]], k, v, window=3, bias=bias[[i]], gate=gate[:, [i]]) for i in range(2)
    ]
    np.testing.assert_allclose(sum(single), whole, atol=1e-13)
    moved = nlattn.qna(q, k, v, window=3, bias=bias + np.array([[[7]], [[-3]]]), gate=gate)
    np.testing.assert_allclose(moved, whole, atol=1e-13)
    sampled = nlattn.qna(q, k, v, window=3, bias=bias, gate=gate, stride=2)
    np.testing.assert_allclose(sampled, whole[:, ::2, ::2], atol=1e-14)
    turned = nlattn.qna(
        q,
        k.swapaxes(0, 1),
        v.swapaxes(1, 2),
        window=3,
        bias=bias.swapaxes(1, 2),
        gate=gate.swapaxes(-1, -2),
    )
    np.testing.assert_allclose(turned.swapaxes(1, 2), whole, atol=1e-13)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("some", TABLES)
@pytest.mark.parametrize("query", [None, 1])
def test_the_map_is_the_operator(options: Any, some: str, query: int | None) -> None:
    arrays, given = case(np.random.default_rng(0), options, some, np.float64)
    q, k, v = arrays[0][0], arrays[1], arrays[2][0]
    if "gate" in given:
        given["gate"] = given["gate"][0] if given["gate"].ndim == 4 else given["gate"]
    A = nlattn.qna_map(q, k, query=query, **given)
    if query is not None:
        q = q[[query]]
        given.update({name: given[name][[query]] for name in ("bias", "gate") if name in given})
    out, lse = oracle.qna(q, k, v, return_lse=True, **given)
    np.testing.assert_allclose(A @ v.reshape(30, 3), out.reshape(-1, 3), atol=1e-13)
    assert A.normalised == (query is not None and "gate" not in given)
    assert (A.query_grid, A.key_grid) == (out.shape[:2], (5, 6))
    if query is None:
        with pytest.raises(AttributeError, match="is a sum of 2 queries, expected one; "):
            _ = A.lse
        with pytest.raises(ValueError, match="is a sum of 2 queries, expected one; "):
            A.scores(0)
    else:
        np.testing.assert_allclose(A.lse, lse.ravel(), atol=1e-13)
        with np.errstate(over="ignore"):
            total = np.exp(A.scores(np.arange(A.shape[0]))).sum(1)
        np.testing.assert_allclose(total, np.exp(lse).ravel(), atol=1e-12)


def test_the_map_counts_its_work() -> None:
    x = np.ones((5, 6, 3))
    work = nlattn.qna_map(x[0, :2], x, window=3).work
    pairs = (5 * 3 - 2) * (6 * 3 - 2)
    assert work[:3] == (60, 2 * 30 * 3 + 2 * pairs, 8 * (90 + 2 * (30 + 60) + 2 * pairs))
    outside = nlattn.qna_map(x[0, :1], x, window=1, padding=2)
    assert outside.work.multiply_adds == 30 * 3 + 30
    assert np.isneginf(outside.lse[0])


def test_a_damaged_map_is_refused() -> None:
    x = np.ones((5, 6, 3))
    A = nlattn.qna_map(x[0, :2], x, window=3)
    for name, value in (
        ("geometry", np.zeros(10, np.int64)),
        ("geometry", np.array([5, 6, 4, 6, 3, 3, 1, 1, 1, 1])),
        ("bias", np.zeros((2, 9), np.float32)),
        ("q", np.zeros((2, 4))),
    ):
        with pytest.raises(ValueError, match=r"fit|geometry|expected"):
            type(A).from_state({**A.state(), name: value})


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"window": 0}, ValueError, "qna: window=0, expected at least 1"),
    ({"window": 2.5}, TypeError, "qna: window=2.5 is no integer"),
    ({"window": (3, 3, 3)}, ValueError, "qna: window=(3, 3, 3) has not two entries, expected an"),
    ({"window": 3, "stride": 0}, ValueError, "qna: stride=0, expected at least 1"),
    ({"window": 3, "stride": (1, 0)}, ValueError, "qna: stride[1]=0, expected at least 1"),
    ({"window": 3, "padding": -1}, ValueError, "qna: padding=-1, expected at least 0"),
    (
        {"window": 7, "padding": 0},
        ValueError,
        "qna: window is (7, 7), expected at most (4, 5), the image with its padding; "
        "padding=None centres any window",
    ),
    (
        {"window": 3, "bias": np.ones((2, 3, 5))},
        ValueError,
        "qna: bias has shape (2, 3, 5), expected (..., t, 3, 3) from window",
    ),
    (
        {"window": 3, "gate": np.ones((2, 9))},
        ValueError,
        "qna: gate has shape (2, 9), expected (t, kh, kw) or with leading axes",
    ),
    (
        {"window": 3, "gate": np.ones((3, 3, 3))},
        ValueError,
        "qna: gate has shape (3, 3, 3), expected (t, kh, kw) with t=2 from q",
    ),
    ({"window": 3, "scale": np.inf}, ValueError, "qna: scale=inf is not finite"),
]


@pytest.mark.parametrize(("options", "error", "text"), REFUSED, ids=lambda x: str(x)[:30])
def test_bad_options_are_refused_in_words(options: Any, error: Any, text: str) -> None:
    q, k = np.ones((2, 3)), np.ones((4, 5, 3))
    with pytest.raises(error, match="^" + re.escape(text)):
        nlattn.qna(q, k, k, **options)


def test_more_is_refused_in_words() -> None:
    q, k = np.ones((2, 3)), np.ones((4, 5, 3))
    with pytest.raises(ValueError, match=r"qna: q has shape \(0, 3\), expected at least one query"):
        nlattn.qna(q[:0], k, k, window=3)
    with pytest.raises(ValueError, match=r"qna_vjp: dout has shape \(4, 5, 3\), expected \(..., 2"):
        nlattn.qna_vjp(q, k, k, k, window=3, stride=2)
    with pytest.raises(ValueError, match=r"qna_map: q has leading axes \(1,\), expected one"):
        nlattn.qna_map(q[None], k, window=3)
    with pytest.raises(ValueError, match="qna_map: query=2, expected at most 1"):
        nlattn.qna_map(q, k, window=3, query=2)


def test_values_that_are_not_finite_reach_only_their_windows() -> None:
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((2, 3)), *rng.standard_normal((2, 6, 6, 3))
    want = nlattn.qna(q, k, v, window=3)
    k[0, 0] = np.nan
    out = nlattn.qna(q, k, v, window=3, nonfinite="propagate")
    reached = np.zeros((6, 6), bool)
    reached[:2, :2] = True
    np.testing.assert_array_equal(np.isnan(out).all(-1), reached)
    np.testing.assert_allclose(out[~reached], want[~reached], atol=1e-14)
