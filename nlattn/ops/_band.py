"""Where queries stand among the keys, and which keys they may see by position: lengths, windows."""

from __future__ import annotations

import operator
from typing import NamedTuple, get_args

import numpy as np

from nlattn import _check
from nlattn._check import Fit
from nlattn._modes import About
from nlattn._types import Bools, Ints
from nlattn.engines.dense import FAR

CORNER = "bottom-right"
ABOUT: tuple[About, ...] = get_args(About)


class Positions(NamedTuple):
    """The options that say by position what a query may see, as they were given."""

    causal: bool = False
    causal_offset: int | str | Ints = 0
    window: object = None
    window_about: About = "query"
    key_lengths: object = None
    query_lengths: object = None
    cu_seqlens_q: object = None
    cu_seqlens_k: object = None

    def band(self, fit: Fit, biased: bool = False) -> tuple[Ints, Ints]:
        """(B, n, 3) of `panel.Scores`, and which of the B each head uses.

        `biased` says whether the place of a query counts elsewhere, in a linear bias.
        """
        op, n, m = fit.op, fit.dims["n"], fit.dims["m"]
        if not biased and all(map(operator.is_, self, _EVERYWHERE)):  # nothing was asked for
            return _whole(n, m), np.zeros(fit.batch, np.int64)
        causal = _check.flag(op, "causal", self.causal)
        about = _check.choice(op, "window_about", self.window_about, ABOUT) == "offset"
        left, right = _sides(op, self.window)
        if about and self.window is None:
            _check.fail(op, "window_about='offset'", "has no place without a window")
        used = causal or about or biased
        first: Ints
        last: Ints
        row: Ints
        there: Bools
        if self.cu_seqlens_q is None:
            if self.cu_seqlens_k is not None:
                _check.fail(op, "cu_seqlens_k", "has no place without cu_seqlens_q")
            keys = _lengths(fit, "key_lengths", self.key_lengths, m)
            queries = _lengths(fit, "query_lengths", self.query_lengths, n)
            offset = self._offset(fit, used, keys, queries)
            lead = np.broadcast_shapes(keys.shape, queries.shape, offset.shape)
            table = _check.slices(op, "causal_offset, key_lengths or query_lengths", lead, fit.lead)
            keys, queries, offset = (
                np.broadcast_to(x, lead).reshape(-1, 1) for x in (keys, queries, offset)
            )
            row = np.arange(n)
            first, last, there = np.zeros(1, np.int64), keys, row < queries
        else:
            first, last, row, there, lengths = self._packed(fit)
            offset = self._offset(fit, used, *lengths)
            if isinstance(self.causal_offset, str):
                table = np.zeros(fit.batch, np.int64)
            else:
                table = _check.slices(op, "causal_offset", offset.shape, fit.lead)
                offset = offset.reshape(-1, 1)
        own = row + offset
        centre = own if about else row
        start = np.clip(np.maximum(centre - left, first), 0, m)
        end = np.minimum(centre + right + 1, last)
        if causal:
            end = np.minimum(end, own + 1)
        end = np.where(there, np.clip(end, 0, m), -1)
        band = np.stack(np.broadcast_arrays(*map(np.atleast_2d, (start, end, own))), -1)
        return _check.frozen(band, np.int64), table

    def _packed(self, fit: Fit) -> tuple[Ints, Ints, Ints, Bools, tuple[Ints, Ints]]:
        """For each query the bounds of its keys, its place, whether it exists; and both lengths."""
        op, row = fit.op, np.arange(fit.dims["n"])
        for name, given in (("key", self.key_lengths), ("query", self.query_lengths)):
            if given is not None:
                _check.fail(op, f"{name}_lengths", "has no place beside cu_seqlens_q")
        cu_q = _starts(op, "cu_seqlens_q", self.cu_seqlens_q, fit.dims["n"])
        given = self.cu_seqlens_q if self.cu_seqlens_k is None else self.cu_seqlens_k
        cu_k = _starts(op, "cu_seqlens_k", given, fit.dims["m"])
        if len(cu_q) != len(cu_k):
            text = f"has {len(cu_k)} entries, expected the {len(cu_q)} of cu_seqlens_q"
            _check.fail(op, "cu_seqlens_k", text)
        own = np.searchsorted(cu_q, row, side="right") - 1
        there = own < len(cu_q) - 1
        own = np.minimum(own, len(cu_q) - 2)
        lengths = np.diff(cu_k)[own], np.diff(cu_q)[own]
        return cu_k[own], cu_k[own + 1], row - cu_q[own] + cu_k[own], there, lengths

    def _offset(self, fit: Fit, used: bool, keys: Ints, queries: Ints) -> Ints:
        op, given = fit.op, self.causal_offset
        if isinstance(given, str):
            _check.choice(op, "causal_offset", given, (CORNER,))
            offset: Ints = keys - queries
        elif np.ndim(given) == 0:
            offset = np.array(max(-FAR, min(_check.integer(op, "causal_offset", given), FAR)))
        else:
            offset = np.clip(_check.integers(op, "causal_offset", given), -FAR, FAR)
            _check.slices(op, "causal_offset", offset.shape, fit.lead)
        if not used and (isinstance(given, str) or offset.any()):
            text = "has no meaning without causal=True, alibi or window_about='offset'"
            _check.fail(op, f"causal_offset={_check.quoted(given)}", text)
        return offset


_EVERYWHERE = Positions()


def _whole(n: int, m: int) -> Ints:
    """All keys for every query."""
    band = np.zeros((1, n, 3), np.int64)
    band[..., 1], band[..., 2] = m, np.arange(n)
    return _check.frozen(band)


def band(op: str, causal: object, offset: object, window: object) -> tuple[int, int]:
    """Bounds of ``key - query``."""
    shift = _check.integer(op, "causal_offset", offset)
    if not _check.flag(op, "causal", causal):
        if shift:
            _check.fail(op, f"causal_offset={shift}", "has no meaning without causal=True")
        shift = FAR
    left, right = _sides(op, window)
    return max(-left, -FAR), max(-FAR, min(shift, right, FAR))


def _sides(op: str, window: object) -> tuple[int, int]:
    if window is None:
        return FAR, FAR
    left, right = (
        FAR if side is None else min(_check.integer(op, f"window[{i}]", side, low=0), FAR)
        for i, side in enumerate(_check.pair_of(op, "window", window, "(left, right)"))
    )
    return left, right


def _lengths(fit: Fit, name: str, given: object, most: int) -> Ints:
    """How many there are, for each head or for all."""
    if given is None:
        return np.array(most)
    x = _check.integers(fit.op, name, given)
    _check.slices(fit.op, name, x.shape, fit.lead)
    bad = (x < 0) | (x > most)
    if bad.any():
        where = _check.first_of(bad) if x.ndim else ""
        _check.fail(fit.op, f"{name}{where}", f"is {x[bad][0]}, expected 0 to {most}")
    return x.astype(np.int64)


def _starts(op: str, name: str, given: object, most: int) -> Ints:
    """Where packed sequences start, and where the last one ends."""
    x = _check.integers(op, name, given).astype(np.int64)
    if x.ndim != 1 or len(x) < 2:
        _check.fail(op, name, f"has shape {x.shape}, expected (sequences + 1,)")
    if x[0] != 0 or x[-1] > most or (np.diff(x) < 0).any():
        text = f"runs from {x[0]} to {x[-1]}, expected no decrease from 0 to at most {most}"
        _check.fail(op, name, text)
    return x
