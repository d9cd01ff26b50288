"""`merge_attention` against its oracle, and against attention over the union."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nlattn
from nlattn.oracle import merge as oracle


@pytest.mark.parametrize("base", ["e", "2"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_is_its_oracle(base: str, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    outs = rng.standard_normal((2, 3, 5, 4)).astype(dtype)
    lses = np.where(rng.random((2, 3, 5)) < 0.3, -np.inf, 3 * rng.standard_normal((2, 3, 5)))
    lses[0, :, 0] = -np.inf
    dout, dlse = rng.standard_normal((2, 5, 4)).astype(dtype), rng.standard_normal((2, 5))
    got = nlattn.merge_attention(outs, lses, lse_base=base)
    got += nlattn.merge_attention_vjp(outs, lses, dout, dlse=dlse, lse_base=base)
    wide = outs.astype(np.float64), lses
    want = oracle.merge_attention(*wide, lse_base=base)
    want += oracle.merge_attention_vjp(*wide, dout.astype(float), dlse=dlse, lse_base=base)
    assert [x.dtype for x in got] == [dtype, np.float64, dtype, np.float64]
    for a, b in zip(got, want, strict=True):
        bound = 4 * np.finfo(a.dtype).eps  # rounded once, of numbers near 1
        np.testing.assert_allclose(a, b, rtol=bound, atol=bound)


def test_attention_of_parts_is_attention() -> None:
    """Associative, in any order, and a sink counts in the part that has it."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 2, 30, 8))
    sinks = rng.standard_normal(2)
    cuts = [slice(0, 7), slice(7, 7), slice(7, 30)]
    parts = [
        nlattn.attention(q, k[:, c], v[:, c], sinks=sinks if i == 0 else None, return_lse=True)
        for i, c in enumerate(cuts)
    ]
    want = nlattn.attention(q, k, v, sinks=sinks, return_lse=True)
    first = nlattn.merge_attention([p[0] for p in parts[:2]], [p[1] for p in parts[:2]])
    again = nlattn.merge_attention([parts[2][0], first[0]], [parts[2][1], first[1]])
    for got in (nlattn.merge_attention(*zip(*parts, strict=True)), again):
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-14)


def test_an_empty_set_may_hold_anything() -> None:
    outs, lses = [np.ones((2, 1)), np.full((2, 1), np.nan)], [np.zeros(2), np.full(2, -np.inf)]
    out, lse = nlattn.merge_attention(outs, lses)
    np.testing.assert_array_equal(out, [[1], [1]])
    np.testing.assert_array_equal(lse, 0)


@pytest.mark.parametrize(
    ("outs", "lses", "error", "text"),
    [
        ([], [], ValueError, "outs is empty, expected at least one set"),
        (np.ones((2, 1)), np.ones(2), ValueError, r"outs has shape \(2, 1\), expected \(..., par"),
        ([np.ones((2, 1))], [np.ones(3)], ValueError, r"lses has shape \(1, 3\), expected \(1, 2"),
        ([np.ones((2, 1))], [np.full(2, np.nan)], ValueError, r"lses\[0, 0\] is nan, expected fin"),
        ([np.full((2, 1), np.inf)], [np.ones(2)], ValueError, r"outs\[0, 0, 0\] is inf, expected"),
        (
            [np.ones((2, 1)), np.ones((1, 1))],
            [],
            ValueError,
            r"outs\[1\] has shape \(1, 1\), expected \(2, 1\)$",
        ),
        ([np.ones((2, 1), int)], [np.ones(2)], TypeError, r"outs\[0\] has dtype int64, expected"),
    ],
)
def test_bad_parts_are_refused_in_words(outs: Any, lses: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=f"^merge_attention: {text}"):
        nlattn.merge_attention(outs, lses)


@pytest.mark.parametrize("base", ["e", "2"])
def test_changes_are_those_of_the_oracle(base: Any) -> None:
    rng = np.random.default_rng(5)
    outs, douts = rng.standard_normal((2, 3, 5, 4))
    lses, dlses = rng.standard_normal((2, 3, 5))
    lses[1, 2] = -np.inf
    got = nlattn.merge_attention_jvp(outs, lses, douts, dlses, lse_base=base)
    want = oracle.merge_attention_jvp(outs, lses, douts, dlses, lse_base=base)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-14)


def test_cotangents_and_changes_that_do_not_fit_are_refused_in_words() -> None:
    outs, lses, dout = np.ones((2, 3, 1)), np.ones((2, 3)), np.ones((3, 1))
    for call, text in (
        (lambda: nlattn.merge_attention_vjp(outs, lses, dout[:2]),
         r"merge_attention_vjp: dout has shape \(2, 1\), expected \(3, 1\)$"),
        (lambda: nlattn.merge_attention_vjp(outs, lses, dout * np.nan),
         r"merge_attention_vjp: dout\[0, 0\] is nan, expected finite values"),
        (lambda: nlattn.merge_attention_jvp(outs, lses, outs[:1], lses),
         r"merge_attention_jvp: douts has shape \(1, 3, 1\), expected \(2, 3, 1\)$"),
        (lambda: nlattn.merge_attention_jvp(outs, lses, outs * np.nan, lses),
         r"merge_attention_jvp: douts\[0, 0, 0\] is nan, expected finite values"),
        (lambda: nlattn.merge_attention_jvp(outs, lses, outs, lses * np.inf),
         r"merge_attention_jvp: dlses\[0, 0\] is inf, expected finite values"),
        (lambda: nlattn.merge_attention([np.ones(2)], [np.ones(2)]),
         r"merge_attention: outs\[0\] has shape \(2,\), expected \(..., n, e\)$"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{text}"):
            call()
