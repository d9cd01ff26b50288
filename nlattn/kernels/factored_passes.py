"""The passes of linear attention: one over keys and values, one over queries, block by block."""

from __future__ import annotations

import numpy as np

from nlattn._types import Bools, Floats, Ints
from nlattn.kernels.factored_rows import (
    BLOCK,
    FeatureRows,
    add_columns,
    columns,
    eps_of,
    features,
    row_sums,
    space,
)
from nlattn.kernels.gemm import aligned, multiply, width
from nlattn.runtime import jit


@jit.function
def key_sums(
    m: FeatureRows,
    x: Floats,
    y: Floats,
    mask: Bools,
    slices: Ints,
    tasks: Ints,
    top: Floats,
    values: Floats,
    sums: Floats,
    total: Floats,
    where: Ints,
) -> None:
    """Sums over some keys for each of `tasks`, whose rows are slice, first key and last.

    Those of ``phi(x).T y`` go to `values` (tasks, r, e), of phi to `sums` (tasks, r), of y to
    `total` (tasks, e): in float64, 0 before, relative to `top` (tasks, r), which is raised. `where`
    (tasks, 2) becomes key and feature of a maximum that all share. `slices` (batch, 3) are those
    of x, y and `mask`, whose rows are empty where all keys are kept.
    """
    (r, e), d = values.shape[1:], x.shape[2]
    wide = columns(e, x)
    s = space(BLOCK, d, r, x)
    right = aligned(BLOCK * wide, x).reshape((BLOCK, wide))
    part = aligned(r * wide, x).reshape((r, wide))
    right[:], old = 0, np.empty_like(top[0])
    for t in range(len(tasks)):
        b, begin, end = tasks[t]
        keys, beside = x[slices[b, 0]][begin:end], y[slices[b, 1]][begin:end]
        kept = mask[slices[b, 2]][begin:end]
        for a in range(r):
            old[a] = top[t, a]
        for first in range(0, end - begin, BLOCK):
            count = min(BLOCK, end - begin - first)
            features(m, keys, first, count, kept, top[t], s)
            for a in range(r):
                if top[t, a] > old[a]:
                    fade = np.exp(np.float64(old[a]) - np.float64(top[t, a]))
                    sums[t, a] *= fade
                    for c in range(e):
                        values[t, a, c] *= fade
            if m.moving and top[t, 0] > old[0]:
                where[t, 0], where[t, 1] = begin + first + s.here[0], s.where[s.here[0]]
            for a in range(r):
                old[a] = top[t, a]
            for i in range(count):
                row, to = beside[first + i], right[i]
                for c in range(e):
                    to[c] = row[c]
                if kept.size and not kept[first + i]:
                    to[:] = 0
            add_columns(right, count, total[t])
            add_columns(s.phi, count, sums[t])
            _add_product(s.phi, right, count, part, values[t])


@jit.device
def _add_product(phi: Floats, right: Floats, count: int, part: Floats, values: Floats) -> None:
    """``values += phi.T right``, through `part`."""
    r, wide = part.shape
    for j in range(0, values.shape[1], width(part)):
        multiply(phi, 0, 1, phi.shape[1], right, j, wide, part, j, wide, r, count)
    for a in range(r):
        row, to = part[a], values[a]
        for c in range(to.size):
            to[c] += row[c]


@jit.function
def read(
    m: FeatureRows,
    x: Floats,
    every: Bools,
    index: Ints,
    context: Floats,
    norm: Floats,
    tasks: Ints,
    out: Floats,
    log: Floats,
) -> None:
    """``out = phi(x) context`` (batch, n, e), over ``phi(x).norm``, whose logarithm is `log`.

    `context` is (batch, r, `columns` of e), `norm` (batch, r). Without columns `norm` divides
    nothing and `log` is left. `tasks` and `index` (batch,), the slices of x, as in `key_sums`;
    `every` is the empty mask.
    """
    (r, wide), d = context.shape[1:], x.shape[2]
    s = space(BLOCK, d, r, x)
    result = aligned(BLOCK * wide, x).reshape((BLOCK, wide))
    sums, start = np.ones(BLOCK, x.dtype), np.zeros(r, x.dtype)
    for t in range(len(tasks)):
        b, begin, end = tasks[t]
        for first in range(begin, end, BLOCK):
            count = min(BLOCK, end - first)
            features(m, x[index[b]], first, count, every, start, s)
            if m.eps > 0:
                for i in range(count):
                    row, eps = s.phi[i], eps_of(m, s.top[i])
                    for a in range(r):
                        row[a] += eps
            for j in range(0, out.shape[2], width(x)):
                multiply(
                    s.phi, 0, s.phi.shape[1], 1, context[b], j, wide, result, j, wide, count, r
                )
            if norm.shape[1]:
                row_sums(s.phi, count, norm[b], sums)
                for i in range(count):
                    log[b, first + i] = np.log(np.float64(sums[i])) + s.top[i]
            for i in range(count):
                row, to, total = result[i], out[b, first + i], sums[i]
                for c in range(to.size):
                    to[c] = row[c] / total
