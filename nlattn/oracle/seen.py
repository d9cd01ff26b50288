"""What a query may not see adds nothing to its sums, whatever number it is."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def product(weights: Array, x: Array, seen: Array) -> Array:
    """``sum_j weights[i, j] x[j]`` over the pairs that are `seen`; weights are 0 elsewhere.

    A weight of 0 times NaN is NaN: such numbers are added to the rows that see them alone.
    """
    finite = np.isfinite(x)
    if finite.all():
        return weights @ x
    out = weights @ np.where(finite, x, 0)
    wild = np.where(finite, 0, x)
    for j in range(x.shape[-2]):
        if not finite[..., j, :].all():
            term = weights[..., :, j, None] * wild[..., None, j, :]
            out = out + np.where(seen[..., :, j, None], term, 0)
    return out
