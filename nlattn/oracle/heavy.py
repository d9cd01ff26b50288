"""Heavy attention: the entries of polynomial attention that are at least eps.

    A_ij = |<q_i, k_j>|^p / Z_i,    Z_i = sum_l |<q_i, k_l>|^p

A query that is orthogonal to all keys has an empty row. Source: [kannan2024]. Status: paper.
"""

from __future__ import annotations

import numpy as np

from nlattn.oracle.layout import any_layout

Array = np.ndarray


@any_layout
def polynomial_attention(
    q: Array, k: Array, *, p: float = 2, causal: bool = False
) -> tuple[Array, Array]:
    """Weights (n, m), and the logarithms of the normalisers (n,)."""
    s = abs(q @ k.T)
    if causal:
        s = np.where(np.arange(len(k)) <= np.arange(len(q))[:, None], s, 0)
    top = s.max(1, keepdims=True, initial=0)  # no power may over- or underflow
    f = (s / np.where(top == 0, 1, top)) ** p
    Z = f.sum(1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = np.log(Z) + p * np.log(top)
    return f / np.where(Z == 0, 1, Z), lse[:, 0]


@any_layout
def heavy_attention(q: Array, k: Array, eps: float, *, p: float = 2, causal: bool = False) -> Array:
    """The weights (n, m) of at least eps, 0 elsewhere."""
    A, _ = polynomial_attention(q, k, p=p, causal=causal)
    return np.where(eps > A, 0, A)
