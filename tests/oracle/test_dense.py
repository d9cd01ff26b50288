"""The oracle of dense attention: numbers worked by hand, invariants, gradients by complex step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlattn.oracle.dense import (
    allowed,
    attention,
    attention_jvp,
    attention_stages,
    attention_vjp,
    rms_normalised,
)

LOG3 = np.log(3.0)


def test_two_keys_by_hand() -> None:
    """Scores 0 and log 3 give weights 1/4 and 3/4."""
    q, k, v = np.array([[1.0]]), np.array([[0.0], [LOG3]]), np.array([[4.0, 0.0], [0.0, 8.0]])
    stages = attention_stages(q, k, v)
    np.testing.assert_allclose(stages.raw, [[0, LOG3]])
    np.testing.assert_allclose(stages.weights, [[0.25, 0.75]])
    np.testing.assert_allclose(stages.out, [[1.0, 6.0]])
    np.testing.assert_allclose(stages.lse, [np.log(4.0)])


def test_the_default_scale_is_one_over_root_d() -> None:
    q = np.ones((1, 4))
    np.testing.assert_allclose(attention_stages(q, q, q).raw, [[2.0]])
    np.testing.assert_allclose(attention_stages(q, q, q, scale=-1.0).raw, [[-4.0]])


def test_stages_by_hand_in_order() -> None:
    """The cap comes before the bias, the bias before the mask."""
    q, k, v = np.array([[1.0]]), np.array([[1.0], [-1.0], [0.0]]), np.eye(3)
    stages = attention_stages(
        q,
        k,
        v,
        softcap=2.0,
        bias=np.array([1.0, 0.0, -np.inf]),
        mask=np.array([True, False, True]),
    )
    cap = 2 * np.tanh(0.5)
    np.testing.assert_allclose(stages.raw, [[1, -1, 0]])
    np.testing.assert_allclose(stages.capped, [[cap, -cap, 0]])
    np.testing.assert_allclose(stages.biased, [[cap + 1, -cap, -np.inf]])
    np.testing.assert_allclose(stages.masked, [[cap + 1, -np.inf, -np.inf]])
    np.testing.assert_allclose(stages.out, [[1, 0, 0]])


def test_positions_by_hand() -> None:
    np.testing.assert_array_equal(allowed(2, 3, causal=True), [[1, 0, 0], [1, 1, 0]])
    np.testing.assert_array_equal(allowed(2, 3, True, 1), [[1, 1, 0], [1, 1, 1]])
    np.testing.assert_array_equal(allowed(2, 3, True, -1), [[0, 0, 0], [1, 0, 0]])
    np.testing.assert_array_equal(
        allowed(3, 4, window=(1, 0)), [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0]]
    )
    np.testing.assert_array_equal(allowed(2, 3, window=(None, 0)), [[1, 0, 0], [1, 1, 0]])
    np.testing.assert_array_equal(allowed(2, 3, window=(0, None)), [[1, 1, 1], [0, 1, 1]])


def test_lengths_and_offsets_by_hand() -> None:
    """Two heads of 3 queries and 4 keys."""
    got = allowed(3, 4, key_lengths=np.array([2, 0]), query_lengths=np.array([2, 3]))
    np.testing.assert_array_equal(got[0], [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    assert not got[1].any()
    got = allowed(2, 4, causal=True, causal_offset="bottom-right", key_lengths=np.array([4, 1]))
    np.testing.assert_array_equal(got[0], [[1, 1, 1, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(got[1], [[0, 0, 0, 0], [1, 0, 0, 0]])
    got = allowed(2, 4, causal=True, causal_offset=np.array([0, 1]))
    np.testing.assert_array_equal(got, np.stack([allowed(2, 4, True, 0), allowed(2, 4, True, 1)]))
    got = allowed(2, 4, window=(0, 1), causal_offset=2, window_about="offset")
    np.testing.assert_array_equal(got, [[0, 0, 1, 1], [0, 0, 0, 1]])


def test_packed_sequences_are_sequences_alone() -> None:
    """Of 2 and 3 queries, the second with 1 key more than queries; a query and a key of padding."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal(shape) for shape in ((6, 3), (7, 3), (7, 2)))
    cu_q, cu_k = np.array([0, 2, 2, 5]), np.array([0, 2, 2, 6])
    options: dict[str, Any] = {"causal": True, "causal_offset": "bottom-right", "window": (1, None)}
    slopes = np.array(0.3)
    got = attention(q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, alibi=slopes, **options)
    for queries, keys in ((slice(0, 2), slice(0, 2)), (slice(2, 5), slice(2, 6))):
        want = attention(q[queries], k[keys], v[keys], alibi=slopes, **options)
        np.testing.assert_allclose(got[queries], want, rtol=1e-14)
    np.testing.assert_array_equal(got[5], 0)


def test_a_sink_by_hand() -> None:
    """Scores 0 and log 3, and a sink of log 4: weights 1/8, 3/8 and 1/2."""
    q, k, v = np.array([[1.0]]), np.array([[0.0], [LOG3]]), np.array([[4.0, 0.0], [0.0, 8.0]])
    options: dict[str, Any] = {"sinks": np.array(np.log(4.0)), "return_lse": True}
    out, lse = attention(q, k, v, **options)
    np.testing.assert_allclose(out, [[0.5, 3.0]])
    np.testing.assert_allclose(lse, [np.log(8.0)])
    np.testing.assert_allclose(attention(q, k, v, lse_base="2", **options)[1], [3.0])
    assert attention(q, k, v, key_lengths=np.array(0), **options)[1] == np.log(4.0)
    _, absent = attention(q, k, v, query_lengths=np.array(0), **options)
    assert absent == -np.inf
    *_, dsink = attention_vjp(q, k, v, np.ones((1, 2)), dlse=np.ones(1), sinks=options["sinks"])
    np.testing.assert_allclose(dsink, 0.5 * (1 - 3.5))


def test_slopes_blocks_and_dropped_weights_by_hand() -> None:
    x, v = np.zeros((2, 1)), np.eye(3)
    slopes = np.array(LOG3)
    stages = attention_stages(x, np.zeros((3, 1)), v, alibi=slopes, causal_offset=1)
    np.testing.assert_allclose(stages.biased, [[-LOG3, 0, -LOG3], [-2 * LOG3, -LOG3, 0]])
    blocks = np.array([[True, False], [False, True]])
    stages = attention_stages(x, np.zeros((3, 1)), v, mask=blocks, mask_block=(1, 2))
    np.testing.assert_allclose(stages.weights, [[0.5, 0.5, 0], [0, 0, 1]])
    kept = np.array([[True, False, True], [True, True, True]])
    stages = attention_stages(
        x, np.zeros((3, 1)), v, dropout_mask=kept, dropout_scale=1.5, query_lengths=np.array(1)
    )
    np.testing.assert_allclose(stages.out, [[0.5, 0, 0.5], [0, 0, 0]])
    np.testing.assert_allclose(stages.lse, [LOG3, -np.inf])


def test_normalised_queries_and_keys_by_hand() -> None:
    q, k = np.array([[3.0, 4.0]]), np.array([[1.0, 1.0]])
    stages = attention_stages(q, k, k, qk_norm=12.5, scale=1.0)
    np.testing.assert_allclose(stages.raw, [[7.0 / 5.0 / np.sqrt(13.5)]])
    np.testing.assert_allclose(rms_normalised(np.array([[3.0, 4.0]]), 12.5), [[0.6, 0.8]])


def test_a_row_without_keys() -> None:
    x = np.ones((2, 1))
    mask = np.array([[False, False], [True, True]])
    stages = attention_stages(x, x, x, mask=mask)
    np.testing.assert_array_equal(stages.out, [[0], [1]])
    np.testing.assert_array_equal(stages.weights[0], [0, 0])
    assert stages.lse[0] == -np.inf
    assert np.isnan(attention(x, x, x, mask=mask, masked_rows="nan")[0]).all()
    with pytest.raises(ValueError, match="no key"):
        attention(x, x, x, mask=mask, masked_rows="raise")
    for gradient in attention_vjp(x, x, x, x, mask=mask & False):
        np.testing.assert_array_equal(gradient, 0)


def test_no_keys_at_all() -> None:
    out, lse = attention(np.ones((2, 3)), np.ones((0, 3)), np.ones((0, 4)), return_lse=True)
    np.testing.assert_array_equal(out, np.zeros((2, 4)))
    np.testing.assert_array_equal(lse, [-np.inf, -np.inf])


def test_shared_heads_are_repeated_heads() -> None:
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, 4, 3, 5))
    k, v = rng.standard_normal((2, 2, 2, 6, 5))
    got = attention(q, k, v, gqa=True)
    want = attention(q, np.repeat(k, 2, axis=1), np.repeat(v, 2, axis=1))
    np.testing.assert_array_equal(got, want)


def test_a_constant_in_the_scores_changes_nothing_but_lse() -> None:
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 4, 5))
    out, lse = attention(q, k, v, return_lse=True)
    moved, raised = attention(q, k, v, bias=np.full((4, 1), 1e4), return_lse=True)
    np.testing.assert_allclose(moved, out, atol=1e-11)
    np.testing.assert_allclose(raised - 1e4, lse, atol=1e-11)


def random_case(options: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    rng = np.random.default_rng(1)
    heads = 2 if options.get("gqa") else 1
    q = rng.standard_normal((2, 2, 4, 3))
    k, v = rng.standard_normal((2, heads, 5, 3)), rng.standard_normal((heads, 5, 2))
    if options.get("gqa"):
        k, v = k[:, :1], v[:1]
    made = dict(options)
    for name in {"bias", "sinks"} & {*made}:
        made[name] = np.asarray(rng.standard_normal(made[name]))
    return [q, k, v, rng.standard_normal((2, 2, 4, 2)), rng.standard_normal((2, 2, 4))], made


LENGTHS = {"key_lengths": np.array([[4], [0]]), "query_lengths": np.array([[4], [3]])}
CASES: list[dict[str, Any]] = [
    {},
    {"sinks": (2,), "key_lengths": np.array([[4], [0]]), "lse_base": "2"},
    {"sinks": (2, 1), "softcap": 1.0, "query_lengths": np.array([[4], [3]])},
    {"alibi": np.array([0.5, 0.25]), "causal": True, "causal_offset": "bottom-right"},
    {"dropout_mask": np.arange(20).reshape(4, 5) % 3 > 0, "dropout_scale": 1.5, "sinks": ()},
    {"qk_norm": 0.1, "bias": (4, 5)},
    {"qk_norm": 0.1, "gqa": True},
    {"mask": np.eye(2, dtype=bool), "mask_block": (2, 3), **LENGTHS},
    {"scale": -0.3, "softcap": 0.7},
    {"bias": (4, 5)},
    {"bias": (2, 1, 1, 5), "softcap": 1.5},
    {"bias": (), "causal": True},
    {"bias": (2, 4, 1), "mask": np.arange(20).reshape(4, 5) % 3 > 0},
    {"causal": True, "causal_offset": -2},
    {"window": (1, 1), "gqa": True},
]


@pytest.mark.parametrize("options", CASES, ids=lambda o: ", ".join(o) or "plain")
def test_gradients_agree_with_the_complex_step(options: dict[str, Any]) -> None:
    """``Im f(x + i h) / h`` has no cancellation: agreement to rounding."""
    (q, k, v, dout, dlse), options = random_case(options)
    gradients = attention_vjp(q, k, v, dout, dlse=dlse, **options)
    inputs = {"q": q, "k": k, "v": v}
    inputs |= {name: options.pop(name) for name in ("bias", "sinks") if name in options}
    assert len(gradients) == len(inputs)
    step = 1e-30
    for (name, x), gradient in zip(inputs.items(), gradients, strict=True):
        assert gradient.shape == np.shape(x)
        want = np.zeros_like(x)
        for index in np.ndindex(np.shape(x)):
            moved = {key: np.array(a, complex) for key, a in inputs.items()}
            moved[name][index] += 1j * step
            out, lse = attention(**moved, **options, return_lse=True)
            lse = np.where(np.isfinite(lse), lse, 0)
            want[index] = ((dout * out).sum() + (dlse * lse).sum()).imag / step
        np.testing.assert_allclose(gradient, want, rtol=0, atol=4e-15 * max(1, abs(want).max()))


@pytest.mark.parametrize("options", CASES, ids=lambda o: ", ".join(o) or "plain")
def test_forward_mode_agrees_with_the_complex_step(options: dict[str, Any]) -> None:
    (q, k, v, *_), options = random_case(options)
    arrays = {"q": q, "k": k, "v": v}
    arrays |= {n: options.pop(n) for n in ("bias", "sinks", "alibi") if n in options}
    rng, step = np.random.default_rng(2), 1e-30
    changes = {n: np.asarray(rng.standard_normal(np.shape(x))) for n, x in arrays.items()}
    moved = {n: x + 1j * step * changes[n] for n, x in arrays.items()}
    along = {f"d{n}": x for n, x in changes.items()}
    got = attention_jvp(**arrays, **along, **options, return_lse=True)
    want = attention(**moved, **options, return_lse=True)
    for mine, result in zip(got, want, strict=True):
        change = np.where(np.isfinite(result), result.imag, 0) / step
        np.testing.assert_allclose(mine, change, rtol=0, atol=1e-14 * max(1, abs(change).max()))


def test_longdouble_stays_longdouble() -> None:
    x = np.linspace(-1, 1, 12).reshape(4, 3).astype(np.longdouble)
    assert attention(x, x, x, softcap=1.0).dtype == np.longdouble
    assert all(g.dtype == np.longdouble for g in attention_vjp(x, x, x, x))
