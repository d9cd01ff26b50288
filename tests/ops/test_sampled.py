"""Sampled rows and columns against the oracle, and at sizes past 2**31 elements."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nlattn
from nlattn.engines import sampled as engine
from nlattn.oracle import dense, sparse

RNG = np.random.default_rng(18)
N, M, D, E = 23, 31, 5, 3
OPTIONS: list[dict[str, Any]] = [
    {},
    {"scale": 0.3, "softcap": 1.5},
    {"causal": True, "causal_offset": -4},
    {"window": (3, 2)},
    {"window": (None, 1), "causal": True},
]


def arrays() -> tuple[Any, ...]:
    shapes = (N, D), (M, D), (M, E), (N, E), (N,)
    return tuple(RNG.standard_normal(shape) for shape in shapes)


class Blocks:
    """Gives rows when it is asked for them, and remembers how many at most."""

    def __init__(self, x: Any):
        self.x, self.shape, self.most = x, x.shape, 0

    def __getitem__(self, rows: slice) -> Any:
        assert type(rows) is slice
        self.most = max(self.most, rows.stop - rows.start)
        return self.x[rows]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", [4, 4096])
def test_it_is_the_oracle_at_the_sampled_places(
    options: dict[str, Any], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "QUERIES", size)
    monkeypatch.setattr(engine, "KEYS", size)
    q, k, v, dout, dlse = arrays()
    queries, keys = [22, 0, 7, 7, 13], [30, 0, 5]
    got = nlattn.sampled_truth(
        *map(Blocks, (q, k, v)), queries=queries, keys=keys, dout=dout, dlse=dlse, **options
    )
    out, lse = dense.attention(q, k, v, return_lse=True, **options)
    dlse = np.where(np.isinf(lse), 0, dlse)
    dq, dk, dv = dense.attention_vjp(q, k, v, dout, dlse=dlse, **options)
    wanted = out[queries], lse[queries], dq[queries], dk[keys], dv[keys]
    for mine, want in zip(got, wanted, strict=True):
        np.testing.assert_allclose(mine, want, rtol=2e-14, atol=2e-14)


def test_of_a_support() -> None:
    q, k, v, dout, _ = arrays()
    index = RNG.integers(-1, M, (N, 6))
    index[3] = -1
    support = nlattn.support_from_index(index, M)
    got = nlattn.sampled_truth(
        q, k, v, queries=[3, 0, 22], keys=[int(support.indices[0]), 1, 30], dout=dout,
        support=support,
    )  # fmt: skip
    out, lse = sparse.sparse_attention(q, k, v, support, return_lse=True)
    dq, dk, dv = sparse.sparse_attention_vjp(q, k, v, support, dout)
    keys = [int(support.indices[0]), 1, 30]
    wanted = out[[3, 0, 22]], lse[[3, 0, 22]], dq[[3, 0, 22]], dk[keys], dv[keys]
    for mine, want in zip(got, wanted, strict=True):
        np.testing.assert_allclose(mine, want, rtol=2e-14, atol=2e-14)


def test_arrays_of_more_than_two_to_the_31_elements() -> None:
    """Row i holds i: which rows were read shows in the numbers. Nothing as large is ever made."""
    n, d = (1 << 22) + 3, 1 << 10

    class Numbered:
        shape = (n, d)

        def __getitem__(self, rows: slice) -> Any:
            index = np.arange(rows.start, rows.stop, dtype=np.float64)
            return np.broadcast_to(index[:, None] / n, (len(index), d))

    k = np.zeros((2, d))
    k[1] = 1.0
    dout = np.zeros((n, 1))
    dout[-2] = 1.0
    v = np.array([[0.0], [1.0]])
    got = nlattn.sampled_truth(
        Numbered(), k, v, queries=[1 << 21, n - 2], keys=[0, 1], dout=dout, scale=1 / d
    )
    x = np.array([1 << 21, n - 2]) / n
    weight = 1 / (1 + np.exp(-x))
    np.testing.assert_allclose(got.out[:, 0], weight, rtol=1e-14)
    np.testing.assert_allclose(got.lse, np.log1p(np.exp(x)), rtol=1e-14)
    assert got.dq is not None
    assert got.dk is not None
    assert got.dv is not None
    slope = weight[1] * (1 - weight[1])
    np.testing.assert_allclose(got.dq, [np.zeros(d), np.full(d, slope / d)], rtol=1e-13)
    np.testing.assert_allclose(got.dk[1], np.full(d, slope * x[1] / d), rtol=1e-13)
    np.testing.assert_allclose(got.dv[:, 0], [1 - weight[1], weight[1]], rtol=1e-14)


def test_blocks_are_small() -> None:
    k = Blocks(RNG.standard_normal((20_000, 2)))
    nlattn.sampled_truth(k, k, k, queries=[19_999, 0], window=(3, 3))
    assert k.most <= engine.KEYS


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"queries": [23]}, r"queries\[0\] is 23, expected 0 to 22"),
        ({"queries": [[1]]}, r"queries has shape \(1, 1\), expected a sequence of numbers"),
        ({"keys": [1]}, r"dout is None, expected an \(n, e\) cotangent, which gradients are of"),
        ({"k": np.ones((4, 2))}, r"k has shape \(4, 2\), expected \(m, d\) with d=5 from q"),
        ({"q": np.ones((2, 4, 5))}, r"q has shape \(2, 4, 5\), expected \(n, d\), one head"),
        (
            {"keys": [1], "dout": np.ones((N, E)), "max_work": 10},
            r"keys need .* multiply-adds, above max_work=10; let dout be 0 at most queries",
        ),
        (
            {"support": nlattn.support_from_index([[0]], 2)},
            rf"support has shape \(1, 2\), expected \({N}, {M}\)",
        ),
    ],
)
def test_what_is_refused(given: dict[str, Any], text: str) -> None:
    q, k, v, *_ = arrays()
    call: dict[str, Any] = {"q": q, "k": k, "v": v, "queries": [0]} | given
    with pytest.raises(ValueError, match=f"^sampled_truth: {text}"):
        nlattn.sampled_truth(**call)
