"""Backends that are there already: our oracles, our operators, and known libraries."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Tensor: TypeAlias = Any
"""An array of the library that an adapter asks, which need not be there."""
Module: TypeAlias = Any
"""That library."""
Band: TypeAlias = tuple[int | None, int | None] | None
"""Option `window`."""


def four_axes(q: Tensor, k: Tensor, v: Tensor, gqa: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Arrays or tensors (batch, heads, n, d) of one batch, and without `gqa` of as many heads."""

    def folded(x: Tensor, lead: tuple[int, ...]) -> Tensor:
        batch = int(np.prod(lead[:-1], dtype=int))
        return x.reshape(batch, lead[-1] if lead else 1, *x.shape[-2:])

    def wide(x: Tensor, lead: tuple[int, ...]) -> Tensor:
        if tuple(x.shape[:-2]) == lead:
            return x
        shape = (*lead, *x.shape[-2:])
        return np.broadcast_to(x, shape) if isinstance(x, np.ndarray) else x.expand(shape)

    leads = [tuple(x.shape[:-2]) for x in (q, k, v)]
    if not gqa:
        lead = np.broadcast_shapes(*leads)
        leads = [lead] * 3
    a, b, c = (folded(wide(x, lead), lead) for x, lead in zip((q, k, v), leads, strict=True))
    return a, b, c


def placed(offset: int | str, n: int, m: int) -> int:
    """The number that an offset of causality stands for."""
    return m - n if isinstance(offset, str) else offset


def allowed_pairs(n: int, m: int, causal: bool, offset: int | str, window: Band) -> Tensor:
    """Which keys causality and a window allow each query, (n, m) bool; None for all."""
    if not causal and window is None:
        return None
    step = np.arange(m) - np.arange(n)[:, None]
    left, right = (n + m if side is None else side for side in window or (None, None))
    return (step >= -left) & (step <= right) & ((step <= placed(offset, n, m)) if causal else True)
