"""Rows that lie in pages: gathered through a table, and their gradients added to the pages."""

from __future__ import annotations

import numpy as np

from nlattn._types import Floats, Ints


def gather(pages: Floats, places: Ints) -> Floats:
    """Rows (..., width size, ...) of pages; zeros where a place is below 0."""
    gap = np.zeros((*places.shape, *pages.shape[1:]), pages.dtype)
    found = pages[np.maximum(places, 0)] if len(pages) else gap
    found[places < 0] = 0
    rows = places.shape[-1] * pages.shape[1]
    out: Floats = found.reshape(*places.shape[:-1], rows, *pages.shape[2:])
    return out


def scatter(rows: Floats, places: Ints, total: Floats) -> None:
    """The transpose: add rows to the pages that they lie in, in their order."""
    there = places.reshape(-1) >= 0
    np.add.at(total, places[places >= 0], rows.reshape(-1, *total.shape[1:])[there])


def gather_heads(pages: Floats, places: Ints) -> Floats:
    """The same of pages that may have heads, which come before the rows; 16 bits as float32."""
    rows = widened(gather(pages, places))
    return np.moveaxis(rows, -2, -3) if pages.ndim == 4 else rows


def scatter_heads(rows: Floats, places: Ints, total: Floats) -> None:
    """The transpose."""
    scatter(np.moveaxis(rows, -3, -2) if total.ndim == 4 else rows, places, total)


def widened(x: Floats) -> Floats:
    """Of 16 bits in float32."""
    return x.astype(np.float32) if x.dtype.itemsize < 4 else x
