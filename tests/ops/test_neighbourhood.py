"""Neighbourhood attention against its oracle: grids, windows, strides, dilations, causal axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nlattn
from nlattn.oracle import neighbourhood as oracle
from tests.helpers import assert_as_exact_as_numpy

CASES: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((9,), {"window": 4}),
    ((1,), {"window": 1}),
    ((11,), {"window": (3,), "stride": 2, "dilation": 3}),
    ((6, 5), {"window": (3, 3)}),
    ((7, 6), {"window": (2, 3), "dilation": (3, 2)}),
    ((5, 8), {"window": [5, 4], "stride": [2, 4], "scale": 0.3}),
    ((6, 7), {"window": (3, 3), "causal": True}),
    ((7, 9), {"window": (3, 4), "stride": (3, 2), "dilation": (2, 2), "causal": (False, True)}),
    ((3, 4, 5), {"window": (2, 3, 3)}),
    ((4, 5, 4), {"window": (2, 2, 3), "stride": (1, 2, 3), "causal": (True, False, False)}),
]
NAMED = pytest.mark.parametrize(("grid", "options"), CASES, ids=str)


def arrays(grid: tuple[int, ...], lead: tuple[int, ...] = (), seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    d, e = 5, 3
    return [rng.standard_normal((*lead, *grid, size)) for size in (d, d, e, e)]


@NAMED
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_is_as_exact_as_plain_numpy(grid: Any, options: Any, dtype: Any) -> None:
    q, k, v, dout = (x.astype(dtype) for x in arrays(grid, (2,)))
    dlse = np.random.default_rng(1).standard_normal((2, *grid)).astype(dtype)
    got = nlattn.neighbourhood_attention(q, k, v, return_lse=True, **options)
    gradients = nlattn.neighbourhood_attention_vjp(q, k, v, dout, dlse=dlse, **options)
    wide = [x.astype(np.longdouble) for x in (q, k, v, dout)]

    def by_oracle(a: Any, b: Any, c: Any, g: Any) -> list[Any]:
        how = {**options, "dlse": dlse.astype(a.dtype)}
        out = oracle.neighbourhood_attention(a, b, c, **options)
        return [out, *oracle.neighbourhood_attention_vjp(a, b, c, g, **how)]

    plain, exact = by_oracle(q, k, v, dout), by_oracle(*wide)
    assert_as_exact_as_numpy([got[0], *gradients], plain, exact)
    lse = oracle.neighbourhood_attention(*wide[:3], return_lse=True, **options)[1]
    np.testing.assert_allclose(got[1], lse.astype(float), rtol=50 * np.finfo(dtype).eps)


@NAMED
def test_the_support_is_the_neighbourhood(grid: Any, options: Any) -> None:
    options = {n: x for n, x in options.items() if n != "scale"}
    support = nlattn.neighbourhood_support(grid, **options)
    seen = np.zeros(support.shape, bool)
    rows = np.repeat(np.arange(support.shape[0]), np.diff(support.indptr))
    seen[rows, support.indices] = True
    np.testing.assert_array_equal(seen, oracle.neighbourhood(grid, **options))
    nlattn.support(*support)  # ascending, unique


@NAMED
def test_its_map_and_sparse_attention_agree(grid: Any, options: Any) -> None:
    q, k, v, _ = arrays(grid)
    out = nlattn.neighbourhood_attention(q, k, v, **options)
    A = nlattn.neighbourhood_attention_map(q, k, **options)
    assert A.query_grid == A.key_grid == grid
    np.testing.assert_allclose(A @ v.reshape(-1, 3), out.reshape(-1, 3), rtol=1e-12, atol=1e-14)


def test_shared_keys_are_not_copied_and_their_gradients_are_summed() -> None:
    q, k, v, dout = arrays((5, 4), (3,))
    options = {"window": (3, 2)}
    out = nlattn.neighbourhood_attention(q, k[0], v[0], **options)
    _, dk, dv = nlattn.neighbourhood_attention_vjp(q, k[0], v[0], dout, **options)
    each = [
        nlattn.neighbourhood_attention_vjp(q[b], k[0], v[0], dout[b], **options) for b in range(3)
    ]
    for b in range(3):
        alone = nlattn.neighbourhood_attention(q[b], k[0], v[0], **options)
        np.testing.assert_array_equal(out[b], alone)
    np.testing.assert_allclose(dk, sum(x[1] for x in each), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(dv, sum(x[2] for x in each), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"window": (3, 3, 3, 3)}, "window has 4 entries, expected one, two or three axes"),
        (
            {"window": (7, 3)},
            "window is 7 on axis 0, expected at most 6: "
            "an axis of 6 with dilation 1 holds no more keys of one remainder",
        ),
        (
            {"window": (3, 3), "dilation": (1, 2)},
            "window is 3 on axis 1, expected at most 2: "
            "an axis of 5 with dilation 2 holds no more keys of one remainder",
        ),
        (
            {"window": (3, 3), "stride": (1, 4)},
            "stride is 4 on axis 1, expected at most the window of 3",
        ),
        (
            {"window": (3, 3), "dilation": (1, 2, 1)},
            "dilation has 3 entries, expected one for each of 2 axes",
        ),
        ({"window": (3, 0)}, r"window\[1\]=0, expected at least 1"),
    ],
)
def test_what_is_refused(options: dict[str, Any], text: str) -> None:
    q, k, v, _ = arrays((6, 5))
    with pytest.raises(ValueError, match=f"^neighbourhood_attention: {text}$"):
        nlattn.neighbourhood_attention(q, k, v, **options)


def test_a_grid_with_other_axes_is_refused() -> None:
    text = "^neighbourhood_support: window has 1 entries, expected one for each of 2 axes$"
    with pytest.raises(ValueError, match=text):
        nlattn.neighbourhood_support((4, 4), window=3)
