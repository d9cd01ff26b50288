"""What goes wrong alike in every operator that has an array or an option, made from its row.

Heads that share what they should not, tables of keys misread, causality off by one, equal scores
that go the other way.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, partial

import numpy as np

from nlattn._types import Array, Result
from nlattn.conformance.judge.variants.base import Call, Run, Variant
from nlattn.conformance.table import find

ANY = ("any",)
_TABLES = ("field.index", "index", "start.index")
"""Arrays of keys by number, below 0 for none."""
_WORDS = {
    "q": "queries", "k": "keys", "v": "values", "key_mask": "mask of keys", "scores": "scores",
    "field.index": "matches", "index": "chosen keys", "w": "weights", "gate": "gate",
    "weights": "weights", "projection": "projection",
}  # fmt: skip
_EXTRA = {"mask": 2, "bias": 2, "index": 1, "field.index": 3, "scores": 1, "weights": 1}
"""Axes of arrays that the table does not list, beside those of heads."""


def _dims(c: Call, name: str) -> int | None:
    """How many axes an array has beside those of heads; None if it is not known."""
    spec = find(c.op)
    dims = spec.arrays.get(name)
    if dims is not None:
        return len(dims.split())
    if name == "key_mask":
        return len(spec.arrays["k"].split()) - 1
    if name == "mask" and "n" not in " ".join(spec.arrays.values()):
        return 2 * (len(spec.arrays["q"].split()) - 1)
    return _EXTRA.get(name)


def _of_one(name: str, which: int) -> Run:
    """What all heads take of the first, or the last."""

    def run(c: Call) -> Result:
        x, dims = c.arrays[name], _dims(c, name)
        lead = x.shape[: x.ndim - dims] if dims is not None else ()
        if not lead or lead[-1] < 2:
            raise ValueError
        one = x.take([which], len(lead) - 1)
        return c.given(**{name.replace(".", "__"): np.broadcast_to(one, x.shape).copy()})()

    return run


def _of_heads(pick: Callable[[Array, int, int], Array]) -> Run:
    """Heads of keys for each query head, chosen by ``pick(heads, all, shared)``."""

    def run(c: Call) -> Result:
        if not c["gqa"] or ("softmax" in find(c.op).wrong and "index" not in c.arrays):
            raise ValueError
        heads, shared = c["q"].shape[-3], c["k"].shape[-3]
        index = pick(np.arange(heads), heads, shared)
        own = {n: c.arrays[n] for n in ("k", "v", "index", "scores") if n in c.arrays}
        axes = {n: _dims(c, n) or 1 for n in own}
        made = {
            n: x.take(index, x.ndim - axes[n] - 1) if x.ndim > axes[n] else x
            for n, x in own.items()
        }
        return c.given(**made, gqa=None)()

    return run


def _table(change: Callable[[Call, Array], Array]) -> Run:
    """Another table of keys: matches of a field, chosen keys."""

    def run(c: Call) -> Result:
        name = next((n for n in _TABLES if n in c.arrays), None)
        if name is None:
            raise ValueError
        x = np.asarray(c.arrays[name])
        made = np.asarray(change(c, x)).astype(x.dtype)
        if np.array_equal(made, x):
            raise ValueError
        return c.given(**{name.replace(".", "__"): made})()

    return run


def _keys(c: Call) -> int:
    dims = len(find(c.op).arrays["k"].split())
    return int(np.prod(c["k"].shape[-dims:-1]))


def _unravelled(c: Call, x: Array) -> Array:
    """Numbers of keys read with the width of the queries' grid."""
    wide, mine = c["q"].shape[-2], c["k"].shape[-2]
    rows, columns = x // wide, x % wide
    found = np.minimum(rows, c["k"].shape[-3] - 1) * mine + np.minimum(columns, mine - 1)
    return np.where(x < 0, x, found)


def _by_columns(c: Call, x: Array) -> Array:
    H, W = c["k"].shape[-3:-1]
    return np.where(x < 0, x, x % H * W + x // H)


def _last_key(c: Call, x: Array) -> Array:
    return np.where(x < 0, _keys(c) - 1, x)


def _step(by: int, c: Call, x: Array) -> Array:
    return np.where(x < 0, x, np.clip(x + by, 0, _keys(c) - 1))


def _some_matches(keep: Callable[[int], slice]) -> Run:
    """Some of the matches of a field, which has several for each query."""

    def run(c: Call) -> Result:
        index = c["field.index"]
        if index.shape[-1] < 2:
            raise ValueError
        return c.given(field__index=index[..., keep(index.shape[-1])])()

    return run


@cache
def _takes(op: str, name: str) -> bool:
    return name in inspect.signature(find(op).oracle()).parameters


def _causal(seen: Callable[[Array, Array, int, int], Array]) -> Run:
    """Another triangle, as a mask: ``seen(i, j, n, m)``."""

    def run(c: Call) -> Result:
        if not c["causal"] or not _takes(c.op, "mask") or "dense options" in find(c.op).wrong:
            raise ValueError
        if "n" not in " ".join(find(c.op).arrays.values()) or "field.index" in c.arrays:
            raise ValueError
        n, m = c["q"].shape[-2], c["k"].shape[-2]
        yes = seen(np.arange(n)[:, None], np.arange(m), n, m)
        mask = c.get("mask")
        return c.given(causal=None, mask=yes if mask is None else mask & yes)()

    return run


def _highest(c: Call) -> Result:
    """Keys in reverse order, which changes nothing but which of equal ones comes first."""
    spec = find(c.op)
    own = [n for n, dims in spec.arrays.items() if "m" in dims.split() and n in c.arrays]
    known = {*spec.arrays, "mask", "bias", "scores"}
    if not own or "m" in spec.out.split() or c.get("causal") or not {*c.arrays} <= known:
        raise ValueError
    made = {n: np.flip(c.arrays[n], -2) for n in own}
    made |= {n: np.flip(c.arrays[n], -1) for n in ("mask", "bias", "scores") if n in c.arrays}
    return c.given(**made)()


def _biased(change: Callable[[Call, Array], Array]) -> Run:
    """Another bias."""
    return lambda c: c.given(bias=change(c, c["bias"]))()


VARIANTS = (
    *(
        Variant(f"with the {_WORDS.get(n, n)} of the {word} head for all", ANY, _of_one(n, which))
        for n in ("q", "k", "v", "w", "mask", "bias", "gate", "key_mask", "index", "field.index",
                  "scores", "weights")
        for word, which in (("first", 0), ("last", -1))
    ),
    Variant(
        "with query head i on key head i mod the number of key heads",
        ANY,
        _of_heads(lambda i, _, shared: i % shared),
    ),
    Variant("with the first key head for all", ANY, _of_heads(lambda i, _, __: i * 0)),
    Variant("with the last key for a match of -1", ANY, _table(_last_key)),
    Variant("with the first key for a match of -1", ANY, _table(lambda _, x: np.maximum(x, 0))),
    Variant("with one match only, the first", ANY, _some_matches(lambda _: slice(1))),
    Variant("without the last match", ANY, _some_matches(lambda t: slice(t - 1))),
    Variant("without the first match", ANY, _some_matches(lambda _: slice(1, None))),
    Variant("with keys of the table counted from 1", ANY, _table(partial(_step, -1))),
    Variant("with the key after each of the table", ANY, _table(partial(_step, 1))),
    Variant("with matches read by the width of the queries' grid", ANY, _table(_unravelled)),
    Variant("with matches numbered by columns", ANY, _table(_by_columns)),
    Variant("causal by one key too few", ANY, _causal(lambda i, j, _, __: j < i)),
    Variant("causal by one key too many", ANY, _causal(lambda i, j, _, __: j <= i + 1)),
    Variant(
        "causal from the other corner, aligned to the last key",
        ANY,
        _causal(lambda i, j, n, m: j <= i + m - n),
    ),
    Variant("causal towards later keys", ANY, _causal(lambda i, j, _, __: j >= i)),
    Variant("with the highest of equal keys, not the lowest", ANY, _highest),
    Variant("without the bias", ANY, _biased(lambda _, x: np.zeros_like(x))),
    Variant("with the bias subtracted", ANY, _biased(lambda _, x: -x)),
    Variant("with the bias scaled like the scores", ANY, _biased(lambda c, x: c.scale * x)),
)  # fmt: skip
