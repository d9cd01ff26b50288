"""Rows of certified attention that went down the tree, and its change: within their bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nlattn
from nlattn import certified_attention_map
from nlattn.engines import certified as engine
from nlattn.oracle import certified as oracle
from tests.ops.test_certified import always_down_the_tree
from tests.ops.test_certified_vjp import FACTOR, arrays
from tests.tiled.test_certified import fewer

pytestmark = pytest.mark.jit


@pytest.fixture(autouse=True)
def _trees(monkeypatch: pytest.MonkeyPatch) -> None:
    always_down_the_tree(monkeypatch)
    monkeypatch.setattr(engine, "_FEW", 0)
    monkeypatch.setattr(engine, "_MANY", 0)


def dense(q: Any, k: Any, options: dict[str, Any]) -> np.ndarray:
    """All weights: outputs for values that are a key's own."""
    return oracle.certified_attention(q, k, np.eye(len(k)), **options)


@pytest.mark.parametrize("weight", ["softmax", "gaussian"])
@pytest.mark.parametrize("masked", ["", "keys", "pairs", "causal"])
def test_rows_hold_what_could_not_be_left_out(weight: str, masked: str) -> None:
    (q, k, *_), options = arrays(weight, masked)
    A, want = certified_attention_map(q, k, tolerance=1e-2, **options), dense(q, k, options)
    index = np.array([[5, 0], [200, 5]])
    rows = A.rows(index)
    assert rows.shape == (2, 2, len(k))
    error = np.abs(rows - want[index]).sum(-1)
    assert (error <= 2e-2).all()
    whole = A.to_dense()
    np.testing.assert_allclose(whole.sum(1), want.sum(1), rtol=0, atol=1e-12)
    np.testing.assert_allclose(rows, whole[index], rtol=0, atol=2e-2)  # of other panels
    error = np.abs(whole - want).sum(1)
    assert (error <= 2e-2).all()
    assert error.max() > 1e-9  # something is left out
    table = A.to_csr()
    np.testing.assert_allclose(table.toarray(), whole, rtol=1e-12)
    assert table.nnz < 0.8 * (want > 0).sum()


def test_rows_left_to_dense_attention_are_of_all_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    (q, k, v, _), options = arrays("softmax", "causal")
    monkeypatch.setattr(engine, "_sound", fewer(engine._sound))
    A, want = certified_attention_map(q, k, tolerance=1e-9, **options), dense(q, k, options)
    left = A._ground.dense
    assert len(left) > 50
    np.testing.assert_allclose(A.rows(left), want[left], rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(A.to_csr() @ v, want @ v, rtol=0, atol=1e-7)
    with pytest.raises(MemoryError, match=r"attention_map.to_csr: needs .* use rows"):
        A.to_csr(max_bytes=100)


@pytest.mark.parametrize("weight", ["softmax", "gaussian"])
@pytest.mark.parametrize("masked", ["", "causal"])
def test_changes_are_within_their_bounds(weight: str, masked: str) -> None:
    (q, k, v, _), options = arrays(weight, masked)
    rng, tolerance = np.random.default_rng(1), 1e-2
    dq, dk, dv = (1e-3 * rng.standard_normal(x.shape) for x in (q, k, v))
    given = q, k, v, dq, dk, dv
    got, lse = nlattn.certified_attention_jvp(
        *given, tolerance=tolerance, return_lse=True, **options
    )
    want, want_lse = oracle.certified_attention_jvp(*given, return_lse=True, **options)
    if weight == "softmax":
        changes = 2 * FACTOR * (q @ dk.T + dq @ k.T)
    else:
        apart = q[:, None] - k
        changes = -2 * FACTOR * (apart * (dq[:, None] - dk)).sum(-1)
    reach = np.ptp(changes, axis=1)
    room = tolerance * (1.5 * reach[:, None] * np.ptp(v, axis=0) + np.ptp(dv, axis=0))
    error = np.abs(got - want)
    assert (error <= room + 1e-12).all()
    assert error.max() > 1e-9
    assert (np.abs(lse - want_lse) <= tolerance * reach + 1e-12).all()
