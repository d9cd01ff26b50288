"""Intervals of ``A.T @ g``: the truth lies within them, key by key, and they are narrow."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlattn import certified_attention_map
from nlattn.engines import certified as engine
from nlattn.oracle import certified as oracle
from tests.helpers import for_any_threads
from tests.ops.test_certified import always_down_the_tree, smooth
from tests.ops.test_nearest import KINDS, keys_of

MANY = int(os.environ.get("NLATTN_CERTIFIED_ROWS", "0"))


@pytest.fixture(autouse=True)
def _trees(monkeypatch: pytest.MonkeyPatch) -> None:
    always_down_the_tree(monkeypatch)
    monkeypatch.setattr(engine, "_FEW", 0)
    monkeypatch.setattr(engine, "_MANY", 0)


def assert_within(q: Any, k: Any, g: Any, tolerance: float, **options: Any) -> Any:
    A = certified_attention_map(q, k, tolerance=tolerance, **options)
    low, high = A.adjoint_bounds(g)
    wide = [np.asarray(x, np.longdouble) for x in (q, k, np.eye(len(k)))]
    truth = oracle.certified_attention(*wide, **options).T @ np.asarray(g, np.longdouble)
    assert (low <= truth).all()
    assert (truth <= high).all()
    np.testing.assert_array_less(low - 1e-6 * np.abs(g).sum(0), A.T @ g)
    return high - low


@given(
    kind=st.sampled_from([kind for kind in KINDS if kind not in ("far", "huge")]),
    weight=st.sampled_from(["softmax", "gaussian"]),
    n=st.integers(1, 70),
    m=st.integers(1, 200),
    d=st.integers(1, 6),
    sharp=st.sampled_from([0.01, 1.0, 10.0, 1000.0]),
    tolerance=st.sampled_from([0.3, 1e-2, 1e-3, 1e-6]),
    single=st.booleans(),
    masked=st.sampled_from(["", "keys", "pairs", "causal"]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=MANY // 35 if MANY else 25)
def test_the_truth_lies_between_the_ends(
    kind: str,
    weight: str,
    n: int,
    m: int,
    d: int,
    sharp: float,
    tolerance: float,
    single: bool,
    masked: str,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    dtype = np.float32 if single else np.float64
    with np.errstate(under="ignore"):
        q, k = (x.astype(dtype) for x in keys_of(kind, n, m, d, rng))
    options: dict[str, Any] = {"weight": weight, "scale": sharp, "bandwidth": sharp**-0.5}
    if masked == "causal":
        options["causal"] = True
    elif masked:
        options["mask"] = rng.random((n if masked == "pairs" else 1, m)) < 0.7
    assert_within(q, k, rng.standard_normal((n, 2)).astype(dtype), tolerance, **options)


@pytest.mark.jit
@pytest.mark.parametrize("causal", [False, True])
def test_keys_that_are_not_needed_are_told_apart(causal: bool) -> None:
    f, tolerance = smooth(24, 3, np.float64), 1e-2
    g = np.random.default_rng(0).standard_normal((len(f), 2))
    options = {"weight": "gaussian", "bandwidth": 0.03, "causal": causal}
    width = assert_within(f, f, g, tolerance, **options)
    whole = 4 * tolerance * np.abs(g).sum(0)  # were all that may be missed one key's
    assert (np.median(width, axis=0) < 0.05 * whole).all()
    assert (width.sum(0) < 3 * whole).all()
    for_any_threads(lambda: certified_attention_map(f, f, **options).adjoint_bounds(g))


def test_bounds_of_nothing_and_of_other_queries() -> None:
    A = certified_attention_map(np.ones((3, 2)), np.ones((4, 2)))
    assert A.adjoint_bounds(np.ones((3, 0)))[0].shape == (4, 0)
    with pytest.raises(ValueError, match=r"adjoint_bounds: g has shape \(4, 1\), expected \(3, e"):
        A.adjoint_bounds(np.ones((4, 1)))
