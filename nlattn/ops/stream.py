"""The universal set of keys that come in blocks: one pass, exact, memory that does not grow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, NoReturn, get_args

import numpy as np
from numpy.typing import ArrayLike

from nlattn import _check
from nlattn._modes import StreamMethod
from nlattn._types import Array, Bools, Floats, Ints
from nlattn.engines import leverage as engine
from nlattn.engines.ranges import add_ranges, joined
from nlattn.engines.sampled import Sliced
from nlattn.runtime import threads

METHODS: tuple[StreamMethod, ...] = get_args(StreamMethod)
_CHUNK = 1 << 19  # numbers of a chunk of keys: 4 MB
_FORMAT = 1
_LEAST = 2.0**-900  # of a key beside the largest; smaller ones have no digits left
_HIDDEN = 1e-4  # of a small key's length: a part outside that may be rounding
_SLACK = 4  # errors of the factor and of the product with it, and both are squared


class Heavy(NamedTuple):
    """Keys that some query can give `eps` of its row to, when weights are squared dot products."""

    index: Ints  # type: ignore[assignment]  # stands where tuple.index would be
    """(h,) their numbers, ascending. Keys whose leverage rounding hides, beside others larger by
    more than a float's digits, are among them."""
    scores: Floats
    """(h,) their leverage."""
    keys: Floats
    """(h, d) float64 keys themselves."""
    rank: int
    """Rank of all keys; at most ``rank / eps`` of them are heavy."""
    slack: float
    """Keys were kept from ``eps - slack`` on, for rounding's sake."""


class _Taken(NamedTuple):
    """All that is known of the keys so far; one value, which no interrupt leaves half replaced."""

    ranges: Ints
    peak: Floats
    state: Floats
    heavy: Ints
    keys: Floats


class LeverageStream:
    """The exact set ``{j : tau_j >= eps}`` of a stream of keys, in one pass.

    Parameters
    ----------
    d : int
        Channels of a key.
    eps : float
        Share of a row from which a key counts as heavy, in (0, 1].
    first : int
        Number of the first key; streams that are to be merged number their keys differently.
    method : {"qr", "gram"}
        Keep a triangle, or the Gram matrix: faster, with errors of ``u kappa^2`` instead of
        ``u kappa``, and refused where it cannot tell the rank.

    Notes
    -----
    Leverage only falls as keys arrive, so what is dropped would not have come back. State: ``d^2``
    numbers and at most ``d / eps`` keys; beside it one chunk of keys. ``2 n d^2`` multiply-adds.
    Source: the streaming claim of [kannan2024]; pruning and merging are ours. Status: ours.

    Examples
    --------
    >>> stream = nlattn.LeverageStream(8, eps=0.5)
    >>> for first in range(0, 64, 16):
    ...     stream = stream.update(k[first : first + 16])
    >>> heavy = stream.result()
    """

    def __init__(self, d: int, eps: float, *, first: int = 0, method: StreamMethod = "qr"):
        op = "LeverageStream"
        self.d = _check.integer(op, "d", d, low=1)
        """Channels."""
        self.eps = _check.number(op, "eps", eps, positive=True)
        """Threshold."""
        if self.eps > 1:
            _check.fail(op, f"eps={self.eps:g},", "expected at most 1: no score is larger")
        self.method = _check.choice(op, "method", method, METHODS)
        """What is kept of the keys that were dropped."""
        self._next = _check.integer(op, "first", first, low=0)
        none = np.zeros((0, 2), np.int64), np.zeros(self.d), np.zeros((self.d, self.d))
        self._now = _Taken(*none, np.zeros(0, np.int64), np.zeros((0, self.d)))

    @property
    def n(self) -> int:
        """Number of keys so far."""
        return _count(self._now.ranges)

    @property
    def held(self) -> int:
        """Number of keys held: at most ``d / eps``."""
        return len(self._now.heavy)

    @property
    def nbytes(self) -> int:
        """Bytes of the state."""
        return sum(int(x.nbytes) for x in self._now)

    def update(self, block: Sliced, *, first: int | None = None) -> LeverageStream:
        """Take in a block of keys (b, d), float32 or float64, and return the stream.

        `block` is an array, a memory map, or anything with a shape that gives rows when sliced; of
        a large one a chunk at a time is looked at. `first` is the number of its first key, the one
        after the last block's if omitted. ValueError if it has another width, is not finite, or
        holds numbers that were taken in before: chunks before an error stay in.
        """
        op = "LeverageStream.update"
        source = block if hasattr(block, "shape") else _check.array(op, "block", block)
        shape = tuple(source.shape)
        if len(shape) != 2 or shape[1] != self.d:
            _check.fail(op, "block", f"has shape {shape}, expected (b, {self.d}) with d={self.d}")
        start = self._next if first is None else _check.integer(op, "first", first, low=0)
        self._added(op, "block", np.array([[start, start + shape[0]]], np.int64))
        if not shape[0]:
            return self
        step = max(_CHUNK // self.d, int(min(self.d / self.eps, 1e9)))
        for low in range(0, shape[0], step):
            chunk = _check.array(op, "block", source[low : low + step])
            k = _check.frozen(chunk, np.float32 if chunk.dtype.itemsize < 8 else np.float64)
            self._finite(op, k, start + low)
            part = np.array([[start + low, start + low + len(k)]], np.int64)
            self._absorb(k, start + low, add_ranges(self._now.ranges, part))
        self._next = start + shape[0]
        return self

    def extend(self, blocks: Iterable[Sliced]) -> LeverageStream:
        """Take in one block after the other, as `update` does, and return the stream."""
        for block in blocks:
            self.update(block)
        return self

    def merge(self, other: LeverageStream) -> LeverageStream:
        """Take in all that another stream has seen, and return this one; `other` stays as it is.

        ValueError if it has another width, threshold or method, or has seen keys of the same
        numbers: what is counted twice would halve all scores.
        """
        op = "LeverageStream.merge"
        _check.instance(op, "other", other, LeverageStream)
        for name in ("d", "eps", "method"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                _check.fail(op, "other", f"has {name}={theirs!r}, expected {mine!r} as here")
        ranges = self._added(op, "other", other._now.ranges)
        peak = np.maximum(self._now.peak, other._now.peak)
        states = [s._rescaled(peak) for s in (self, other)]
        index = np.concatenate([self._now.heavy, other._now.heavy])
        order = np.argsort(index, kind="stable")
        keys = np.concatenate([self._now.keys, other._now.keys])[order]
        self._settle(peak, self._joined(states), index[order], keys, ranges)
        self._next = max(self._next, other._next)
        return self

    def result(self) -> Heavy:
        """The keys of leverage `eps` and more, among all keys so far."""
        factor, slack = self._factored(self._now.state, self._now.peak, self._now.ranges)
        if factor is None:
            self._refuse()
        scores = self._scores(self._now.keys, factor)
        kept = (scores >= self.eps - slack) | _untold(self._now.keys, factor, self.n)
        index, keys = self._now.heavy[kept], self._now.keys[kept]
        return Heavy(index, np.clip(scores[kept], 0, 1), keys, factor.rank, slack)

    def to_arrays(self) -> dict[str, Array]:
        """The state as plain arrays, to be saved with ``np.savez`` and given to `from_arrays`."""
        return {
            "format": np.array(_FORMAT),
            "method": np.array(METHODS.index(self.method)),
            "eps": np.array(self.eps),
            "next": np.array(self._next),
            "ranges": self._now.ranges.copy(),
            "peak": self._now.peak.copy(),
            "state": self._now.state.copy(),
            "index": self._now.heavy.copy(),
            "keys": self._now.keys.copy(),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ArrayLike]) -> LeverageStream:
        """The stream that gave these arrays; ValueError if they do not fit each other."""
        op = "LeverageStream.from_arrays"
        names = ("format", "method", "eps", "next", "ranges", "peak", "state", "index", "keys")
        _check.instance(op, "arrays", arrays, Mapping, "a mapping of names to arrays")
        missing = [name for name in names if name not in arrays]
        if missing:
            _check.fail(op, "arrays", f"lack {', '.join(missing)}")
        x = {name: np.asarray(arrays[name]) for name in names}
        form, method, after = (
            _check.integer(op, name, x[name]) for name in ("format", "method", "next")
        )
        if form != _FORMAT or not 0 <= method < len(METHODS):
            found = f"format {form} and method {method}"
            _check.fail(op, "arrays", f"have {found}, expected {_FORMAT} and 0 or 1")
        d, held = x["peak"].size, x["index"].size
        shapes = {"ranges": (len(np.atleast_1d(x["ranges"])), 2), "peak": (d,), "state": (d, d)}
        for name, shape in {**shapes, "index": (held,), "keys": (held, d)}.items():
            kind = "i" if name in ("ranges", "index") else "f"
            if x[name].shape != shape or x[name].dtype.kind != kind:
                text = f"is {x[name].dtype} {x[name].shape}, expected {shape}"
                _check.fail(op, name, text)
            if not np.isfinite(x[name]).all():
                _check.fail(op, name, "is not finite")
        made = cls(d, _check.number(op, "eps", x["eps"]), first=after, method=METHODS[method])
        ranges: Ints = np.zeros((0, 2), np.int64)
        for row in x["ranges"].astype(np.int64):
            if row[0] < 0 or row[1] <= row[0] or joined(ranges, row[None]):
                _check.fail(op, "ranges", "overlap or are empty")
            ranges = add_ranges(ranges, row[None])
        if (np.diff(x["index"]) <= 0).any() or not all(
            joined(ranges, [[j, j + 1]]) for j in x["index"]
        ):
            _check.fail(op, "index", "holds keys twice, or keys that were never seen")
        peak, state, keys = (x[name].astype(np.float64) for name in ("peak", "state", "keys"))
        made._now = _Taken(ranges, peak, state, x["index"].astype(np.int64), keys)
        return made

    def _added(self, op: str, name: str, new: Ints) -> Ints:
        twice = joined(self._now.ranges, new)
        if twice is not None:
            low, high = twice
            text = f"holds keys {low} to {high - 1}, which were taken in before; give first="
            _check.fail(op, name, text)
        return add_ranges(self._now.ranges, new)

    def _finite(self, op: str, k: Floats, start: int) -> None:
        bad = ~np.isfinite(k)
        if bad.any():
            row, channel = (int(i) for i in np.argwhere(bad)[0])
            text = f"is {k[row, channel]}, expected finite values"
            _check.fail(op, f"key {start + row}, channel {channel}", text)

    def _absorb(self, k: Floats, start: int, ranges: Ints) -> None:
        """One chunk: its keys are scored against all keys so far before any of them is held."""
        peak = np.maximum(self._now.peak, np.abs(k).max(0))
        scale = _check.frozen(engine.power_scales(peak)[None])
        fold = engine.triangles if self.method == "qr" else engine.gram
        new = fold(k[None], scale).reshape(-1, self.d)
        state = self._joined([self._rescaled(peak), new])
        factor, slack = self._factored(state, peak, ranges)
        heavy = np.ones(len(k), bool)
        if factor is not None:
            heavy = self._scores(k, factor) >= self.eps - 2 * slack
            heavy |= _untold(k, factor, _count(ranges))
        index = np.concatenate([self._now.heavy, start + np.flatnonzero(heavy)])
        order = np.argsort(index, kind="stable")
        keys = np.concatenate([self._now.keys, k[heavy].astype(np.float64)])[order]
        self._settle(peak, state, index[order], keys, ranges)

    def _settle(self, peak: Floats, state: Floats, index: Ints, keys: Floats, ranges: Ints) -> None:
        """Drop keys that have become too light, once there may be too many."""
        if len(index) > self.d / self.eps:
            factor, slack = self._factored(state, peak, ranges)
            if factor is None:
                self._refuse()
            kept = self._scores(keys, factor) >= self.eps - 2 * slack
            kept |= _untold(keys, factor, _count(ranges))
            index, keys = index[kept], keys[kept]
        self._now = _Taken(ranges, peak, state, index, keys)

    def _rescaled(self, peak: Floats) -> Floats:
        """The state for another largest magnitude of each channel: powers of two, no rounding."""
        change = engine.power_scales(peak) / engine.power_scales(self._now.peak)
        side = change[:, None] if self.method == "gram" else 1.0
        moved: Floats = self._now.state * change * side
        return moved

    def _joined(self, states: list[Floats]) -> Floats:
        if self.method == "gram":
            total: Floats = states[0] + states[1]
            return total
        R: Any = threads.serial_blas(np.linalg.qr)(np.concatenate(states), mode="r")
        return np.asarray(R)

    def _factored(
        self, state: Floats, peak: Floats, ranges: Ints
    ) -> tuple[engine.Factor | None, float]:
        """Factor of all keys and the rounding of scores; None if a Gram matrix hides the rank."""
        cut, scale = max(_count(ranges), self.d) * engine.UNIT, engine.power_scales(peak)
        if self.method == "qr":
            factor = engine.of_triangle(state, scale, cut)
            return factor, _SLACK * self.d * engine.UNIT * factor.condition
        factor = engine.of_gram(state, scale, cut**0.5)
        if factor.rank < (np.diag(state) > 0).sum():
            return None, 0.0
        return factor, _SLACK * self.d * engine.UNIT * factor.condition**2

    def _refuse(self) -> NoReturn:
        text = "cannot tell the rank of the keys so far; use method='qr'"
        _check.fail("LeverageStream", "method='gram'", text)

    def _scores(self, k: Floats, factor: engine.Factor) -> Floats:
        scores: Floats = engine.scores(_check.frozen(k)[None], [factor])[0]
        return scores


def _count(ranges: Ints) -> int:
    return int((ranges[:, 1] - ranges[:, 0]).sum())


def _untold(k: Floats, factor: engine.Factor, seen: int) -> Bools:
    """Keys that lie in directions which rounding hid, beside keys very much larger.

    What a key has outside the factor's directions is rounding up to `limit`, unless the key is so
    small that a real part of that length would not have raised the rank either.
    """
    there = k.any(1)
    with np.errstate(under="ignore"):
        x = k * factor.scale
    size = abs(x).max(1, initial=0)
    untold: Bools = there & (size < _LEAST)
    d = len(factor.scale)
    if factor.rank == d:
        return untold
    x = (x / np.where(untold | ~there, 1, size)[:, None])[:, factor.order]
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        rest = abs(x - (x @ factor.inverse) @ factor.triangle).max(1, initial=0)
    limit = min(64 * d * engine.UNIT * factor.condition, 0.01)
    shows = max(seen, d) * engine.UNIT * (seen * d) ** 0.5
    hidden = size * limit < shows
    untold |= there & ~(rest <= np.where(hidden, min(limit, _HIDDEN), limit))
    return untold
