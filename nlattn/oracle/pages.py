"""Keys and values that lie in pages [kwon2023, section 4.1], one after the other. Status: paper."""

from __future__ import annotations

from typing import Any

import numpy as np

from nlattn.oracle.dense import attention, attention_jvp, attention_vjp
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


def laid(pages: Array, table: Array) -> Array:
    """Keys (..., m, d) of every sequence; of pages with heads (..., heads, m, d)."""
    rows = gather_pages(pages, table)
    return np.moveaxis(rows, -2, -3) if pages.ndim == 4 else rows


def placed(options: dict[str, Any]) -> dict[str, Any]:
    """A window is about the place of a query among the keys, ``i + causal_offset``."""
    about = {} if options.get("window") is None else {"window_about": "offset"}
    return {**options, **about}


def own(pages: Array, lengths: Any) -> Any:
    """Lengths with an axis for heads where pages have one."""
    return np.asarray(lengths)[..., None] if pages.ndim == 4 and np.ndim(lengths) else lengths


@any_layout
def paged_attention(
    q: Array, k_pages: Array, v_pages: Array, table: Array, *, key_lengths: Any = None,
    **options: Any,
) -> Any:  # fmt: skip
    """Attention to the rows that a table lists."""
    k, v = laid(k_pages, table), laid(v_pages, table)
    return attention(q, k, v, key_lengths=own(k_pages, key_lengths), **placed(options))


@any_layout
def paged_attention_vjp(
    q: Array, k_pages: Array, v_pages: Array, table: Array, dout: Array, *,
    key_lengths: Any = None, **options: Any,
) -> tuple[Array, ...]:  # fmt: skip
    """Gradients (dq, dk_pages, dv_pages, ...): a page gets the sum over where it lies."""
    k, v = laid(k_pages, table), laid(v_pages, table)
    lengths = own(k_pages, key_lengths)
    dq, dk, dv, *rest = attention_vjp(q, k, v, dout, key_lengths=lengths, **placed(options))
    if k_pages.ndim == 4:
        dk, dv = np.moveaxis(dk, -3, -2), np.moveaxis(dv, -3, -2)
    dk, dv = gather_pages_vjp(k_pages, table, dk), gather_pages_vjp(v_pages, table, dv)
    return dq, dk, dv, *rest


@any_layout
def paged_attention_jvp(
    q: Array, k_pages: Array, v_pages: Array, table: Array, dq: Array, dk_pages: Array,
    dv_pages: Array, *, key_lengths: Any = None, **options: Any,
) -> Any:  # fmt: skip
    """Change of `out`, and of `lse`; gathering is linear."""
    arrays = q, laid(k_pages, table), laid(v_pages, table)
    changes = dq, laid(dk_pages, table), laid(dv_pages, table)
    lengths = own(k_pages, key_lengths)
    return attention_jvp(*arrays, *changes, key_lengths=lengths, **placed(options))
