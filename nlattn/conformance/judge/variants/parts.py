"""Partial results merged wrongly, pages taken wrongly, shares of other numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from nlattn._types import Result
from nlattn.conformance.case import Case
from nlattn.conformance.judge.variants.base import (
    Array,
    Call,
    Run,
    after,
    needs,
    option,
    several,
    softmax,
)

_MERGED, _SHARE, _PAGES, _PAGED = ("merged",), ("share",), ("pages",), ("paged",)


def _by(weights: Callable[[Array], Array]) -> Run:
    """Outputs merged by other weights of their normalisers (..., parts, n)."""

    def run(c: Call) -> Result:
        lse = c()[1]
        z = c["lses"] * (np.log(2) if c.get("lse_base") == "2" else 1.0)
        w = weights(z)[..., None]
        return np.where(w == 0, 0, w * c["outs"]).sum(-3), lse

    return run


def _linear(z: Array) -> Array:
    z = np.where(np.isneginf(z.real), 0, z)
    return np.asarray(z / z.sum(-2, keepdims=True))


def _even(z: Array) -> Array:
    there = ~np.isneginf(z.real)
    return np.asarray(there / np.maximum(there.sum(-2, keepdims=True), 1))


def _of_parts(which: slice) -> Run:
    return lambda c: c.given(outs=c["outs"][..., which, :, :], lses=c["lses"][..., which, :])()


def _lse(change: Callable[[Array, Array], Array]) -> Run:
    """Another normaliser, of those of the sets and of ours."""

    def run(c: Call) -> Result:
        out, lse = c()
        return out, change(c["lses"], lse)

    return run


def _largest(z: Array, _: Array) -> Array:
    at = z.real.argmax(-2)[..., None, :]
    return np.asarray(np.take_along_axis(z, at, -2)[..., 0, :])


def _other_base(c: Call) -> Result:
    return c.given(lse_base="e" if c.get("lse_base") == "2" else "2")()


def _only_base_of_lse(c: Call) -> Result:
    """Weights by the natural exponential of logarithms to base 2."""
    if c["lse_base"] != "2":
        raise ValueError
    return c.given(lse_base="e")()[0], c()[1]


def _empty_is_nan(c: Call) -> Result:
    out, lse = c()
    none = np.isneginf(lse.real)
    if not none.any():
        raise ValueError
    return np.where(none[..., None], np.nan, out), np.where(none, np.nan, lse)


def _right_lse(run: Run) -> Run:
    return lambda c: (run(c)[0], c()[1])


def _held(c: Call) -> Result:
    """Nothing times what an empty set holds, which may be NaN."""
    out, lse = c()
    held = 0 * c["outs"].sum(-3)
    if not np.isnan(held).any():
        raise ValueError
    return out + held, lse


def _of_one_place(step: int) -> Callable[..., dict[str, Array]]:
    """The gradient of the last place of each page, or the first, not the sum over all."""

    def make(case: Case, want: Mapping[str, Array]) -> dict[str, Array]:
        if "pages" not in case.arrays:
            raise ValueError
        table, found = case.arrays["table"], np.zeros(want["dpages"].shape)
        each = np.asarray(case.arrays["dout"], float).reshape(*table.shape, *found.shape[1:])
        found[table[table >= 0][::step]] = each[table >= 0][::step]
        return {"dpages": found}

    return make


def _mean_of_places(case: Case, want: Mapping[str, Array]) -> dict[str, Array]:
    """Gradients of pages divided by how often each is used."""
    names = [n for n in want if n.endswith("pages")]
    table = case.arrays["table"]
    size = len(want[names[0]]) if names else 0
    count = np.bincount(table[table >= 0].ravel(), minlength=size)
    if not names or (count <= 1).all():
        raise ValueError
    over = np.maximum(count, 1).reshape(-1, 1, 1, 1)
    return {n: want[n] / over if n in names else x for n, x in want.items()}


def _scores(change: Callable[[Array, Array, Array], Array]) -> Callable[..., dict[str, Array]]:
    """``dlses = change(shares, inner, dlse)``, inner the products of outputs and dout."""

    def make(case: Case, _: Mapping[str, Array]) -> dict[str, Array]:
        unit = np.log(2) if case.options.get("lse_base") == "2" else 1.0
        outs, lses, dout = (np.asarray(case.arrays[n], float) for n in ("outs", "lses", "dout"))
        p = softmax(unit * lses, -2)
        kept = np.where(p[..., None] == 0, 0, outs)
        inner = unit * (kept * dout[..., None, :, :]).sum(-1)
        rest = np.asarray(case.arrays["dlse"], float)[..., None, :]
        return {"dlses": change(p, inner, rest)}

    return make


def _even_douts(case: Case, want: Mapping[str, Array]) -> dict[str, Array]:
    dout = np.asarray(case.arrays["dout"], float)[..., None, :, :]
    return {"douts": np.broadcast_to(dout, want["douts"].shape)}


GRADIENTS: tuple[tuple[str, Callable[..., dict[str, Array]]], ...] = (
    ("with the last place of a page in place of the sum over all", _of_one_place(1)),
    ("with the first place of a page in place of the sum over all", _of_one_place(-1)),
    ("with the mean over the places of a page, not the sum", _mean_of_places),
    ("without the mean over sets in dlses", _scores(lambda p, inner, rest: p * (inner + rest))),
    (
        "without the shares in dlses",
        _scores(lambda p, inner, rest: inner - (p * inner).sum(-2, keepdims=True) + rest),
    ),
    ("with douts not weighted", _even_douts),
)
"""What goes wrong in gradients alone."""


def _moved_pages(change: Callable[[Array, int], Array]) -> Run:
    """The oracle with another table, of this one and of the number of pages."""

    def run(c: Call) -> Result:
        pages = c.get("pages")
        count = len(c["k_pages"] if pages is None else pages)
        return c.given(table=change(np.array(c["table"]), count))()

    return run


def _lengths(change: Callable[[Array, int], Array]) -> Run:
    """The oracle with other lengths, of these and of the most that there can be."""

    def run(c: Call) -> Result:
        most = c["k_pages"].shape[1] * c["table"].shape[-1]
        return c.given(key_lengths=change(np.array(c["key_lengths"]), most))()

    return run


def _whole_pages(c: Call) -> Result:
    size = c["k_pages"].shape[1]
    return c.given(key_lengths=-(-np.array(c["key_lengths"]) // size) * size)()


def _only_whole_pages(c: Call) -> Result:
    size = c["k_pages"].shape[1]
    return c.given(key_lengths=np.array(c["key_lengths"]) // size * size)()


def _less_a_full_page(c: Call) -> Result:
    """Lengths of whole pages one page less; those that are not given are of all pages."""
    size, pages = c["k_pages"].shape[1], c["table"].shape[-1]
    lengths = c.get("key_lengths")
    lengths = np.full(c["table"].shape[:-1], size * pages) if lengths is None else np.array(lengths)
    less = np.where(lengths % size, lengths, np.maximum(lengths - size, 0))
    return c.given(key_lengths=less)()


def _padded_corner(c: Call) -> Result:
    """Aligned to the end of the table, not to the last key."""
    if c.get("causal_offset") != "bottom-right" or c.get("key_lengths") is None:
        raise ValueError
    most = c["k_pages"].shape[1] * c["table"].shape[-1]
    return c.given(causal_offset=most - c["q"].shape[-2])()


def _still_window(c: Call) -> Result:
    if c.get("causal"):
        raise ValueError
    return c.given(causal_offset=0)()


def _wider(c: Call) -> Result:
    left, right = c["window"]
    return c.given(window=(left + 1, right))()


def _interleaved(c: Call) -> Result:
    """The first rows of all pages, then the second ones."""
    out, size = c(), c["pages"].shape[1]
    lead = out.ndim - c["pages"].ndim + 1
    parts = out.reshape(*out.shape[:lead], -1, size, *out.shape[lead + 1 :])
    return np.swapaxes(parts, lead, lead + 1).reshape(out.shape)


VARIANTS = (
    *several(
        _MERGED,
        {
            "with all sets weighted alike": _by(_even),
            "with outputs added, not weighted": _by(lambda z: 0 * z.real + 1),
            "weighted by lse, not its exponential": _by(_linear),
            "weighted by the exponential of lse, not divided by their sum": _by(np.exp),
            "with weights to base 2 in place of e, or e in place of 2": _other_base,
            "with weights to base e of logarithms to base 2": _only_base_of_lse,
            "without the last set": _of_parts(slice(None, -1)),
            "without the first set": _of_parts(slice(1, None)),
            "with the first two sets alone": _of_parts(slice(2)),
            "with the largest lse in place of that of all": _lse(_largest),
            "with lse added, not their exponentials": _lse(lambda z, _: z.sum(-2)),
            "with the mean of lse": _lse(lambda z, _: z.mean(-2)),
            "with the lse of the first set": _lse(lambda z, _: z[..., 0, :]),
            "with NaN where all sets are empty": _empty_is_nan,
            "with NaN of what an empty set holds": _held,
            "with outputs of NaN where all sets are empty": _right_lse(_empty_is_nan),
        },
    ),
    *several(
        _SHARE,
        {
            "with the difference of logarithms": lambda c: c["lse_set"] - c["lse"],
            "the other way round: all keys over the set": lambda c: np.exp(c["lse"] - c["lse_set"]),
            "with the part of all other keys": after(lambda _, out: 1 - out),
            "with logarithms to base 2": lambda c: np.exp2(c["lse_set"] - c["lse"]),
            "with the ratio of logarithms": lambda c: c["lse_set"] / c["lse"],
            "with the exponential of the set alone": lambda c: np.exp(c["lse_set"]),
            "with 1 where the set is empty": lambda c: np.where(
                np.isneginf(c["lse_set"].real), 1, c()
            ),
            "at most 1": after(lambda _, out: np.minimum(out, 1)),
            "with NaN where no key is seen": lambda c: np.exp(c["lse_set"] - c["lse"]),
        },
    ),
    *several(
        _PAGES,
        {
            "with pages in reverse order": _moved_pages(lambda t, _: t[..., ::-1]),
            "with the next page": _moved_pages(
                lambda t, count: np.where(t < 0, t, (t + 1) % count)
            ),
            "with the last page for an empty one": _moved_pages(lambda t, count: t % count),
            "with the first page for an empty one": _moved_pages(lambda t, _: np.maximum(t, 0)),
            "with the table of the first sequence": _moved_pages(
                lambda t, _: 0 * t + t[(0,) * (t.ndim - 1)]
            ),
            "with pages in their own order, as if there were no table": _moved_pages(
                lambda t, count: 0 * t + np.arange(t.shape[-1]) % count
            ),
            "with the first page of every sequence alone": _moved_pages(
                lambda t, _: 0 * t + t[..., :1]
            ),
            "with rows of pages taken in turn": _interleaved,
            "without the last page": _moved_pages(
                lambda t, _: np.where(np.arange(t.shape[-1]) == t.shape[-1] - 1, -1, t)
            ),
            "with heads in reverse order": after(lambda _, out: out[..., ::-1, :]),
        },
    ),
    *several(
        _PAGED,
        {
            "with the next page": _moved_pages(
                lambda t, count: np.where(t < 0, t, (t + 1) % count)
            ),
            "with the table of the first sequence": _moved_pages(
                lambda t, _: 0 * t + t[(0,) * (t.ndim - 1)]
            ),
            "with pages in their own order, as if there were no table": _moved_pages(
                lambda t, count: 0 * t + np.arange(t.shape[-1]) % count
            ),
            "with the first page of every sequence alone": _moved_pages(
                lambda t, _: 0 * t + t[..., :1]
            ),
            "with pages in reverse order": _moved_pages(lambda t, _: t[..., ::-1]),
            "without the key lengths": _lengths(lambda _, most: np.array(most)),
            "with the first sequence's number of keys for all": _lengths(lambda x, _: 0 * x + x[0]),
            "with the rest of the last page": _whole_pages,
            "without the last page where it is not full": _only_whole_pages,
            "without the last page where it is full": _less_a_full_page,
            "with the last key left out": _lengths(lambda x, _: np.maximum(x - 1, 0)),
            "causal from the top left corner": needs("causal", option(causal_offset=0)),
            "causal from the end of the table": _padded_corner,
            "without causality": lambda c: c.given(causal=False)(),
            "without the window": needs("window", option(window=None)),
            "with the window about the query itself": needs("window", _still_window),
            "with one key more before the window": needs("window", _wider),
            "with lse in base e": lambda c: c.given(lse_base="e" if c["lse_base"] == "2" else 0)(),
            "without the sinks": lambda c: c.given(sinks=None)(),
            "without the linear bias": lambda c: c.given(alibi=None)(),
            "with keys for values": lambda c: c.given(v_pages=c["k_pages"])(),
            "with a scale of 1": lambda c: c.given(scale=1.0)(),
        },
    ),
)
