"""What an attention map says of each pixel: how far it spreads, and how much it receives."""

from __future__ import annotations

import numpy as np

from nlattn import attention_map
from nlattn._types import Floats
from nlattn.cli.methods import Task
from nlattn.maps.base import AttentionMap
from nlattn.maps.dense import DenseMap
from nlattn.maps.selected import SelectedMap
from nlattn.maps.sparse import SparseMap

_PAIRS = 1 << 30
"""Scores that a picture beside the map may cost."""


def held(A: AttentionMap, task: Task) -> Floats | None:
    """Share of exact attention that each row's keys hold; None where it would take long.

    Of a softmax over a few of the keys it is ``exp(lse of these - lse of all)``.
    """
    q, k = (task.flat(x).astype(np.float64) for x in (task.q, task.k))
    if len(q) * len(k) > _PAIRS:
        return None
    every = attention_map(q, k, scale=task.scale).lse
    share: Floats = np.minimum(np.exp(A.lse - every), 1).reshape(task.q.shape[:-1])
    return share


def spread(A: AttentionMap, task: Task) -> Floats | None:
    """Exponential of each row's entropy, over how many keys it spreads; None for factored maps.

    Of a softmax it is ``exp(lse_i - scale q_i . (A k)_i)``: no row is made.
    """
    if isinstance(A, SparseMap):
        weights = A.weights.astype(np.float64)
        terms = -weights * np.log(np.where(weights > 0, weights, 1))
        row = np.repeat(np.arange(A.shape[0]), np.diff(A.support.indptr))
        entropy = np.bincount(row, terms, A.shape[0])
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
