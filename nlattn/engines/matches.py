"""Supports from the matches of a grid of queries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from nlattn import _check
from nlattn._types import Bools, Field, Ints, Support
from nlattn.kernels import support as kernels
from nlattn.runtime import threads
from nlattn.runtime.jit import blocks

KINDS = {
    "window": kernels.WINDOW,
    "neighbours": kernels.NEIGHBOURS,
    "topk": kernels.TOPK,
    "local": kernels.LOCAL,
    "union": kernels.WINDOW | kernels.NEIGHBOURS | kernels.TOPK | kernels.LOCAL,
}
GivenMasks: TypeAlias = tuple[object, object, bool]


def support_of_field(
    op: str,
    field: Field,
    kind: str | Sequence[str],
    radius: int,
    around: tuple[int, bool],
    masks: GivenMasks,
    max_bytes: float,
    part: tuple[int, int] | None = None,
) -> Support:
    """Count the keys of every query, allocate them, list them.

    `part` says of a field that holds some rows of a grid how many there are, and how many above.
    """
    index, grid = matches(op, field)
    lead, (Hq, Wq) = index.shape[:-3], index.shape[-3:-1]
    n, m = Hq * Wq, math.prod(grid)
    key_mask = _mask(op, "key_mask", masks[0], grid)
    mask = _mask(op, "mask", masks[1], (Hq, Wq, *grid))
    try:
        lead = np.broadcast_shapes(lead, key_mask.shape[:-2], mask.shape[:-4])
    except ValueError:
        listed = f"field: {index.shape[:-3]}, key_mask: {key_mask.shape[:-2]}"
        text = f"do not broadcast, got {listed}, mask: {mask.shape[:-4]}"
        _check.fail(op, "leading axes", text)

    kinds = tuple(kind) if isinstance(kind, (tuple, list)) else (kind,)
    flags = 0
    for name in kinds:
        flags |= KINDS[_check.choice(op, "kind", name, tuple(KINDS))]
    if not flags:
        _check.fail(op, "kind", "is empty, expected at least one")
    radius = min(radius, max(grid) - 1)
    reach = min(around[0], max(Hq, Wq) - 1) if flags & kernels.NEIGHBOURS else 0
    workspace = 8 * (2 * (2 * reach + 1) ** 2 + 2) * (2 * radius + 2) * threads.max_threads()
    remedy = "use a smaller window or reach"
    _check.memory(op, workspace, max_bytes, f"workspace of reach {reach}", remedy)

    rows = math.prod(lead) * n
    inputs = (
        _check.frozen(index.reshape(-1, *index.shape[-3:]), np.int64),
        _check.frozen(key_mask.reshape(-1, m)),
        _check.frozen(mask.reshape(-1, n, m)),
        _slices(lead, index.shape[:-3], key_mask.shape[:-2], mask.shape[:-4]),
        _frozen_ints(*grid, *(part or (Hq, 0))),
        _frozen_ints(flags, radius, masks[2]),
        _frozen_ints(reach, around[1]),
    )
    sizes, none = np.empty(rows, np.int64), np.empty(0, np.int32)
    tasks = blocks(rows, kernels.BLOCK)
    kernels.list_keys(tasks, *inputs, _frozen_ints(), sizes, none)
    indptr = _check.frozen(np.concatenate([[0], np.cumsum(sizes)]), np.int64)
    nnz = int(indptr[-1])
    _check.memory(op, 4 * nnz, max_bytes, f"{nnz} int32 keys", remedy)
    keys = np.empty(nnz, np.int32)
    if nnz:  # an empty result asks for the sizes only
        kernels.list_keys(tasks, *inputs, indptr, sizes, keys)
    return Support(indptr, _check.frozen(keys), (*lead, n, m))


def matches(op: str, field: Field) -> tuple[Ints, tuple[int, int]]:
    """Checked raster indices of a field, and its grid of keys."""
    _check.instance(op, "field", field, Field)
    index = _check.integers(op, "field.index", field.index)
    grid = tuple(_check.integer(op, "field.key_grid", size, low=1) for size in field.key_grid)
    if index.ndim < 3 or 0 in index.shape[-3:]:
        _check.fail(op, "field.index", f"has shape {index.shape}, expected (..., Hq, Wq, topk)")
    if len(grid) != 2 or math.prod(grid) >= 2**31:
        _check.fail(op, "field.key_grid", f"is {grid}, expected (Hk, Wk) of less than 2^31 keys")
    m = math.prod(grid)
    if index.size and not -1 <= index.min() <= index.max() < m:
        where = [int(i) for i in np.argwhere((index < -1) | (index >= m))[0]]
        _check.fail(op, f"field.index{where}", f"is {index[tuple(where)]}, expected -1 to {m - 1}")
    return index, (grid[0], grid[1])


def _mask(op: str, name: str, mask: object, core: tuple[int, ...]) -> Bools:
    """`mask` checked, or an empty one."""
    if mask is None:
        return np.empty((0,) * len(core), bool)
    array = _check.booleans(op, name, mask)
    if array.shape[-len(core) :] != core:
        _check.fail(op, name, f"has shape {array.shape}, expected {core} or with leading axes")
    return array


def _slices(lead: tuple[int, ...], *shapes: tuple[int, ...]) -> Ints:
    columns = [_check.slices("", "", shape, lead) for shape in shapes]  # these do broadcast
    return _check.frozen(np.stack(columns, 1), np.int64)


def _frozen_ints(*values: int) -> Ints:
    return _check.frozen(np.array(values, np.int64))
