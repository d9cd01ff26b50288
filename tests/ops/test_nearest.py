"""Nearest keys: the lists of an exhaustive search, bit by bit, whatever keys and queries are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nlattn
from nlattn import nearest_keys, patchmatch
from nlattn.engines import nearest as engine
from nlattn.oracle import nearest as oracle

KINDS = (
    "normal",
    "clusters",
    "one point",
    "copies",
    "integers",
    "far",
    "tiny",
    "huge",
    "disguised",
    "collinear",
    "one far",
    "rounding",
)
"""Kinds of keys and queries that are hard in different ways."""


def keys_of(kind: str, n: int, m: int, d: int, rng: np.random.Generator) -> tuple[Any, Any]:
    q, k = rng.standard_normal((n, d)), rng.standard_normal((m, d))
    if kind == "clusters":
        centres = 10 * rng.standard_normal((4, d))
        q, k = (x * 0.01 + centres[rng.integers(0, 4, len(x))] for x in (q, k))
    elif kind == "one point":
        k[:] = k[:1]
    elif kind == "copies":
        k = k[rng.integers(0, max(m // 8, 1), m)]
        q[: n // 2] = k[rng.integers(0, m, n // 2)]
    elif kind == "integers":
        q, k = rng.integers(-2, 3, (n, d)), rng.integers(-2, 3, (m, d))
    elif kind == "far":
        q = q * 10.0 ** rng.integers(-30, 31, (n, 1))
        q[::5] = 0
    elif kind == "tiny":
        q, k = q * 1e-38, k * 10.0 ** rng.integers(-40, -20, (m, 1))
    elif kind == "huge":
        q, k = q * 1e20, k * 10.0 ** rng.integers(0, 30, (m, 1))
    elif kind == "collinear":
        q, k = (x[:, :1] * np.linspace(1, 2, d) for x in (q, k))
    elif kind == "one far":
        k[rng.integers(0, m)] *= 1e6
    elif kind == "rounding":  # clusters of keys that differ in their last bits, or not at all
        k = k[rng.integers(0, max(m // 16, 1), m)]
        k *= 1 + 2.0**-23 * rng.integers(0, 3, k.shape)
        q[: n // 2] = k[rng.integers(0, m, n // 2)]
    elif kind == "disguised":
        f = rng.standard_normal((max(m, n), d))
        q = np.concatenate([f, np.ones((len(f), 1))], 1)[:n]
        k = np.concatenate([f, -(f**2).sum(1, keepdims=True) / 3], 1)[:m]
    return q, k


def exhaustive(q: Any, k: Any, **options: Any) -> nlattn.Field:
    """All keys of every query, by the kernel that tries them one by one."""
    mask = options.pop("mask", None)
    if mask is not None:
        mask = np.broadcast_to(mask, (len(q), len(k)))[None, :, None]
    return patchmatch(q[None], k[None], method="exact", mask=mask, nonfinite="propagate", **options)


@given(
    kind=st.sampled_from(KINDS),
    score=st.sampled_from(["dot", "cosine", "neg_l2"]),
    n=st.integers(1, 80),
    m=st.integers(1, 300),
    d=st.integers(1, 20),
    topk=st.integers(1, 5),
    single=st.booleans(),
    masked=st.sampled_from(["", "keys", "pairs", "causal"]),
    seed=st.integers(0, 2**32),
)
def test_lists_are_those_of_an_exhaustive_search(
    kind: str, score: str, n: int, m: int, d: int, topk: int, single: bool, masked: str, seed: int
) -> None:
    if score == "cosine" and kind in ("far", "tiny", "huge"):
        kind = "normal"  # lengths of float32 vectors overflow
    rng = np.random.default_rng(seed)
    dtype = np.float32 if single else np.float64
    with np.errstate(over="ignore", under="ignore"):
        q, k = (x.astype(dtype) for x in keys_of(kind, n, m, d, rng))
    options: dict[str, Any] = {"topk": topk, "score": score}
    if masked == "causal":
        options["causal"] = True
    elif masked:
        options["mask"] = rng.random((n if masked == "pairs" else 1, m)) < 0.7
    want = exhaustive(q, k, **options)
    got = nearest_keys(q, k, nonfinite="propagate", **options)
    np.testing.assert_array_equal(got.index, want.index[0])
    np.testing.assert_array_equal(got.score, want.score[0])


def test_it_agrees_with_the_oracle() -> None:
    q, k = np.random.default_rng(1).integers(-3, 4, (2, 3, 40, 4)).astype(float)
    for score in ("dot", "cosine", "neg_l2"):
        got = nearest_keys(q, k[0], topk=4, score=score, causal=True)
        want = oracle.nearest_keys(q, k[0], topk=4, score=score, causal=True)
        np.testing.assert_array_equal(got.index, want.index)
        np.testing.assert_array_equal(got.score, want.score)


@pytest.mark.jit
def test_patches_on_grids_too() -> None:
    rng = np.random.default_rng(2)
    q, k = rng.standard_normal((2, 2, 12, 9, 3)).astype(np.float32)
    mask = rng.random((2, 12, 9)) < 0.8
    for score in ("dot", "cosine", "neg_l2"):
        options = {"patch": 3, "topk": 3, "score": score, "key_mask": mask}
        want = patchmatch(q, k, method="exact", **options)
        got = patchmatch(q, k, method="certified", **options)
        np.testing.assert_array_equal(got.index, want.index)
        np.testing.assert_array_equal(got.score, want.score)
    with pytest.raises(ValueError, match="'certified' has no bounds of 'absdot'; use 'exact'"):
        patchmatch(q, k, method="certified", score="absdot")


def test_a_field_to_begin_with_is_judged_and_bettered() -> None:
    rng = np.random.default_rng(3)
    k = rng.standard_normal((16, 16, 4)).cumsum(0).cumsum(1)
    q = k + 0.01 * rng.standard_normal(k.shape)
    flat_q, flat_k = q.reshape(-1, 4), k.reshape(-1, 4)
    field = patchmatch(q, k, score="neg_l2", iterations=0, identity=False)
    plain = nearest_keys(flat_q, flat_k, score="neg_l2")
    got = nearest_keys(flat_q, flat_k, score="neg_l2", start=field)
    np.testing.assert_array_equal(got.index, plain.index)
    best = field.score.reshape(-1) == plain.score[:, 0]
    np.testing.assert_array_equal(got.right, best)
    proved = nearest_keys(
        flat_q, flat_k, score="neg_l2", start=field._replace(index=plain.index.reshape(16, 16, 1))
    )
    assert proved.right.all()
    assert plain.right is None
    assert proved.work.scores <= plain.work.scores


@pytest.mark.jit
def test_clustered_keys_are_mostly_left_out() -> None:
    rng = np.random.default_rng(4)
    k = rng.standard_normal((64, 64, 6)).cumsum(0).cumsum(1).reshape(-1, 6).astype(np.float32)
    work = nearest_keys(k, k, score="neg_l2").work
    assert work.scores < 0.1 * len(k) ** 2
    assert work.per_query.sum() == work.scores
    line = np.arange(1024.0)[:, None] * np.ones(3)  # the few keys nearest to each query are scored
    work = nearest_keys(line, line, score="neg_l2").work
    assert 1 <= (work.multiply_adds / 3 - work.scores) / len(line) < 4


@pytest.mark.jit
def test_bounds_must_be_widened_by_their_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two keys whose order only exact arithmetic knows, one of them in a box judged too far."""
    rng = np.random.default_rng(6)
    k = (1 + 1e-7 * rng.standard_normal((600, 3))).astype(np.float32)
    q = (1 + 1e-7 * rng.standard_normal((200, 3))).astype(np.float32)
    want = exhaustive(q, k, scale=1.0).index[0]
    np.testing.assert_array_equal(nearest_keys(q, k, scale=1.0).index, want)
    whole = engine.geometry

    def narrow(*arguments: Any, **options: Any) -> Any:
        shape = whole(*arguments, **options)
        numbers = shape.numbers.copy()
        numbers[:, 2:] = 0
        numbers.flags.writeable = False
        return shape._replace(numbers=numbers, rounding=0.0)

    monkeypatch.setattr(engine, "geometry", narrow)
    assert (nearest_keys(q, k, scale=1.0).index != want).any()


def test_bad_arguments_are_named() -> None:
    q, k = np.zeros((6, 2)), np.zeros((5, 2))
    field = patchmatch(np.zeros((2, 3, 2)), np.zeros((1, 5, 2)))
    with pytest.raises(ValueError, match="nearest_keys: score='absdot', expected 'dot', 'cosine'"):
        nearest_keys(q, k, score="absdot")
    with pytest.raises(ValueError, match="nearest_keys: topk=65, expected at most 64"):
        nearest_keys(q, k, topk=65)
    with pytest.raises(ValueError, match="nearest_keys: start has 2 x 3 queries, expected the 5"):
        nearest_keys(q[:5], k, start=field)
    with pytest.raises(
        ValueError, match=r"start.key_grid is \(1, 5\), expected a product of the 4"
    ):
        nearest_keys(q, k[:4], start=field)
    with pytest.raises(TypeError, match="nearest_keys: field is a tuple, expected a Field"):
        nearest_keys(q, k, start=(1, 2))
    with pytest.raises(MemoryError, match=r"nearest_keys: needs .* split q"):
        nearest_keys(q, k, max_bytes=10)
    assert nearest_keys(q[:0], k).index.shape == (0, 1)
    assert nearest_keys(q, k[:0]).index.tolist() == [[-1]] * 6


def test_keys_that_are_nothing_beside_queries_are_told_apart() -> None:
    q = np.array([[2e76, 9e77, 5e77]])
    k = np.array([[8e-92, -2e-91, -1e-91], [6e-91, -4e-91, 1e-91], [-1e-91, -4e-91, -7e-91]])
    assert nlattn.nearest_keys(q, k).index.tolist() == [[0]]
    assert nlattn.nearest_keys(-q, k).index.tolist() == [[2]]
