"""The universal set of a stream of keys, exactly and in one pass, with pruning.

    R <- triangle of qr([R; block])                    so that R^T R = K^T K so far
    B <- {j in B or block : tau_j >= eps}              tau_j = |S_r^-1 V_r^T k_j|^2,  R = U S V^T

Leverage only falls as rows arrive, so a key that is dropped would not have come back: at the end B
is {j : tau_j >= eps}, exactly. Scores sum to the rank, so B never holds more than r / eps keys.
Streams of parts merge: stack their triangles, join their sets, drop what has become too light.
Source: the streaming claim of [kannan2024]; state, pruning and merging are derived here.
Status: ours. NumPy's SVD: float64 alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from nlattn.oracle.layout import any_layout

Array = np.ndarray


class State(NamedTuple):
    """What is kept of the keys so far."""

    R: Array
    """(rows, d) with the keys' Gram matrix."""
    index: Array  # type: ignore[assignment]  # stands where tuple.index would be
    """(h,) keys that may be heavy, ascending."""
    keys: Array
    """(h, d) these keys themselves."""
    n: int
    """Number of keys so far."""


def empty(d: int) -> State:
    """The state before the first key."""
    return State(np.zeros((0, d)), np.zeros(0, int), np.zeros((0, d)), 0)


@any_layout
def scores(R: Array, keys: Array, n: int) -> Array:
    """Leverage (h,) of some keys among n keys of which R has the Gram matrix."""
    if not len(R):
        return np.zeros(len(keys))
    _, sizes, V = np.linalg.svd(R)
    rank = int((sizes > sizes[0] * max(n, R.shape[1]) * np.finfo(float).eps / 2).sum())
    return np.asarray(((keys @ V[:rank].T / sizes[:rank]) ** 2).sum(1))


def pruned(state: State, eps: float, slack: float = 1e-12) -> State:
    """The state without keys that can no longer be heavy."""
    heavy = scores(state.R, state.keys, state.n) >= eps - slack
    return state._replace(index=state.index[heavy], keys=state.keys[heavy])


@any_layout
def update(state: State, block: Array, eps: float) -> State:
    """The state after the next keys (b, d)."""
    index = np.arange(state.n, state.n + len(block))
    return merge(state, State(block, index, block, len(block)), eps)


@any_layout
def merge(a: State, b: State, eps: float) -> State:
    """The state of both streams' keys, whose numbers must not overlap."""
    index, keys = np.concatenate([a.index, b.index]), np.concatenate([a.keys, b.keys])
    order = np.argsort(index)
    R = np.linalg.qr(np.concatenate([a.R, b.R]), mode="r")
    return pruned(State(np.asarray(R), index[order], keys[order], a.n + b.n), eps)


def leverage_stream(blocks: Iterable[Array], d: int, eps: float) -> State:
    """The state after all blocks: its `index` is the universal set."""
    state = empty(d)
    for block in blocks:
        state = update(state, block, eps)
    return state
