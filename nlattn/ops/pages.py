"""Keys and values that lie in pages: the rows of every sequence, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

import numpy as np

from nlattn import _check
from nlattn._modes import LseBase, Nonfinite
from nlattn._types import Floats, Ints, PerHead, Result
from nlattn.engines.merge import joined, part_vjp
from nlattn.engines.pages import gather, gather_heads, scatter, scatter_heads, widened
from nlattn.ops._paged import Paged, PagedOptions, Sides, checked_pages, of_heads, of_shape
from nlattn.ops._scores import in_base
from nlattn.ops.dense import attention, attention_vjp
from nlattn.ops.forward_mode import attention_jvp

_INNER = ("attention", "attention_vjp", "attention_jvp")
"""What is asked for each block of keys."""


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
    return gather(*checked_pages("gather_pages", pages, table))


def gather_pages_vjp(pages: Floats, table: Ints, dout: Floats) -> Floats:
    """Gradient of `pages`: a page that several sequences share gets the sum, in their order.

    Examples
    --------
    >>> pages = rng.normal(size=(5, 16, 8))
    >>> nlattn.gather_pages_vjp(pages, [[3, 0]], np.ones((1, 32, 8))).sum((1, 2))
    array([128.,   0.,   0., 128.,   0.])
    """
    op = "gather_pages_vjp"
    x, places = checked_pages(op, pages, table)
    shape = (*places.shape[:-1], places.shape[-1] * x.shape[1], *x.shape[2:])
    g = _check.array(op, "dout", dout)
    if g.shape != shape:
        _check.fail(op, "dout", f"has shape {g.shape}, expected {shape}")
    wide = np.float64 if x.dtype == np.float64 else np.float32
    total: Floats = np.zeros(x.shape, wide)
    scatter(g.astype(wide), places, total)
    return total.astype(x.dtype)


@_check.speaks_for(*_INNER)
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
    window: Sides | None = None,
    sinks: PerHead | None = None,
    alibi: PerHead | None = None,
    nonfinite: Nonfinite = "raise",
    return_lse: bool = False,
    lse_base: LseBase = "e",
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
    window : (left, right), optional
        Keys from ``i + causal_offset - left`` to ``i + causal_offset + right``; None for no end.
    scale, softcap, causal, causal_offset, sinks, alibi, nonfinite, return_lse, lse_base
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
    and a block.

    Examples
    --------
    >>> pages = rng.normal(size=(5, 16, 8))
    >>> nlattn.paged_attention(q, pages, pages, [3, 0], key_lengths=20).shape
    (64, 8)
    """
    given = PagedOptions(
        key_lengths, scale, softcap, causal, causal_offset, window, sinks, alibi, nonfinite
    )
    call = Paged.of("paged_attention", q, k_pages, v_pages, table, given)
    unit = in_base("paged_attention", lse_base)
    out, lse = call.forward()
    return (call.like(out), lse * unit) if return_lse else call.like(out)


@_check.speaks_for(*_INNER)
def paged_attention_vjp(
    q: Floats,
    k_pages: Floats,
    v_pages: Floats,
    table: Ints,
    dout: Floats,
    *,
    dlse: Floats | None = None,
    lse_base: LseBase = "e",
    key_lengths: int | Ints | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    causal: bool = False,
    causal_offset: int | Ints | str = 0,
    window: Sides | None = None,
    sinks: PerHead | None = None,
    alibi: PerHead | None = None,
    alibi_gradient: bool = False,
    nonfinite: Nonfinite = "raise",
) -> Result:
    """Gradients (dq, dk_pages, dv_pages[, dsinks][, dalibi]) of ``sum(dout out) + sum(dlse lse)``.

    Arguments as for `paged_attention`; dalibi with `alibi_gradient`. Gradients of keys lie in pages
    as keys do; a page that several sequences share gets the sum, in their order, and one that none
    has gets 0. Blocks of keys are gathered twice, ``n m (4 d + 3 e)`` multiply-adds in all.

    Examples
    --------
    >>> pages = rng.normal(size=(5, 16, 8))
    >>> dq, dk, dv = nlattn.paged_attention_vjp(q, pages, pages, [3, 0], dout=q)
    >>> dk.shape, dk[[1, 2, 4]].any()
    ((5, 16, 8), np.False_)
    """
    op = "paged_attention_vjp"
    given = PagedOptions(
        key_lengths, scale, softcap, causal, causal_offset, window, sinks, alibi, nonfinite
    )
    call = Paged.of(op, q, k_pages, v_pages, table, given)
    out, lse = call.forward()
    g = of_shape(op, "dout", dout, out.shape).astype(np.float64)
    beside = np.zeros(lse.shape) if dlse is None else of_shape(op, "dlse", dlse, lse.shape)
    beside = beside.astype(np.float64) * in_base(op, lse_base)
    slopes = _check.flag(op, "alibi_gradient", alibi_gradient)
    dq, dk, dv = (np.zeros(np.shape(x)) for x in (q, k_pages, v_pages))
    dsinks: list[Floats] = []
    dalibi: Floats = np.zeros(())
    for pages, arrays, options in call.blocks():
        own, log = attention(*arrays, **options, return_lse=True)
        with np.errstate(invalid="ignore", under="ignore"):  # of numbers that are not finite
            share = np.where(np.isneginf(log), 0, np.exp(log - lse))
            here, moved = (x.astype(own.dtype) for x in part_vjp(share, own, out, g, beside))
        of_q, of_k, of_v, *rest = attention_vjp(
            *arrays, here, dlse=moved, alibi_gradient=slopes, **options
        )
        dq += of_q
        scatter_heads(of_k, pages, dk)
        scatter_heads(of_v, pages, dv)
        dalibi = dalibi + rest.pop() if slopes else dalibi
        dsinks = dsinks or rest
    gradients = [dq, dk, dv, *dsinks, *([dalibi] if slopes else [])]
    return tuple(map(call.like, gradients))


@_check.speaks_for(*_INNER)
def paged_attention_jvp(
    q: Floats,
    k_pages: Floats,
    v_pages: Floats,
    table: Ints,
    dq: Floats,
    dk_pages: Floats,
    dv_pages: Floats,
    *,
    dsinks: PerHead | None = None,
    dalibi: PerHead | None = None,
    key_lengths: int | Ints | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    causal: bool = False,
    causal_offset: int | Ints | str = 0,
    window: Sides | None = None,
    sinks: PerHead | None = None,
    alibi: PerHead | None = None,
    nonfinite: Nonfinite = "raise",
    return_lse: bool = False,
    lse_base: LseBase = "e",
) -> Result:
    """Change of `paged_attention` along (dq, dk_pages, dv_pages[, dsinks][, dalibi]).

    Arguments as there; with `return_lse` also that of ``lse``, float64. Memory as there.

    Examples
    --------
    >>> pages = rng.normal(size=(5, 16, 8))
    >>> none = 0 * pages
    >>> along_v = nlattn.paged_attention_jvp(q, pages, pages, [3, 0], 0 * q, none, pages)
    >>> np.allclose(along_v, nlattn.paged_attention(q, pages, pages, [3, 0]))
    True
    """
    op = "paged_attention_jvp"
    given = PagedOptions(
        key_lengths, scale, softcap, causal, causal_offset, window, sinks, alibi, nonfinite
    )
    call = Paged.of(op, q, k_pages, v_pages, table, given)
    changes = [
        widened(of_shape(op, name, x, np.shape(like)))
        for name, x, like in (("dq", dq, q), ("dk_pages", dk_pages, k_pages),
                              ("dv_pages", dv_pages, v_pages))
    ]  # fmt: skip
    along = {"sinks": dsinks, "alibi": dalibi}
    for name, like in (("sinks", sinks), ("alibi", alibi)):
        if along[name] is not None and like is None:
            _check.fail(op, f"d{name}", f"is given without {name}, expected None")
        along[name] = of_heads(op, f"d{name}", along[name], np.asarray(q))
    unit = in_base(op, lse_base)

    def parts() -> Iterator[tuple[Floats, ...]]:
        for number, (pages, arrays, options) in enumerate(call.blocks()):
            own = attention(*arrays, **options, return_lse=True)
            moves = changes[0], *(gather_heads(x, pages) for x in changes[1:])
            first = along["sinks"] if number == 0 else None
            moved = attention_jvp(
                *arrays, *moves, dsinks=first, dalibi=along["alibi"], **options, return_lse=True
            )
            yield tuple(np.asarray(x, np.float64) for x in (*own, *moved))

    _, _, out, lse = reduce(joined, parts())
    return (call.like(out), lse * unit) if return_lse else call.like(out)
