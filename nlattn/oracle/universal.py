"""Universal sets: the keys that some query could give a weight of eps.

    A_ij = |<q_i, k_j>|^p / sum_l |<q_i, k_l>|^p >= eps  for some q_i   =>   sigma_j >= eps

So ``U = {j : upper_j >= eps}`` holds every such key if ``upper_j >= sigma_j``. Under a causal mask
row i sees keys 0 to i, and has a set of its own. Source: [kannan2024]. Status: paper; causal
sets: ours.
"""

from __future__ import annotations

import numpy as np

from nlattn.oracle.layout import any_layout
from nlattn.oracle.lewis import Array, leverage, lp_sensitivity, sensitivity_bounds


@any_layout
def universal_set(
    K: Array, eps: float, *, p: float = 2, causal: bool = False, tight: bool = False
) -> Array:
    """Whether each key (n,) is in the set; causal: row i (n, n) for the keys up to i.

    With `tight` the bounds are those of each key alone.
    """
    if causal:
        rows = [universal_set(K[: i + 1], eps, p=p) for i in range(len(K))]
        return np.array([np.pad(row, (0, len(K) - len(row))) for row in rows])
    upper = leverage(K) if p == 2 else sensitivity_bounds(K, p)[1]
    if tight and p != 2:
        upper = np.array([lp_sensitivity(K, i, p)[1] if any(x) else 0 for i, x in enumerate(K)])
    return np.asarray(upper >= eps * (1 - 64 * K.shape[1] * np.finfo(K.dtype).eps))
