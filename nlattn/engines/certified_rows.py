"""Rows of certified attention, and its change along arrays, from the keys that it looked at.

In float64: softmax over the leaves that were not left out, as `certified_vjp`. Rows that are left
to dense attention are those of all keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Ints
from nlattn.engines import exhaustive
from nlattn.engines.certified import Ground
from nlattn.engines.certified_vjp import Visits, visits
from nlattn.engines.exhaustive import Slice
from nlattn.kernels.gemm import width
from nlattn.kernels.scores import NEG_L2
from nlattn.runtime import threads
from nlattn.runtime.threads import serial_blas

_BYTES = 1 << 25  # of the weights of some queries among all keys


class Kept(NamedTuple):
    """Some queries, and what they attend to."""

    rows: Ints
    keys: Ints
    """Ascending; no other has weight."""
    weights: Floats
    """(rows, keys), summing to 1; or 0 where a query attends to nothing."""
    lse: Floats


def only(ground: Ground, rows: Ints) -> Ground:
    """What is known of some queries."""
    wanted = np.zeros(len(ground.slice.q), bool)
    wanted[rows] = True
    parts = []
    for part in ground.parts:
        asked, w = part.asked, width(part.tree.shorts)
        sound = np.zeros(-(-len(asked.order) // w), bool)
        sound[asked.panels] = True
        order = asked.order[wanted[asked.order] & np.repeat(sound, w)[: len(asked.order)]]
        if len(order):
            panels = _check.frozen(np.arange(-(-len(order) // w)))
            asked = asked._replace(order=_check.frozen(order), panels=panels)
            parts.append(part._replace(asked=asked))
    dense = ground.dense[wanted[ground.dense]]
    return ground._replace(parts=tuple(parts), dense=dense)


def kept(ground: Ground) -> Iterator[Kept]:
    """All queries, a panel at a time, in a fixed order."""
    x, left = ground.slice, [ground.dense]
    for found in visits(ground):
        left.append(found.left)
        order, w = found.part.asked.order, width(found.part.tree.shorts)
        own = np.flatnonzero(np.diff(found.starts))

        def panel(
            number: int, found: Visits = found, own: Ints = own, order: Ints = order, w: int = w
        ) -> Kept:
            here = own[number]
            return _weights(x, order[here * w : (here + 1) * w], _keys_of(found, here))

        yield from threads.each(panel, len(own), len(own) * w)
    some = np.sort(np.concatenate(left))
    step = max(1, _BYTES // (8 * max(len(x.k), 1)))
    keys = np.arange(len(x.k))
    blocks = [some[i : i + step] for i in range(0, len(some), step)]
    yield from threads.each(lambda i: _weights(x, blocks[i], keys), len(blocks), len(some))


def _keys_of(found: Visits, panel: int) -> Ints:
    """Keys of the leaves that a panel looked at, ascending."""
    tree = found.part.tree
    leaves = found.leaves[found.starts[panel] : found.starts[panel + 1]].astype(np.int64)
    first, last = leaves * tree.size >> tree.levels, (leaves + 1) * tree.size >> tree.levels
    count = last - first
    places = np.repeat(last - np.cumsum(count), count) + np.arange(count.sum())
    keys: Ints = np.sort(tree.order[places])
    return keys


def _weights(x: Slice, rows: Ints, keys: Ints) -> Kept:
    """Softmax of some queries over some keys."""
    q, k, factor, shift = exhaustive.products(x._replace(q=x.q[rows], k=x.k[keys]), np.float64)
    s = factor * (q @ k.T)
    if x.causal or x.pairs.size or x.key_mask.size:
        s[~exhaustive.seen(x, rows, keys)] = -np.inf
    top = s.max(1, initial=-np.inf, keepdims=True)
    s -= np.where(np.isneginf(top), 0, top)
    weights = np.exp(s, out=s)
    total = weights.sum(1, keepdims=True)
    weights /= np.where(total > 0, total, 1)
    with np.errstate(divide="ignore"):
        return Kept(rows, keys, weights, (top + np.log(total))[:, 0] + shift)


def rows(ground: Ground, index: Ints) -> Floats:
    """(r, m) weights of some queries."""
    some, where = np.unique(index, return_inverse=True)
    out = np.zeros((len(some), len(ground.slice.k)), ground.slice.q.dtype)
    for found in kept(only(ground, some)):
        out[np.searchsorted(some, found.rows)[:, None], found.keys] = found.weights
    return out if np.array_equal(index, some) else out[where]


@serial_blas
def jvp(ground: Ground, v: Floats, changes: tuple[Floats, Floats, Floats]) -> tuple[Floats, Floats]:
    """Changes of outputs and lse along (dq, dk, dv), float64."""
    x, n = ground.slice, len(ground.slice.q)
    dq, dk, dv = changes
    out, lse = np.zeros((n, v.shape[1])), np.zeros(n)
    for found in kept(ground):
        rows, keys, p = found[:3]
        ds = _changes(x, rows, keys, dq[rows], dk[keys])
        mean = np.einsum("nm,nm->n", p, ds)
        ds -= mean[:, None]
        ds *= p
        out[rows] = ds @ v[keys] + p @ dv[keys]
        lse[rows] = mean
    return out, lse


def _changes(x: Slice, rows: Ints, keys: Ints, dq: Floats, dk: Floats) -> Floats:
    """Changes of scores."""
    q, k = x.q[rows].astype(np.float64), x.k[keys].astype(np.float64)
    if x.kind != NEG_L2:
        return np.asarray(x.factor * (q @ dk.T + dq @ k.T))
    centre = k.mean(0) if len(k) else 0
    q, k = q - centre, k - centre
    apart = q @ dk.T + dq @ k.T - (q * dq).sum(1)[:, None] - (k * dk).sum(1)
    return np.asarray(2 * x.factor * apart)
