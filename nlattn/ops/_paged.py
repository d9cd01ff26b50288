"""Checked arguments of a call on pages, and its blocks of keys, as `attention` takes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from nlattn import _check
from nlattn._modes import Nonfinite
from nlattn._types import Floats, Ints, Options
from nlattn.ops.dense import attention
from nlattn.ops.merge import merge_attention

_ROWS = 4096
"""Keys that are gathered at a time."""


class PagedOptions(NamedTuple):
    """Options of a call, as they came."""

    key_lengths: Any
    scale: float | None
    softcap: float | None
    causal: bool
    causal_offset: Any
    window: Any
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
        (k, places), (v, _) = (checked_pages(op, x, table) for x in (k_pages, v_pages))
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
        asked = asked._replace(**{n: of_heads(op, n, x, queries) for n, x in given.items()})
        return cls(
            widened(queries), k, v, places, lengths, np.asarray(offset), asked, queries.dtype
        )

    def blocks(self) -> Iterator[tuple[Ints, tuple[Floats, Floats, Floats], Options]]:
        """Pages of some thousand keys: their numbers, arrays and options of `attention`."""
        size, width = self.k.shape[1], self.places.shape[-1]
        step, asked = max(1, _ROWS // max(size, 1)), self.asked
        windowed = asked.window is not None
        placed = asked.causal or asked.alibi is not None or windowed
        for first in range(0, max(width, 1), step):
            some, start = self.places[..., first : first + step], first * size
            options: Options = {
                "key_lengths": np.clip(self.lengths - start, 0, some.shape[-1] * size),
                "scale": asked.scale, "softcap": asked.softcap, "causal": asked.causal,
                "causal_offset": self.offset - start if placed else 0,
                "sinks": None if first else asked.sinks, "alibi": asked.alibi,
                "nonfinite": asked.nonfinite, "window": asked.window,
                "window_about": "offset" if windowed else "query",
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
        rows = widened(rows_of_pages(pages, some))
        return np.moveaxis(rows, -2, -3) if pages.ndim == 4 else rows

    def add(self, some: Ints, rows: Floats, total: Floats) -> None:
        """Add gradients of gathered rows to their pages."""
        rows = np.moveaxis(rows, -3, -2) if total.ndim == 4 else rows
        there = some.reshape(-1) >= 0
        np.add.at(total, some.reshape(-1)[there], rows.reshape(-1, *total.shape[1:])[there])

    def like(self, x: Floats) -> Floats:
        """A result in the dtype of the call."""
        return x.astype(self.dtype)


def widened(x: Floats) -> Floats:
    """Of 16 bits in float32."""
    return x.astype(np.float32) if x.dtype.itemsize < 4 else x


def of_heads(op: str, name: str, value: Any, q: Floats) -> Any:
    """Numbers of heads, of the dtype of q."""
    if value is None or isinstance(value, (int, float)):
        return value
    x = _check.array(op, name, value)
    _check.one_dtype(op, {"q": q.dtype, name: x.dtype})
    return widened(x)


def of_shape(op: str, name: str, value: object, shape: tuple[int, ...]) -> Floats:
    x = _check.array(op, name, value)
    if x.shape != shape:
        _check.fail(op, name, f"has shape {x.shape}, expected {shape}")
    return x


def checked_pages(op: str, pages: Floats, table: Ints) -> tuple[Floats, Ints]:
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


def rows_of_pages(pages: Floats, places: Ints) -> Floats:
    """Rows (..., width size, ...) of pages; zeros where a place is below 0."""
    gap = np.zeros((*places.shape, *pages.shape[1:]), pages.dtype)
    found = pages[np.maximum(places, 0)] if len(pages) else gap
    found[places < 0] = 0
    out: Floats = found.reshape(*places.shape[:-1], places.shape[-1] * pages.shape[1],
                                *pages.shape[2:])  # fmt: skip
    return out
