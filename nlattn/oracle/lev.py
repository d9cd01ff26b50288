"""LevAttention: softmax attention on the few keys of largest leverage.

    U = the `keys` keys of largest score, ties to the lowest index
    out_i = sum_{j in U} softmax_{j in U}(scale q_i . k_j) v_j

Source: [kannan2024], from its abstract and public summaries: the full text was not at hand, and no
code of its authors is known. Status: reconstruction. The selection holds for squared dot products;
for the softmax it is a heuristic. Selections to compare it with are ours: squared norms, random
keys, and the keys that dense attention gives most to.
Real, longdouble and complex arrays alike; in complex arrays the selection is the real part's.
"""

from __future__ import annotations

import numpy as np

from nlattn.oracle.dense import attention, attention_jvp, attention_stages, attention_vjp
from nlattn.oracle.layout import any_layout
from nlattn.oracle.leverage import leverage_scores
from nlattn.oracle.patchmatch import key

Array = np.ndarray


@any_layout
def key_scores(
    q: Array, k: Array, select: str, scale: float | None = None, seed: int = 0, gqa: bool = False
) -> Array:
    """What keys (..., m, d) are chosen by, (..., m)."""
    if select == "leverage":
        return np.asarray(leverage_scores(k.real))
    if select == "norm":
        return np.asarray((k.real**2).sum(-1))
    if select == "random":
        slices, m = int(np.prod(k.shape[:-2])), k.shape[-2]
        draws = [
            1 - (key(seed, b, 0, j, 0) >> 11) * 2.0**-53 for b in range(slices) for j in range(m)
        ]
        return np.array(draws).reshape(k.shape[:-1])
    P = attention_stages(q.real, k.real, k.real, scale=scale, gqa=gqa).weights
    mass = P.sum(-2)
    if gqa and k.ndim > 2 and mass.shape[-2] != k.shape[-3]:
        mass = mass.reshape(*mass.shape[:-2], k.shape[-3], -1, mass.shape[-1]).sum(-2)
    while mass.ndim > k.ndim - 1:
        mass = mass.sum(0)
    for axis, size in enumerate(k.shape[:-1]):
        if size == 1 != mass.shape[axis]:
            mass = mass.sum(axis, keepdims=True)
    return np.asarray(mass)


@any_layout
def lev_keys(
    q: Array,
    k: Array,
    *,
    keys: int = 32,
    scores: Array | None = None,
    select: str = "leverage",
    scale: float | None = None,
    seed: int = 0,
    gqa: bool = False,
) -> Array:
    """Keys of largest score, (..., min(keys, m)) ascending, for each head of `k`."""
    if scores is None:
        scores = key_scores(q, k, select, scale, seed, gqa)
    scores = np.broadcast_to(scores.real, k.shape[:-1])
    return np.sort(np.argsort(-scores, axis=-1, kind="stable")[..., :keys], axis=-1)


def _gathered(q: Array, k: Array, v: Array, index: Array, gqa: bool) -> tuple[Array, Array, Array]:
    """Keys and values of every head of the result, and the index among them, one head each."""
    index = np.broadcast_to(index, (*k.shape[:-2], index.shape[-1]))[..., None]
    heads = [x.shape[-3] if x.ndim > 2 else 1 for x in (q, k, v)]
    if gqa:
        index, k, v = (
            np.repeat(x, heads[0] // own, axis=-3) if x.ndim > 2 else x
            for x, own in ((index, heads[1]), (k, heads[1]), (v, heads[2]))
        )
    lead = np.broadcast_shapes(*(x.shape[:-2] for x in (q, k, v)))
    index, k, v = (np.broadcast_to(x, lead + x.shape[-2:]) for x in (index, k, v))
    return np.take_along_axis(k, index, -2), np.take_along_axis(v, index, -2), index


@any_layout
def lev_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    index: Array | None = None,
    scale: float | None = None,
    gqa: bool = False,
    return_lse: bool = False,
    keys: int = 32,
    scores: Array | None = None,
    select: str = "leverage",
    seed: int = 0,
) -> Array | tuple[Array, Array]:
    """Outputs (..., n, e), and with `return_lse` also the log normalisers (..., n).

    `keys` and what follows are for choosing, where no `index` is given.
    """
    if index is None:
        index = lev_keys(
            q, k, scale=scale, gqa=gqa, keys=keys, scores=scores, select=select, seed=seed
        )
    k_U, v_U, _ = _gathered(q, k, v, index, gqa)
    return attention(q, k_U, v_U, scale=scale, return_lse=return_lse)


@any_layout
def lev_attention_vjp(
    q: Array,
    k: Array,
    v: Array,
    dout: Array,
    *,
    dlse: Array | None = None,
    index: Array | None = None,
    scale: float | None = None,
    gqa: bool = False,
    keys: int = 32,
    scores: Array | None = None,
    select: str = "leverage",
    seed: int = 0,
) -> tuple[Array, Array, Array]:
    """Gradients (dq, dk, dv) with U held fixed; 0 for keys and values outside it."""
    if index is None:
        index = lev_keys(
            q, k, scale=scale, gqa=gqa, keys=keys, scores=scores, select=select, seed=seed
        )
    k_U, v_U, place = _gathered(q, k, v, index, gqa)
    dq, *inner = attention_vjp(q, k_U, v_U, dout, dlse=dlse, scale=scale)
    outer = []
    for x, dx in zip((k, v), inner, strict=True):
        whole = np.zeros((*dx.shape[:-2], *x.shape[-2:]), dx.dtype)
        np.put_along_axis(whole, place, dx, -2)
        outer.append(_summed(whole, x.shape, gqa))
    return dq, outer[0], outer[1]


@any_layout
def lev_attention_jvp(
    q: Array,
    k: Array,
    v: Array,
    dq: Array,
    dk: Array,
    dv: Array,
    *,
    index: Array | None = None,
    scale: float | None = None,
    gqa: bool = False,
    return_lse: bool = False,
    keys: int = 32,
    scores: Array | None = None,
    select: str = "leverage",
    seed: int = 0,
) -> Array | tuple[Array, Array]:
    """Change of `out`, and of `lse`, along dq, dk, dv, with U held fixed."""
    if index is None:
        index = lev_keys(
            q, k, scale=scale, gqa=gqa, keys=keys, scores=scores, select=select, seed=seed
        )
    k_U, v_U, _ = _gathered(q, k, v, index, gqa)
    dk_U, dv_U, _ = _gathered(q, dk, dv, index, gqa)
    return attention_jvp(q, k_U, v_U, dq, dk_U, dv_U, scale=scale, return_lse=return_lse)


def _summed(gradient: Array, shape: tuple[int, ...], gqa: bool) -> Array:
    """Sum over the heads that share one of an array of `shape`."""
    if gqa and len(shape) > 2 and gradient.shape[-3] != shape[-3]:
        groups = (*gradient.shape[:-3], shape[-3], -1, *gradient.shape[-2:])
        gradient = gradient.reshape(groups).sum(-3)
    gradient = gradient.sum(tuple(range(gradient.ndim - len(shape))))
    stretched = tuple(a for a, size in enumerate(shape) if size == 1 != gradient.shape[a])
    return np.asarray(gradient.sum(stretched, keepdims=True))
