"""FAISS: the best key of every query by inner product, searched exhaustively, in float32."""

from __future__ import annotations

import numpy as np

from nlattn._types import Options
from nlattn.conformance.backends.adapters import Module, Tensor


class Backend:
    """``patchmatch`` as an index of all keys would answer it."""

    name = "faiss"

    def __init__(self) -> None:
        import faiss

        self._faiss: Module = faiss

    def capabilities(self) -> Options:
        """Matches alone."""
        return {"operators": ["patchmatch"], "dtypes": ["float32"], "gradients": False}

    def patchmatch(self, q: Tensor, k: Tensor, *, iterations: int = 0, seed: int = 0) -> Tensor:
        """Raster indices (Hq, Wq, 1); nothing is random, and one pass is enough."""
        del iterations, seed
        index = self._faiss.IndexFlatIP(k.shape[-1])
        index.add(np.ascontiguousarray(k.reshape(-1, k.shape[-1])))
        _, found = index.search(np.ascontiguousarray(q.reshape(-1, q.shape[-1])), 1)
        return found.reshape(*q.shape[:-1], 1)
