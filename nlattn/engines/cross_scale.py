"""Cross-scale attention as rows of cells, each made from what the rings hold, and its gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, get_args

import numpy as np

from nlattn import _check
from nlattn._modes import Overlap
from nlattn._types import Floats, Ints
from nlattn.kernels import patches as kernels
from nlattn.kernels.patches import Grid
from nlattn.runtime.jit import blocks

OVERLAPS: tuple[Overlap, ...] = get_args(Overlap)


class CrossScaleOptions(NamedTuple):
    """Checked options of cross-scale attention."""

    scale: int
    patch: int
    temperature: float
    floor: float
    overlap: str
    divisor: float
    hard: bool
    published: bool

    @property
    def offset(self) -> int:
        """Of the first cell from the first query: cells outside are kept only as published."""
        return 1 - self.patch // 2 if self.published else 0

    def cells(self, length: int) -> int:
        """Cells along an axis with `length` queries."""
        return length - 2 * self.offset


class Cells:
    """Weights of keys for cells of the result, a row of cells at a time.

    Memory: ``2 patch + 2`` rows of ``W h w`` numbers; in gradients ``4 patch + 4``.
    """

    def __init__(self, q: Floats, k: Floats, options: CrossScaleOptions):
        self.q: Floats = _check.frozen(q)
        self.k: Floats = _check.frozen(k)
        self.options = options
        (H, W, self.d), (h, w) = q.shape, k.shape[:2]
        self.grid = Grid(H, W, h, w, options.patch, options.offset)
        self.rows, self.columns = options.cells(H), options.cells(W)
        self.keys: Floats = _check.frozen(self.k.reshape(h * w, self.d))
        self._turned = _check.frozen(self.keys.T)
        self.lengths = _lengths(self.k, options.patch)
        floor = self.k.dtype.type(options.floor)
        self.norms: Floats = _check.frozen(np.maximum(self.lengths, floor).reshape(-1))
        self._heat = _check.frozen(np.array([options.temperature, options.hard]))
        shape = options.patch, W, h * w
        self._gram, self._A = np.empty(shape, q.dtype), np.empty(shape, q.dtype)
        self._scores = np.empty(shape[1:], q.dtype)
        self._next = 0, 0

    @property
    def work(self) -> tuple[int, int]:
        """Scores, and multiply-adds of the products they are made from."""
        scores = self.grid.H * self.grid.W * len(self.keys)
        return scores, scores * self.d

    def weights(
        self, wanted: Iterable[int], scores: Floats | None = None
    ) -> Iterator[tuple[int, Floats, Floats]]:
        """Number of a row of cells, their weights (columns, L) and normalisers, rows ascending.

        Valid until the next. `scores` (patch, W, L) is a ring that receives the scores.
        """
        B = np.empty((self.columns, len(self.keys)), self.q.dtype)
        z = np.empty(self.columns, np.float64)
        self._next = 0, 0
        for row in wanted:
            self._advance(row + self.grid.offset, scores)
            y = row + self.grid.offset
            kernels.paste(self.columns, self._A, self.grid, y, self._divisors(y), B, z)
            yield row, B, z

    def _advance(self, y: int, scores: Floats | None) -> None:
        """Weights of all queries whose patches reach row `y`."""
        r, H, p = self.options.patch // 2, self.grid.H, self.options.patch
        gram, score = self._next
        score = max(score, y - r)
        while score <= min(y + r, H - 1):
            gram = max(gram, score - r)
            while gram <= min(score + r, H - 1):
                multiply(self.q[gram], self._turned, self._gram[gram % p])
                gram += 1
            place = self._scores if scores is None else scores[score % p]
            arrays = self.norms, place, self._A[score % p]
            kernels.weigh(self.grid.W, self._gram, self.grid, score, self._heat, *arrays)
            score += 1
        self._next = gram, score

    def _divisors(self, y: int) -> Floats:
        if self.options.overlap == "mass":
            return _check.frozen(np.empty(0))
        if self.options.overlap == "divide":
            return _check.frozen(np.full(self.columns, self.options.divisor))
        x = np.arange(self.columns) + self.grid.offset
        counts = _patches(np.array([y]), self.grid.H, self.options.patch)
        counts = counts * _patches(x, self.grid.W, self.options.patch)
        return _check.frozen(counts, np.float64)

    def gradients(self, V: Floats, dout: Floats) -> tuple[Floats, Floats, Floats]:
        """Of q, k and V (L, s s e), for the cotangent of cells (rows, columns, s s e)."""
        p, r, H = self.options.patch, self.options.patch // 2, self.grid.H
        shape, dtype = self._A.shape, self.q.dtype
        dV, dk = np.zeros(V.shape, dtype), np.zeros(self.keys.shape, dtype)
        dq = np.zeros(self.q.shape, dtype)
        lost = np.zeros(len(self.keys))
        turned = _check.frozen(V.T)
        mass = int(self.options.overlap == "mass")
        scores, dB, dS = (np.empty(shape, dtype) for _ in range(3))
        if self.columns != shape[1]:
            dB = np.empty((p, self.columns, shape[2]), dtype)
        dgram = np.empty(shape[1:], dtype)
        score = gram = 0
        for row, B, z in self.weights(range(self.rows), scores):
            add_outer(_check.frozen(B), dout[row], dV)
            if self.options.hard:
                continue
            multiply(dout[row], turned, dB[row % p])
            kernels.paste_vjp(self.columns, B, z, mass, dB[row % p])
            y = row + self.grid.offset
            last = row == self.rows - 1
            while score < H and (last or score <= y - r):
                arrays = self.norms, self._A[score % p], dS[score % p]
                heat = self.options.temperature
                kernels.weigh_vjp(self.grid.W, dB, self.grid, score, self.rows, heat, *arrays)
                tasks = blocks(len(lost), kernels.COLUMNS)
                kernels.add_products(tasks, scores[score % p], dS[score % p], lost)
                score += 1
                while gram < H and (score == H or gram < score - r):
                    kernels.box(self.grid.W, dS, self.grid, gram, dgram)
                    known = _check.frozen(dgram)
                    multiply(known, self.keys, dq[gram])
                    add_outer(known, self.q[gram], dk)
                    gram += 1
        if self.options.hard:
            return dq, dk.reshape(self.k.shape), dV
        return dq, dk.reshape(self.k.shape) + self._of_norms(lost), dV

    @np.errstate(invalid="ignore", over="ignore")  # of numbers that are not finite
    def changes(self, V: Floats, dV: Floats, dq: Floats, dk: Floats, out: Floats) -> None:
        """Cells (rows, columns, s s e) of the result's change, along dq, dk and dV (L, s s e)."""
        p, shape, dtype = self.options.patch, self._A.shape, self.q.dtype
        r, H, turned = p // 2, self.grid.H, _check.frozen(dk.reshape(self.keys.shape).T)
        scores, dgram, dA = (np.empty(shape, dtype) for _ in range(3))
        dB, z = np.empty((self.columns, shape[2]), dtype), np.empty(self.columns)
        lengths = self.lengths.astype(np.float64)
        share = _boxed((self.k.astype(np.float64) * dk).sum(-1), p) / np.where(lengths, lengths, 1)
        dnorms = np.where(lengths > self.k.dtype.type(self.options.floor), share, 0).reshape(-1)
        dnorms, heat = dnorms.astype(dtype), dtype.type(self.options.temperature)
        score = gram = 0
        for row, B, old in self.weights(range(self.rows), scores):
            multiply(_check.frozen(B), dV, out[row])
            if self.options.hard:
                continue
            y = row + self.grid.offset
            score = max(score, y - r)
            while score <= min(y + r, H - 1):
                gram = max(gram, score - r)
                while gram <= min(score + r, H - 1):
                    multiply(_check.frozen(dq[gram]), _check.frozen(self.keys.T), dgram[gram % p])
                    more = np.empty(shape[1:], dtype)
                    multiply(self.q[gram], turned, more)
                    dgram[gram % p] += more
                    gram += 1
                ds, A = dA[score % p], self._A[score % p]
                kernels.box(self.grid.W, dgram, self.grid, score, ds)
                ds -= scores[score % p] * dnorms
                ds /= self.norms
                ds -= np.einsum("xl,xl->x", A, ds)[:, None]
                ds *= heat * A
                score += 1
            kernels.paste(self.columns, dA, self.grid, y, _check.frozen(old.copy()), dB, z)
            if self.options.overlap == "mass":
                dB -= B * dB.sum(1, keepdims=True)
            moved = np.empty_like(out[row])
            multiply(_check.frozen(dB), V, moved)
            out[row] += moved

    def _of_norms(self, lost: Floats) -> Floats:
        """Gradient of k through the norms of its patches; `lost` is minus theirs."""
        lengths = self.lengths.astype(np.float64)
        above = lengths > self.k.dtype.type(self.options.floor)
        share = np.where(above, -lost.reshape(lengths.shape) / np.where(above, lengths, 1), 0)
        gradient: Floats = (_boxed(share, self.options.patch)[..., None] * self.k).astype(
            self.k.dtype
        )
        return gradient


def multiply(a: Floats, b: Floats, out: Floats) -> None:
    """``out = a b``."""
    kernels.multiply(blocks(len(a), kernels.BLOCK), a, b, out)


def add_outer(a: Floats, b: Floats, out: Floats) -> None:
    """``out += a^T b``."""
    kernels.add_outer(blocks(len(out), kernels.BLOCK), a, b, out)


def _patches(places: Ints, length: int, patch: int) -> Ints:
    """How many patches with centres 0 to ``length - 1`` cover each place."""
    r = patch // 2
    return np.minimum(length - 1, places + r) - np.maximum(0, places - r) + 1


def _boxed(x: Floats, patch: int) -> Floats:
    """Sum over patches, zeros outside."""
    down, right = (min(patch // 2, size - 1) for size in x.shape)  # zeros alone lie farther
    wide = np.pad(x, ((down, down), (right, right)))
    out = np.zeros_like(x)
    for dy in range(2 * down + 1):
        for dx in range(2 * right + 1):
            out += wide[dy : dy + x.shape[0], dx : dx + x.shape[1]]
    return out


def _lengths(k: Floats, patch: int) -> Floats:
    """Norm of the patch around every key, (h, w)."""
    squares = (k.astype(np.float64) ** 2).sum(-1)
    lengths: Floats = np.sqrt(_boxed(squares, patch)).astype(k.dtype)
    return lengths


def to_cells(x: Floats, scale: int) -> Floats:
    """Pixels (s h, s w, e) as cells (h, w, s s e)."""
    h, w, e = x.shape[0] // scale, x.shape[1] // scale, x.shape[2]
    turned = x.reshape(h, scale, w, scale, e).transpose(0, 2, 1, 3, 4)
    return _check.frozen(turned.reshape(h, w, scale * scale * e))


def to_pixels(x: Floats, scale: int) -> Floats:
    """Cells (h, w, s s e) as pixels (s h, s w, e)."""
    h, w = x.shape[:2]
    turned = x.reshape(h, w, scale, scale, -1).transpose(0, 2, 1, 3, 4)
    return turned.reshape(h * scale, w * scale, -1)
