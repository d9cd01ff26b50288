"""Gradients of certified attention, and sums over queries, from the keys that it looked at.

These are exact, in float64, for softmax over the leaves that were not left out: with a share t of a
row left out, weights differ by 2 t of it, and gradients as `docs/algorithms/certified.md` says.
Rows that are left to dense attention are those of all keys.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Ints
from nlattn.engines import certified, exhaustive
from nlattn.engines.boxes import LEAF
from nlattn.engines.certified import Descent, Ground
from nlattn.kernels import certified_vjp as kernels
from nlattn.kernels.certified_vjp import Met
from nlattn.kernels.gemm import width
from nlattn.kernels.panel import groups
from nlattn.kernels.scores import NEG_L2

_SLOW = 8
"""What a multiply-add takes here, twice over with an exponential, beside one in float32."""


class Visits(NamedTuple):
    """Which leaves of a part each panel looked at, and the queries that gave up."""

    part: Descent
    starts: Ints
    leaves: Ints
    key_starts: Ints
    panels: Ints
    left: Ints
    lse: Floats
    """(n,) of these queries, for want of others;"""
    missed: Floats
    """(n,) share of them that was left out, or moved by rounding."""


def visits(ground: Ground) -> list[Visits]:
    """Leaves that cannot be left out, part by part."""
    return [_visits(ground._replace(grouped=False), part) for part in ground.parts]


def _visits(ground: Ground, part: Descent) -> Visits:
    v = np.zeros((len(ground.slice.k), 1))
    most = len(ground.slice.k)
    _, norm, counts = certified.gather(ground, part, v, most=most)
    starts = np.append(0, np.cumsum(counts[:, 4]))
    leaves = np.zeros(starts[-1], np.int32)
    if len(leaves):
        certified.gather(ground, part, v, most=most, lists=(leaves, starts))
    gave_up = counts[:, 2] != 0
    panels = np.repeat(np.arange(len(counts), dtype=np.int32), np.diff(starts))
    kept = ~gave_up[panels]
    panels, leaves = panels[kept], leaves[kept]
    starts = np.append(0, np.cumsum(np.where(gave_up, 0, counts[:, 4])))
    by_leaf = np.argsort(leaves, kind="stable")
    amounts = np.bincount(leaves, minlength=1 << part.tree.levels)
    own = part.asked.panels
    left = certified.queries_of(part, own[gave_up[own]])
    with np.errstate(divide="ignore", invalid="ignore"):
        lse = part.top - norm[:, 2] + np.log(norm[:, 0])
        missed = np.where(norm[:, 0] > 0, norm[:, 1] / norm[:, 0] + norm[:, 3], 0)
    return Visits(
        part,
        _check.frozen(starts),
        _check.frozen(leaves),
        _check.frozen(np.append(0, np.cumsum(amounts))),
        _check.frozen(panels[by_leaf]),
        left,
        lse,
        missed,
    )


def vjp(ground: Ground, v: Floats, dout: Floats) -> tuple[Floats, Floats, Floats]:
    """Gradients (dq, dk, dv) of ``sum(dout * out)``, float64."""
    x = ground.slice
    q, k, factor, _ = exhaustive.products(x, np.float64)
    dq, dk, dv = np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape)
    left = [ground.dense]
    for part in visits(ground):
        left.append(part.left)
        _add(ground, part, (q, k, v, dout), factor, (dq, dk, dv))
    exhaustive.add_vjp(x, v, dout, np.sort(np.concatenate(left)), (dq, dk, dv))
    if x.kind == NEG_L2:  # the last channel of keys is -|k|^2 / 2, less their mean
        lift = dk[:, -1:]  # 0 of keys that are hidden, which may be NaN
        dq, dk = dq[:, :-1], dk[:, :-1] - np.where(lift == 0, 0, lift * k[:, :-1])
    return dq, dk, dv


def adjoint(ground: Ground, found: list[Visits], lse: Floats, g: Floats) -> Floats:
    """``A.T g`` (m, e) for g (n, e): of rows that went down the tree, over what they looked at."""
    x = ground.slice
    q, k, factor, _ = exhaustive.products(x, np.float64)
    g64, sums = g.astype(np.float64), np.zeros((len(k), g.shape[1]))
    left = [ground.dense]
    for part in found:
        left.append(part.left)
        given = q, k, np.zeros((len(k), g.shape[1])), g64
        _add(ground, part, given, factor, (np.zeros((0, 0)), np.zeros((0, 0)), sums))
    rows = np.sort(np.concatenate(left))
    for kind, own in ((x.q.dtype, ~ground.dense_wide[rows]), (g64.dtype, ground.dense_wide[rows])):
        if own.any():
            there = x._replace(q=_check.frozen(x.q, kind), k=_check.frozen(x.k, kind))
            sums += exhaustive.adjoint(there, lse, g64.astype(kind), rows[own])
    return sums


def _add(
    ground: Ground,
    found: Visits,
    arrays: tuple[Floats, Floats, Floats, Floats],
    factor: float,
    gradients: tuple[Floats, Floats, Floats],
) -> None:
    """Add what the queries of a part give; without `dq` of a size, sums of `dout` alone."""
    q, k, v, dout = arrays
    dq, dk, dv = gradients
    part, tree = found.part, found.part.tree
    w, order = width(q), part.asked.order
    sums_alone, blocks = not dq.size, -(-len(order) // w)
    place = tree.order.astype(np.int64)
    met = Met(
        *_panels(q, order, w),
        *_panels(dout, order, w),
        _check.frozen(k[place]).reshape(-1),
        _check.frozen(v[place], np.float64).reshape(-1),
        order,
        *found[1:5],
        width(tree.shorts) // w,
        q.shape[1],
        v.shape[1],
        factor,
        sums_alone,
    )
    summed = np.zeros(tree.size, tree.shorts.dtype), np.zeros(2 << tree.levels), np.zeros(0)
    told = certified.terms(part, summed, ground.tolerance, 0, ground.slice, False)
    norm, dq_ = np.zeros((blocks, 3, w)), np.zeros((blocks, 0 if sums_alone else q.shape[1], w))
    cost = _SLOW * len(found.leaves) * LEAF * w * met.blocks * (2 * met.d + met.e)
    for some in groups(blocks, cost // max(blocks, 1)):
        kernels.of_queries(some, tree, told, met, LEAF, norm, dq_)
    norm, leaves = _check.frozen(norm), 1 << tree.levels
    dk_, dv_ = np.zeros((tree.size, dk.shape[1])), np.zeros((tree.size, v.shape[1]))
    for some in groups(leaves, cost // leaves):
        kernels.of_keys(some, tree, told, met, norm, dk_, dv_)
    dv[place] += dv_
    if not sums_alone:
        dk[place] += factor * dk_
        dq[order] += dq_.transpose(0, 2, 1).reshape(blocks * w, -1)[: len(order)]


def _panels(x: Floats, order: Ints, w: int) -> tuple[Floats, Floats]:
    """Rows of `x` block by block: lanes beside each other; and as rows, w channels at a time."""
    blocks, chunks, c = -(-len(order) // w), -(-x.shape[1] // w), x.shape[1]
    rows = np.zeros((blocks * w, chunks * w))
    rows[: len(order), :c] = x[order]
    rows = rows.reshape(blocks, w, chunks, w)
    lanes = rows.reshape(blocks, w, chunks * w)[:, :, :c].transpose(0, 2, 1)
    together = rows.transpose(0, 2, 1, 3)
    return _check.frozen(lanes).reshape(-1), _check.frozen(together).reshape(-1)
