"""Certified attention of features and values in whatever units: maps, files and gradients too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nlattn
from nlattn import certified_attention_map
from nlattn.engines import certified as engine
from nlattn.engines import exhaustive
from nlattn.maps.certified import CertifiedMap
from nlattn.tiled import certified as tiled
from tests.ops.test_certified import always_down_the_tree, assert_promise, smooth

WIDTH = 2.0**-5
UNITS = [
    (np.float32, 2.0**-73),  # 1e-22
    (np.float32, 2.0**-130),
    (np.float32, 2.0**100),
    (np.float64, 2.0**-530),
    (np.float64, 2.0**520),
]


@pytest.fixture(params=["dense", "trees"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "trees":
        always_down_the_tree(monkeypatch)
        monkeypatch.setattr(engine, "_FEW", 0)
        monkeypatch.setattr(engine, "_MANY", 0)


def case(weight: str, unit: float, dtype: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Queries and keys of 12 bits, which no unit takes away, and options in theirs."""
    f = np.round(smooth(14, 3, np.float64) * 2**11) / 2**11
    x = (f * unit).astype(dtype)
    k = x if weight == "gaussian" else f.astype(dtype)
    size = {"scale": 2.0**8 / unit} if weight == "softmax" else {"bandwidth": WIDTH * unit}
    return x[25:], k, {"weight": weight, **size}


def answers(A: Any) -> list[Any]:
    rng = np.random.default_rng(0)
    v, g = (rng.standard_normal((size, 2)) for size in A.shape[::-1])
    low, high = A.adjoint_bounds(g)
    some = A.rows([0, 99]), A.scores([0, 99]), A.scores_of(A.topk(1)[1][:, 0])
    return [A @ v, A.T @ g, A.lse, *some, *A.topk(3), A.to_csr().toarray(), low, high]


@pytest.mark.jit
@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize(("dtype", "unit"), UNITS)
@pytest.mark.parametrize("weight", ["softmax", "gaussian"])
@pytest.mark.parametrize("biased", [False, True])
def test_a_map_does_not_depend_on_the_unit(
    weight: str, dtype: Any, unit: float, biased: bool, tmp_path: Path
) -> None:
    bias = {"bias": np.round(np.linspace(-32, 32, 196)) / 16} if biased else {}
    q, k, options = case(weight, 1.0, np.float64)
    want = answers(certified_attention_map(q, k, tolerance=1e-9, **options, **bias))
    bias = {name: b.astype(dtype) for name, b in bias.items()}
    q, k, options = case(weight, unit, dtype)
    if weight == "softmax" and options.get("scale", 0) > float(np.finfo(dtype).max):
        pytest.skip("such a scale is refused")
    A = certified_attention_map(q, k, tolerance=1e-7, **options, **bias)
    A.save(tmp_path / "map.npz")
    for B in (A, nlattn.load_map(tmp_path / "map.npz")):
        for number, (a, b) in enumerate(zip(answers(B), want, strict=True)):
            assert np.isfinite(a).all() or number in (3, 4)
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-4)


@pytest.mark.jit
@pytest.mark.usefixtures("_way")
def test_arrays_of_a_file_need_not_be_in_good_units() -> None:
    """A map's state may hold what the operator would have brought to other units."""
    q, k, options = case("gaussian", 1.0, np.float32)
    plain = certified_attention_map(q, k, **options)
    unit = np.float32(2.0**-73)
    state = plain.state()
    state |= {"q": q * unit, "k": k * unit}
    state["factor"] = state["factor"] / np.array([float(unit) ** 2, 1])
    A = CertifiedMap.from_state(state)
    assert A.dtype == np.float32
    for a, b in zip(answers(A), answers(plain), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)
    assert A.nbytes > plain.nbytes


@pytest.mark.jit
@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("unit", [2.0**-73, 2.0**70])
def test_files_of_arrays_need_not_be_in_good_units(unit: float, tmp_path: Path) -> None:
    q, k, options = case("gaussian", unit, np.float32)
    v = smooth(14, 2, seed=1) * np.array([1e30, 1e-30], np.float32)
    want = nlattn.certified_attention(q, k, v, **options)
    for name, x, grid in (("q", q, (9, 19)), ("k", k, (14, 14)), ("v", v, (14, 14))):
        np.save(tmp_path / f"{name}.npy", x.reshape(*grid, -1))
    paths = [tmp_path / f"{name}.npy" for name in "qkv"]
    tiled.certified_attention(*paths, tmp_path / "out", **options)
    got = np.load(tmp_path / "out" / "out.npy").reshape(want.shape)
    assert (np.abs(got - want) <= 2e-3 * np.ptp(v, axis=0)).all()


@pytest.mark.jit
@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("unit", [2.0**-73, 2.0**60])
def test_gradients_and_changes_in_other_units(unit: float) -> None:
    found = []
    for u in (1.0, unit):
        rng, (q, k, options) = np.random.default_rng(0), case("gaussian", u, np.float32)
        v, dout = (rng.standard_normal((len(x), 2)).astype(np.float32) for x in (k, q))
        dq, dk, dv = nlattn.certified_attention_vjp(q, k, v, dout, **options)
        change = nlattn.certified_attention_jvp(q, k, v, q[::-1], k[::-1], 0 * v, **options)
        found.append([dq.astype(float) * u, dk.astype(float) * u, dv, change])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-2 * np.abs(b).max())


def test_ordinary_numbers_stay_in_float32() -> None:
    q, k, options = case("gaussian", 1.0, np.float32)
    x = certified_attention_map(q, k, **options)._x
    assert exhaustive.held(x) is x
    zero = x._replace(q=x.q * 0, k=x.k * 0)
    assert exhaustive.held(zero) is zero
    for more in ({"q": x.q * np.float32(1e20)}, {"factor": 1e33}, {"factor": 1e-42}):
        large = {"k": x.k * np.float32(1e17)} if "factor" in more and more["factor"] < 1 else {}
        assert exhaustive.held(x._replace(**more, **large)).q.dtype == np.float64


@pytest.mark.jit
@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("single", [False, True])
def test_channels_of_values_have_their_own_units(single: bool) -> None:
    dtype = np.float32 if single else np.float64
    f = smooth(14, 3, dtype)
    v = smooth(14, 5, np.float64, seed=1) * [1e30, 1.0, 1e-30, 1e-38, 1e-43]
    v = np.concatenate([v, np.full((len(v), 1), 1e25), np.zeros((len(v), 1))], 1).astype(dtype)
    for tolerance in (1e-3, 1e-6):
        missed = assert_promise(f, f, v, tolerance, weight="gaussian", bandwidth=WIDTH)
        assert (missed <= tolerance).all()
