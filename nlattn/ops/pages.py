"""Keys and values that lie in pages: the rows of every sequence, one after the other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Ints


def gather_pages(pages: Floats, table: Ints) -> Floats:
    """Keys of every sequence from pages that all share: ``out[b] = pages[table[b]]``.

    Parameters
    ----------
    pages : (count, size, ..., d) array
        Pages of `size` rows; axes between, such as heads, are kept.
    table : (..., width) integers
        Pages of each sequence in their order; negative ones are empty, and give zeros.

    Returns
    -------
    (..., width size, ..., d) array, dtype of `pages`
        As `attention` takes keys or values, `key_lengths` saying how many of them there are. Where
        heads stand between, move them before the rows.

    Raises
    ------
    ValueError
        A page is not below `count`.
    TypeError
        `table` holds no integers.

    Notes
    -----
    A copy of the rows. `gather_pages_vjp` gives pages their gradient.

    Examples
    --------
    >>> pages = rng.normal(size=(5, 16, 8))  # 5 pages of 16 keys; one sequence has two of them
    >>> keys = nlattn.gather_pages(pages, [3, 0])
    >>> out = nlattn.attention(q, keys, keys, key_lengths=20)
    """
    op = "gather_pages"
    x, places = _prepared(op, pages, table)
    found = x[np.maximum(places, 0)] if len(x) else np.zeros((*places.shape, *x.shape[1:]), x.dtype)
    found[places < 0] = 0
    rows = (*places.shape[:-1], places.shape[-1] * x.shape[1], *x.shape[2:])
    out: Floats = found.reshape(rows)
    return out


def gather_pages_vjp(pages: Floats, table: Any, dout: Floats) -> Floats:
    """Gradient of `pages`: a page that several sequences share gets the sum, in their order.

    Examples
    --------
    >>> pages = rng.normal(size=(5, 16, 8))
    >>> nlattn.gather_pages_vjp(pages, [[3, 0]], np.ones((1, 32, 8))).sum((1, 2))
    array([128.,   0.,   0., 128.,   0.])
    """
    op = "gather_pages_vjp"
    x, places = _prepared(op, pages, table)
    shape = (*places.shape[:-1], places.shape[-1] * x.shape[1], *x.shape[2:])
    g = _check.array(op, "dout", dout)
    if g.shape != shape:
        _check.fail(op, "dout", f"has shape {g.shape}, expected {shape}")
    flat = g.reshape(math.prod(places.shape), *x.shape[1:])
    wide = np.float64 if x.dtype == np.float64 else np.float32
    total: Floats = np.zeros(x.shape, wide)
    there = places.reshape(-1) >= 0
    np.add.at(total, places.reshape(-1)[there], flat[there].astype(wide))
    return total.astype(x.dtype)


def _prepared(op: str, pages: Floats, table: Ints) -> tuple[Floats, Ints]:
    x = _check.array(op, "pages", pages)
    if x.ndim < 3:
        _check.fail(op, "pages", f"has shape {x.shape}, expected (count, size, ..., d)")
    places = _check.integers(op, "table", table)
    if not places.ndim:
        _check.fail(op, "table", f"has shape {places.shape}, expected (..., width)")
    if places.size and places.max() >= len(x):
        where = _check.first_of(places >= len(x))
        _check.fail(op, f"table{where}", f"is {places[tuple(where)]}, expected below {len(x)}")
    return x, places.astype(np.int64)
