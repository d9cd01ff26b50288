"""Linear attention: sums over keys of features times values, and queries that read them.

A chunk of rows is one task. Sums of chunks are merged in their order, in float64, so that results
are the same for any number of threads.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Bools, Floats, Ints
from nlattn.engines.features import EVERY, Identity, Random
from nlattn.kernels import factored_passes
from nlattn.kernels.factored_rows import padded
from nlattn.runtime import threads

CHUNK = 2048
"""Rows of a chunk: features of 64 channels in float32 take half a megabyte."""


class KeySums(NamedTuple):
    """Sums over the keys of each slice, float64, relative to the maxima `top`."""

    top: Floats
    """(batch, r)"""
    values: Floats
    """(batch, r, e) of features times values."""
    features: Floats
    """(batch, r)"""
    rows: Floats
    """(batch, e) of the values, which is what eps multiplies."""
    kept: Floats
    """(batch,) number of keys."""
    first: Ints
    """(batch, 2) key and feature of a maximum that moves."""


def offset(y: Floats) -> Floats:
    """What all values y (slices, m, e) of a channel share, (slices, 1, e): gradients lose it.

    Where they are within a factor of 2 it is the one nearest 0, and all differences from it are
    exact, as Sterbenz showed; else 0.
    """
    for some in (y[:, :CHUNK], y):  # mostly the first values tell that there is none
        low, high = some.min(1, initial=np.inf), some.max(1, initial=-np.inf)
        above = (low > 0) & (high / 2 <= low) & (high < np.inf) & (low <= high)
        below = (high < 0) & (low / 2 >= high) & (low > -np.inf) & (low <= high)
        found = np.where(above, low, np.where(below, high, 0))[:, None].astype(y.dtype)
        if not found.any():
            break
    return found


def relative(y: Floats, shift: Floats) -> Floats:
    """Values less what they share: no copy where that is 0."""
    return y - shift if shift.any() else y


def chunks(batch: int, n: int) -> list[tuple[int, slice]]:
    """Slice and rows of every task."""
    return [(b, slice(i, min(i + CHUNK, n))) for b in range(batch) for i in range(0, n, CHUNK)]


_CHUNKS = 64
_NUMBERS = 1 << 19


def groups(batch: int, n: int, numbers: int) -> list[Ints]:
    """Chunks of all slices, (chunks, 3) of slice, first row and last, in groups for one call.

    At most `_CHUNKS` of a slice, and groups for whose results, `numbers` of a chunk, there is room.
    A thread gets several, so that one which is held up does not keep all waiting.
    """
    made = _groups if batch * n > CHUNK else _few_groups
    return made(batch, n, numbers, 4 * threads.threads())


def _groups(batch: int, n: int, numbers: int, least: int) -> list[Ints]:
    size = CHUNK * max(1, -(-n // (CHUNK * _CHUNKS)))
    first = np.arange(0, n, size)
    rows = np.column_stack([first, np.minimum(first + size, n)])
    tasks = np.column_stack([np.repeat(np.arange(batch), len(rows)), np.tile(rows, (batch, 1))])
    count = max(least, -(-len(tasks) * numbers // _NUMBERS))
    parts = np.array_split(tasks, count) if len(tasks) > count else tasks[:, None]
    return [_check.frozen(part) for part in parts]


_few_groups = functools.lru_cache(maxsize=64)(_groups)


def key_sums(f: Identity, x: Floats, y: Floats, slices: Ints, mask: Bools | None = None) -> KeySums:
    """Sums over keys x of ``phi(x).T (y, 1)``; `slices` (batch, 3) are those of x, y and `mask`."""
    batch, r, e = len(slices), f.size(x.shape[2]), y.shape[2]
    start, m = f.top(x.shape[2]), f.compiled(x)
    every = EVERY if mask is None else _check.frozen(mask)
    x, y, slices = _check.frozen(x), _check.frozen(y), _check.frozen(slices)
    kept = np.full(batch, float(x.shape[1]))
    if mask is not None:
        kept = mask.sum(1, dtype=float)[slices[:, 2]]
    sums = KeySums(
        np.tile(start, (batch, 1)),
        np.zeros((batch, r, e)),
        np.zeros((batch, r)),
        np.zeros((batch, e)),
        kept,
        np.zeros((batch, 2), np.int64),
    )
    tasks = groups(batch, x.shape[1], r * e)

    def part(number: int) -> tuple[Ints, Floats, Floats, Floats, Floats, Ints]:
        some = tasks[number]
        t = len(some)
        high, where = np.tile(start.astype(x.dtype), (t, 1)), np.zeros((t, 2), np.int64)
        found = np.zeros((t, r, e)), np.zeros((t, r)), np.zeros((t, e))
        factored_passes.key_sums(m, x, y, every, slices, some, high, *found, where)
        return some[:, 0], high, *found, where

    for group in threads.each(part, len(tasks), batch * x.shape[1]):
        for b, *chunk in zip(*group, strict=True):
            _add(sums, b, m.moving, *chunk)
    return sums


def _add(
    to: KeySums,
    b: int,
    moving: bool,
    top: Floats,
    values: Floats,
    features: Floats,
    rows: Floats,
    first: Ints,
) -> None:
    """Add the sums of a chunk, relative to its own maxima, to those of slice b."""
    if moving and top[0] > to.top[b, 0]:
        to.first[b] = first
    highest = np.maximum(to.top[b], top)
    at = np.where(highest > -np.inf, highest, 0)
    old, new = np.exp(to.top[b] - at), np.exp(top - at)
    to.values[b] = to.values[b] * old[:, None] + values * new[:, None]
    to.features[b] = to.features[b] * old + features * new
    to.rows[b] += rows
    to.top[b] = highest


def read(
    f: Identity, x: Floats, index: Ints, context: Floats, norm: Floats | None = None
) -> tuple[Floats, Floats]:
    """``phi(x) context`` (batch, n, e), over ``phi(x).norm`` if given, and that one's logarithm.

    `index` (batch,) are the slices of x; context (batch, r, e) and norm (batch, r).
    """
    batch, n, e = len(index), x.shape[1], context.shape[2]
    out = np.empty((batch, n, e), x.dtype)
    log: Floats = np.empty((batch, 0 if norm is None else n))
    m, panels = f.compiled(x), padded(context)
    norm = np.empty((batch, 0), x.dtype) if norm is None else norm
    x, index, norm = _check.frozen(x), _check.frozen(index), _check.frozen(norm)
    tasks = groups(batch, n, 1)

    def part(number: int) -> None:
        factored_passes.read(m, x, EVERY[0], index, panels, norm, tasks[number], out, log)

    for _ in threads.each(part, len(tasks), batch * n):
        pass
    return out, log


def write(
    f: Identity, x: Floats, index: Ints, top: Floats, factor: Floats, mask: Bools | None = None
) -> Floats:
    """``factor phi(x)`` (batch, n, r), relative to shared maxima `top` (batch, r), 0 if masked.

    `mask` is (batch, n) or None.
    """
    batch, n = len(index), x.shape[1]
    out = np.empty((batch, n, f.size(x.shape[2])), x.dtype)
    tasks = chunks(batch, n)

    def part(number: int) -> None:
        b, some = tasks[number]
        block = f(x[index[b], some], top[b], None if mask is None else mask[b, some])
        np.multiply(block.whole, factor[b], out=out[b, some], casting="same_kind")

    for _ in threads.each(part, len(tasks), batch * n):
        pass
    return out


def queries_vjp(
    f: Identity, x: Floats, dout: Floats, slices: Ints, context: Floats, norm: Floats | None = None
) -> tuple[Floats, Floats, Floats]:
    """Gradients of queries (batch, n, d), context (batch, r, e) and norm (batch, r).

    `slices` (batch, 2) are those of x and dout.
    """
    batch, n, d = len(slices), *x.shape[1:]
    dx = np.empty((batch, n, d), x.dtype)
    dcontext, dnorm = np.zeros(context.shape), np.zeros(context.shape[:2])
    tasks = chunks(batch, n)
    start = np.zeros(context.shape[1])

    def part(number: int) -> Any:
        b, some = tasks[number]
        block = f(x[slices[b, 0], some], start)
        phi, g, along = block.whole, dout[slices[b, 1], some], None
        if norm is not None:
            total = (phi @ norm[b])[:, None]
            out = phi @ context[b]
            out /= total
            g = g / total
            along = -np.einsum("ia,ia->i", out, g)
        dphi = g @ context[b].T
        if norm is not None and along is not None:
            dphi += along[:, None] * norm[b]
        dx[b, some] = f.vjp(block, dphi)
        return b, phi.T @ g, 0 if along is None else along @ phi

    for b, more, beside in threads.each(part, len(tasks), batch * n):
        dcontext[b] += more
        dnorm[b] += beside
    return dx, dcontext, dnorm


class KeyGradient(NamedTuple):
    """What gradients of keys and values are made of, beside the arrays."""

    top: Floats
    """(batch, r) the maxima that features are relative to."""
    scale: Floats
    """(batch, r) what features are multiplied by."""
    context: Floats
    """(batch, r, e) gradient of the sums with values."""
    norm: Floats
    """(batch, r) gradient of the sums alone."""
    first: Ints
    """As in `KeySums`."""


def keys_vjp(
    f: Identity, x: Floats, y: Floats, slices: Ints, g: KeyGradient, mask: Bools | None = None
) -> tuple[Floats, Floats]:
    """Gradients of keys (batch, m, d) and values (batch, m, e); `slices` as in `key_sums`."""
    batch, m, d = len(slices), *x.shape[1:]
    dx, dy = np.empty((batch, m, d), x.dtype), np.empty((batch, m, y.shape[2]), x.dtype)
    tasks = chunks(batch, m)
    moving = isinstance(f, Random) and f.moving

    def part(number: int) -> Any:
        b, some = tasks[number]
        chosen = None if mask is None else mask[slices[b, 2], some]
        block = f(x[slices[b, 0], some], g.top[b], chosen)
        np.matmul(block.whole * g.scale[b], g.context[b], out=dy[b, some])
        dphi = y[slices[b, 1], some] @ g.context[b].T
        dphi += g.norm[b]
        dphi *= g.scale[b]
        dx[b, some] = f.vjp(block, dphi)
        if chosen is not None:
            dx[b, some][~chosen] = dy[b, some][~chosen] = 0
        return b, np.einsum("ic,ic->", dphi, block.phi, dtype=float) if moving else 0.0

    moved = np.zeros(batch)
    for b, more in threads.each(part, len(tasks), batch * m):
        moved[b] += more
    if moving and m:
        for b, where in enumerate(g.first):
            dx[b, where[0]] -= x.dtype.type(moved[b]) * f.projection[where[1]]  # type: ignore[attr-defined]
    return dx, dy
