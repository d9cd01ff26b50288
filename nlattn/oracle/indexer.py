"""The lightning indexer: scores of keys, the best of them, and the loss that it learns from.

[deepseek2025, eq. 1 and 3]; the table of best keys is ours. Status: paper.
"""

from __future__ import annotations

import numpy as np

from nlattn.oracle.layout import any_layout

Array = np.ndarray


@any_layout
def index_scores(q: Array, k: Array, w: Array) -> Array:
    """``sum_h w[i, h] relu(q[i, h] . k[j])``: q (..., n, h, d), k (..., m, d), w (..., n, h)."""
    s = np.einsum("...ihd,...jd->...ihj", q, k)
    return np.asarray((w[..., None] * np.where(s.real > 0, s, 0)).sum(-2))


@any_layout
def index_scores_vjp(q: Array, k: Array, w: Array, dscores: Array) -> tuple[Array, Array, Array]:
    """Gradients (dq, dk, dw); a product of 0 has none."""
    s = np.einsum("...ihd,...jd->...ihj", q, k)
    on = np.where(s.real > 0, 1, 0)
    ds = w[..., None] * on * dscores[..., None, :]
    dq = np.einsum("...ihj,...jd->...ihd", ds, k)
    dk = np.einsum("...ihj,...ihd->...jd", ds, q)
    return dq, dk, (on * s * dscores[..., None, :]).sum(-1)


@any_layout
def index_scores_jvp(q: Array, k: Array, w: Array, dq: Array, dk: Array, dw: Array) -> Array:
    """Change of the scores along dq, dk, dw; a product of 0 has none."""
    s = np.einsum("...ihd,...jd->...ihj", q, k)
    ds = np.einsum("...ihd,...jd->...ihj", dq, k) + np.einsum("...ihd,...jd->...ihj", q, dk)
    moved = dw[..., None] * s + w[..., None] * ds
    return np.asarray(np.where(s.real > 0, moved, 0).sum(-2))


@any_layout
def topk_keys(scores: Array, t: int, *, causal: bool = False, causal_offset: int = 0) -> Array:
    """The `t` keys of largest score, best first, ties to the lowest; -1 where there are fewer."""
    n, m = scores.shape[-2:]
    allowed = ~np.isneginf(scores.real)
    if causal:
        allowed = allowed & (np.arange(m) <= np.arange(n)[:, None] + causal_offset)
    found = np.full((*scores.shape[:-1], t), -1)
    for at in np.ndindex(scores.shape[:-1]):
        keys = [j for j in range(m) if allowed[at][j]]
        best = sorted(keys, key=lambda j: (-scores[at][j].real, j))[:t]
        found[at][: len(best)] = best
    return found


@any_layout
def share_held(lse_set: Array, lse: Array) -> Array:
    """Part of all weights that a set of keys holds, ``exp(lse_set - lse)``; 0 of an empty set."""
    none = np.isneginf(lse_set.real)
    return np.asarray(
        np.where(none, 0, np.exp(np.where(none, 0, lse_set) - np.where(none, 0, lse)))
    )


@any_layout
def index_loss(scores: Array, weights: Array) -> Array:
    """``KL(weights || softmax(scores))`` of each row, (..., n); a weight of 0 adds nothing."""
    log_p = scores - _log_sum(scores)
    some = weights.real > 0
    terms = weights * (np.log(np.where(some, weights, 1)) - np.where(some, log_p, 0))
    return np.asarray(np.where(some, terms, 0).sum(-1))


@any_layout
def index_loss_vjp(scores: Array, weights: Array, dloss: Array) -> Array:
    """Gradient of the scores, ``dloss (softmax(scores) sum(weights) - weights)``."""
    p = np.where(np.isneginf(scores.real), 0, np.exp(scores - _log_sum(scores)))
    return np.asarray(dloss[..., None] * (p * weights.sum(-1, keepdims=True) - weights))


@any_layout
def index_loss_jvp(scores: Array, weights: Array, dscores: Array) -> Array:
    """Change of the loss along `dscores`."""
    hidden = np.isneginf(scores.real)
    p = np.where(hidden, 0, np.exp(scores - _log_sum(scores)))
    slope = p * weights.sum(-1, keepdims=True) - weights
    return np.asarray((slope * np.where(hidden, 0, dscores)).sum(-1))


def _log_sum(scores: Array) -> Array:
    top = scores.real.max(-1, keepdims=True)
    hidden = np.isneginf(scores.real)
    powers = np.where(hidden, 0, np.exp(np.where(hidden, 0, scores - top)))
    return np.asarray(top + np.log(powers.sum(-1, keepdims=True)))
