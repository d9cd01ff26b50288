"""Options of attention on a support that dense attention has, and what maps make of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nlattn
from nlattn.oracle import sparse as oracle

STEP = 1e-200
KEPT = np.random.default_rng(2).random(30) < 0.7
OPTIONS: dict[str, dict[str, Any]] = {
    "softcap": {"softcap": 0.7},
    "norm": {"qk_norm": 1e-3, "scale": 0.9},
    "dropout": {"dropout_mask": KEPT, "dropout_scale": 1.25},
    "base 2": {"lse_base": "2"},
    "all": {
        "softcap": 1.1, "qk_norm": 0.1, "dropout_mask": KEPT, "dropout_scale": 2.0, "lse_base": "2",
        "bias": np.linspace(-1, 1, 30), "sinks": np.array([0.3, -np.inf]),
    },
    "gaussian": {"weight": "gaussian", "qk_norm": 0.1, "dropout_mask": KEPT},
}  # fmt: skip
NAMED = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def case() -> tuple[nlattn.Support, dict[str, Any]]:
    """Ten queries of three of twelve keys, two heads that share the support."""
    rng = np.random.default_rng(0)
    table = np.stack([rng.permutation(12)[:3] for _ in range(10)])
    shapes = {"q": (2, 10, 4), "k": (2, 12, 4), "v": (2, 12, 3)}
    arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    return nlattn.support_from_index(table, 12), arrays


@NAMED
def test_outputs_gradients_and_changes(options: dict[str, Any]) -> None:
    """Against the oracle, which is held against the complex step."""
    support, arrays = case()
    rng = np.random.default_rng(1)
    dout, dlse = rng.standard_normal((2, 10, 3)), rng.standard_normal((2, 10))
    changes = {f"d{n}": rng.standard_normal(x.shape) for n, x in arrays.items()}
    got = nlattn.sparse_attention(**arrays, support=support, **options, return_lse=True)
    want = oracle.sparse_attention(**arrays, support=support, **options, return_lse=True)
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-13)
    given = {**arrays, "support": support, "dout": dout, "dlse": dlse, **options}
    gradients = nlattn.sparse_attention_vjp(**given)
    for x, y in zip(gradients, oracle.sparse_attention_vjp(**given), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-12)
    given = {**arrays, "support": support, **changes, **options, "return_lse": True}
    moved = nlattn.sparse_attention_jvp(**given)
    stepped = {n: x + 1j * STEP * changes[f"d{n}"] for n, x in arrays.items()}
    truth = oracle.sparse_attention(**stepped, support=support, **options, return_lse=True)
    for x, y, z in zip(moved, oracle.sparse_attention_jvp(**given), truth, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(y, np.imag(z) / STEP, rtol=1e-11, atol=1e-12)
    left = (moved[0] * dout).sum() + (moved[1] * dlse).sum()
    right = sum((changes[f"d{n}"] * g).sum() for n, g in zip(arrays, gradients, strict=False))
    np.testing.assert_allclose(left, right, rtol=1e-11)


def test_a_full_support_is_dense_attention() -> None:
    _, arrays = case()
    drawn = np.random.default_rng(3).random((10, 12)) < 0.6
    full = nlattn.support_from_index(np.tile(np.arange(12), (10, 1)), 12)
    common: dict[str, Any] = {"softcap": 0.8, "qk_norm": 1e-2, "dropout_scale": 1.5}
    common |= {"return_lse": True, "lse_base": "2", "sinks": np.array([0.1, 0.4])}
    got = nlattn.sparse_attention(**arrays, support=full, dropout_mask=drawn.ravel(), **common)
    want = nlattn.attention(**arrays, dropout_mask=drawn, **common)
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_changes_of_lse_in_base_2_lose_no_more_in_16_bits_than_the_result_does(dtype: str) -> None:
    support, arrays = case()
    kind = np.float16 if dtype == "float16" else pytest.importorskip("ml_dtypes").bfloat16
    arrays |= {"dout": np.zeros((2, 10, 3)), "dlse": np.ones((2, 10))}
    short = {name: x.astype(kind) for name, x in arrays.items()}
    exact = {name: x.astype(float) for name, x in short.items()}
    got, want = (
        nlattn.sparse_attention_vjp(**x, support=support, lse_base="2")[0].astype(float)
        for x in (short, exact)
    )
    unit = 2.0**-11 if dtype == "float16" else 2.0**-8
    assert (abs(got - want) <= 1.01 * unit * abs(want)).mean() > 0.95


def test_dropped_values_do_not_matter() -> None:
    support, arrays = case()
    kept = support.indices != 5
    plain = nlattn.sparse_attention(**arrays, support=support, dropout_mask=kept)
    arrays["v"][:, 5] = np.nan
    given = {**arrays, "support": support, "dropout_mask": kept, "nonfinite": "propagate"}
    np.testing.assert_array_equal(nlattn.sparse_attention(**given), plain)
    assert np.isfinite(nlattn.sparse_attention_vjp(**given, dout=plain)[0]).all()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"softcap": 1.0, "weight": "dot"}, "softcap has no place in weight='dot', expected"),
        ({"dropout_scale": 2.0}, "dropout_scale=2.0 has no place without a dropout_mask"),
        ({"dropout_mask": np.ones(7, bool)}, r"dropout_mask has shape \(7,\), expected \(30,\)"),
        ({"qk_norm": 0.0}, "qk_norm=0.0 is not positive|qk_norm"),
        ({"lse_base": "10"}, "lse_base='10', expected"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], text: str) -> None:
    support, arrays = case()
    with pytest.raises(ValueError, match=f"^sparse_attention: {text}"):
        nlattn.sparse_attention(**arrays, support=support, **options)


@pytest.mark.parametrize("options", [OPTIONS["all"], OPTIONS["dropout"]], ids=["all", "dropout"])
def test_maps_on_a_support(options: dict[str, Any]) -> None:
    """Weights are those that count; lse is of all keys and the sink."""
    support, arrays = case()
    options = {n: x for n, x in options.items() if n != "lse_base"}
    if "sinks" in options:
        options["sinks"] = np.array(0.3)
    q, k, v = (arrays[n][0] for n in "qkv")
    A = nlattn.sparse_attention_map(q, k, support, **options)
    out, lse = nlattn.sparse_attention(q, k, v, support, **options, return_lse=True)
    np.testing.assert_allclose(A @ v, out, rtol=1e-12)
    np.testing.assert_allclose(A.lse, lse, rtol=1e-12)


def test_maps_of_all_keys_with_sinks_and_lengths(tmp_path: Any) -> None:
    _, arrays = case()
    q, k, v = (arrays[n][0] for n in "qkv")
    options: dict[str, Any] = {"key_lengths": 9, "query_lengths": 8, "sinks": 0.4, "qk_norm": 1e-2}
    A = nlattn.attention_map(q, k, **options)
    out, lse = nlattn.attention(q, k, v, **options, return_lse=True)
    A.save(tmp_path / "map.npz")
    for B in (A, nlattn.load_map(tmp_path / "map.npz")):
        np.testing.assert_allclose(B @ v, out, rtol=1e-12)
        np.testing.assert_allclose(B.to_dense() @ v, out, rtol=1e-12)
        np.testing.assert_allclose(B.T @ out, B.to_dense().T @ out, rtol=1e-12)
        np.testing.assert_allclose(B.lse, lse, rtol=1e-12)
        values, keys = B.topk(2)
        rows = np.take_along_axis(B.to_dense(), np.maximum(keys, 0), 1)
        np.testing.assert_allclose(values, np.where(keys < 0, 0, rows), rtol=1e-12)
        assert (B.to_dense().sum(1) < 1).all()
    with pytest.raises(ValueError, match=r"^attention_map: dropout_mask has no place in a map"):
        nlattn.attention_map(q, k, dropout_mask=np.ones((10, 12), bool))


@pytest.mark.parametrize(
    "more", [{}, {"causal": True, "causal_offset": 2}, {"key_lengths": np.array([7, 12])}], ids=str
)
def test_gradients_and_changes_of_slopes(more: dict[str, Any]) -> None:
    """By the complex step, for heads that share keys too."""
    from nlattn.oracle import dense

    _, arrays = case()
    rng = np.random.default_rng(4)
    slopes, dslopes, dout = np.array([0.3, 0.05]), np.array([1.0, -2.0]), rng.random((2, 10, 3))
    given = {**arrays, "dout": dout, "alibi": slopes, "alibi_gradient": True, **more}
    got, want = nlattn.attention_vjp(**given), dense.attention_vjp(**given)
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-13)
    for head in range(2):
        moved = slopes + 1j * STEP * (np.arange(2) == head)
        out = dense.attention(**arrays, alibi=moved, **more)
        np.testing.assert_allclose(want[3][head], (out.imag * dout).sum() / STEP, rtol=1e-11)
    none = {f"d{n}": 0 * x for n, x in arrays.items()}
    given = {**arrays, **none, "alibi": slopes, "dalibi": dslopes, **more}
    moved = nlattn.attention_jvp(**given)
    np.testing.assert_allclose(moved, dense.attention_jvp(**given), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose((moved * dout).sum(), (got[3] * dslopes).sum(), rtol=1e-11)
    with pytest.raises(ValueError, match=r"^attention_vjp: alibi_gradient=True has no place"):
        nlattn.attention_vjp(**arrays, dout=dout, alibi_gradient=True)


@pytest.mark.parametrize("factor", [1e15, 1e25, 1e-15])
def test_normalised_vectors_of_any_length(factor: float) -> None:
    """Scores are of numbers near 1, whatever the format's products would be."""
    _, arrays = case()
    q, k, v = (arrays[n].astype(np.float32) for n in "qkv")
    eps = min(1.0, factor) ** 2 * 1e-6
    want = nlattn.attention(q, k, v, qk_norm=1e-6)
    scaled = q * np.float32(factor), k * np.float32(factor)
    np.testing.assert_allclose(nlattn.attention(*scaled, v, qk_norm=eps), want, atol=1e-5)
