"""Softmax attention gone wrong; operators that are attention in other words are translated."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nlattn._types import Array, JsonObject, Result
from nlattn.conformance.judge.variants.base import Call, Run, softmax
from nlattn.conformance.table import TABLE, find
from nlattn.oracle import neighbourhood, pages
from nlattn.oracle.dense import Stages, attention_stages
from nlattn.oracle.lev import _gathered
from nlattn.oracle.seen import product

OPS = ("softmax",)
OPTIONS = ("dense options",)
DENSE = next(spec.name for spec in TABLE if spec.softmax and spec.softmax.own)
BLOCKS = (8, 16, 32, 64, 128)
_SAME = (
    "scale", "masked_rows", "return_lse", "lse_base", "softcap", "qk_norm", "dropout_scale",
)  # fmt: skip
"""Options that mean the same wherever softmax attention has them."""


def translated(c: Call) -> Call:
    """A call of `attention` that gives the same; ValueError if there is none."""
    spec = find(c.op)
    form = spec.softmax
    if "k_pages" in c.arrays:
        return _gathered_pages(c)
    if "neighbours" in spec.wrong:
        return _windows(c)
    if form is None or any(c.get(name, ok[0]) not in ok for name, ok in form.only.items()):
        raise ValueError
    if form.own:
        return c
    q, k, v = (c[name] for name in "qkv")
    if "index" in c.arrays:
        k, v, _ = _gathered(q, k, v, c["index"], bool(c.get("gqa")))
    if "Hq" in spec.out.split():
        q, k, v = (x.reshape(*x.shape[:-3], -1, x.shape[-1]) for x in (q, k, v))
    arrays = {"q": q, "k": k, "v": v}
    if "support.indptr" in c.arrays:
        arrays["mask"] = _mask(c)
        arrays |= {n: _of_pairs(c, n) for n in ("bias", "dropout_mask") if n in c.arrays}
    elif "n" in spec.out.split() and "mask" in c.arrays:
        arrays["mask"] = c["mask"]
    if "sinks" in c.arrays:
        arrays["sinks"] = c["sinks"]
    options = _kept(c, *_SAME)
    if "n" in spec.out.split():
        options |= _kept(c, "causal", "causal_offset")
    if form.scale is not None:
        options.setdefault("scale", form.scale)
    return Call(DENSE, arrays, options, c.dtype, c.then)


def _gathered_pages(c: Call) -> Call:
    """Attention to the rows that pages hold."""
    k, v = (pages.laid(c[f"{name}_pages"], c["table"]) for name in "kv")
    more = {n: x for n, x in c.arrays.items() if n not in ("k_pages", "v_pages", "table")}
    if "key_lengths" in more:
        more["key_lengths"] = pages.own(c["k_pages"], more["key_lengths"])
    return Call(DENSE, {**more, "k": k, "v": v}, pages.placed({**c.options}), c.dtype, c.then)


def _windows(c: Call) -> Call:
    """Attention under the mask of a grid's neighbours."""
    window = c["window"]
    own = {n: c.options[n] for n in ("stride", "dilation", "causal") if n in c.options}
    arrays = {n: neighbourhood.raster(c[n], window) for n in "qkv"}
    arrays["mask"] = neighbourhood.seen_by(c["q"], window, own)
    return Call(DENSE, arrays, _kept(c, "scale", "return_lse"), c.dtype, c.then)


def _kept(c: Call, *names: str) -> JsonObject:
    return {name: c.options[name] for name in names if name in c.options}


def _of_pairs(c: Call, name: str) -> Array:
    """The bias of edges as one of pairs, or which of them are dropped."""
    shape = tuple(int(size) for size in c["support.shape"])
    rows = np.repeat(np.arange(np.prod(shape[:-1])), np.diff(c["support.indptr"]))
    pairs = np.zeros((int(np.prod(shape[:-1])), shape[-1]), c[name].dtype)
    pairs[rows, c["support.indices"]] = c[name]
    return pairs.reshape(shape)


def _mask(c: Call) -> Array:
    """Which keys the support of a call allows."""
    shape = tuple(int(size) for size in c["support.shape"])
    rows = np.repeat(np.arange(np.prod(shape[:-1])), np.diff(c["support.indptr"]))
    mask = np.zeros((int(np.prod(shape[:-1])), shape[-1]), bool)
    mask[rows, c["support.indices"]] = True
    return mask.reshape(shape)


def of(wrong: Run) -> Run:
    """Run on the translated call; the shape of the output is the operator's own."""

    def run(c: Call) -> Result:
        result = wrong(translated(c))
        if "W" not in find(c.op).out:
            return result
        grid = c["q"].shape[:-1]
        if isinstance(result, tuple):
            return (result[0].reshape(*grid, -1), *(x.reshape(grid) for x in result[1:]))
        return result.reshape(*grid, -1)

    return run


def stages(c: Call) -> Stages:
    """All stages of a call of `attention`."""
    options = {n: x for n, x in c.options.items() if n not in ("return_lse", "lse_base")}
    return attention_stages(**c.arrays, **options)


def _v(c: Call, st: Stages) -> Array:
    """Values, one head for each of the output's."""
    v: Array = c["v"]
    return np.repeat(v, st.out.shape[-3] // v.shape[-3], -3) if c.get("gqa") else v


def weighing(weights: Callable[[Call, Stages], Array]) -> Run:
    """``weights(call, stages) v``."""

    def run(c: Call) -> Result:
        if {"sinks", "dropout_mask"} & {*c.arrays}:
            raise ValueError
        st = stages(c)
        return product(weights(c, st), _v(c, st), np.broadcast_to(st.seen, st.masked.shape))

    return of(run)


def leaking(c: Call) -> Result:
    """Weights of 0 times NaN."""
    st, v = stages(c), c["v"]
    if np.isfinite(v).all():
        raise ValueError
    return st.weights @ _v(c, st)


def scoring(scores: Callable[[Call, Stages], Array]) -> Run:
    """``softmax(scores(call, stages)) v``."""
    return weighing(lambda c, st: softmax(scores(c, st)))


def given(**changes: object) -> Run:
    """Other options; a function is called with the call to give one."""
    return of(lambda c: c.given(**{n: x(c) if callable(x) else x for n, x in changes.items()})())
