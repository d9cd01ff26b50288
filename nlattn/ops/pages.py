"""Keys and values that lie in pages: the rows of every sequence, one after the other."""

from __future__ import annotations

import math

import numpy as np

from nlattn import _check
from nlattn._modes import Nonfinite
from nlattn._types import Floats, Ints, Result
from nlattn.ops.dense import attention
from nlattn.ops.merge import merge_attention

_ROWS = 4096
"""Keys that are gathered at a time."""


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


def gather_pages_vjp(pages: Floats, table: Ints, dout: Floats) -> Floats:
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


def paged_attention(
    q: Floats,
    k_pages: Floats,
    v_pages: Floats,
    table: Ints,
    *,
    key_lengths: int | Ints | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    causal: bool = False,
    causal_offset: int | Ints | str = 0,
    sinks: Floats | None = None,
    alibi: Floats | None = None,
    nonfinite: Nonfinite = "raise",
    return_lse: bool = False,
) -> Result:
    """Attention to keys and values in pages, some thousand of them gathered at a time.

    Parameters
    ----------
    q : (..., n, d) array
        Queries, their leading axes those of `table`, and then heads if pages have them.
    k_pages, v_pages : (count, size, d), (count, size, e), or (count, size, heads, d) arrays
        Pages, of which a block is copied, never all.
    table, key_lengths : (..., width) integers, integers that broadcast to its leading axes
        As for `gather_pages`; a sequence has no keys from its length on.
    scale, softcap, causal, causal_offset, sinks, alibi, nonfinite, return_lse
        As for `attention`.

    Returns
    -------
    (..., n, e) array, dtype of `q`

    Raises
    ------
    ValueError, TypeError
        A page is not below `count`; or as `attention` does.

    Notes
    -----
    What `attention` gives for all pages gathered, merged from blocks in float64. Memory ``O(n e)``
    and a block. For gradients gather the pages.

    Examples
    --------
    >>> pages = rng.normal(size=(5, 16, 8))
    >>> nlattn.paged_attention(q, pages, pages, [3, 0], key_lengths=20).shape
    (64, 8)
    """
    op = "paged_attention"
    (k, places), (v, _) = (_prepared(op, x, table) for x in (k_pages, v_pages))
    if k.shape[:-1] != v.shape[:-1]:
        _check.fail(op, "v_pages", f"has shape {v.shape}, expected {k.shape[:-1]} and channels")
    size, width, heads = k.shape[1], places.shape[-1], k.ndim == 4
    most = width * size
    lengths = np.asarray(
        most if key_lengths is None else _check.integers(op, "key_lengths", key_lengths)
    )
    if lengths.size and not 0 <= lengths.min() <= lengths.max() <= most:
        _check.fail(op, "key_lengths", f"holds {lengths.max()}, expected 0 to {most}")
    lengths = lengths[..., None] if heads and lengths.ndim else lengths
    if isinstance(causal_offset, str):
        _check.choice(op, "causal_offset", causal_offset, ("bottom-right",))
        causal_offset = lengths - np.shape(q)[-2]
    step = max(1, _ROWS // max(size, 1))
    out, lse = None, None
    for first in range(0, max(width, 1), step):
        some, start = places[..., first : first + step], first * size
        keys, values = (gather_pages(x, some) for x in (k, v))
        if heads:
            keys, values = (np.moveaxis(x, -2, -3) for x in (keys, values))
        own, log = attention(
            q, keys, values, key_lengths=np.clip(lengths - start, 0, some.shape[-1] * size),
            scale=scale, softcap=softcap, causal=causal,
            causal_offset=np.asarray(causal_offset) - start if causal or alibi is not None else 0,
            sinks=sinks if not first else None, alibi=alibi, nonfinite=nonfinite, return_lse=True,
        )  # fmt: skip
        own = own.astype(np.float64)
        if out is not None and lse is not None:
            own, log = merge_attention([out, own], [lse, log], nonfinite="propagate")
        out, lse = own, log
    result = out.astype(np.asarray(q).dtype)  # type: ignore[union-attr]
    return (result, lse) if return_lse else result


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
