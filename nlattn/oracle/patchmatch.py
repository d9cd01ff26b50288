"""PatchMatch, one query after the other in plain Python.

Papers: Barnes et al., ACM TOG 28(3), 2009 (scanline form) and ECCV 2010 (k matches).
Status: paper for the scanline form; the double-buffered form with jumps is the authors' parallel
variant, its order and random numbers ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from nlattn.oracle.layout import any_layout

Array = np.ndarray
_BITS = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


class Matches(NamedTuple):
    """Matches of one slice: (Hq, Wq, topk) keys and scores, and what it took."""

    index: Array  # type: ignore[assignment]  # stands where tuple.index would be
    score: Array
    tested: Array
    changed: list[int]


def mix(z: int) -> int:
    """SplitMix64's finaliser."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _BITS
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _BITS
    return z ^ (z >> 31)


def key(seed: int, *fields: int) -> int:
    """Hash of a seed and fields, 64 bits."""
    h = mix((seed + _GOLDEN) & _BITS)
    for field in fields:
        h = mix(((h ^ field) + _GOLDEN) & _BITS)
    return h


def bounded(h: int, limit: int) -> int:
    """Integer below `limit` from the upper half of a hash."""
    return (h >> 32) * limit >> 32


def scores(
    q: Array, k: Array, *, score: str = "dot", scale: float | None = None, bandwidth: float = 1.0
) -> Array:
    """All scores (n, m) of vectors (n, d) and (m, d)."""
    if score == "neg_l2":
        return -((q[:, None] - k[None]) ** 2).sum(-1) / bandwidth**2
    if score == "cosine":
        scale = 1.0 if scale is None else scale
        q, k = (_unit(x) for x in (q, k))
    s = (q[:, None] * k[None]).sum(-1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return np.abs(s) if score == "absdot" else s


def _unit(x: Array) -> Array:
    length = np.sqrt((x * x).sum(-1, keepdims=True))
    return np.where(length > 0, x / np.where(length > 0, length, 1), 0)


def patches(x: Array, patch: int) -> Array:
    """Patch around each pixel, reflected at the border: (H W, patch^2 d)."""
    H, W, d = x.shape
    r = patch // 2
    padded = np.pad(x, ((r, r), (r, r), (0, 0)), mode="reflect")
    rows = [padded[y : y + H, c : c + W] for y in range(patch) for c in range(patch)]
    return np.concatenate(rows, axis=-1).reshape(H * W, patch * patch * d)


@any_layout
def patchmatch(
    q: Array,
    k: Array,
    *,
    iterations: int = 5,
    topk: int = 1,
    propagate: str = "both",
    score: str = "dot",
    scale: float | None = None,
    bandwidth: float = 1.0,
    patch: int = 1,
    jumps: Sequence[int] = (8, 4, 2, 1),
    identity: bool = True,
    seed: int = 0,
    key_mask: Array | None = None,
    mask: Array | None = None,
    causal: bool = False,
    method: str = "buffered",
    first_slice: int = 0,
) -> Matches:
    """Matches of the queries (Hq, Wq, d) among the keys (Hk, Wk, d).

    `method` is "buffered", "scanline" (one match only) or "exact".
    """
    Hq, Wq, d = q.shape
    Hk, Wk, _ = k.shape
    if score == "cosine":
        q, k, score, scale = _unit(q), _unit(k), "dot", 1.0 if scale is None else scale
    scale = d**-0.5 if scale is None else scale
    S = scores(patches(q, patch), patches(k, patch), score=score, scale=scale, bandwidth=bandwidth)
    S = np.where(np.isnan(S), -np.inf, S)
    allowed = np.ones(S.shape, bool)
    if key_mask is not None:
        allowed &= np.reshape(key_mask, (1, -1))
    if mask is not None:
        allowed &= np.reshape(mask, S.shape)
    if causal:
        allowed &= np.arange(Hk * Wk) <= np.arange(Hq * Wq)[:, None]

    search = _Search(S, allowed, (Hq, Wq), (Hk, Wk), topk, seed, first_slice)
    if method == "exact":
        for p in range(Hq * Wq):
            for j in range(Hk * Wk):
                search.try_key(p, j)
        return search.result([])
    search.begin(padded_only=mask is None, identity=identity)
    form = {"buffered": search.buffered, "scanline": search.scanline}[method]
    changed = []
    for t in range(1, iterations + 1):
        before = [[j for _, j in entries] for entries in search.lists]
        form(t, propagate, jumps)
        after = [[j for _, j in entries] for entries in search.lists]
        changed.append(sum(a != b for a, b in zip(after, before, strict=True)))
    return search.result(changed)


class _Search:
    """Lists of (score, key) of every query, best first, and the ways to better them."""

    def __init__(
        self,
        S: Array,
        allowed: Array,
        grid_q: tuple[int, int],
        grid_k: tuple[int, int],
        topk: int,
        seed: int,
        number: int,
    ) -> None:
        self.S, self.allowed, self.topk = S, allowed, topk
        (self.Hq, self.Wq), (self.Hk, self.Wk) = grid_q, grid_k
        self.seed, self.number = seed, number
        self.lists: list[list[tuple[float, int]]] = [[] for _ in range(len(S))]
        self.tested = np.zeros(len(S), int)

    def result(self, changed: list[int]) -> Matches:
        index = np.full((len(self.S), self.topk), -1)
        score = np.full(index.shape, -np.inf, self.S.dtype)
        for p, entries in enumerate(self.lists):
            for t, (s, j) in enumerate(entries):
                index[p, t], score[p, t] = j, s
        shape = (self.Hq, self.Wq, self.topk)
        tested = self.tested.reshape(self.Hq, self.Wq)
        return Matches(index.reshape(shape), score.reshape(shape), tested, changed)

    def draw(self, t: int, p: int, number: int, limit: int) -> int:
        return bounded(key(self.seed, self.number, t, p, number), limit)

    def try_key(self, p: int, j: int) -> None:
        """Enter a candidate: by score, ties to the lowest key, none twice."""
        if not self.allowed[p, j]:
            return
        self.tested[p] += 1
        entries = self.lists[p]
        if all(j != held for _, held in entries):
            entries.append((self.S[p, j], j))
            entries.sort(key=lambda entry: (-entry[0], entry[1]))
            del entries[self.topk :]

    def mapped(self, p: int) -> int:
        y, x = divmod(p, self.Wq)
        row = (2 * y + 1) * self.Hk // (2 * self.Hq)
        return row * self.Wk + (2 * x + 1) * self.Wk // (2 * self.Wq)

    def begin(self, *, padded_only: bool, identity: bool) -> None:
        for p in range(len(self.S)):
            j = self.first(p, padded_only)
            if j is not None:
                self.try_key(p, j)
                if identity:
                    self.try_key(p, self.mapped(p))

    def first(self, p: int, padded_only: bool) -> int | None:
        """A random valid key: from their list, or by a few tries when pairs are masked."""
        valid = np.flatnonzero(self.allowed[p])
        if not len(valid):
            return None
        if self.allowed.all() or not padded_only:
            for c in range(8):
                row = self.draw(0, p, 2 * c, self.Hk)
                j = row * self.Wk + self.draw(0, p, 2 * c + 1, self.Wk)
                if self.allowed[p, j]:
                    return j
            return self.mapped(p) if self.allowed[p, self.mapped(p)] else int(valid[0])
        return int(valid[self.draw(0, p, 0, len(valid))])

    def propagate(
        self,
        p: int,
        matches: Callable[[int], list[int]],
        kind: str,
        steps: Sequence[tuple[int, int]],
    ) -> None:
        y, x = divmod(p, self.Wq)
        order = [(p, dy, dx) for dy, dx in steps]
        for entry in range(self.topk):
            for _, dy, dx in order:
                if not (0 <= y + dy < self.Hq and 0 <= x + dx < self.Wq):
                    continue
                held = matches((y + dy) * self.Wq + x + dx)
                if entry >= len(held):
                    continue
                if kind in ("same", "both"):
                    self.try_key(p, held[entry])
                if kind in ("shift", "both"):
                    row, column = divmod(held[entry], self.Wk)
                    row -= _step(dy, self.Hq, self.Hk)
                    column -= _step(dx, self.Wq, self.Wk)
                    if 0 <= row < self.Hk and 0 <= column < self.Wk:
                        self.try_key(p, row * self.Wk + column)

    def random(self, t: int, p: int) -> None:
        """Keys in boxes of shrinking radius: around the best key, or around each of several."""
        centres = [j for _, j in self.lists[p]]
        radii = [max(self.Hk, self.Wk)]
        while radii[-1] > 1:
            radii.append(radii[-1] // 2)
        for e in range(len(centres)):
            for r, R in enumerate(radii):
                centre = self.lists[p][0][1] if self.topk == 1 else centres[e]
                row, column = divmod(centre, self.Wk)
                top, left = max(row - R, 0), max(column - R, 0)
                number = 2 * (e * len(radii) + r)
                row = top + self.draw(t, p, number, min(row + R, self.Hk - 1) - top + 1)
                column = left + self.draw(t, p, number + 1, min(column + R, self.Wk - 1) - left + 1)
                self.try_key(p, row * self.Wk + column)

    def buffered(self, t: int, kind: str, jumps: Sequence[int]) -> None:
        for number, jump in enumerate(jumps or (0,)):
            old = [[j for _, j in entries] for entries in self.lists]
            steps = [(0, -jump), (0, jump), (-jump, 0), (jump, 0)]
            for p in range(len(self.S)):
                if jump:
                    self.propagate(p, old.__getitem__, kind, steps)
                if number == max(len(jumps) - 1, 0):
                    self.random(t, p)

    def scanline(self, t: int, kind: str, jumps: Sequence[int]) -> None:  # noqa: ARG002
        forward = t % 2 == 1
        steps = [(0, -1), (-1, 0)] if forward else [(0, 1), (1, 0)]
        for p in range(len(self.S)) if forward else reversed(range(len(self.S))):
            self.propagate(p, lambda r: [j for _, j in self.lists[r]], kind, steps)
            self.random(t, p)


def _step(delta: int, size_q: int, size_k: int) -> int:
    """A step on the query grid in steps of the key grid."""
    return int(np.sign(delta)) * ((2 * abs(delta) * size_k + size_q) // (2 * size_q))
