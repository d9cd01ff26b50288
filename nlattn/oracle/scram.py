"""SCRAM-style attention: a match for every query, a support around it, a mean over the support.

Source: [calian2019], reconstructed from its abstract: PatchMatch finds the argmax, the sparsity
pattern is built from it. Which keys exactly, is our choice. Status: reconstruction.
A support is written as the set it is: built key by key, sorted at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nlattn.oracle.layout import any_layout
from nlattn.oracle.patchmatch import patchmatch
from nlattn.oracle.sparse import (
    Array,
    Support,
    sparse_attention,
    sparse_attention_jvp,
    sparse_attention_vjp,
)

PAIRED = {"softmax": "dot", "dot": "dot", "abspow": "absdot", "gaussian": "neg_l2"}
WEIGHTS = ("weight", "scale", "bandwidth", "power", "masked_rows")
MASKS = ("key_mask", "mask", "causal")
SHAPE = ("kind", "window")
SEARCH = ("iterations", "topk", "propagate", "seed")


def box(y: int, x: int, radius: int, grid: tuple[int, int]) -> set[tuple[int, int]]:
    """Pixels of the grid at most `radius` away from (y, x) in either axis."""
    return {
        (i, j)
        for i in range(y - radius, y + radius + 1)
        for j in range(x - radius, x + radius + 1)
        if 0 <= i < grid[0] and 0 <= j < grid[1]
    }


def mapped(position: int, size_q: int, size_k: int) -> int:
    """The key coordinate at the place of a query coordinate."""
    return ((2 * position + 1) * size_k) // (2 * size_q)


def step(delta: int, size_q: int, size_k: int) -> int:
    """A step on the query grid, in steps of the key grid, rounded to the nearest."""
    return int(np.sign(delta)) * ((2 * abs(delta) * size_k + size_q) // (2 * size_q))


def window(
    index: Array, y: int, x: int, grid: tuple[int, int], radius: int
) -> set[tuple[int, int]]:
    """Box around the best match."""
    return _expanded(index[y, x, :1], grid, radius)


def topk(index: Array, y: int, x: int, grid: tuple[int, int]) -> set[tuple[int, int]]:
    """All matches."""
    return _expanded(index[y, x], grid, 0)


def neighbours(
    index: Array, y: int, x: int, grid: tuple[int, int], radius: int, reach: int, shift: bool
) -> set[tuple[int, int]]:
    """Boxes around the neighbours' matches, and around those moved back by the neighbour's step."""
    Hq, Wq = index.shape[:2]
    keys: set[tuple[int, int]] = set()
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            if not (0 <= y + dy < Hq and 0 <= x + dx < Wq) or index[y + dy, x + dx, 0] < 0:
                continue
            ky, kx = divmod(int(index[y + dy, x + dx, 0]), grid[1])
            keys |= box(ky, kx, radius, grid)
            ky, kx = ky - step(dy, Hq, grid[0]), kx - step(dx, Wq, grid[1])
            if shift and 0 <= ky < grid[0] and 0 <= kx < grid[1]:
                keys |= box(ky, kx, radius, grid)
    return keys


def local(index: Array, y: int, x: int, grid: tuple[int, int], radius: int) -> set[tuple[int, int]]:
    """Box around the query's own place."""
    Hq, Wq = index.shape[:2]
    return box(mapped(y, Hq, grid[0]), mapped(x, Wq, grid[1]), radius, grid)


@any_layout
def scram_support(
    field: Found,
    *,
    kind: str | tuple[str, ...] = "window",
    window: int = 3,
    reach: int = 1,
    shift: bool = True,
    key_mask: Array | None = None,
    mask: Array | None = None,
    causal: bool = False,
) -> Support:
    """Row pointers, ascending keys and shape of the support of a field of matches."""
    index, grid = field.index, field.key_grid
    (Hq, Wq), lead = index.shape[-3:-1], index.shape[:-3]
    n, m = Hq * Wq, grid[0] * grid[1]
    may = np.ones((*lead, n, m), bool)
    if key_mask is not None:
        may = may & key_mask.reshape((*key_mask.shape[:-2], 1, m))
    if mask is not None:
        may = may & mask.reshape((*mask.shape[:-4], n, m))
    if causal:
        may = may & (np.arange(m) <= np.arange(n)[:, None])
    index = np.broadcast_to(index, may.shape[:-2] + index.shape[-3:])
    rows = []
    for b in np.ndindex(may.shape[:-2]):
        for y, x in np.ndindex(Hq, Wq):
            keys = _row(index[b], y, x, grid, kind, window // 2, reach, shift)
            rows.append([j for j in keys if may[b][y * Wq + x, j]])
    indptr = np.cumsum([0, *(len(row) for row in rows)])
    return indptr, np.array([j for row in rows for j in row], np.int32), may.shape


def _row(
    index: Array,
    y: int,
    x: int,
    grid: tuple[int, int],
    kind: str | tuple[str, ...],
    radius: int,
    reach: int,
    shift: bool,
) -> list[int]:
    """Ascending keys of one query; its best match is always one of them."""
    kinds = (kind,) if isinstance(kind, str) else kind
    keys = _expanded(index[y, x, :1], grid, 0)
    if {"window", "union"} & {*kinds}:
        keys |= window(index, y, x, grid, radius)
    if {"topk", "union"} & {*kinds}:
        keys |= topk(index, y, x, grid)
    if {"neighbours", "union"} & {*kinds}:
        keys |= neighbours(index, y, x, grid, radius, reach, shift)
    if {"local", "union"} & {*kinds}:
        keys |= local(index, y, x, grid, radius)
    return sorted(i * grid[1] + j for i, j in keys)


def _expanded(matches: Array, grid: tuple[int, int], radius: int) -> set[tuple[int, int]]:
    keys: set[tuple[int, int]] = set()
    for key in matches[matches >= 0]:
        keys |= box(*divmod(int(key), grid[1]), radius, grid)
    return keys


@any_layout
def scram(
    q: Array,
    k: Array,
    v: Array,
    *,
    field: Found | None = None,
    support: Support | None = None,
    return_lse: bool = False,
    **options: object,
) -> Array | tuple[Array, Array]:
    """Outputs (..., Hq, Wq, e) of the support given, or that of the field given, or found."""
    weights, support = _chosen(q, k, field, support, options)
    flat = _flat(q), _flat(k), _flat(v)
    out, lse = sparse_attention(*flat, support, return_lse=True, **weights)
    grid = q.shape[-3:-1]
    out = out.reshape((*out.shape[:-2], *grid, out.shape[-1]))
    return (out, lse.reshape((*lse.shape[:-1], *grid))) if return_lse else out


@any_layout
def scram_vjp(
    q: Array,
    k: Array,
    v: Array,
    dout: Array,
    *,
    dlse: Array | None = None,
    field: Found | None = None,
    support: Support | None = None,
    **options: object,
) -> tuple[Array, Array, Array]:
    """Gradients (dq, dk, dv), the support held fixed."""
    weights, support = _chosen(q, k, field, support, options)
    flat = _flat(q), _flat(k), _flat(v)
    if dlse is not None:
        dlse = dlse.reshape((*dlse.shape[:-2], -1))
    gradients = sparse_attention_vjp(*flat, support, _flat(dout), dlse=dlse, **weights)
    dq, dk, dv = (g.reshape(x.shape) for g, x in zip(gradients, (q, k, v), strict=True))
    return dq, dk, dv


@any_layout
def scram_jvp(
    q: Array,
    k: Array,
    v: Array,
    dq: Array,
    dk: Array,
    dv: Array,
    *,
    field: Found | None = None,
    support: Support | None = None,
    return_lse: bool = False,
    **options: object,
) -> Array | tuple[Array, Array]:
    """Change of `out`, and of `lse`, along dq, dk, dv, the support held fixed."""
    weights, support = _chosen(q, k, field, support, options)
    weights.pop("masked_rows", None)
    flat, changes = (_flat(q), _flat(k), _flat(v)), (_flat(dq), _flat(dk), _flat(dv))
    out, lse = sparse_attention_jvp(*flat, support, *changes, return_lse=True, **weights)
    grid = q.shape[-3:-1]
    out = out.reshape((*out.shape[:-2], *grid, out.shape[-1]))
    return (out, lse.reshape((*lse.shape[:-1], *grid))) if return_lse else out


def _chosen(
    q: Array, k: Array, field: Found | None, support: Support | None, options: dict[str, Any]
) -> tuple[dict[str, Any], Support]:
    """Options of the weights, and the support that the others make."""
    unknown = {*options} - {*WEIGHTS, *MASKS, *SHAPE, *SEARCH}
    if unknown:
        raise TypeError(f"scram: unexpected options {sorted(unknown)}")
    weights, masks, shape, search = (
        {name: options[name] for name in names if name in options}
        for names in (WEIGHTS, MASKS, SHAPE, SEARCH)
    )
    if support is not None:
        return weights, support
    if field is None:
        formula = {name: weights[name] for name in ("scale", "bandwidth") if name in weights}
        score = PAIRED[weights.get("weight", "softmax")]
        field = _searched(q, k, masks, score=score, **formula, **search)
    return weights, scram_support(field, **shape, **masks)


@dataclass(frozen=True)
class Found:
    """Matches (..., Hq, Wq, topk) on the key grid."""

    index: Array
    key_grid: tuple[int, int]


def _searched(q: Array, k: Array, masks: dict[str, Any], **options: Any) -> Found:
    """A field for every slice of the leading axes."""
    lead = np.broadcast_shapes(q.shape[:-3], k.shape[:-3])
    axes = {"q": 3, "k": 3, "key_mask": 2, "mask": 4, "causal": 0}
    given: dict[str, Any] = {name: np.asarray(x) for name, x in masks.items() if x is not None}
    given |= {"q": q, "k": k}
    for name, x in given.items():
        given[name] = np.broadcast_to(x, lead + x.shape[x.ndim - axes[name] :])
    fields = []
    for number, b in enumerate(np.ndindex(lead)):
        own = {name: x[b] for name, x in given.items()}
        fields.append(patchmatch(**own, **options, first_slice=number).index)
    return Found(np.reshape(fields, lead + fields[0].shape), (k.shape[-3], k.shape[-2]))


def _flat(x: Array) -> Array:
    return x.reshape((*x.shape[:-3], -1, x.shape[-1]))
