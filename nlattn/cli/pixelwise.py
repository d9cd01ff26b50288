"""What an attention map says of each pixel: how far it spreads, and how much it receives."""

from __future__ import annotations

import math

import numpy as np

from nlattn import attention_map
from nlattn._types import Floats
from nlattn.cli.methods import Task
from nlattn.maps.base import AttentionMap
from nlattn.maps.dense import DenseMap
from nlattn.maps.selected import SelectedMap
from nlattn.maps.sparse import SparseMap

_PAIRS = 1 << 30
"""Scores that a picture beside the map may cost; more, and it is made of some queries."""
_FEW = 1 << 28
"""Scores of these."""
_FEWEST = 256
"""Queries of which such a picture is made at least."""
_ROWS = 1 << 14
"""Rows of a sparse map that are looked at together."""


def held(A: AttentionMap, task: Task, known: Floats | None = None) -> tuple[Floats, int] | None:
    """Share of exact attention that each row's keys hold, and of every how many pixels it is known.

    Of a softmax over a few of the keys it is ``exp(lse of these - lse of all)``. Where all rows
    would take long, each square of pixels is that of the pixel in its middle; None where even
    that would.
    """
    grid, m = task.q.shape[:-1], len(task.flat(task.k))
    n = math.prod(grid)
    if known is not None:
        return known.reshape(grid), 1
    step = 1 if n * m <= _PAIRS else math.ceil(math.sqrt(n * m / _FEW))
    height, width = (np.minimum(np.arange(s) // step * step + step // 2, s - 1) for s in grid)
    rows, inverse = np.unique(height[:, None] * grid[1] + width, return_inverse=True)
    if step > 1 and len(rows) < _FEWEST:
        return None
    q, k = (task.flat(x)[some].astype(np.float64) for x, some in ((task.q, rows), (task.k, ...)))
    every = attention_map(q, k, scale=task.scale).lse
    share = np.minimum(np.exp(A.lse[rows] - every), 1)
    return share[inverse.reshape(grid)], step


def spread(A: AttentionMap, task: Task) -> Floats | None:
    """Exponential of each row's entropy, over how many keys it spreads; None for factored maps.

    Of a softmax it is ``exp(lse_i - scale q_i . (A k)_i)``: no row is made.
    """
    if isinstance(A, SparseMap):
        entropy = np.zeros(A.shape[0])
        for first in range(0, A.shape[0], _ROWS):
            ends = A.support.indptr[first : first + _ROWS + 1]
            weights = A.weights[ends[0] : ends[-1]].astype(np.float64)
            terms = -weights * np.log(np.where(weights > 0, weights, 1))
            row = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
            entropy[first : first + _ROWS] = np.bincount(row, terms, len(ends) - 1)
    elif isinstance(A, (DenseMap, SelectedMap)):
        q, k = (task.flat(x) for x in (task.q, task.k))
        mean = np.einsum("ij,ij->i", q, A @ np.ascontiguousarray(k), dtype=np.float64)
        entropy = A.lse - task.scale * mean
    else:
        return None
    keys: Floats = np.exp(np.clip(entropy, 0, np.log(A.shape[1]))).reshape(task.q.shape[:-1])
    return keys


def received(A: AttentionMap, task: Task) -> Floats:
    """Attention that each key receives from all queries, over its mean."""
    total = (A.T @ np.ones(A.shape[0], A.dtype)).astype(np.float64)
    mean = float(np.abs(total).mean()) or 1.0
    share: Floats = (total / mean).reshape(task.k.shape[:-1])
    return share
