"""Gradients over the leaves that certified attention looked at: those of queries, then of keys.

Queries lie in blocks of one panel's width in float64, in the order of their tree, keys leaf by
leaf. A block owns its queries, a leaf its keys; both go through what met them in a fixed order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn._types import Floats, Ints
from nlattn.kernels.boxes import Tree, begin
from nlattn.kernels.certified_terms import Terms, forbid
from nlattn.kernels.gemm import aligned, multiply, scaled, width
from nlattn.kernels.lanes import slopes
from nlattn.kernels.panel import soften
from nlattn.runtime import jit


class Met(NamedTuple):
    """Arrays of a backward pass, flat and float64, and what met."""

    queries: Floats
    """Of each block d rows of its lanes."""
    query_rows: Floats
    """The same as rows of channels, as many channels at a time as there are lanes."""
    dout: Floats
    dout_rows: Floats
    keys: Floats
    """A row of d numbers for every key, leaf by leaf."""
    values: Floats
    order: Ints
    """Queries, block by block."""
    starts: Ints
    """Where the leaves of each panel begin in `leaves`."""
    leaves: Ints
    key_starts: Ints
    """Where the panels of each leaf begin in `panels`."""
    panels: Ints
    blocks: int
    """Blocks of a panel."""
    d: int
    e: int
    factor: float
    sums_alone: bool
    """Whether nothing is wanted but sums of `dout` over the weights of each key."""


@jit.device
def meet(
    tree: Tree, terms: Terms, met: Met, block: int, start: int, count: int, places: Ints,
    s: Floats, ds: Floats,
) -> None:  # fmt: skip
    """Scores of one block with the keys of a leaf, and products of `dout` with their values."""
    d, e, w = met.d, met.e, width(met.keys)
    at, first = block * d * w, start * d
    scaled(met.keys, first, d, 1, met.queries, at, w, s, 0, w, count, d, met.factor)
    if terms.causal != 0 or terms.pairs.size > 0:
        for t in range(count):
            places[t] = start + t
        queries = met.order[block * w : min((block + 1) * w, met.order.size)]
        forbid(terms, tree, queries, places, count, s)
    if not met.sums_alone:
        multiply(met.values, start * e, e, 1, met.dout, block * e * w, w, ds, 0, w, count, e)


@jit.kernel
def of_queries(
    block: int, tree: Tree, terms: Terms, met: Met, leaf: int, norm: Floats, dq: Floats
) -> None:
    """Gradients `dq` (blocks, d, width), and of each lane `norm` (blocks, 3, width).

    These are its largest score, one over its sum of weights, and its mean product. No leaf has more
    than `leaf` keys.
    """
    d, w, panel = met.d, width(met.keys), block // met.blocks
    s, ds, part = (
        aligned(leaf * w, met.keys),
        aligned(leaf * w, met.keys),
        aligned(d * w, met.keys),
    )
    top, total, room = np.full(w, -np.inf), np.zeros(w), np.empty(2 * w)
    mean, places = np.zeros(w), np.empty(leaf, np.int64)
    levels = 1 << tree.levels
    for x in range(met.starts[panel], met.starts[panel + 1]):
        node = levels + met.leaves[x]
        start = begin(tree, node, tree.levels)
        count = begin(tree, node + 1, tree.levels) - start
        meet(tree, terms, met, block, start, count, places, s, ds)
        soften(s, count, w, top, total, room)
        if not met.sums_alone:
            for l in range(w):
                mean[l] *= room[l]
            for t in range(count):
                for l in range(w):
                    mean[l] += s[t * w + l] * ds[t * w + l]
    for l in range(w):
        there = block * w + l < met.order.size and total[l] > 0
        norm[block, 0, l] = top[l] if there else 0
        norm[block, 1, l] = 1 / total[l] if there else 0
        norm[block, 2, l] = mean[l] / total[l] if there else 0
    if met.sums_alone:
        return
    for x in range(met.starts[panel], met.starts[panel + 1]):
        node = levels + met.leaves[x]
        start = begin(tree, node, tree.levels)
        count = begin(tree, node + 1, tree.levels) - start
        meet(tree, terms, met, block, start, count, places, s, ds)
        slopes(s, ds, 0, w, count, norm[block, 0], norm[block, 1], norm[block, 2])
        scaled(met.keys, start * d, 1, d, ds, 0, w, part, 0, w, d, count, met.factor)
        for c in range(d):
            for l in range(w):
                dq[block, c, l] += part[c * w + l]


@jit.device
def gather_rows(
    s: Floats, rows: Floats, block: int, channels: int, count: int, part: Floats, out: Floats
) -> None:
    """Add products of weights and the rows of a block to `out` (keys, channels)."""
    w = width(s)
    chunks = (channels + w - 1) // w
    for chunk in range(chunks):
        at = (block * chunks + chunk) * w * w
        multiply(s, 0, w, 1, rows, at, w, part, 0, w, count, w)
        for t in range(count):
            for c in range(min(w, channels - chunk * w)):
                out[t, chunk * w + c] += part[t * w + c]


@jit.kernel
def of_keys(
    leaf: int, tree: Tree, terms: Terms, met: Met, norm: Floats, dk: Floats, dv: Floats
) -> None:
    """Gradients of the keys of a leaf, `dk` (size, d), and of their values, `dv` (size, e)."""
    node, w = (1 << tree.levels) + leaf, width(met.keys)
    start, end = begin(tree, node, tree.levels), begin(tree, node + 1, tree.levels)
    count, places = end - start, np.empty(end - start, np.int64)
    s, ds, part = (
        aligned(count * w, met.keys),
        aligned(count * w, met.keys),
        aligned(count * w, met.keys),
    )
    for x in range(count * w):
        ds[x] = 0
    for x in range(met.key_starts[leaf], met.key_starts[leaf + 1]):
        first = met.panels[x] * met.blocks
        for block in range(first, min(first + met.blocks, len(norm))):
            meet(tree, terms, met, block, start, count, places, s, ds)
            slopes(s, ds, 0, w, count, norm[block, 0], norm[block, 1], norm[block, 2])
            gather_rows(s, met.dout_rows, block, met.e, count, part, dv[start:end])
            if not met.sums_alone:
                gather_rows(ds, met.query_rows, block, met.d, count, part, dk[start:end])
