"""What a panel of queries sums, how far, and which keys its queries may not see."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn._types import Bools, Floats, Ints
from nlattn.kernels.boxes import Tree
from nlattn.kernels.gemm import width
from nlattn.runtime import jit


class Originals(NamedTuple):
    """Features and values as they were given, for keys of weight; or nothing.

    Points of queries are ``factor q``, those of keys ``share k`` and a height, without a channel.
    """

    queries: Floats
    """(n, d)"""
    factors: Floats
    """(n,) float64."""
    keys: Floats
    """m rows of d numbers."""
    heights: Floats
    """(size,) float64, leaf by leaf; or empty."""
    share: float
    without: int
    """The channel that is left out, or d."""


class Terms(NamedTuple):
    """What is summed, and how far."""

    values: Floats
    """Values of every key, leaf by leaf: size rows of `channels` numbers."""
    totals: Floats
    """Sums of the values of every node, float64."""
    exact: Floats
    """Values in float64, by key, for keys that are summed in it; or empty."""
    given: Originals
    channels: int
    numbers: Floats
    """(n, 6) float64 by query."""
    tolerance: float
    reserve: float
    """Share of the weights that rounding may move at most; else the panel is given up."""
    u: float
    """Unit of rounding of weights."""
    u_box: float
    """That of boxes, and of light keys."""
    spread: float
    """How far the mean exponent may lie above that of the best key."""
    slack: float
    """Relative error of a bound's squared distance."""
    most: int
    """Cost of a panel, in keys of dense attention, above which it is given up."""
    pairs: Bools
    """(n, m), or empty."""
    causal: int
    grouped: bool
    """Whether keys that are alike are summed at once."""
    floor: float
    """Exponent ``SHARP D^2`` up to which weights are the largest."""
    apart: bool
    """Whether no query attends to the key of its own number."""
    mixed: bool
    """Whether keys of weight are summed in float64, and light ones as boxes are computed."""


@jit.device(inline=True)
def masked(terms: Terms) -> bool:
    """Whether a query may not attend to every key."""
    return terms.causal != 0 or terms.pairs.size > 0 or terms.apart


@jit.device(inline=True)
def forbid(terms: Terms, tree: Tree, queries: Ints, places: Ints, count: int, s: Floats) -> None:
    """-inf for keys that a query may not attend to."""
    w = width(s)
    if terms.causal or terms.pairs.size > 0:
        for l in range(queries.size):
            i = queries[l]
            for t in range(count):
                key = tree.order[places[t]]
                if (terms.causal and key > i) or (terms.pairs.size > 0 and not terms.pairs[i, key]):
                    s[t * w + l] = -np.inf
    if terms.apart:
        for t in range(count):
            key = tree.order[places[t]]
            for l in range(queries.size):
                if queries[l] == key:
                    s[t * w + l] = -np.inf
