"""What a panel of queries has at hand while it sums: its own numbers, and batches of keys."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn._types import Floats, Ints
from nlattn.kernels.boxes import Tree
from nlattn.kernels.certified_terms import Terms
from nlattn.kernels.gemm import aligned, width
from nlattn.kernels.nearest import Asked
from nlattn.runtime import jit

SHARP, MOVED, ROOT, LOOSE, THERE, COARSE = range(6)
"""Columns of a query's numbers. Points alone move ``MOVED + ROOT sqrt(x)`` of its weights, x a
bound of the mean exponent, and without what they are less than their lows ``COARSE sqrt(x)``; the
bound of a key's weight is loosened by ``exp(LOOSE)``; THERE is 0 for a query that may attend to no
key."""
BATCH = 128
"""Keys that are summed in the dtype of values before float64."""


class Panel(NamedTuple):
    """What a panel of queries has at hand; of each lane one number, where nothing else is said."""

    exact: Floats
    """(dims, width) float64, in panels of float64's width one behind the other, where some keys are
    summed in it; else empty."""
    points: Floats
    """(dims, width)"""
    shorts: Floats
    """(short, width)"""
    sharp: Floats
    """-SHARP"""
    steep: Floats
    """-SHARP, in float64."""
    high: Floats
    """-HIGH"""
    loosely: Floats
    """As `sharp`, of bounds."""
    loose: Floats
    """As `high`, of bounds."""
    budget: Floats
    """Share of the weights that may be left out; -1 of a lane that asks for nothing."""
    moved: Floats
    """Share that rounding may move."""
    sums: Floats
    """Weights so far."""
    most: Floats
    """Largest weight so far."""
    missed: Floats
    """Weight that may have been left out so far, in float64,"""
    spent: Floats
    """and since the last batch."""
    allowed: Floats
    """Weight that may still be left out; inf for lanes that ask for nothing."""
    limits: Floats
    """Squared distances of short points above which a key is left out."""
    small: Floats
    """What that may cost a key."""
    light: Floats
    """What rounding may move of a light key's weight, as a share of it."""
    heavy: Floats
    """Exponents above which a key is no light one."""
    wanted: Floats
    """Room for one number of each lane."""


class Deep(NamedTuple):
    """Keys of weight that are summed together in float64, in panels of float64's width."""

    places: Ints
    """Where they lie in the tree."""
    keys: Ints
    exact: Floats
    """(BATCH, dims) points."""
    s: Floats
    """Exponents, weights; panel by panel."""
    steep: Floats
    """-SHARP of each lane, and the others alike:"""
    high: Floats
    wanted: Floats
    zero: Floats
    total: Floats
    part: Floats
    """(channels, width) sums of this batch, panel by panel."""


class Batch(NamedTuple):
    """Keys of a panel that are summed together."""

    places: Ints
    """Where they lie in the tree."""
    s: Floats
    """(BATCH, width) distances, exponents, weights."""
    total: Floats
    part: Floats
    """(channels, width) sums of this batch."""
    whole: Floats
    """(channels, width) float64 sums of all."""


@jit.device(once=True)
def panel_of(tree: Tree, asked: Asked, terms: Terms, queries: Ints) -> Panel:
    """The panel of some queries; lanes beyond them are those of the first, and ask for nothing."""
    dims, short, like, w = tree.dims, tree.short, tree.shorts, width(tree.shorts)
    part, deep = width(terms.totals), dims if terms.mixed else 0
    exact = aligned(deep * w, terms.totals)
    points, shorts = aligned(dims * w, like), aligned(short * w, like)
    sharp, high, loosely, loose = (
        aligned(w, like),
        aligned(w, like),
        aligned(w, like),
        aligned(w, like),
    )
    spent, allowed, limits, small = (
        aligned(w, like),
        aligned(w, like),
        aligned(w, like),
        aligned(w, like),
    )
    budget, steep, given = np.empty(w), np.empty(w), terms.given
    for l in range(w):
        spent[l], small[l] = 0, 0
        i, at = queries[l] if l < queries.size else queries[0], l // part * dims * part + l % part
        for c in range(dims):
            points[c * w + l] = asked.points[i, c]
        for c in range(deep):
            exact[at + c * part] = 0
        for c in range(given.queries.shape[1] if deep > 0 else 0):
            if c != given.without:
                to = at + (c - int(c > given.without)) * part
                exact[to] = given.factors[i] * np.float64(given.queries[i, c])
        for c in range(short):
            shorts[c * w + l] = asked.shorts[i, c]
        sharp[l] = steep[l] = -terms.numbers[i, SHARP]
        loosely[l] = -terms.numbers[i, SHARP] * (1 - terms.slack)
        budget[l] = 0 if l < queries.size and terms.numbers[i, THERE] != 0 else -1
    return Panel(
        exact, points, shorts, sharp, steep, high, loosely, loose, budget, np.zeros(w), np.zeros(w),
        np.zeros(w), np.zeros(w), spent, allowed, limits, small, aligned(w, like), aligned(w, like),
        aligned(w, like),
    )  # fmt: skip


@jit.device(once=True)
def batch_of(tree: Tree, e: int) -> Batch:
    """Room for a batch of keys with values of `e` channels."""
    like, w = tree.shorts, width(tree.shorts)
    return Batch(
        np.empty(BATCH, np.int64),
        aligned(BATCH * w, like),
        aligned(w, like),
        aligned(e * w, like),
        np.zeros(e * w),
    )


@jit.device(once=True)
def deep_of(tree: Tree, terms: Terms, panel: Panel) -> Deep:
    """Room for a batch of keys in float64, if there are such."""
    like, w = terms.totals, width(tree.shorts)
    some = BATCH if terms.mixed else 0
    return Deep(
        np.empty(some, np.int64),
        np.empty(some, np.int64),
        aligned(some * tree.dims, like),
        aligned(some * w, like),
        panel.steep,
        aligned(w, like),
        aligned(w, like),
        np.zeros(w),
        aligned(w, like),
        aligned(terms.channels * w, like),
    )
