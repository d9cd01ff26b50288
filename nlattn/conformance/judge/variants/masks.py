"""Masks, causality, windows, tiles and heads of softmax attention gone wrong."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from nlattn._types import Array, Result
from nlattn.conformance.judge.variants.base import Call, Run, Variant, softmax
from nlattn.conformance.judge.variants.dense import (
    BLOCKS,
    OPS,
    OPTIONS,
    given,
    of,
    scoring,
    weighing,
)
from nlattn.oracle.dense import Stages


def _until(name: str, most: int) -> Run:
    """What forbids keys, or is added to their scores, counts for the first keys alone."""

    def run(c: Call) -> Result:
        n, m = c["q"].shape[-2], c["k"].shape[-2]
        if m <= most or c.get(name) in (None, False) if name == "causal" else m <= most:
            raise ValueError
        late = np.arange(m) >= most
        if name == "bias":
            return c.given(bias=np.where(late, 0, c["bias"]))()
        if name == "mask":
            return c.given(mask=c["mask"] | late)()
        yes = (np.arange(m) <= np.arange(n)[:, None] + _offset(c)) | late
        mask = c.get("mask")
        none = dict.fromkeys(("causal", "causal_offset"))
        return c.given(**none).given(mask=yes if mask is None else mask & yes)()

    return of(run)


def _positions(c: Call) -> tuple[Array, Array]:
    return np.arange(c["q"].shape[-2])[:, None], np.arange(c["k"].shape[-2])


def _causal(shift: Callable[[Call], int]) -> Run:
    def offset(c: Call) -> Result:
        if not c["causal"] or isinstance(c.get("causal_offset"), str):
            raise ValueError
        return shift(c)

    return given(causal_offset=offset)


def _offset(c: Call) -> Result:
    return c.get("causal_offset", 0)


def _surplus(c: Call) -> int:
    return int(c["k"].shape[-2] - c["q"].shape[-2])


def _window(change: Callable[[Array, Array], Result]) -> Run:
    return given(window=lambda c: list(change(*c["window"])))


def _wider(by_left: int, by_right: int) -> Callable[[Array, Array], Result]:
    return lambda left, right: [
        None if side is None else side + by for side, by in ((left, by_left), (right, by_right))
    ]


def _instead(names: tuple[str, ...], yes: Callable[[Call], Array]) -> Run:
    """Other positions allowed in place of those of some options."""

    def run(c: Call) -> Result:
        if c.get(names[0]) in (None, False):
            raise ValueError
        mask = c.get("mask")
        mask = yes(c) if mask is None else mask & yes(c)
        return c.given(**dict.fromkeys(names)).given(mask=mask)()

    return of(run)


def _keys(kept: Callable[[int], Result]) -> Run:
    """Only some of the keys, by a slice or an index made from their number."""

    def yes(c: Call) -> Array:
        n, m = c["q"].shape[-2], c["k"].shape[-2]
        mask = np.zeros((n, m), bool)
        mask[:, kept(m)] = True
        if not mask.any():
            raise ValueError
        return mask

    def run(c: Call) -> Result:
        mask = c.get("mask")
        return c.given(mask=yes(c) if mask is None else mask & yes(c))()

    return of(run)


def _whole_blocks(block: int, m: int) -> slice:
    return slice(0, m // block * block)


def _beyond(most: int, m: int) -> slice:
    if m <= most:
        raise ValueError
    return slice(0, most)


def _not_negative(_: Call, st: Stages) -> Array:
    return np.where(st.masked.real < 0, -np.inf, st.masked)


def _in_pairs(_: Call, st: Stages) -> Array:
    """Weights of the neighbour in each pair of queries."""
    order = np.arange(st.weights.shape[-2]) ^ 1
    return st.weights[..., np.where(order < len(order), order, len(order) - 1), :]


def _without_diagonal(c: Call) -> Result:
    i, j = _positions(c)
    mask = c.get("mask")
    return c.given(mask=(i != j) if mask is None else mask & (i != j))()


def _of_first_head(name: str) -> Run:
    """What all heads take of the first."""

    def run(c: Call) -> Result:
        x = c[name]
        if x.ndim < 3:
            raise ValueError
        return c.given(
            **{
                name: x * 0 + x[(0,) * (x.ndim - 2)]
                if x.dtype != bool
                else (np.broadcast_to(x[(0,) * (x.ndim - 2)], x.shape).copy())
            }
        )()

    return of(run)


def _on_first_head(name: str, otherwise: Any) -> Run:
    """Other heads than the first are as if it were not given."""

    def run(c: Call) -> Result:
        lead = c["q"].shape[:-2]
        whole = np.broadcast_to(c[name], (*lead, *np.shape(c[name])[-2:]))
        first = (np.arange(int(np.prod(lead))) == 0).reshape(*lead, 1, 1)
        if not lead:
            raise ValueError
        return c.given(**{name: np.where(first, whole, otherwise)})()

    return of(run)


def _some_channels(block: int) -> Run:
    """Scores of the channels up to the last whole block."""

    def run(c: Call) -> Result:
        d = c["q"].shape[-1]
        if d % block == 0 or d < block:
            raise ValueError
        given = c.get("scale")
        kept = np.arange(d) < d // block * block
        return c.given(q=c["q"] * kept, scale=d**-0.5 if given is None else given)()

    return of(run)


def _padded(block: int) -> Callable[[Call, Stages], Array]:
    """Weights when keys are filled up to whole blocks by zeros, whose scores of 0 count."""

    def weights(_: Call, st: Stages) -> Array:
        extra = -st.masked.shape[-1] % block
        pad = [(0, 0)] * (st.masked.ndim - 1) + [(0, extra)]
        return softmax(np.pad(st.masked, pad))[..., : st.masked.shape[-1]]

    return weights


def _other_heads(pick: Callable[[Array, int, int], Array]) -> Run:
    """Heads of keys and values for each query head, chosen by ``pick(heads, all, shared)``."""

    def run(c: Call) -> Result:
        if not c["gqa"]:
            raise ValueError
        heads, shared = c["q"].shape[-3], c["k"].shape[-3]
        index = pick(np.arange(heads), heads, shared)
        return c.given(k=c["k"][..., index, :, :], v=c["v"][..., index, :, :], gqa=None)()

    return of(run)


def _nothing_means(block: int) -> Callable[[Call, Stages], Array]:
    """Equal weights in rows that may attend to nothing; zeros that fill a block count, too."""

    def weights(_: Call, st: Stages) -> Array:
        none = np.isneginf(st.masked.real).all(-1, keepdims=True)
        if not none.any():
            raise ValueError
        return np.where(none, 1 / (-(-st.masked.shape[-1] // block) * block), st.weights)

    return weights


def _too_few_and_finite(block: int) -> Run:
    """Two mistakes: the diagonal is left out, and the queries of nothing get a mean."""
    mean = weighing(_nothing_means(block))

    def run(c: Call) -> Result:
        if not c["causal"]:
            raise ValueError
        return mean(c.given(causal_offset=_offset(c) - 1))

    return run


def _mixed(c: Call) -> Result:
    """Heads and positions lie the other way round in memory."""

    def mix(x: Array) -> Array:
        heads, n = x.shape[-3:-1]
        return np.swapaxes(x.reshape(*x.shape[:-3], n, heads, x.shape[-1]), -2, -3)

    out = c.given(**{name: mix(c[name]) for name in "qkv"})()
    return np.swapaxes(out, -2, -3).reshape(out.shape)


def _anywhere(_: Call) -> Array:
    return np.ones((1, 1), bool)


def _from_the_end(c: Call) -> Array:
    """The window around the diagonal that ends at the last query and the last key."""
    i, j = _positions(c)
    left, right = (np.inf if side is None else side for side in c["window"])
    step = j - i - _surplus(c)
    return np.asarray((-left <= step) & (step <= right))


_MASKS = tuple(
    Variant(name, OPTIONS, run)
    for name, run in (
        ("with the mask inverted", of(lambda c: c.given(mask=~c["mask"])())),
        ("without the mask", of(lambda c: c.given(mask=c["mask"] | True)())),
        ("with the mask added as 0 and 1", scoring(lambda c, st: st.biased + c["mask"])),
        (
            "without causality",
            _instead(("causal", "causal_offset"), _anywhere),
        ),
        ("causal by one key too few", _causal(lambda c: _offset(c) - 1)),
        *(
            (
                "causal by one key too few and, where a query may then attend to nothing, with the "
                f"mean of all values{f' and of zeros up to a multiple of {b}' if b > 1 else ''}",
                _too_few_and_finite(b),
            )
            for b in (1, *BLOCKS)
        ),
        ("causal by one key too many", _causal(lambda c: _offset(c) + 1)),
        (
            "causal from the other corner, aligned to the last key",
            _causal(lambda c: _offset(c) + _surplus(c)),
        ),
        ("causal without its offset", _causal(lambda c: 0)),
        ("causal with the offset's sign turned", _causal(lambda c: -_offset(c))),
        (
            "causal towards later keys",
            _instead(
                ("causal", "causal_offset"),
                lambda c: _positions(c)[1] >= _positions(c)[0] + _offset(c),
            ),
        ),
        *(
            (f"without the {words} from key {b} on", _until(name, b))
            for name, words in (("mask", "mask"), ("causal", "causality"), ("bias", "bias"))
            for b in (32, 64, 128)
        ),
        ("without the window", _instead(("window",), _anywhere)),
        ("with a window one key narrower on the left", _window(_wider(-1, 0))),
        ("with a window one key narrower on the right", _window(_wider(0, -1))),
        ("with a window one key narrower on both sides", _window(_wider(-1, -1))),
        ("with a window one key wider on the left", _window(_wider(1, 0))),
        ("with a window one key wider on the right", _window(_wider(0, 1))),
        ("with a window one key wider on both sides", _window(_wider(1, 1))),
        ("with the left side of the window open", _window(lambda left, right: (None, right))),
        ("with the right side of the window open", _window(lambda left, right: (left, None))),
        ("with an open side of the window read as 0", _window(lambda a, b: (a or 0, b or 0))),
        (
            "with both sides of the window as wide as the left",
            _window(lambda a, b: (a, b if a is None else a)),
        ),
        (
            "with both sides of the window as wide as the right",
            _window(lambda a, b: (a if b is None else b, b)),
        ),
        ("with the window's sides swapped", _window(lambda left, right: (right, left))),
        ("with the window aligned to the last key", _instead(("window",), _from_the_end)),
        (
            "with query head i on key head i mod the number of key heads",
            _other_heads(lambda i, _, shared: i % shared),
        ),
        ("with the first key head for all", _other_heads(lambda i, _, __: i * 0)),
        ("with heads and positions interleaved in memory", of(_mixed)),
        ("with the bias on the first head alone", _on_first_head("bias", 0)),
        ("with the mask on the first head alone", _on_first_head("mask", True)),
        ("with the bias of the first head for all", _of_first_head("bias")),
        ("with the mask of the first head for all", _of_first_head("mask")),
        ("with the dropout mask of the first head for all", _of_first_head("dropout_mask")),
        ("with keys of the first head for all", _of_first_head("k")),
        ("with values of the first head for all", _of_first_head("v")),
        ("with queries of the first head for all", _of_first_head("q")),
    )
)

_KEYS = tuple(
    Variant(name, OPS, run)
    for name, run in (
        ("with NaN where a query may attend to nothing", given(masked_rows="nan")),
        (
            "with the mean of all values where a query may attend to nothing",
            weighing(_nothing_means(1)),
        ),
        *(
            (
                f"with the mean of all values, and of zeros up to a multiple of {b}, where a query "
                "may attend to nothing",
                weighing(_nothing_means(b)),
            )
            for b in BLOCKS
        ),
        ("without the last key", _keys(lambda m: slice(0, m - 1))),
        ("without the first key", _keys(lambda m: slice(1, None))),
        *(
            (f"with the first {b} keys alone", _keys(partial(_beyond, b)))
            for b in (32, 64, 128, 256, 512, 1024)
        ),
        *(
            (f"without the channels after the last whole block of {b}", _some_channels(b))
            for b in (2, 4, *BLOCKS)
        ),
        ("with negative scores left out", scoring(_not_negative)),
        ("with rows of queries swapped in pairs", weighing(_in_pairs)),
        ("with the diagonal left out", of(_without_diagonal)),
        *(
            (
                f"without the keys after the last whole block of {b}",
                _keys(partial(_whole_blocks, b)),
            )
            for b in BLOCKS
        ),
        *(
            (
                f"with keys padded by zeros to a multiple of {b}, which count in the softmax",
                weighing(_padded(b)),
            )
            for b in BLOCKS
        ),
    )
)

VARIANTS = (*_MASKS, *_KEYS)
