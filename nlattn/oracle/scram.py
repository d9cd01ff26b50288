"""SCRAM-style attention: a match for every query, a support around it, a mean over the support.

Source: [calian2019], reconstructed from its abstract: PatchMatch finds the argmax, the sparsity
pattern is built from it. Which keys exactly, is our choice. Status: reconstruction.
A support is written as the set it is: built key by key, sorted at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

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

if TYPE_CHECKING:
    from typing import Unpack

PAIRED = {"softmax": "dot", "dot": "dot", "abspow": "absdot", "gaussian": "neg_l2"}


class Weights(TypedDict, total=False):
    """What makes a weight of a score."""

    weight: str
    scale: float | None
    bandwidth: float
    power: float


class ScramOptions(Weights, total=False):
    """All that says which keys, and how much of each."""

    masked_rows: str
    kind: str | tuple[str, ...]
    window: int
    key_mask: Array | None
    mask: Array | None
    causal: bool
    iterations: int
    topk: int
    propagate: str
    seed: int


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
    **options: Unpack[ScramOptions],
) -> Array | tuple[Array, Array]:
    """Outputs (..., Hq, Wq, e) of the support given, or that of the field given, or found."""
    weights, support = _chosen(q, k, field, support, options)
    flat, rows = (_flat(q), _flat(k), _flat(v)), options.get("masked_rows", "zero")
    out, lse = sparse_attention(*flat, support, masked_rows=rows, return_lse=True, **weights)
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
    **options: Unpack[ScramOptions],
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
    **options: Unpack[ScramOptions],
) -> Array | tuple[Array, Array]:
    """Change of `out`, and of `lse`, along dq, dk, dv, the support held fixed."""
    weights, support = _chosen(q, k, field, support, options)
    flat, changes = (_flat(q), _flat(k), _flat(v)), (_flat(dq), _flat(dk), _flat(dv))
    out, lse = sparse_attention_jvp(*flat, support, *changes, return_lse=True, **weights)
    grid = q.shape[-3:-1]
    out = out.reshape((*out.shape[:-2], *grid, out.shape[-1]))
    return (out, lse.reshape((*lse.shape[:-1], *grid))) if return_lse else out


def _chosen(
    q: Array, k: Array, field: Found | None, support: Support | None, given: ScramOptions
) -> tuple[Weights, Support]:
    """Options of the weights, and the support that the others make."""
    unknown = {*given} - {*ScramOptions.__annotations__}
    if unknown:
        raise TypeError(f"scram: unexpected options {sorted(unknown)}")
    weights = Weights(
        weight=given.get("weight", "softmax"), scale=given.get("scale"),
        bandwidth=given.get("bandwidth", 1.0), power=given.get("power", 2.0),
    )  # fmt: skip
    if support is None:
        support = scram_support(
            _searched(q, k, given) if field is None else field,
            kind=given.get("kind", "window"), window=given.get("window", 3),
            key_mask=given.get("key_mask"), mask=given.get("mask"),
            causal=given.get("causal", False),
        )  # fmt: skip
    return weights, support


@dataclass(frozen=True)
class Found:
    """Matches (..., Hq, Wq, topk) on the key grid."""

    index: Array
    key_grid: tuple[int, int]


def _searched(q: Array, k: Array, given: ScramOptions) -> Found:
    """A field for every slice of the leading axes."""
    lead = np.broadcast_shapes(q.shape[:-3], k.shape[:-3])
    q, k = (np.broadcast_to(x, lead + x.shape[-3:]) for x in (q, k))
    key_mask, mask = given.get("key_mask"), given.get("mask")
    if key_mask is not None:
        key_mask = np.broadcast_to(key_mask, lead + np.shape(key_mask)[-2:])
    if mask is not None:
        mask = np.broadcast_to(mask, lead + np.shape(mask)[-4:])
    fields = [
        patchmatch(
            q[b], k[b], score=PAIRED[given.get("weight", "softmax")], scale=given.get("scale"),
            bandwidth=given.get("bandwidth", 1.0), iterations=given.get("iterations", 5),
            topk=given.get("topk", 1), propagate=given.get("propagate", "both"),
            seed=given.get("seed", 0), causal=given.get("causal", False), first_slice=number,
            key_mask=None if key_mask is None else key_mask[b],
            mask=None if mask is None else mask[b],
        ).index
        for number, b in enumerate(np.ndindex(lead))
    ]  # fmt: skip
    return Found(np.reshape(fields, lead + fields[0].shape), (k.shape[-3], k.shape[-2]))


def _flat(x: Array) -> Array:
    return x.reshape((*x.shape[:-3], -1, x.shape[-1]))
