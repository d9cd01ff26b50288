"""Softmax attention over blocks of keys, as kernels compute it: stages that the oracle has not."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from nlattn._types import Array, Function, Result
from nlattn.conformance.judge.variants import formulas
from nlattn.conformance.judge.variants.base import Call, Variant
from nlattn.conformance.judge.variants.dense import of, stages, translated

SIZES = (16, 32, 64, 128, 256)


def attend(s: Array, v: Array, block: int) -> tuple[Array, Array]:
    """Outputs and lse of scores (..., n, m), -inf for hidden keys, and values (..., m, e)."""
    top = np.full((*s.shape[:-1], 1), -np.inf)
    total, acc = np.zeros(top.shape), np.zeros((*s.shape[:-1], v.shape[-1]))
    for start in range(0, s.shape[-1], block):
        part, own = s[..., start : start + block], v[..., start : start + block, :]
        higher = np.maximum(top, part.max(-1, keepdims=True))
        floor = np.where(np.isneginf(higher), 0, higher)
        powers = np.exp(part - floor)
        shrink = np.exp(top - floor)
        total = total * shrink + powers.sum(-1, keepdims=True)
        acc = acc * shrink + powers @ own
        top = higher
    out = acc / np.where(total == 0, 1, total)
    return out, (top + np.log(total))[..., 0]


def masked_scores(c: Call) -> Array:
    """Scores of a call whose weights are their softmax; ValueError where these are more."""
    t = translated(c)
    if {"sinks", "dropout_mask"} & {*t.arrays} or t.get("gqa") or t.get("lse_base") == "2":
        raise ValueError
    with np.errstate(all="ignore"):
        return stages(t).masked


def attention(c: Call, block: int, how: Function, scores: Array | None = None) -> Result:
    """What a function like `attend` gives for a call of softmax attention, of these scores."""
    s = masked_scores(c) if scores is None else scores
    with np.errstate(all="ignore"):
        return of(lambda t: how(s, t["v"], block))(c)


def variants() -> Iterator[Variant]:
    """Softmaxes over several blocks of keys with one thing changed."""
    for block in SIZES:
        for change in formulas.changes_of(attend, f"a softmax over keys in blocks of {block}"):
            yield Variant(change.name, (), partial(_changed, change, block))


def _changed(change: formulas.Change, block: int, c: Call) -> Result:
    if c["k"].shape[-2] <= block:
        raise ValueError
    return attention(c, block, change.made())
