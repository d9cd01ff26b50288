"""Numbers that some heads take in place of their own, such as slopes, are found and named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlattn.conformance.case import Array, Case
from nlattn.conformance.judge.diagnosis import SAME, diagnose
from nlattn.conformance.judge.measure import Effort
from nlattn.conformance.judge.per_head import per_head
from nlattn.conformance.truth.bounds import exact

pytestmark = pytest.mark.plain

HEADS = 6


def case(**more: Array) -> Case:
    rng = np.random.default_rng(6)
    arrays = {
        name: rng.standard_normal((2, HEADS, *shape)).astype(np.float32)
        for name, shape in {"q": (7, 4), "k": (5, 4), "v": (5, 3)}.items()
    }
    return Case("case", "attention", "forward", "float32", {**arrays, **more})


def attention(q: Array, k: Array, v: Array, alibi: Any = 0.0, sinks: Any = -np.inf) -> Array:
    far = abs(np.arange(7)[:, None] - np.arange(5))
    s = q @ np.swapaxes(k, -1, -2) / 2 - np.reshape(alibi, (-1, 1, 1)) * far
    p = np.exp(s)
    total = p.sum(-1, keepdims=True) + np.exp(np.reshape(sinks, (-1, 1, 1)))
    return np.asarray(p / total @ v).astype(np.float32)


def paper(heads: int) -> Array:
    """ALiBi's slopes: of the next smaller power of two, then every other of twice as many."""
    power = 1 << heads.bit_length() - 1
    less, more = (2.0 ** (-8 * np.arange(1, n + 1) / n) for n in (power, 2 * power))
    return np.concatenate([less, more[::2][: heads - power]]).astype(np.float32)


def test_slopes_of_heads_beyond_a_power_of_two_are_named() -> None:
    c = case(alibi=paper(HEADS))
    wrong = paper(HEADS)
    wrong[4:] = wrong[3] / [4, 16]  # as if the first four went on
    got = attention(*(c.arrays[n] for n in "qkv"), alibi=wrong)
    assert diagnose(c, {"out": got}) == (
        f"{SAME}with alibi = 0.0009766 in place of 0.5 for head 4; "
        "0.0002441 in place of 0.125 for head 5"
    )


def test_slopes_of_another_number_of_heads_are_named() -> None:
    c = case(alibi=paper(HEADS))
    got = attention(*(c.arrays[n] for n in "qkv"), alibi=paper(8)[:HEADS])
    assert diagnose(c, {"out": got}) == (
        f"{SAME}with alibi = 0.5 in place of 0.25 for head 0; "
        "0.25 in place of 0.0625 for head 1 and 4 more"
    )


def test_sinks_that_some_heads_have_not_are_named() -> None:
    sinks = np.linspace(-1, 1, HEADS).astype(np.float32)
    c = case(sinks=sinks)
    wrong = np.where(np.arange(HEADS) < 4, sinks, 0)
    got = attention(*(c.arrays[n] for n in "qkv"), sinks=wrong)
    assert diagnose(c, {"out": got}) == (
        f"{SAME}with sinks = 0 in place of 0.6 for head 4; 0 in place of 1 for head 5"
    )


def test_what_no_number_explains_has_no_name() -> None:
    c = case(alibi=paper(HEADS))
    want = exact(c)
    noise = 1 + 1e-2 * np.random.default_rng(7).standard_normal(want["out"].shape)
    turned = attention(*(c.arrays[n] for n in "qkv"), alibi=paper(HEADS))[..., ::-1, :]
    for wrong in (want["out"] * noise, turned):
        assert per_head(c, want, {"out": wrong}, Effort()) == []
