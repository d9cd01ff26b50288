"""Small maps of every structure, and their states changed as bytes say."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

import nlattn

DTYPES = ("i1", "i2", "i4", "i8", "u1", "u8", "f2", "f4", "f8", "?")
EXTREMES = (-1, 0, 1, 2, 3, 5, 127, -128, 8000, 65537, 2**31 - 1, 2**31, 2**62, 2**63 - 1, -(2**63))
SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (2, 1), (1, 2, 1), (0, 5), (3, 0), (7,))


@functools.cache
def made() -> dict[str, Any]:
    """A map of every structure, by kind."""
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((6, 3)), rng.standard_normal((4, 3))
    support = nlattn.support_from_index([[0, 3], [-1, -1], [1, 2], [2, 2], [0, 1], [3, 0]], 4)
    grid = rng.standard_normal((4, 3, 3))
    maps = (
        nlattn.attention_map(q, k, softcap=3.0),
        nlattn.sparse_attention_map(q, k, support),
        nlattn.heavy_attention(q, k, eps=0.2),
        nlattn.lev_attention_map(q, k, keys=2),
        nlattn.efficient_attention_map(q, k),
        nlattn.nonlocal_mean_map(q, k, pairwise="concatenation", weight=np.arange(6.0)),
        nlattn.cross_scale_attention_map(grid, grid[:2, :2], scale=2),
        nlattn.permutohedral_attention_map(q, k),
        nlattn.qna_map(q[:2], grid, window=3),
    )
    return {A.kind: A for A in maps}


def damaged(data: bytes) -> tuple[str, dict[str, Any]]:
    """Kind and state of a map, with the changes that up to eight times three bytes name."""
    kinds = sorted(made())
    kind = kinds[(data or b"\0")[0] % len(kinds)]
    state = {name: np.array(x) for name, x in made()[kind].state().items()}
    few = data[1:25]
    for name, how, what in zip(few[::3], few[1::3], few[2::3], strict=False):
        names = sorted(state)
        if names:
            _change(state, names[name % len(names)], how, what)
    return kind, state


def _change(state: dict[str, Any], name: str, how: int, what: int) -> None:
    x = state[name]
    extreme = EXTREMES[what % len(EXTREMES)]
    match how % 7:
        case 0:
            with np.errstate(all="ignore"):
                state[name] = x.astype(DTYPES[what % len(DTYPES)])
        case 1 if x.size:
            with np.errstate(all="ignore"):
                x.reshape(-1)[how // 7 % x.size] = np.array(extreme).astype(x.dtype)
        case 2:
            state[name] = np.zeros(SHAPES[what % len(SHAPES)], x.dtype)
        case 3:
            state[name] = np.concatenate([x, x]) if x.ndim and x.size < 1000 else x
        case 4:
            del state[name]
        case 5:
            state[name] = x[::-1].copy() if x.ndim else x
        case 6:
            state[name] = np.array([*SHAPES[what % len(SHAPES)], extreme])
