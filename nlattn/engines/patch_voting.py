"""The votes of matched patches: which keys each query hears of, at what cost, and their sums.

Every query has a row of votes, each a key and the number of the cost that stands behind it: the
matches of the query itself, or those of all patches over it. A key may occur several times.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Bools, Floats, Ints, Support, Work
from nlattn.engines.sparse import WEIGHTS, SparseParts
from nlattn.engines.support import Transposed
from nlattn.kernels import sparse as kernels
from nlattn.runtime.jit import blocks

_PLAIN = _check.frozen(np.array([1.0, 0.0]))


class VotingOptions(NamedTuple):
    """Checked options of the votes of patches."""

    patch: int
    temperature: float
    """Divides the costs."""
    aggregate: bool
    """Whether all patches over a query vote, or its own alone."""
    dedup: bool
    """Whether only the cheapest of several votes for a key counts."""
    border: str

    @property
    def around(self) -> int:
        """Patches that vote for each query."""
        return self.patch**2 if self.aggregate else 1


class Votes:
    """One call's arrays, matches and votes."""

    def __init__(self, fit: _check.Fit, index: Ints, options: VotingOptions, work: Work | None):
        self.fit, self.options, self.work = fit, options, work
        self.grids = fit.shape("Hq Wq"), fit.shape("Hk Wk")
        self.n, self.m = (math.prod(grid) for grid in self.grids)
        self.slope = 1 / options.temperature
        lead = index.shape[:-3]
        slices = _check.slices(fit.op, "field", lead, fit.lead)
        self.index = index.reshape(-1, *index.shape[-3:])[slices]
        self.q, self.k = (_patches(fit[name], options.patch, options.border) for name in "qk")
        self.matches = self._rows(self.index.reshape(fit.batch, self.n, index.shape[-1]))[0]
        self._weigh()
        self._cast(options.patch // 2 if options.aggregate else 0)

    def attend(self) -> Floats:
        """Outputs of all slices."""
        out = self._gather(self.votes, None, self.weights, "v", (self.n, self.fit.dims["e"]))
        return self.fit.unfold(out.reshape(self.fit.batch, *self.grids[0], out.shape[2]))

    def entries(self) -> SparseParts:
        """Weights of a single slice's map: votes for one key added up, keys ascending."""
        row = np.repeat(np.arange(self.n), np.diff(self.votes.indptr))
        place, inverse = np.unique(row * self.m + self.votes.indices, return_inverse=True)
        total = np.bincount(inverse, self.weights, len(place))
        indptr = np.searchsorted(place, np.arange(self.n + 1) * self.m)
        keys = _check.frozen(place % self.m, np.int32)
        support = Support(_check.frozen(indptr, np.int64), keys, (self.n, self.m))
        with np.errstate(divide="ignore"):
            scores = np.log(total) + np.repeat(self.lse[0], np.diff(indptr))
        kind, costs = self.fit.dtype, len(self.matches.indices)
        d, size = self.q.shape[2], kind.itemsize
        done = Work(costs, costs * d, costs * 2 * d * size)
        if self.work is not None:
            scores_, multiply_adds, n_bytes = (
                a + b for a, b in zip(done[:3], self.work[:3], strict=True)
            )
            done = Work(scores_, multiply_adds, n_bytes)
        parts = total.astype(kind), scores.astype(kind), self.lse[0], done
        return SparseParts(support, *parts, *self.grids)

    def vjp(self) -> tuple[Floats, Floats, Floats]:
        """Gradients of q, k and v."""
        fit, (batch, n, m) = self.fit, (self.fit.batch, self.n, self.m)
        v, dout = self._flat("v"), self._flat("dout")
        table = self._table("v", "v", "v")
        table[:, 0] = fit.index[:, fit.names.index("dout")]
        options = self._options()
        dlse, weights = _check.frozen(np.zeros((batch, n), fit.dtype)), _check.frozen(self.weights)
        dvotes = np.empty_like(self.weights)
        arrays = (*self.votes[:2], _check.frozen(table), options, weights, weights)
        if batch:
            kernels.differentiate(
                blocks(batch * n, kernels.BLOCK), v, self._own(dout), dlse, *arrays, dvotes
            )
        dcosts = np.bincount(self.numbers, dvotes, len(self.matches.indices)).astype(fit.dtype)
        by_key = Transposed.of(self.votes, m)
        dv = self._gather(self.votes, by_key, self.weights, "dout", (m, v.shape[2]))
        slope = _check.frozen(np.array([2 * self.slope, 1.0]))
        size = self.q.shape[2]
        dq = self._gather(self.matches, None, dcosts, "k", (n, size), slope)
        by_key = Transposed.of(self.matches, m)
        dk = self._gather(self.matches, by_key, dcosts, "q", (m, size), slope)
        return (
            fit.reduce("q", self._fold(dq, "q")),
            fit.reduce("k", self._fold(dk, "k")),
            fit.reduce("v", dv.reshape(batch, *self.grids[1], v.shape[2])),
        )

    @np.errstate(invalid="ignore", over="ignore")  # of numbers that are not finite
    def jvp(self) -> Floats:
        """Change of the outputs along dq, dk and dv."""
        fit, (batch, n) = self.fit, (self.fit.batch, self.n)
        p, border = self.options.patch, self.options.border
        dq, dk = (_patches(fit[name], p, border) for name in ("dq", "dk"))
        own = np.arange(batch)
        columns = fit.slices("q", "k", "dq", "dk"), own, np.zeros_like(own)
        table = _check.frozen(np.column_stack(columns), np.int64)
        none = _check.frozen(np.empty(0, fit.dtype))
        dcosts, unused = np.empty(len(self.matches.indices), fit.dtype), np.zeros((batch, n))
        if batch:
            x = kernels.Moving(self.q, self.k, dq, dk, table)
            tasks = blocks(batch * n, kernels.BLOCK)
            arrays = (*self.matches[:2], self._options(), none, none)
            kernels.move(tasks, x, *arrays, unused, dcosts)
        row = np.repeat(np.arange(batch * n), np.diff(self.votes.indptr))
        ds = np.append(dcosts, 0)[self.numbers].astype(np.float64)
        mean = np.bincount(row, self.weights * ds, batch * n)
        dP = (self.weights * (ds - mean[row])).astype(fit.dtype)
        size = n, fit.dims["e"]
        out = self._gather(self.votes, None, dP, "v", size)
        out += self._gather(self.votes, None, self.weights, "dv", size)
        return fit.unfold(out.reshape(batch, *self.grids[0], out.shape[2]))

    def _weigh(self) -> None:
        """Minus cost over temperature of every match, from differences."""
        rows = self.fit.batch * self.n
        self.scores: Floats = np.empty(len(self.matches.indices), self.fit.dtype)
        weights, lse = np.empty_like(self.scores), np.empty((self.fit.batch, self.n))
        if rows:
            arrays = self.q, self.k, *self.matches[:2], self._table("q", "k", "k")
            kernels.weigh(
                blocks(rows, kernels.BLOCK), *arrays, self._options(), self.scores, weights, lse
            )

    def _cast(self, radius: int) -> None:
        """The rows of votes, and the softmax of each."""
        (Hq, Wq), (Hk, Wk) = self.grids
        batch, topk = self.fit.batch, self.index.shape[-1]
        valid = self.index >= 0
        number = np.cumsum(valid).reshape(valid.shape) - 1
        y, x = np.divmod(self.index, Wk)
        shape = (batch, Hq, Wq, 2 * radius + 1, 2 * radius + 1, topk)
        keys = np.full(shape, -1, np.int64)
        numbers = np.zeros(shape, np.int64)
        for a in range(-radius, radius + 1):
            for b in range(-radius, radius + 1):
                to = (slice(None), *_shifted(Hq, a), *_shifted(Wq, b))
                centre = (slice(None), *_shifted(Hq, -a), *_shifted(Wq, -b))
                row, column = y[centre] - a, x[centre] - b
                kept = valid[centre] & (row >= 0) & (row < Hk) & (column >= 0) & (column < Wk)
                keys[(*to, a + radius, b + radius)] = np.where(kept, row * Wk + column, -1)
                numbers[(*to, a + radius, b + radius)] = number[centre]
        flat = keys.reshape(batch, self.n, (2 * radius + 1) ** 2 * topk)
        numbers = numbers.reshape(flat.shape)
        scores = np.where(flat < 0, -np.inf, np.append(self.scores, 0)[numbers])
        if self.options.dedup:
            flat = np.where(_repeated(flat, scores), -1, flat)
            scores = np.where(flat < 0, -np.inf, scores)
        top = scores.max(-1, keepdims=True, initial=-np.inf)
        some = np.isneginf(top)
        with np.errstate(invalid="ignore", divide="ignore"):
            powers = np.where(flat < 0, 0, np.exp((scores - np.where(some, 0, top)).astype(float)))
            total = powers.sum(-1, keepdims=True)
            weights = powers / np.where(total == 0, 1, total)
            self.lse: Floats = np.where(some, -np.inf, top + np.log(total))[..., 0]
        self.votes, kept = self._rows(flat)
        self.weights: Floats = weights[kept].astype(self.fit.dtype)
        self.numbers: Ints = numbers[kept]

    def _rows(self, keys: Ints) -> tuple[Support, Bools]:
        """Compressed rows of the keys (batch, n, slots) that are not -1."""
        kept: Bools = keys >= 0
        indptr = np.concatenate([[0], np.cumsum(kept.sum(-1, dtype=np.int64).ravel())])
        shape = (self.fit.batch, keys.shape[1], self.m)
        return Support(
            _check.frozen(indptr, np.int64), _check.frozen(keys[kept], np.int32), shape
        ), kept

    def _gather(
        self,
        rows: Support,
        by_key: Transposed | None,
        c: Floats,
        name: str,
        shape: tuple[int, ...],
        slope: Floats = _PLAIN,
    ) -> Floats:
        """``sum c x_j``, or ``slope sum c (x_j - y_i)``; x is `name`, y the other of q and k."""
        out: Floats = np.empty((self.fit.batch, *shape), self.fit.dtype)
        other = {"q": "k", "k": "q"}.get(name, name)
        x, y = self._flat(name), self._flat(other)
        table = self._table(name, other, other)
        table = _check.frozen(np.ascontiguousarray(table[:, [0, 1, 3, 4]]))
        none = _check.frozen(np.empty(0, np.int64))
        edges, indptr, indices = by_key or (none, rows.indptr, rows.indices)
        if self.fit.batch:
            count = blocks(self.fit.batch * shape[0], kernels.BLOCK)
            arrays = _check.frozen(c), edges, indptr, indices, x, y, table, slope
            kernels.gather(count, *arrays, out)
        return out

    def _flat(self, name: str) -> Floats:
        if name in "qk":
            return self.q if name == "q" else self.k
        x = self.fit[name]
        return x.reshape(len(x), math.prod(x.shape[1:-1]), x.shape[-1])

    def _own(self, dout: Floats) -> Floats:
        """The cotangents of every slice."""
        own: Floats = dout[self.fit.index[:, self.fit.names.index("dout")]]
        return _check.frozen(own)

    def _table(self, *names: str) -> Ints:
        columns = [self.fit.index[:, self.fit.names.index(name)] for name in names]
        own = np.arange(self.fit.batch)
        table: Ints = np.stack([*columns, own, np.zeros_like(own)], 1)
        return table

    def _options(self) -> kernels.EdgeOptions:
        return kernels.EdgeOptions(WEIGHTS.index("gaussian"), self.slope, 2.0, 0.0)

    def _fold(self, dpatches: Floats, name: str) -> Floats:
        """Gradient of an image from that of its patches: the transpose of `_patches`."""
        (H, W), r = self.grids[name == "k"], self.options.patch // 2
        batch, d, p = len(dpatches), self.fit.dims["d"], self.options.patch
        padded = np.zeros((batch, H + 2 * r, W + 2 * r, d), dpatches.dtype)
        near = dpatches.reshape(batch, H, W, p, p, d)
        for a in range(p):
            for b in range(p):
                padded[:, a : a + H, b : b + W] += near[:, :, :, a, b]
        sources = np.pad(np.arange(H * W).reshape(H, W), r, mode=self.options.border)  # type: ignore[call-overload]
        image = np.zeros((H * W, batch, d), dpatches.dtype)
        np.add.at(image, sources, padded.transpose(1, 2, 0, 3))
        return image.transpose(1, 0, 2).reshape(batch, H, W, d)


def _patches(x: Floats, patch: int, border: str) -> Floats:
    """The patch around every pixel as one vector: (B, H, W, d) to (B, H W, patch^2 d)."""
    if patch == 1:
        return x.reshape(len(x), math.prod(x.shape[1:3]), x.shape[3])
    r = patch // 2
    padded = np.pad(x, ((0, 0), (r, r), (r, r), (0, 0)), mode=border)  # type: ignore[call-overload]
    windows = np.lib.stride_tricks.sliding_window_view(padded, (patch, patch), axis=(1, 2))
    near = np.moveaxis(windows, 3, -1)
    return _check.frozen(near.reshape(len(x), math.prod(x.shape[1:3]), patch**2 * x.shape[3]))


def _shifted(size: int, by: int) -> tuple[slice]:
    """Places whose neighbour `by` away is on the grid."""
    return (slice(max(0, -by), max(0, min(size, size - by))),)


def _repeated(keys: Ints, scores: Floats) -> Bools:
    """Votes for a key for which there is a better one, or an earlier one as good, in the row."""
    order = np.lexsort((-scores, keys))
    again = np.zeros(keys.shape, bool)
    ordered = np.take_along_axis(keys, order, -1)
    again[..., 1:] = ordered[..., 1:] == ordered[..., :-1]
    repeated = np.empty_like(again)
    np.put_along_axis(repeated, order, again, -1)
    return repeated
