"""Rows and columns of softmax attention at sizes where only a sample of them can be looked at.

Everything is float64 NumPy in blocks, and counts in int64. Arrays are read by rows, ``x[a:b]``, so
they may be files, or be made when they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike

from nlattn._types import Array, Bools, Floats, Ints, Support

QUERIES, KEYS = 256, 4096
"""Rows of a block: its scores take 8 MB."""
_LISTED = 16  # queries at once where each has keys of its own


class Sliced(Protocol):
    """Anything that has a shape and gives rows when it is sliced: arrays, memory maps, datasets."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    def __getitem__(self, rows: slice, /) -> ArrayLike: ...


class Rows:
    """Rows of anything that has a shape and gives ``x[a:b]``, as float64."""

    def __init__(self, x: Sliced):
        self.x, self.shape = x, tuple(int(size) for size in x.shape)

    def __getitem__(self, index: Ints) -> Floats:
        if not len(index):
            return np.zeros((0, *self.shape[1:]))
        first, last = int(index[0]), int(index[-1])
        if last - first + 1 == len(index) and (np.diff(index) == 1).all():
            return np.asarray(self.x[first : last + 1]).astype(np.float64)
        if isinstance(self.x, np.ndarray):
            return self.x[index].astype(np.float64)
        parts = [np.asarray(self.x[int(i) : int(i) + 1]) for i in index]
        return np.concatenate(parts).astype(np.float64)


class OneHead(NamedTuple):
    """Arrays and options of one head."""

    q: Rows
    k: Rows
    v: Rows
    scale: float
    softcap: float | None
    low: int
    """Query i may attend to key j if ``low <= j - i <= high``."""
    high: int
    support: Support | None

    def keys(self, i: Ints) -> Iterator[Ints]:
        """Keys that some of the queries `i` may attend to, in blocks."""
        if self.support is not None:
            indptr, indices, _ = self.support
            rows = [indices[indptr[r] : indptr[r + 1]] for r in i]
            found = np.unique(np.concatenate(rows)).astype(np.int64)
            for start in range(0, len(found), KEYS):
                yield found[start : start + KEYS]
            return
        first = max(0, int(i.min()) + self.low)
        end = min(self.k.shape[0], int(i.max()) + self.high + 1)
        for start in range(first, end, KEYS):
            yield np.arange(start, min(start + KEYS, end), dtype=np.int64)

    def allowed(self, i: Ints, j: Ints) -> Bools:
        """Which of the keys `j` each of the queries `i` may attend to."""
        step = j - i[:, None]
        yes: Bools = (self.low <= step) & (step <= self.high)
        if self.support is not None:
            indptr, indices, _ = self.support
            for row, r in enumerate(i):
                yes[row] &= np.isin(j, indices[indptr[r] : indptr[r + 1]])
        return yes

    def scores(self, i: Ints, q: Floats, j: Ints) -> tuple[Floats, Floats]:
        """Scores, -inf where forbidden, and what the soft cap multiplies gradients by."""
        s = self.scale * (q @ self.k[j].T)
        slope = np.ones_like(s)
        if self.softcap is not None:
            t = np.tanh(s / self.softcap)
            s, slope = self.softcap * t, 1 - t * t
        return np.where(self.allowed(i, j), s, -np.inf), slope

    def near(self, index: Ints) -> Iterator[Ints]:
        """Sorted queries in blocks of few keys: neighbours together, where a band is narrow."""
        width = QUERIES if self.support is None else _LISTED
        narrow = self.high - self.low < self.k.shape[0]
        far = np.diff(index) > (KEYS if narrow else self.q.shape[0])
        cuts = np.flatnonzero(far) + 1
        for run in np.split(index, cuts):
            for start in range(0, len(run), width):
                yield run[start : start + width]

    def asking(self, j: Ints) -> Iterator[Ints]:
        """Queries that may attend to some of the keys `j`, in blocks."""
        n = self.q.shape[0]
        if self.support is not None:
            indptr, indices, _ = self.support
            found = np.zeros(n, bool)
            for start in range(0, len(indices), 1 << 22):
                edges = start + np.flatnonzero(np.isin(indices[start : start + (1 << 22)], j))
                found[np.searchsorted(indptr, edges, side="right") - 1] = True
            yield from self.near(np.flatnonzero(found))
            return
        first, last = max(0, int(j.min()) - self.high), min(n, int(j.max()) - self.low + 1)
        for start in range(first, last, QUERIES):
            i = np.arange(start, min(start + QUERIES, last), dtype=np.int64)
            yield i[self.allowed(i, j).any(1)]


def rows(head: OneHead, i: Ints) -> tuple[Floats, Floats]:
    """Outputs (r, e) and ``lse`` (r,) of some queries; 0 and -inf where there is no key."""
    q = head.q[i]
    out, total = np.zeros((len(i), head.v.shape[1])), np.zeros(len(i))
    top = np.full(len(i), -np.inf)
    for j in head.keys(i):
        s, _ = head.scores(i, q, j)
        best = np.maximum(top, s.max(1))
        shift = np.where(np.isneginf(best), 0, best)
        p, shrink = np.exp(s - shift[:, None]), np.exp(top - shift)
        total = total * shrink + p.sum(1)
        out = out * shrink[:, None] + p @ head.v[j]
        top = best
    none = total == 0
    lse = np.where(none, -np.inf, top + np.log(np.where(none, 1, total)))
    return out / np.where(none, 1, total)[:, None], lse


def weights(head: OneHead, i: Ints, q: Floats, lse: Floats, j: Ints) -> tuple[Floats, Floats]:
    """Weights (r, c) of keys, and their slopes."""
    s, slope = head.scores(i, q, j)
    p: Floats = np.exp(s - np.where(np.isneginf(lse), 0, lse)[:, None])
    return p, slope


def queries_vjp(head: OneHead, i: Ints, lse: Floats, g: Floats, delta: Floats) -> Floats:
    """Gradients (r, d) of some queries; `delta` is ``dout . out - dlse``."""
    q = head.q[i]
    dq: Floats = np.zeros_like(q)
    for j in head.keys(i):
        p, slope = weights(head, i, q, lse, j)
        ds = p * (g @ head.v[j].T - delta[:, None]) * slope
        dq += head.scale * (ds @ head.k[j])
    return dq


def live(
    head: OneHead, j: Ints, dout: Rows, dlse: Rows | None
) -> Iterator[tuple[Ints, Array, Array]]:
    """Queries that give keys `j` a gradient, with their cotangents, in blocks."""
    for i in head.asking(j):
        g = dout[i]
        a = np.zeros(len(i)) if dlse is None else dlse[i]
        some = (g != 0).any(1) | (a != 0)
        if some.any():
            yield i[some], g[some], a[some]


def work(head: OneHead, j: Ints, dout: Rows, dlse: Rows | None) -> int:
    """Multiply-adds of `keys_vjp`: every query that has a cotangent needs its normaliser."""
    d, e = head.q.shape[1], head.v.shape[1]
    total = 0
    for i, *_ in live(head, j, dout, dlse):
        if head.support is None:
            first, last = int(i[0]) + head.low, int(i[-1]) + head.high + 1
            count = max(0, min(head.k.shape[0], last) - max(0, first))
        else:
            count = sum(map(len, head.keys(i)))
        total += len(i) * (count + len(j)) * (d + e)
    return total


def keys_vjp(head: OneHead, j: Ints, dout: Rows, dlse: Rows | None) -> tuple[Floats, Floats]:
    """Gradients of some keys (c, d) and of their values (c, e), summed over all queries."""
    dk, dv = np.zeros((len(j), head.k.shape[1])), np.zeros((len(j), head.v.shape[1]))
    v = head.v[j]
    for i, g, a in live(head, j, dout, dlse):
        out, lse = rows(head, i)
        q = head.q[i]
        p, slope = weights(head, i, q, lse, j)
        dv += p.T @ g
        ds = p * (g @ v.T - ((g * out).sum(1) - a)[:, None]) * slope
        dk += head.scale * (ds.T @ q)
    return dk, dv
