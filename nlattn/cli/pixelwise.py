"""What an attention map says of each pixel: how far it spreads, and how much it receives."""

from __future__ import annotations

import numpy as np

from nlattn._types import Floats
from nlattn.cli.methods import Task
from nlattn.maps.base import AttentionMap
from nlattn.maps.dense import DenseMap
from nlattn.maps.selected import SelectedMap
from nlattn.maps.sparse import SparseMap


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
