"""What shows in few calls alone: long sums, an axis of 1, a promise, a sink without keys."""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np

from nlattn.conformance.case import scale_of
from tests.faults.spoilt import Arrays, Options, Results, Trap, again


def _added_in_16_bits(r: Results, a: Arrays, o: Options) -> Results:
    """The output grows in bfloat16, 16 keys at a time."""
    out = np.zeros_like(r[0])
    for first in range(0, a["v"].shape[-2], 16):
        own = np.zeros_like(a["v"])
        own[..., first : first + 16, :] = a["v"][..., first : first + 16, :]
        out = (out + again("nonlocal_mean", a, o, v=own)[0]).astype(ml_dtypes.bfloat16)
    return [out.astype(float)]


def _gradients_in_16_bits(r: Results, a: Arrays, o: Options) -> Results:
    """Gradients of keys and values grow in bfloat16, 16 queries at a time."""
    found = [np.zeros_like(x) for x in r[1:3]]
    for first in range(0, a["q"].shape[-2], 16):
        own = np.zeros_like(a["dout"])
        own[..., first : first + 16, :] = a["dout"][..., first : first + 16, :]
        more = again("nonlocal_mean_vjp", a, o, dout=own)[1:3]
        found = [(x + y).astype(ml_dtypes.bfloat16) for x, y in zip(found, more, strict=True)]
    return [r[0], *(x.astype(float) for x in found), *r[3:]]


def _heads_in_16_bits(r: Results, a: Arrays, o: Options) -> Results:
    """Gradients of keys and values that all heads share grow in bfloat16, head by head."""
    q, k, v = a["q"], a["k"], a["v"]
    if {k.ndim, v.ndim} != {3} or {k.shape[0], v.shape[0]} != {1}:
        return r
    found = [np.zeros_like(x) for x in r[1:3]]
    for head in range(q.shape[0]):
        one = slice(head, head + 1)
        more = again("efficient_attention_vjp", a, o, q=q[one], dout=a["dout"][one])[1:3]
        found = [(x + y).astype(ml_dtypes.bfloat16) for x, y in zip(found, more, strict=True)]
    return [r[0], *(x.astype(float) for x in found)]


def _last_batch(r: Results, a: Arrays, o: Options) -> Results:
    """Gradients of keys that all batches share are those of the last batch."""
    q, k = a["q"], a["k"]
    if k.ndim < 4 or k.shape[0] > 1 or q.shape[0] == 1 or "mask" in a:
        return r
    last = again("efficient_attention_vjp", a, o, q=q[-1:], dout=a["dout"][-1:])
    return [r[0], *last[1:3]]


def _missed_says_nothing(r: Results, a: Arrays, o: Options) -> Results:
    """Keys below their share of the tolerance are left out, and `missed` is 0."""
    if not o.get("return_missed"):
        return r
    if {"scale", "causal", "weight"} & {*o} or {"mask", "bias"} & {*a}:
        raise NotImplementedError
    s = scale_of(o, a["q"]) * (a["q"] @ np.swapaxes(a["k"], -1, -2))
    w = np.exp(s - s.max(-1, keepdims=True))
    w /= w.sum(-1, keepdims=True)
    w = np.where(w < o.get("tolerance", 0) / s.shape[-1], 0, w)
    return [w / w.sum(-1, keepdims=True) @ a["v"], r[1], 0 * r[2]]


def _no_sink_alone(r: Results, a: Arrays, o: Options) -> Results:
    """Rows without keys have no lse, whatever their sink."""
    if "sinks" not in a or len(r) < 2:
        return r
    empty = np.isneginf(again("sparse_attention", a, o, sinks=None)[1])
    return [r[0], np.where(empty, -np.inf, r[1])]


def _traps() -> Iterator[Trap]:
    yield Trap(
        "nonlocal_mean", "the output is added up in bfloat16, 16 keys at a time", "",
        None, _added_in_16_bits, ("bfloat16",),
    )  # fmt: skip
    yield Trap(
        "nonlocal_mean_vjp", "dk and dv are added up in bfloat16, 16 queries at a time", "",
        None, _gradients_in_16_bits, ("bfloat16",),
    )  # fmt: skip
    yield Trap(
        "efficient_attention_vjp", "heads' dk and dv are added up in bfloat16", "",
        None, _heads_in_16_bits, ("bfloat16",),
    )  # fmt: skip
    yield Trap("efficient_attention_vjp", "keys of one batch: the last's dk", "", None, _last_batch)
    yield Trap(
        "certified_attention", "missed is 0, without a scale", "", None, _missed_says_nothing
    )
    yield Trap("sparse_attention", "lse of a sink alone is -inf", "", None, _no_sink_alone)


RARELY = (*_traps(),)
