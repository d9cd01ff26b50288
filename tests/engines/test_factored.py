"""Passes of linear attention where blocks, chunks and panels meet, on sizes that fill none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nlattn.engines import factored
from nlattn.engines.features import ColumnExp, Identity, JointExp, Random, Relu, RowSoftmax
from nlattn.kernels.factored_rows import BLOCK
from tests.helpers import for_any_threads

SIZES = [(1, 1, 1), (BLOCK + 1, 17, 33), (2 * BLOCK + 3, 16, 5)]
EXPONENT = 100
"""Exponents here are of up to this size, which their rounding is multiplied by."""
NONE = np.zeros((1, 3), np.int64)


def rows(n: int, d: int, dtype: Any, seed: int) -> Any:
    """Rows that grow, so that maxima are raised in every block."""
    x = np.random.default_rng(seed).standard_normal((1, n, d))
    return (x * (1 + np.arange(n)[:, None] / n)).astype(dtype)


def maps(d: int, r: int, dtype: Any) -> list[tuple[Identity, Any]]:
    """Maps of keys beside their formulas in float64."""
    p = np.random.default_rng(9).standard_normal((r, d)).astype(dtype) / 4

    def exponents(x: Any) -> Any:
        return x @ p.T.astype(float) - (x * x).sum(-1, keepdims=True) / 8

    def amplified(x: Any) -> Any:
        return exponents(2 * x / np.maximum(np.sqrt((x * x).sum(-1, keepdims=True)), 0.5))

    return [
        (Identity(), lambda x: x),
        (ColumnExp(), np.exp),
        (JointExp(), np.exp),
        (Relu(p, 1e-3), lambda x: np.maximum(x @ p.T.astype(float), 0)),
        (Random(p, 0.5, 1e-4, "none", True), lambda x: np.exp(exponents(x))),
        (Random(p, 0.5, 1e-4, "neutral", True), lambda x: np.exp(exponents(x))),
        (Random(p, 0.5, 1e-4, "max", True, True), lambda x: np.exp(exponents(x))),
        (Random(p, 0.5, 1e-4, "max", True, False, 2.0, 0.5), lambda x: np.exp(amplified(x))),
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d", "e"), SIZES)
def test_keys_are_summed_by_blocks(
    n: int, d: int, e: int, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factored, "CHUNK", BLOCK + 7)
    x, y = rows(n, d, dtype, 0), rows(n, e, dtype, 1)
    for kept in (None, np.arange(n)[None] % 3 > 0):
        for f, formula in maps(d, 19, dtype):
            if kept is not None and isinstance(f, (Random, Relu)):
                continue  # they are not masked
            got = factored.key_sums(f, x, y, NONE, kept)
            some = slice(None) if kept is None else kept[0]
            phi = formula(x[0, some].astype(float))
            scale = np.exp(np.where(got.top[0] > -np.inf, got.top[0], 0))
            bound = EXPONENT * np.finfo(dtype).eps
            error = abs(got.features[0] * scale - phi.sum(0))
            assert (error <= bound * abs(phi).sum(0)).all()
            want, size = phi.T @ y[0, some], abs(phi).T @ abs(y[0, some])
            error = abs(got.values[0] * scale[:, None] - want)
            assert (error <= bound * size).all()
            np.testing.assert_allclose(got.rows[0], y[0, some].sum(0), atol=bound * n)
            assert got.kept[0] == len(phi)
            if isinstance(f, Random) and f.moving:
                i, feature = got.first[0]
                exponents = x[0].astype(float) @ f.projection.T.astype(float)
                np.testing.assert_allclose(exponents[i, feature], exponents.max(), rtol=bound)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d", "e"), SIZES)
def test_queries_read_by_blocks(n: int, d: int, e: int, dtype: Any) -> None:
    x, rng = rows(n, d, dtype, 2), np.random.default_rng(3)
    wide = x[0].astype(float)
    for f, formula in [(RowSoftmax(), softmax), *maps(d, 19, dtype)]:
        phi = formula(wide)
        if isinstance(f, ColumnExp):
            continue  # keys only
        if isinstance(f, Random):
            f = replace(f, joint=False, moving=False)
        if isinstance(f, (Random, Relu)):
            phi = phi + f.eps * eps_unit(f, wide)
        context = rng.random((1, phi.shape[1], e)).astype(dtype)
        norm = rng.random((1, phi.shape[1])).astype(dtype)
        bound = EXPONENT * np.finfo(dtype).eps
        got, log = factored.read(f, x, NONE[:, 0], context, norm)
        total, sizes = (phi @ norm[0])[:, None], (abs(phi) @ norm[0])[:, None]
        want, size = phi @ context[0] / total, abs(phi) @ context[0]
        assert (abs(got[0] - want) * abs(total) <= bound * (size + sizes * abs(want))).all()
        sure = total[:, 0] > 0.1 * sizes[:, 0]
        np.testing.assert_allclose(log[0, sure], np.log(total[sure, 0]), atol=bound)
        if not isinstance(f, Random):
            plain, none = factored.read(f, x, NONE[:, 0], context)
            assert (abs(plain[0] - phi @ context[0]) <= bound * size).all()
            assert none.shape == (1, 0)


def softmax(x: Any) -> Any:
    return np.exp(x) / np.exp(x).sum(1, keepdims=True)


def eps_unit(f: Any, x: Any) -> Any:
    """What eps is multiplied by: "max" counts it relative to the row's largest exponent."""
    if not isinstance(f, Random) or f.stabilizer != "max":
        return 1.0
    if f.amplitude:
        x = f.amplitude * x / np.maximum(np.sqrt((x * x).sum(-1, keepdims=True)), f.floor)
    return np.exp((x @ f.projection.T.astype(float)).max(1, keepdims=True))


def test_bits_do_not_depend_on_threads_or_groups() -> None:
    x, y = rows(9000, 8, np.float64, 4), rows(9000, 3, np.float64, 5)
    for_any_threads(lambda: [factored.key_sums(ColumnExp(), x, y, NONE).values])
