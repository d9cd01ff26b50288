"""Keys and values that lie in pages [kwon2023, section 4.1], one after the other. Status: paper."""

from __future__ import annotations

import numpy as np

from nlattn.oracle.layout import any_layout

Array = np.ndarray


@any_layout
def gather_pages(pages: Array, table: Array) -> Array:
    """Rows ``pages[table]``: pages (count, size, ..., d), table (..., width), below 0 for none."""
    out = np.zeros((*table.shape, *pages.shape[1:]), pages.dtype)
    for at in np.ndindex(table.shape):
        if table[at] >= 0:
            out[at] = pages[table[at]]
    return out.reshape((*table.shape[:-1], -1, *pages.shape[2:]))


@any_layout
def gather_pages_vjp(pages: Array, table: Array, dout: Array) -> Array:
    """Gradient of `pages`: the sum of all places where a page lies."""
    dpages = np.zeros(pages.shape, dout.dtype)
    each = dout.reshape((*table.shape, *pages.shape[1:]))
    for at in np.ndindex(table.shape):
        if table[at] >= 0:
            dpages[table[at]] = dpages[table[at]] + each[at]
    return dpages
