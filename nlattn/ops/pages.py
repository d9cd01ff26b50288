"""Keys and values that lie in pages: the rows of every sequence, one after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from nlattn import _check
from nlattn._modes import Nonfinite
from nlattn._types import Floats, Ints, Options, Result
from nlattn.ops.dense import attention, attention_vjp
from nlattn.ops.forward_mode import attention_jvp
from nlattn.ops.merge import merge_attention, merge_attention_jvp

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
    and a block.

    Examples
    --------
    >>> pages = rng.normal(size=(5, 16, 8))
    >>> nlattn.paged_attention(q, pages, pages, [3, 0], key_lengths=20).shape
    (64, 8)
    """
    given = PagedOptions(
        key_lengths, scale, softcap, causal, causal_offset, sinks, alibi, nonfinite
    )
    call = Paged.of("paged_attention", q, k_pages, v_pages, table, given)
    out, lse = call.forward()
    return (call.like(out), lse) if return_lse else call.like(out)


def paged_attention_vjp(
    q: Floats,
    k_pages: Floats,
    v_pages: Floats,
    table: Any,
    dout: Floats,
    *,
    dlse: Floats | None = None,
    key_lengths: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    causal: bool = False,
    causal_offset: int | Ints | str = 0,
    sinks: Floats | None = None,
    alibi: Floats | None = None,
    nonfinite: Nonfinite = "raise",
) -> Any:
    """Gradients (dq, dk_pages, dv_pages[, dsinks]) of ``sum(dout out) + sum(dlse lse)``.

    Arguments as for `paged_attention`. Gradients of keys lie in pages as keys do; a page that
    several sequences share gets the sum, in their order, and one that none has gets 0. Blocks of
    keys are gathered twice, and have ``n m (4 d + 3 e)`` multiply-adds in all.

    Examples
    --------
    >>> pages = rng.normal(size=(5, 16, 8))
    >>> dq, dk, dv = nlattn.paged_attention_vjp(q, pages, pages, [3, 0], dout=q)
    >>> dk.shape, dk[[1, 2, 4]].any()
    ((5, 16, 8), np.False_)
    """
    op = "paged_attention_vjp"
    given = PagedOptions(
        key_lengths, scale, softcap, causal, causal_offset, sinks, alibi, nonfinite
    )
    call = Paged.of(op, q, k_pages, v_pages, table, given)
    out, lse = call.forward()
    g = _of_shape(op, "dout", dout, out.shape).astype(np.float64)
    beside = np.zeros(lse.shape) if dlse is None else _of_shape(op, "dlse", dlse, lse.shape)
    dq, dk, dv = (np.zeros(np.shape(x)) for x in (q, k_pages, v_pages))
    dsinks: Any = None
    for pages, arrays, options in call.blocks():
        own, log = attention(*arrays, **options, return_lse=True)
        with np.errstate(invalid="ignore", under="ignore"):  # of numbers that are not finite
            share = np.where(np.isneginf(log), 0, np.exp(log - lse))
            moved = share * (beside + ((own - out) * g).sum(-1))
            here = (share[..., None] * g).astype(own.dtype)
        moved = np.where(share == 0, 0, moved).astype(own.dtype)
        of_q, of_k, of_v, *rest = attention_vjp(*arrays, here, dlse=moved, **options)
        dq += of_q
        call.add(pages, of_k, dk)
        call.add(pages, of_v, dv)
        dsinks = rest[0] if rest else dsinks
    gradients = tuple(call.like(x) for x in (dq, dk, dv))
    return gradients if dsinks is None else (*gradients, call.like(dsinks))


def paged_attention_jvp(
    q: Floats,
    k_pages: Floats,
    v_pages: Floats,
    table: Any,
    dq: Floats,
    dk_pages: Floats,
    dv_pages: Floats,
    *,
    dsinks: Floats | None = None,
    key_lengths: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    causal: bool = False,
    causal_offset: int | Ints | str = 0,
    sinks: Floats | None = None,
    alibi: Floats | None = None,
    nonfinite: Nonfinite = "raise",
    return_lse: bool = False,
) -> Any:
    """Change of `paged_attention` along (dq, dk_pages, dv_pages[, dsinks]), to first order.

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
        key_lengths, scale, softcap, causal, causal_offset, sinks, alibi, nonfinite
    )
    call = Paged.of(op, q, k_pages, v_pages, table, given)
    changes = [
        _wide(_of_shape(op, name, x, np.shape(like)))
        for name, x, like in (("dq", dq, q), ("dk_pages", dk_pages, k_pages),
                              ("dv_pages", dv_pages, v_pages))
    ]  # fmt: skip
    if dsinks is not None and sinks is None:
        _check.fail(op, "dsinks", "is given without sinks, expected None")
    dsinks = _beside(op, "dsinks", dsinks, np.asarray(q))
    found: list[Any] = []
    for number, (pages, (own_q, k, v), options) in enumerate(call.blocks()):
        own = attention(own_q, k, v, **options, return_lse=True)
        dk, dv = (call.gathered(x, pages) for x in changes[1:])
        more: dict[str, Any] = {} if number or dsinks is None else {"dsinks": dsinks}
        moved = attention_jvp(own_q, k, v, changes[0], dk, dv, **options, **more, return_lse=True)
        new = [np.asarray(x, np.float64) for x in (*own, *moved)]
        if found:
            pairs = [[x, y] for x, y in zip(found, new, strict=True)]
            change = merge_attention_jvp(*pairs, nonfinite="propagate")
            found = [*merge_attention(*pairs[:2], nonfinite="propagate"), *change]
        else:
            found = new
    return (call.like(found[2]), found[3]) if return_lse else call.like(found[2])


class PagedOptions(NamedTuple):
    """Options of a call, as they came."""

    key_lengths: Any
    scale: float | None
    softcap: float | None
    causal: bool
    causal_offset: Any
    sinks: Any
    alibi: Any
    nonfinite: Nonfinite


class Paged(NamedTuple):
    """Checked arguments of one call; arrays of 16 bits in float32."""

    q: Floats
    k: Floats
    v: Floats
    places: Ints
    lengths: Ints
    offset: Ints
    asked: PagedOptions
    dtype: Any

    @classmethod
    def of(
        cls, op: str, q: Any, k_pages: Any, v_pages: Any, table: Any, asked: PagedOptions
    ) -> Paged:
        """Check everything that `attention` does not."""
        (k, places), (v, _) = (_prepared(op, x, table) for x in (k_pages, v_pages))
        queries = _check.array(op, "q", q)
        _check.one_dtype(op, {"q": queries.dtype, "k_pages": k.dtype, "v_pages": v.dtype})
        if k.shape[:-1] != v.shape[:-1]:
            text = f"has shape {v.shape}, expected {k.shape[:-1]} and channels"
            _check.fail(op, "v_pages", text)
        heads, most = k.ndim == 4, places.shape[-1] * k.shape[1]
        given = asked.key_lengths
        lengths = np.asarray(most if given is None else _check.integers(op, "key_lengths", given))
        if lengths.size and not 0 <= lengths.min() <= lengths.max() <= most:
            _check.fail(op, "key_lengths", f"holds {lengths.max()}, expected 0 to {most}")
        lengths = lengths[..., None] if heads and lengths.ndim else lengths
        offset = asked.causal_offset
        if isinstance(offset, str):
            _check.choice(op, "causal_offset", offset, ("bottom-right",))
            offset = lengths - queries.shape[-2]
        given = {"sinks": asked.sinks, "alibi": asked.alibi}
        asked = asked._replace(**{n: _beside(op, n, x, queries) for n, x in given.items()})
        return cls(_wide(queries), k, v, places, lengths, np.asarray(offset), asked, queries.dtype)

    def blocks(self) -> Iterator[tuple[Ints, tuple[Floats, Floats, Floats], Options]]:
        """Pages of some thousand keys: their numbers, arrays and options of `attention`."""
        size, width = self.k.shape[1], self.places.shape[-1]
        step, asked = max(1, _ROWS // max(size, 1)), self.asked
        placed = asked.causal or asked.alibi is not None
        for first in range(0, max(width, 1), step):
            some, start = self.places[..., first : first + step], first * size
            options: Options = {
                "key_lengths": np.clip(self.lengths - start, 0, some.shape[-1] * size),
                "scale": asked.scale, "softcap": asked.softcap, "causal": asked.causal,
                "causal_offset": self.offset - start if placed else 0,
                "sinks": None if first else asked.sinks, "alibi": asked.alibi,
                "nonfinite": asked.nonfinite,
            }  # fmt: skip
            yield some, (self.q, self.gathered(self.k, some), self.gathered(self.v, some)), options

    def forward(self) -> tuple[Floats, Floats]:
        """Outputs and normalisers, float64."""
        out, lse = None, None
        for _, arrays, options in self.blocks():
            own, log = attention(*arrays, **options, return_lse=True)
            own = own.astype(np.float64)
            if out is not None and lse is not None:
                own, log = merge_attention([out, own], [lse, log], nonfinite="propagate")
            out, lse = own, log
        return out, lse  # type: ignore[return-value]

    def gathered(self, pages: Floats, some: Ints) -> Floats:
        """Rows of some pages of every sequence, heads before them."""
        rows = _wide(gather_pages(pages, some))
        return np.moveaxis(rows, -2, -3) if pages.ndim == 4 else rows

    def add(self, some: Ints, rows: Floats, total: Floats) -> None:
        """Add gradients of gathered rows to their pages."""
        rows = np.moveaxis(rows, -3, -2) if total.ndim == 4 else rows
        there = some.reshape(-1) >= 0
        np.add.at(total, some.reshape(-1)[there], rows.reshape(-1, *total.shape[1:])[there])

    def like(self, x: Floats) -> Floats:
        """A result in the dtype of the call."""
        return x.astype(self.dtype)


def _wide(x: Floats) -> Floats:
    """Of 16 bits in float32."""
    return x.astype(np.float32) if x.dtype.itemsize < 4 else x


def _beside(op: str, name: str, value: Any, q: Floats) -> Any:
    """Numbers of heads, of the dtype of q."""
    if value is None or isinstance(value, (int, float)):
        return value
    x = _check.array(op, name, value)
    _check.one_dtype(op, {"q": q.dtype, name: x.dtype})
    return _wide(x)


def _of_shape(op: str, name: str, value: object, shape: tuple[int, ...]) -> Floats:
    x = _check.array(op, name, value)
    if x.shape != shape:
        _check.fail(op, name, f"has shape {x.shape}, expected {shape}")
    return x


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
