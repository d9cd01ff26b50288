"""The permutohedral lattice: simplices of points, lattice points and their sums.

Everything is float64 and int64. `u = E f` are points embedded in the plane ``sum u = 0`` of
R^(d+1); lattice points are kept without their last coordinate, which the others give.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Ints, Simplices, Work
from nlattn.kernels import lattice as kernels

MAX_BYTES = 4e9
MOST = 2.0**50  # so that lattice points and their neighbours are exact


def embedding(d: int) -> Floats:
    """E (d + 1, d): column j is (1 (j times), -j, 0 ..) sqrt(2/3) (d + 1) / sqrt(j (j + 1))."""
    E = np.zeros((d + 1, d))
    for j in range(1, d + 1):
        E[:j, j - 1], E[j, j - 1] = 1, -j
    column = np.arange(1.0, d + 1)
    scaled: Floats = E * (np.sqrt(2 / 3) * (d + 1) / np.sqrt(column * (column + 1)))
    return scaled


def embed(f: Floats) -> Floats:
    """``u = E f`` of features (n, d), channel after channel: ties are the same on every machine."""
    E = embedding(f.shape[1])
    u: Floats = f[:, :1] * E[:, 0]
    for j in range(1, f.shape[1]):
        u += f[:, j : j + 1] * E[:, j]
    return u


def most(d: int) -> float:
    """Largest feature whose lattice points are exact, since ``|u| = sqrt(2/3) (d + 1) |f|``."""
    return float(MOST / (d + 1) ** 1.5)


def simplices(u: Floats) -> Simplices:
    """The enclosing simplices; of coordinates that tie, the lower index ranks first."""
    size = u.shape[1]
    w = size * np.rint(u / size)
    order = np.argsort(w - u, axis=1, kind="stable")
    rank = np.empty(u.shape, np.int64)
    np.put_along_axis(rank, order, np.arange(size)[None], 1)
    rem0 = w.astype(np.int64)
    rank += rem0.sum(1, keepdims=True) // size
    shift = size * ((rank < 0).astype(np.int64) - (rank >= size))
    return Simplices(rem0 + shift, rank + shift)


def barycentric(u: Floats, chosen: Simplices) -> Floats:
    """Weights (n, d + 1) of the vertices of remainder 0 to d; 0 where they are rounding.

    Else a query on a border, reached through corners of weight 0 alone, would get their mean.
    """
    size = u.shape[1]
    D = np.empty(u.shape)
    np.put_along_axis(D, chosen.rank, (u - chosen.rem0) / size, 1)
    b: Floats = np.empty(u.shape)
    b[:, 0] = 1 + D[:, -1] - D[:, 0]
    b[:, 1:] = (D[:, :-1] - D[:, 1:])[:, ::-1]
    rounding = 16 * np.finfo(float).eps * np.maximum(1, abs(u).max(1, keepdims=True) / size)
    b[abs(b) <= rounding] = 0
    return b


def barycentric_vjp(db: Floats, rank: Ints) -> Floats:
    """Gradient (n, d) of the features from that of the weights."""
    size = db.shape[1]
    dD = np.zeros(db.shape)
    dD[:, -1] += db[:, 0]
    dD[:, 0] -= db[:, 0]
    dD[:, :-1] += db[:, :0:-1]
    dD[:, 1:] -= db[:, :0:-1]
    du = np.take_along_axis(dD, rank, 1) / size
    E = embedding(size - 1)
    df: Floats = du[:, :1] * E[0]
    for i in range(1, size):
        df += du[:, i : i + 1] * E[i]
    return df


def barycentric_jvp(df: Floats, rank: Ints) -> Floats:
    """Change (n, d + 1) of the weights as features move along df (n, d)."""
    size = rank.shape[1]
    D = np.empty(rank.shape)
    np.put_along_axis(D, rank, embed(df) / size, 1)
    db: Floats = np.empty(rank.shape)
    db[:, 0] = D[:, -1] - D[:, 0]
    db[:, 1:] = (D[:, :-1] - D[:, 1:])[:, ::-1]
    return db


class Placed(NamedTuple):
    """Points in their simplices."""

    b: Floats
    """(n, d + 1) barycentric weights."""
    rank: Ints
    vertices: Ints
    """(n (d + 1), d) lattice points, those of a point by remainder."""

    @classmethod
    def of(cls, f: Floats, chosen: Simplices | None) -> Placed:
        """Features (n, d); those that are not finite have weights that are NaN."""
        with np.errstate(all="ignore"):
            u = embed(f)
        bad = ~np.isfinite(u).all(1)
        u[bad] = 0
        chosen = simplices(u) if chosen is None else chosen
        b, d = barycentric(u, chosen), f.shape[1]
        b[bad] = np.nan
        remainder = np.arange(d + 1)[:, None]
        beyond = chosen.rank[:, None, :d] > d - remainder
        vertices = chosen.rem0[:, None, :d] + remainder - (d + 1) * beyond
        return cls(b, chosen.rank, vertices.reshape(-1, d))


def numbered(rows: Ints) -> tuple[Ints, Ints]:
    """Distinct rows in lexicographic order, and the number of every row among them.

    Columns are packed into one int64 key; what is packed already becomes its rank where they
    would not fit.
    """
    key, size = np.zeros(len(rows), np.int64), 1
    for column in rows.T if len(rows) else ():
        digit = column - column.min()
        base = int(digit.max()) + 1
        if size * base >= 2**62:
            key, digit = (np.unique(x, return_inverse=True)[1] for x in (key, digit))
            size, base = int(key.max()) + 1, int(digit.max()) + 1
        key, size = key * base + digit, size * base
    order = np.argsort(key, kind="stable")
    first = np.ones(len(rows), bool)
    first[1:] = np.diff(key[order]) != 0
    number = np.empty(len(rows), np.int64)
    number[order] = np.cumsum(first) - 1
    return rows[order[first]], number


def steps(d: int) -> Ints:
    """The axes ``a_j`` (d + 1, d) without their last coordinate: d at j, -1 elsewhere."""
    return (d + 1) * np.eye(d + 1, d, dtype=np.int64) - 1


def closed(op: str, points: Ints) -> Ints:
    """Lattice points with all that a blur along all axes reaches from them."""
    d = points.shape[1]
    for a in steps(d):
        text = f"{len(points)} lattice points and their neighbours"
        _check.memory(op, 48 * d * len(points), MAX_BYTES, text, "use lattice='published'")
        points = numbered(np.concatenate([points, points + a, points - a]))[0]
    return points


class Corners(NamedTuple):
    """The corners of points by lattice point, points ascending."""

    indptr: Ints
    entries: Ints

    @classmethod
    def of(cls, at: Ints, M: int) -> Corners:
        """Of the lattice points `at` (n, d + 1), M for none."""
        order = np.argsort(at.reshape(-1), kind="stable")
        indptr = np.searchsorted(at.reshape(-1)[order], np.arange(M + 1))
        return cls(_check.frozen(indptr, np.int64), _check.frozen(order[: indptr[-1]], np.int64))


class LatticePoints:
    """The lattice points of one set of keys and one of queries."""

    def __init__(
        self, points: Ints, at_keys: Ints, at_queries: Ints, k_weights: Floats, q_weights: Floats
    ):
        self.points: Ints = _check.frozen(points, np.int64)
        """(M, d) in lexicographic order, without their last coordinate."""
        self.at_keys: Ints = _check.frozen(at_keys, np.int64)
        """(m, d + 1) the vertices of every key, M for none."""
        self.at_queries: Ints = _check.frozen(at_queries, np.int64)
        self.k_weights: Floats = _check.frozen(k_weights)
        self.q_weights: Floats = _check.frozen(q_weights)
        self.d = points.shape[1]
        self.alpha = 1 / (1 + 0.5**self.d)
        self._poisoned = bool(np.isnan(k_weights).any())
        self._by_keys: Corners | None = None
        self._by_queries: Corners | None = None
        self._neighbours: tuple[Ints, Ints] | None = None

    @classmethod
    def of(
        cls, op: str, k: Placed, q: Placed, *, complete: bool, query_vertices: bool
    ) -> LatticePoints:
        """The points that keys, and if wanted queries, insert, and for "complete" their closure."""
        inserts = query_vertices and not complete and q is not k
        rows = np.concatenate([k.vertices, q.vertices]) if inserts else k.vertices
        points, number = numbered(rows)
        if complete:
            points = closed(op, points)
            number = _found(points, rows)
        of_keys = number[: len(k.vertices)]
        of_queries = of_keys
        if q is not k:
            of_queries = number[len(of_keys) :] if inserts else _found(points, q.vertices)
        at_keys, at_queries = of_keys.reshape(k.b.shape), of_queries.reshape(q.b.shape)
        return cls(points, at_keys, at_queries, k.b, q.b)

    @property
    def neighbours(self) -> tuple[Ints, Ints]:
        """``p + a_j`` and ``p - a_j`` (d + 1, M) of every point, M for none."""
        if self._neighbours is None:
            M, axes = len(self.points), self.d + 1
            above = np.empty((axes, M), np.int64)
            count = axes * math.ceil(M / kernels.BLOCK)
            kernels.neighbours(count, self.points, _check.frozen(steps(self.d)), above)
            below = np.full((axes, M), M, np.int64)
            axis, p = np.nonzero(above < M)
            below[axis, above[axis, p]] = p
            self._neighbours = _check.frozen(above), _check.frozen(below)
        return self._neighbours

    @property
    def edges(self) -> int:
        """Neighbours that there are: additions of one blur along all axes, for one channel."""
        return 2 * int((self.neighbours[0] < len(self.points)).sum())

    def work(self, e: int) -> Work:
        """Of one filter of `e` channels: splat, blur and slice."""
        corners = (len(self.at_keys) + len(self.at_queries)) * (self.d + 1)
        blurred = len(self.points) * (self.d + 1)
        moved = corners * (16 + 8 * e) + blurred * (16 + 32 * e)
        return Work(0, (corners + self.edges) * e, moved)

    def forward(self, y: Floats) -> Floats:
        """``B_d .. B_0 S_k^T y`` (M + 1, e) of values (m, e)."""
        if self._by_keys is None:
            self._by_keys = Corners.of(self.at_keys, len(self.points))
        z = self._blurred(self._splat(self._by_keys, self.k_weights, y), range(self.d + 1))
        if self._poisoned:
            z[:-1] = np.nan
        return z

    def backward(self, g: Floats) -> Floats:
        """``B_0 .. B_d S_q^T g`` (M + 1, e) of cotangents (n, e)."""
        if self._by_queries is None:
            self._by_queries = Corners.of(self.at_queries, len(self.points))
        z = self._splat(self._by_queries, self.q_weights, g)
        return self._blurred(z, range(self.d, -1, -1))

    def forward_jvp(self, y: Floats, db: Floats, dy: Floats) -> Floats:
        """Change of `forward` along those of the keys' weights and of the values."""
        if self._by_keys is None:
            self._by_keys = Corners.of(self.at_keys, len(self.points))
        z = self._splat(self._by_keys, _check.frozen(db), y)
        z += self._splat(self._by_keys, self.k_weights, dy)
        z = self._blurred(z, range(self.d + 1))
        if self._poisoned or np.isnan(db).any():
            z[:-1] = np.nan
        return z

    def read(self, at: Ints, b: Floats, z: Floats) -> Floats:
        """``alpha S z`` (n, e)."""
        out: Floats = np.empty((len(at), z.shape[1]))
        kernels.read(math.ceil(len(at) / kernels.BLOCK), at, b, _check.frozen(z), out)
        out *= self.alpha
        return out

    def slopes(self, at: Ints, x: Floats, z: Floats) -> Floats:
        """Gradient (n, d + 1) of the weights b of ``sum(x * read(at, b, z))``."""
        db: Floats = np.empty(at.shape)
        count = math.ceil(len(at) / kernels.BLOCK)
        kernels.slopes(count, at, _check.frozen(x), _check.frozen(z), db)
        db *= self.alpha
        return db

    def _splat(self, entries: Corners, b: Floats, x: Floats) -> Floats:
        z: Floats = np.empty((len(self.points) + 1, x.shape[1]))
        count = len(self.points) // kernels.BLOCK + 1
        kernels.splat(count, *entries, b, _check.frozen(x), z)
        return z

    def _blurred(self, z: Floats, order: range) -> Floats:
        above, below = self.neighbours
        other, count = np.empty_like(z), len(self.points) // kernels.BLOCK + 1
        for j in order:
            kernels.blur(count, above[j], below[j], _check.frozen(z), other)
            z, other = other, z
        return z


def _found(points: Ints, rows: Ints) -> Ints:
    """The number of each row among points, their count for those that are none."""
    M = len(points)
    distinct, number = numbered(np.concatenate([points, rows]))
    place = np.full(len(distinct), M)
    place[number[:M]] = np.arange(M)
    return place[number[M:]]
