"""Patches of a picture that resemble each other: their weights, who is chosen, what they vote for.

A picture is a flat array of pixels padded by half a patch on every side, as in ``matching``. Pixels
that are asked about may be some rows of it, ``plan.above`` pixels from its first.
"""

from __future__ import annotations

import numpy as np

from nlattn._types import Floats, Ints
from nlattn.kernels.matching import Plan, enter, evaluate
from nlattn.runtime import jit

BLOCK = 64


@jit.kernel
def weigh(
    block: int,
    u: Floats,
    plan: Plan,
    indptr: Ints,
    indices: Ints,
    options: Floats,
    scores: Floats,
    total: Floats,
    top: Floats,
    best: Ints,
) -> None:
    """Score of every edge, ``-max(d2 - 2 sigma^2, 0) / h^2``; its exponential is the weight.

    `options` twice the variance and ``1 / h^2``. The pixel itself gets no score. Results of each
    pixel: the edge of the `best` of its other keys, -1 if it has none; added to `total` and `top`
    are the sum and the maximum of weights.
    """
    n, first = len(indptr) - 1, plan.above // plan.Wq
    floor, steep = u.dtype.type(options[0]), u.dtype.type(options[1])
    for i in range(block * BLOCK, min(block * BLOCK + BLOCK, n)):
        y, x, most, sums = i // plan.Wq, i % plan.Wq, -1, np.float64(total[i])
        for t in range(indptr[i], indptr[i + 1]):
            key = indices[t]
            if key == i + plan.above:
                scores[t] = -np.inf
                continue
            excess = -evaluate(plan, u, y + first, x, u, key) - floor
            scores[t] = -steep * (excess if excess > 0 else floor * 0)
            if most < 0 or scores[t] > scores[most]:
                most = t
            sums += np.exp(np.float64(scores[t]))
        best[i], total[i] = most, sums
        if most >= 0:
            top[i] = max(top[i], np.exp(scores[most]))


@jit.kernel
def average(
    block: int,
    u: Floats,
    plan: Plan,
    indptr: Ints,
    indices: Ints,
    weights: Floats,
    inverse: Floats,
    vote: int,
    out: Floats,
) -> None:
    """Add weighted means over the edges to `out` (H W, C), of pixels or, if `vote`, of patches.

    `weights` of the edges; `inverse` (H W) of each pixel's sum of weights.
    """
    n, C = out.shape
    H, W, r = plan.Hq, plan.Wq, plan.patch // 2
    reach, wide = r if vote else 0, W + plan.patch - 1
    acc = np.empty(C, np.float64)
    for i in range(block * BLOCK, min(block * BLOCK + BLOCK, n)):
        y, x, count = i // W, i % W, 0
        for c in range(C):
            acc[c] = 0
        for cy in range(max(0, y - reach), min(H, y + reach + 1)):
            for cx in range(max(0, x - reach), min(W, x + reach + 1)):
                centre = cy * W + cx
                count += 1
                for t in range(indptr[centre], indptr[centre + 1]):
                    w = np.float64(weights[t]) * inverse[centre]
                    row, column = indices[t] // W + r + y - cy, indices[t] % W + r + x - cx
                    at = (row * wide + column) * C
                    for c in range(C):
                        acc[c] += w * u[at + c]
        for c in range(C):
            out[i, c] += acc[c] / count


@jit.kernel
def choose(
    block: int,
    u: Floats,
    plan: Plan,
    distance: int,
    pool: Ints,
    aim: float,
    index: Ints,
    value: Floats,
) -> None:
    """Best keys of every pixel, those whose distance is nearest to `aim`; never the pixel itself.

    Candidates are the keys of the window, if `pool` (n, w) is empty, or those of its row; -1 is
    none. Results `index` (n, k), to be begun with -1, and `value` (n, k).
    """
    H, W, first = plan.Hq, plan.Wq, plan.above // plan.Wq
    for i in range(block * BLOCK, min(block * BLOCK + BLOCK, len(index))):
        y, x = i // W, i % W
        if pool.shape[1]:
            for key in pool[i]:
                if key >= 0 and key != i + plan.above:
                    away = abs(evaluate(plan, u, y + first, x, u, key) + u.dtype.type(aim))
                    enter(index[i], value[i], key, -away)
        else:
            for cy in range(max(0, y - distance), min(H, y + distance + 1)):
                for cx in range(max(0, x - distance), min(W, x + distance + 1)):
                    key = cy * W + cx
                    if key != i:
                        away = abs(evaluate(plan, u, y, x, u, key) + u.dtype.type(aim))
                        enter(index[i], value[i], key, -away)
