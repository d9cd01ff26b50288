"""Intervals of sums over queries, key by key, from what certified attention left out.

With t a row's share that was left out, a weight that was kept is at most t of itself too large, and
one that was left out at most what its box allows.
"""

from __future__ import annotations

import numpy as np

from nlattn import _check
from nlattn._types import Floats
from nlattn.engines import exhaustive
from nlattn.engines.certified import Ground
from nlattn.engines.certified_vjp import Visits, adjoint
from nlattn.kernels import certified_left as kernels
from nlattn.kernels.certified_left import CHUNKS, Charges

_LOST = 0.5  # share beyond which nothing is said of a row but that its weights are at most 1
_NODES = 64  # a node may hold so much of what may be missed
_OVER = 1.001  # what is charged, rounding included
_UNDERFLOW = 1e-300  # weights below are 0


def adjoint_bounds(
    ground: Ground, found: list[Visits], lse: Floats, missed: Floats, g: Floats
) -> tuple[Floats, Floats]:
    """Ends (m, e) between which ``A.T g`` lies for g (n, e), float64."""
    x, size = ground.slice, np.abs(g.astype(np.float64))
    wide = x._replace(q=_check.frozen(x.q, np.float64), k=_check.frozen(x.k, np.float64))
    share = missed / (1 - np.minimum(missed, _LOST))
    for part in found:
        rows = part.part.asked.order[np.isfinite(part.lse[part.part.asked.order])]
        share[rows] = np.maximum(share[rows], part.missed[rows])
    share = share + exhaustive.rounding(wide, np.float64)
    share += 4 * (len(g) + abs(x.above)) * 2.0**-53
    lost = ~(share <= _LOST)
    sure = np.where(lost[:, None], 0, size * np.where(lost, 0, share)[:, None])
    e = g.shape[1]
    both = adjoint(ground._replace(slice=wide), found, lse, np.concatenate([g, sure], 1))
    room = both[:, e:] + size[lost].sum(0)
    for part in found:
        _charge(ground, part, size, room)
    room = room * _OVER + _UNDERFLOW * size.sum(0)
    return both[:, :e] - room, both[:, :e] + room


def _charge(ground: Ground, found: Visits, size: Floats, room: Floats) -> None:
    """Add what keys that a part left out may have been given."""
    part, tree = found.part, found.part.tree
    with np.errstate(invalid="ignore"):
        base = part.top - found.lse - np.log1p(-np.minimum(found.missed, _LOST))
    base[~np.isfinite(found.lse)] = -np.inf
    told = Charges(
        part.numbers,
        _check.frozen(base),
        part.slack,
        ground.tolerance / _NODES,
        found.starts,
        found.leaves,
        _check.frozen(size),
        int(ground.slice.causal),
    )
    of_nodes = np.zeros((CHUNKS, 2 << tree.levels, size.shape[1]))
    for chunk in range(0, CHUNKS, 2):
        kernels.charge(range(chunk, chunk + 2), tree, part.asked, told, of_nodes)
    total = of_nodes.sum(0)
    for level in range(tree.levels):
        above = total[1 << level : 2 << level]
        total[2 << level : 4 << level] += np.repeat(above, 2, axis=0)
    leaves = np.arange((1 << tree.levels) + 1, dtype=np.int64) * tree.size >> tree.levels
    room[tree.order] += np.repeat(total[1 << tree.levels :], np.diff(leaves), axis=0)
