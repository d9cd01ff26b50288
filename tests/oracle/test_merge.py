"""Merged attention's oracle: numbers by hand, the union of sets, gradients by the complex step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlattn.oracle.dense import attention
from nlattn.oracle.merge import merge_attention, merge_attention_vjp


def test_two_sets_by_hand() -> None:
    """Normalisers 1 and 3: shares 1/4 and 3/4."""
    outs, lses = np.array([[[4.0]], [[8.0]]]), np.log([[1.0], [3.0]])
    out, lse = merge_attention(outs, lses)
    np.testing.assert_allclose(out, [[7.0]])
    np.testing.assert_allclose(lse, [np.log(4)])
    _, two = merge_attention(outs, lses / np.log(2), lse_base="2")
    np.testing.assert_allclose(two, [2.0])
    douts, dlses = merge_attention_vjp(outs, lses, np.ones((1, 1)), dlse=np.ones(1))
    np.testing.assert_allclose(douts, [[[0.25]], [[0.75]]])
    np.testing.assert_allclose(dlses, [[0.25 * (4 - 7 + 1)], [0.75 * (8 - 7 + 1)]])


def test_sets_merge_into_their_union() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal(s) for s in ((2, 4, 3), (2, 9, 3), (2, 9, 5)))
    parts = [attention(q, k[:, a], v[:, a], return_lse=True) for a in (slice(2), slice(2, 9))]
    outs, lses = np.stack([p[0] for p in parts], 1), np.stack([p[1] for p in parts], 1)
    for a, b in zip(merge_attention(outs, lses), attention(q, k, v, return_lse=True), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13)


def test_an_empty_set_is_neutral_whatever_it_holds() -> None:
    outs = np.array([[[1.0], [2.0]], [[np.nan], [np.nan]]])
    lses = np.array([[0.5, -np.inf], [-np.inf, -np.inf]])
    out, lse = merge_attention(outs, lses)
    np.testing.assert_array_equal(out, [[1], [0]])
    np.testing.assert_array_equal(lse, [0.5, -np.inf])
    for gradient in merge_attention_vjp(outs, lses, np.ones((2, 1)), dlse=np.ones(2)):
        assert not gradient[1].any()


@pytest.mark.parametrize("base", ["e", "2"])
def test_gradients_agree_with_the_complex_step(base: str) -> None:
    rng = np.random.default_rng(1)
    arrays = {"outs": rng.standard_normal((2, 3, 4, 2)), "lses": rng.standard_normal((2, 3, 4))}
    dout, dlse = rng.standard_normal((2, 4, 2)), rng.standard_normal((2, 4))
    got = merge_attention_vjp(**arrays, dout=dout, dlse=dlse, lse_base=base)
    for (name, x), gradient in zip(arrays.items(), got, strict=True):
        for at in np.ndindex(x.shape):
            moved: dict[str, Any] = {n: y.astype(complex) for n, y in arrays.items()}
            moved[name][at] += 1e-30j
            out, lse = merge_attention(**moved, lse_base=base)
            slope = ((dout * out).sum() + (dlse * lse).sum()).imag / 1e-30
            np.testing.assert_allclose(gradient[at], slope, atol=1e-14)
