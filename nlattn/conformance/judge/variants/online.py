"""Softmaxes of keys in linear attention gone wrong: overflows, blocks that are not rescaled."""

from __future__ import annotations

from typing import Any

import numpy as np

from nlattn._types import Array, Function, Result
from nlattn.conformance.judge.variants.base import Call, Run, Variant, step

_EFFICIENT = ("two softmaxes",)


def _overflowing(c: Call) -> Result:
    """Exponentials of the case's own dtype, without a maximum taken off."""

    def wrong(_: Call, __: Function, x: Array, axis: int, kept: Any = None) -> Result:
        top = np.finfo(np.float64 if c.dtype == "float64" else np.float32).max
        powers = np.where(True if kept is None else kept, np.exp(x), 0)
        powers = np.where(abs(powers) > top, np.inf, powers)
        total = powers.sum(axis, keepdims=True)
        return powers / np.where(total == 0, 1, total)

    return step("softmax", wrong)(c)


def _unrescaled(block: int) -> Run:
    """Sums over blocks of keys that keep the scale of the maximum that they were made with."""

    def wrong(_: Call, f: Function, x: Array, axis: int, kept: Any = None) -> Result:
        if axis != -2 or x.shape[-2] <= block:
            return f(x, axis, kept)
        yes = np.broadcast_to(True if kept is None else kept, x.shape)
        best = np.maximum.accumulate(np.where(yes, x.real, -np.inf), -2)
        last = np.minimum(np.arange(x.shape[-2]) // block * block + block, x.shape[-2]) - 1
        top = best[..., last, :]
        powers = np.where(yes, np.exp(x - np.where(np.isneginf(top), 0, top)), 0)
        total = powers.sum(-2, keepdims=True)
        return powers / np.where(total == 0, 1, total)

    def run(c: Call) -> Result:
        if c["k"].shape[-2] <= block:
            raise ValueError
        return step("softmax", wrong)(c)

    return run


VARIANTS = (
    *(
        Variant(
            f"with sums not rescaled when a later block of {b} keys has a larger score",
            _EFFICIENT,
            _unrescaled(b),
        )
        for b in (1, 8, 16, 32, 64, 128, 256)
    ),
    Variant("without subtracting the maximum", _EFFICIENT, _overflowing),
)
