"""What lies beyond lengths, between packed sequences and in other pages never reaches a result.

Padding holds NaN and infinities in arrays, cotangents and changes: outputs, gradients and changes
have the bits of those of finite padding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nlattn
from nlattn.oracle import dense

PACKED = {"cu_seqlens_q": np.array([0, 3, 3, 9]), "cu_seqlens_k": np.array([0, 4, 6, 10])}
LENGTHS = {"key_lengths": 8, "query_lengths": 7}
MORE: tuple[dict[str, Any], ...] = (
    {},
    {"sinks": np.array(0.3), "qk_norm": 0.1},
    {"softcap": 2.0, "alibi": np.array(0.1), "dropout_mask": np.eye(12) == 0, "dropout_scale": 1.5},
    {"bias": np.arange(144.0).reshape(12, 12) % 5},
)
CORNER = {"causal": True, "causal_offset": "bottom-right"}


def filled(padding: tuple[list[int], list[int]], wild: bool) -> dict[str, Any]:
    """Queries, keys, values, a cotangent, changes; NaN in rows of queries, infinities in keys."""
    rng = np.random.default_rng(0)
    names = ("q", "k", "v", "dout", "dq", "dk", "dv", "dlse")
    arrays = {name: rng.standard_normal((12, 4)) for name in names}
    arrays["dlse"] = arrays["dlse"][:, 0].copy()
    for name in names if wild else ():
        of_keys = name[-1] in "kv"
        arrays[name][padding[of_keys]] = np.inf if of_keys else np.nan
    return arrays


def results(module: Any, x: dict[str, Any], options: dict[str, Any]) -> list[Any]:
    q, k, v = x["q"], x["k"], x["v"]
    given = {**options, "nonfinite": "propagate"} if module is nlattn else options
    with np.errstate(all="ignore"):
        forward = module.attention(q, k, v, **given, return_lse=True)
        back = module.attention_vjp(q, k, v, x["dout"], dlse=x["dlse"], **given)
        along = module.attention_jvp(q, k, v, x["dq"], x["dk"], x["dv"], **given, return_lse=True)
    return [*forward, *back, *along]


@pytest.mark.parametrize("module", [nlattn, dense], ids=["op", "oracle"])
@pytest.mark.parametrize("more", MORE, ids=lambda x: "+".join(x) or "plain")
@pytest.mark.parametrize("corner", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_padding_of_sequences(packed: bool, corner: bool, more: Any, module: Any) -> None:
    options = {**(PACKED if packed else LENGTHS), **(CORNER if corner else {}), **more}
    queries = [9, 10, 11] if packed else [7, 8, 9, 10, 11]
    keys = [4, 5, 10, 11] if packed else [8, 9, 10, 11]
    plain, wild = (filled((queries, keys), x) for x in (False, True))
    for x, y in zip(results(module, plain, options), results(module, wild, options), strict=True):
        np.testing.assert_array_equal(x, y)
    out = results(module, wild, options)[0]
    assert not out[queries].any()


def test_pages_of_others_and_rows_beyond_lengths() -> None:
    rng = np.random.default_rng(1)
    pages, table, lengths = rng.standard_normal((4, 5, 4, 3)), np.array([[3, 0]]), np.array([6])
    q, dq = rng.standard_normal((2, 1, 7, 3))
    found = []
    for fill in (0.0, np.nan):
        x = pages.copy()
        x[:, [1, 2, 4]] = x[:, 0, 2:] = fill
        given: dict[str, Any] = {"key_lengths": lengths, "nonfinite": "propagate"}
        k, v, dk, dv = x
        found.append([
            nlattn.paged_attention(q, k, v, table, **given),
            *nlattn.paged_attention_vjp(q, k, v, table, dq, **given),
            nlattn.paged_attention_jvp(q, k, v, table, dq, dk, dv, **given),
        ])  # fmt: skip
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_parts_of_nothing() -> None:
    """An empty set of keys may hold anything, and move anyhow."""
    rng = np.random.default_rng(2)
    outs, douts, g = rng.standard_normal((3, 2, 3, 4))
    lses, dlses = rng.standard_normal((2, 2, 3))
    lses[1, 1] = -np.inf
    found = []
    for fill in (0.0, np.nan):
        outs[1, 1], douts[1, 1], dlses[1, 1] = fill, fill, fill
        given: Any = {"nonfinite": "propagate"}
        found.append([
            *nlattn.merge_attention(outs, lses, **given),
            *nlattn.merge_attention_vjp(outs, lses, g[0], **given),
            *nlattn.merge_attention_jvp(outs, lses, douts, dlses, **given),
        ])  # fmt: skip
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
