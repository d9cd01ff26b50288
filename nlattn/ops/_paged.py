"""Checked arguments of a call on pages, and its blocks of keys, as `attention` takes them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import NamedTuple, TypeAlias, TypedDict

import numpy as np

from nlattn import _check
from nlattn._modes import About, Nonfinite
from nlattn._types import Floats, Ints, PerHead
from nlattn.engines.merge import joined
from nlattn.engines.pages import gather_heads, widened
from nlattn.ops.dense import attention

_ROWS = 4096
"""Keys that are gathered at a time."""
Sides: TypeAlias = tuple[int | None, int | None]


class PagedOptions(NamedTuple):
    """Options of a call, as they came."""

    key_lengths: int | Ints | None
    scale: float | None
    softcap: float | None
    causal: bool
    causal_offset: int | Ints | str
    window: Sides | None
    sinks: PerHead | None
    alibi: PerHead | None
    nonfinite: Nonfinite


class BlockOptions(TypedDict):
    """What `attention` is asked for the keys of a block."""

    key_lengths: Ints
    scale: float | None
    softcap: float | None
    causal: bool
    causal_offset: int | Ints
    window: Sides | None
    window_about: About
    sinks: PerHead | None
    alibi: PerHead | None
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
    dtype: np.dtype

    @classmethod
    def of(
        cls, op: str, q: object, k_pages: object, v_pages: object, table: object,
        asked: PagedOptions,
    ) -> Paged:  # fmt: skip
        """Check everything that `attention` does not."""
        given_pages = {"k_pages": k_pages, "v_pages": v_pages}
        (k, places), (v, _) = (checked_pages(op, x, table, name) for name, x in given_pages.items())
        queries = _check.array(op, "q", q)
        if queries.ndim < 2:
            _check.fail(op, "q", f"has shape {queries.shape}, expected (..., n, d)")
        _check.flag(op, "causal", asked.causal)
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
        else:
            offset = _check.integers(op, "causal_offset", offset)
        sinks, alibi = (
            of_heads(op, name, x, queries)
            for name, x in (("sinks", asked.sinks), ("alibi", asked.alibi))
        )
        asked = asked._replace(sinks=sinks, alibi=alibi)
        return cls(
            widened(queries), k, v, places, lengths, np.asarray(offset), asked, queries.dtype
        )

    def blocks(self) -> Iterator[tuple[Ints, tuple[Floats, Floats, Floats], BlockOptions]]:
        """Pages of some thousand keys: their numbers, arrays and options of `attention`."""
        size, width = self.k.shape[1], self.places.shape[-1]
        step, asked = max(1, _ROWS // max(size, 1)), self.asked
        windowed = asked.window is not None
        placed = asked.causal or asked.alibi is not None or windowed
        for first in range(0, max(width, 1), step):
            some, start = self.places[..., first : first + step], first * size
            options: BlockOptions = {
                "key_lengths": np.clip(self.lengths - start, 0, some.shape[-1] * size),
                "scale": asked.scale, "softcap": asked.softcap, "causal": asked.causal,
                "causal_offset": self.offset - start if placed else 0,
                "sinks": None if first else asked.sinks, "alibi": asked.alibi,
                "nonfinite": asked.nonfinite, "window": asked.window,
                "window_about": "offset" if windowed else "query",
            }  # fmt: skip
            yield some, (self.q, gather_heads(self.k, some), gather_heads(self.v, some)), options

    def forward(self) -> tuple[Floats, Floats]:
        """Outputs and normalisers, float64."""

        def parts() -> Iterator[tuple[Floats, ...]]:
            for _, arrays, options in self.blocks():
                own, log = attention(*arrays, **options, return_lse=True)
                yield own.astype(np.float64), log

        out, lse = reduce(joined, parts())
        return out, lse

    def like(self, x: Floats) -> Floats:
        """A result in the dtype of the call."""
        return x.astype(self.dtype)


def of_heads(op: str, name: str, value: object, q: Floats) -> Floats | None:
    """Numbers of heads, of the dtype of q; of 16 bits in float32."""
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return np.asarray(_check.as_float(op, name, value), widened(q[:0]).dtype)
    x = _check.array(op, name, value)
    _check.one_dtype(op, {"q": q.dtype, name: x.dtype})
    return widened(x)


def of_shape(op: str, name: str, value: object, shape: tuple[int, ...]) -> Floats:
    x = _check.array(op, name, value)
    if x.shape != shape:
        _check.fail(op, name, f"has shape {x.shape}, expected {shape}")
    return x


def checked_pages(
    op: str, pages: object, table: object, name: str = "pages"
) -> tuple[Floats, Ints]:
    x = _check.array(op, name, pages)
    if x.ndim < 3:
        _check.fail(op, name, f"has shape {x.shape}, expected (count, size, ..., d)")
    places = _check.integers(op, "table", table)
    if not places.ndim:
        _check.fail(op, "table", f"has shape {places.shape}, expected (..., width)")
    if places.size and places.max() >= len(x):
        where = _check.first_of(places >= len(x))
        _check.fail(op, f"table{where}", f"is {places[tuple(where)]}, expected below {len(x)}")
    return x, places.astype(np.int64)
