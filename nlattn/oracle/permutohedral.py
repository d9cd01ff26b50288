"""Gaussian attention on the permutohedral lattice: splat, blur, slice.

    weight of key j for query i ~ exp(-|q_i - k_j|^2 / 2),    out = F[v] / F[1]
    F[x] = alpha S_q B_d .. B_0 S_k^T x

S (points, M) spreads a point over the d + 1 vertices of its simplex, B_j adds to every lattice
point half of both neighbours along axis j, alpha = 1 / (1 + 2^-d).

Papers: Joutard et al., "Permutohedral Attention Module for Efficient Non-Local Neural Networks",
2019; the lattice is that of Adams, Baek, Davis, "Fast High-Dimensional Filtering Using the
Permutohedral Lattice", 2010. Status: author code. Ours: the complete lattice, queries that are no
keys, a lattice for each head, ties to the lower index. Real, longdouble and complex arrays alike;
of complex features the simplex is the real part's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nlattn.oracle.layout import any_layout

Array = np.ndarray


Simplices = tuple[Array, Array]


class Lattice(NamedTuple):
    """Lattice points, and where keys and queries stand among them; M means "no such point"."""

    points: Array
    """(M, d + 1) vertices that were inserted, in lexicographic order."""
    above: Array
    """(d + 1, M + 1) the point ``p + a_j`` of every point p, for every axis j."""
    below: Array
    """(d + 1, M + 1) the point ``p - a_j``."""
    of_keys: Array
    """(m, d + 1) the vertices of every key."""
    of_queries: Array
    """(n, d + 1) the vertices of every query."""


def embedding(d: int, dtype: type = float) -> Array:
    """E (d + 1, d): column j is (1 (j times), -j, 0 ..) sqrt(2/3) (d + 1) / sqrt(j (j + 1))."""
    E: Array = np.zeros((d + 1, d), dtype)
    for j in range(1, d + 1):
        E[:j, j - 1], E[j, j - 1] = 1, -j
    column: Array = np.arange(1, d + 1).astype(dtype)
    size = np.sqrt(dtype(2) / dtype(3)) * (d + 1) / np.sqrt(column * (column + 1))
    return np.asarray(E * size)


def embed(f: Array) -> Array:
    """``u = E f``, channel after channel, so that every machine gets the same ties."""
    d = f.shape[-1]
    E = embedding(d, f.real.dtype.type)
    u = f[..., :1] * E[:, 0]
    for j in range(1, d):
        u = u + f[..., j : j + 1] * E[:, j]
    return np.asarray(u)


def simplices(f: Array) -> tuple[Array, Array]:
    """``rem0, rank`` (..., n, d + 1): the nearest point of remainder 0, and ranks of ``u - w``."""
    u = np.asarray(embed(f.real).real)
    size = u.shape[-1]
    w = size * np.rint(u / size)
    order = np.argsort(w - u, axis=-1, kind="stable")  # descending u - w, ties by lower index
    rank = np.argsort(order, axis=-1, kind="stable")
    w = w.astype(np.int64)
    rank = rank + w.sum(-1, keepdims=True) // size
    shift = np.where(rank < 0, size, np.where(rank >= size, -size, 0))
    return w + shift, rank + shift


def barycentric(f: Array, rem0: Array, rank: Array) -> Array:
    """Weights (..., n, d + 1) of the vertices of remainder 0 to d; 0 where they are rounding."""
    d, u = f.shape[-1], embed(f)
    D = np.take_along_axis((u - rem0) / (d + 1), np.argsort(rank, axis=-1), -1)
    first = 1 + D[..., d] - D[..., 0]
    b = np.stack([first, *(D[..., d - k] - D[..., d - k + 1] for k in range(1, d + 1))], -1)
    size, sizes = np.asarray(abs(b.real)), np.asarray(abs(u.real)).max(-1, keepdims=True)
    rounding = 16 * np.finfo(size.dtype).eps * np.maximum(1, sizes / (d + 1))
    return np.asarray(np.where(size <= rounding, b - b.real, b))


def barycentric_vjp(db: Array, rank: Array) -> Array:
    """Gradient of the features from that of the weights."""
    d = db.shape[-1] - 1
    dD = np.zeros_like(db)
    dD[..., d] += db[..., 0]
    dD[..., 0] -= db[..., 0]
    for k in range(1, d + 1):
        dD[..., d - k] += db[..., k]
        dD[..., d - k + 1] -= db[..., k]
    du = np.take_along_axis(dD, rank, -1) / (d + 1)
    return np.asarray(du @ embedding(d, db.real.dtype.type))


def barycentric_jvp(df: Array, rank: Array) -> Array:
    """Change of the weights as features move along df, the simplices held fixed."""
    d = df.shape[-1]
    D = np.take_along_axis(embed(df) / (d + 1), np.argsort(rank, axis=-1), -1)
    steps = (D[..., d - k] - D[..., d - k + 1] for k in range(1, d + 1))
    return np.asarray(np.stack([D[..., d] - D[..., 0], *steps], -1))


def vertices(rem0: Array, rank: Array) -> Array:
    """(..., n, d + 1, d + 1) coordinates of the vertex of remainder k = 0..d of every simplex."""
    d = rem0.shape[-1] - 1
    k = np.arange(d + 1)[:, None]
    beyond = rank[..., None, :] > d - k
    return np.asarray(rem0[..., None, :] + k - (d + 1) * beyond)


def axes(d: int) -> Array:
    """The steps ``a_j`` (d + 1, d + 1): d at j, -1 elsewhere."""
    return (d + 1) * np.eye(d + 1, dtype=int) - 1


def lattice_of(k_vertices: Array, q_vertices: Array, lattice: str, query_vertices: bool) -> Lattice:
    """The lattice that keys, and if wanted queries, insert; "complete" closes it under the blur."""
    size = k_vertices.shape[-1]
    given = [k_vertices, q_vertices] if query_vertices else [k_vertices]
    points = np.unique(np.concatenate([x.reshape(-1, size) for x in given]), axis=0)
    if lattice == "complete":
        for a in axes(size - 1):
            points = np.unique(np.concatenate([points, points + a, points - a]), axis=0)
    M = len(points)
    number = {tuple(p): i for i, p in enumerate(points.tolist())}

    def find(x: Array) -> Array:
        found = [number.get(tuple(p), M) for p in x.reshape(-1, size).tolist()]
        return np.array(found, int).reshape(x.shape[:-1])

    above = np.array([np.append(find(points + a), M) for a in axes(size - 1)])
    below = np.array([np.append(find(points - a), M) for a in axes(size - 1)])
    return Lattice(points, above, below, find(k_vertices), find(q_vertices))


def splat(at: Array, b: Array, x: Array, M: int) -> Array:
    """``z[vertex_k] += b_k x`` (M + 1, e); the last row stands for absent points."""
    z = np.zeros((M + 1, x.shape[-1]), np.result_type(b, x))
    np.add.at(z, at, b[..., None] * x[:, None, :])
    z[M] = 0
    return z


def blur(z: Array, lattice: Lattice, order: Any) -> Array:
    """``z[p] += (z[p + a_j] + z[p - a_j]) / 2``, axis after axis."""
    for j in order:
        z = z + (z[lattice.above[j]] + z[lattice.below[j]]) / 2
    return z


def slice_(at: Array, b: Array, z: Array) -> Array:
    """``sum_k b_k z[vertex_k]``."""
    return np.asarray((b[..., None] * z[at]).sum(-2))


class Head(NamedTuple):
    """What forward and backward pass of one head share."""

    lattice: Lattice
    k_weights: Array
    q_weights: Array
    k_rank: Array
    q_rank: Array
    factor: Array
    """(m, 1) of the keys' values: 1, or ``exp(scale |k|^2 / 2 - shift)`` for the softmax."""
    shift: Array
    """(n,) what the logarithm of the normaliser lacks."""

    def filter(self, x: Array) -> Array:
        """``F[factor x]`` of values (m, e)."""
        d = self.k_rank.shape[-1] - 1
        z = splat(self.lattice.of_keys, self.k_weights, self.factor * x, len(self.lattice.points))
        z = blur(z, self.lattice, range(d + 1))
        out: Array = slice_(self.lattice.of_queries, self.q_weights, z) / (1 + 0.5**d)
        return out

    def filter_vjp(self, x: Array, g: Array) -> tuple[Array, Array, Array]:
        """Gradients of the weights of queries and keys, and of ``factor x``."""
        d, M = self.k_rank.shape[-1] - 1, len(self.lattice.points)
        to, of = self.lattice.of_queries, self.lattice.of_keys
        y, g = self.factor * x, g / (1 + 0.5**d)
        Y = blur(splat(of, self.k_weights, y, M), self.lattice, range(d + 1))
        X = blur(splat(to, self.q_weights, g, M), self.lattice, range(d, -1, -1))
        db_q = (g[:, None, :] * Y[to]).sum(-1)
        db_k = (y[:, None, :] * X[of]).sum(-1)
        return db_q, db_k, slice_(of, self.k_weights, X)

    def filter_jvp(self, x: Array, db_q: Array, db_k: Array, dy: Array) -> Array:
        """Change of ``F[factor x]`` along those of the weights, and dy of ``factor x``."""
        d, M = self.k_rank.shape[-1] - 1, len(self.lattice.points)
        to, of = self.lattice.of_queries, self.lattice.of_keys
        y = self.factor * x
        Y, moved = (
            blur(z, self.lattice, range(d + 1))
            for z in (
                splat(of, self.k_weights, y, M),
                splat(of, db_k, y, M) + splat(of, self.k_weights, dy, M),
            )
        )
        out: Array = slice_(to, db_q, Y) + slice_(to, self.q_weights, moved)
        return np.asarray(out / (1 + 0.5**d))


def _head(
    q: Array,
    k: Array,
    weight: str,
    scale: float,
    lattice: str,
    query_vertices: bool,
    q_simplices: Simplices | None,
    k_simplices: Simplices | None,
) -> Head:
    factor, shift = np.ones((len(k), 1), k.dtype), np.zeros(len(q), q.dtype)
    if weight == "softmax":
        exponent = scale / 2 * (k * k).sum(-1, keepdims=True)
        top = exponent.real.max(initial=0)
        factor, shift = np.exp(exponent - top), scale / 2 * (q * q).sum(-1) + top
        root = q.real.dtype.type(scale) ** 0.5
        q, k = root * q, root * k
    q_rem0, q_rank = simplices(q) if q_simplices is None else q_simplices
    k_rem0, k_rank = simplices(k) if k_simplices is None else k_simplices
    found = lattice_of(vertices(k_rem0, k_rank), vertices(q_rem0, q_rank), lattice, query_vertices)
    weights = barycentric(k, k_rem0, k_rank), barycentric(q, q_rem0, q_rank)
    return Head(found, *weights, k_rank, q_rank, factor, shift)


def _normalised(filtered: Array) -> tuple[Array, Array, Array]:
    """``F[v] / F[1]``, ``1 / F[1]`` and where it is not 0; nothing but 0 where F[1] is 0."""
    Z = filtered[..., -1:]
    some = Z.real > 0
    inverse = np.where(some, 1, 0) / np.where(some, Z, 1)
    return filtered[..., :-1] * inverse, inverse, some


def _with_ones(v: Array) -> Array:
    return np.concatenate([v, np.ones((*v.shape[:-1], 1), v.dtype)], -1)


@any_layout
def permutohedral_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    normalize: bool = True,
    weight: str = "gaussian",
    scale: float | None = None,
    lattice: str = "published",
    query_vertices: bool = True,
    q_simplices: Simplices | None = None,
    k_simplices: Simplices | None = None,
    return_lse: bool = False,
) -> Array | tuple[Array, Array]:
    """Outputs (..., n, e), and with `return_lse` also log F[1] and what the softmax adds."""
    options = weight, _scale(q, scale), lattice, query_vertices
    lead, (q_, k_, v_) = _heads(q, k, v)
    out = np.zeros((*lead, q.shape[-2], v.shape[-1]), v.dtype)
    lse = np.full(out.shape[:-1], -np.inf, out.dtype)
    for b in np.ndindex(lead):
        head = _head(q_[b], k_[b], *options, _of(q_simplices, lead, b), _of(k_simplices, lead, b))
        if not normalize:
            out[b] = head.filter(v_[b])
            continue
        filtered = head.filter(_with_ones(v_[b]))
        out[b], _, some = _normalised(filtered)
        log = np.log(np.where(some[..., 0], filtered[..., -1], 1)) + head.shift
        lse[b] = np.where(some[..., 0], log, -np.inf)
    return (out, lse) if return_lse else out


@any_layout
def permutohedral_attention_vjp(
    q: Array,
    k: Array,
    v: Array,
    dout: Array,
    *,
    dlse: Array | None = None,
    normalize: bool = True,
    weight: str = "gaussian",
    scale: float | None = None,
    lattice: str = "published",
    query_vertices: bool = True,
    q_simplices: Simplices | None = None,
    k_simplices: Simplices | None = None,
) -> tuple[Array, Array, Array]:
    """Gradients (dq, dk, dv), the simplices held fixed."""
    scale = _scale(q, scale)
    lead, (q_, k_, v_) = _heads(q, k, v)
    dq, dk, dv = (np.zeros((*lead, *x.shape[-2:]), x.dtype) for x in (q, k, v))
    for b in np.ndindex(lead):
        given = _of(q_simplices, lead, b), _of(k_simplices, lead, b)
        head = _head(q_[b], k_[b], weight, scale, lattice, query_vertices, *given)
        x, g, log = v_[b], dout[b], np.zeros((len(q_[b]), 1), v.dtype)
        if normalize:
            x = _with_ones(x)
            out, inverse, some = _normalised(head.filter(x))
            if dlse is not None:
                log = np.where(some, dlse[b][:, None], 0)
            g = np.concatenate([g, log - (g * out).sum(-1, keepdims=True)], -1) * inverse
        db_q, db_k, dy = head.filter_vjp(x, g)
        dv[b] = head.factor * dy[:, : v.shape[-1]]
        dq[b] = barycentric_vjp(db_q, head.q_rank)
        dk[b] = barycentric_vjp(db_k, head.k_rank)
        if weight == "softmax":
            root = q.real.dtype.type(scale) ** 0.5
            dlog = head.factor * (dy * x).sum(-1, keepdims=True)
            dq[b], dk[b] = root * dq[b] + scale * log * q_[b], root * dk[b] + scale * dlog * k_[b]
    return _summed(dq, q.shape), _summed(dk, k.shape), _summed(dv, v.shape)


@any_layout
def permutohedral_attention_jvp(
    q: Array,
    k: Array,
    v: Array,
    dq: Array,
    dk: Array,
    dv: Array,
    *,
    normalize: bool = True,
    weight: str = "gaussian",
    scale: float | None = None,
    lattice: str = "published",
    query_vertices: bool = True,
    q_simplices: Simplices | None = None,
    k_simplices: Simplices | None = None,
    return_lse: bool = False,
) -> Array | tuple[Array, Array]:
    """Change of `out`, and of `lse`, along dq, dk, dv, the simplices held fixed."""
    scale = _scale(q, scale)
    lead, (q_, k_, v_, dq_, dk_, dv_) = _heads(q, k, v, dq, dk, dv)
    out = np.zeros((*lead, q.shape[-2], v.shape[-1]), v.dtype)
    lse = np.zeros(out.shape[:-1], out.dtype)
    softmax = weight == "softmax"
    root = q.real.dtype.type(scale) ** 0.5 if softmax else 1
    for b in np.ndindex(lead):
        given = _of(q_simplices, lead, b), _of(k_simplices, lead, b)
        head = _head(q_[b], k_[b], weight, scale, lattice, query_vertices, *given)
        db_q = barycentric_jvp(root * dq_[b], head.q_rank)
        db_k = barycentric_jvp(root * dk_[b], head.k_rank)
        x, dx = v_[b], dv_[b]
        if normalize:
            x, dx = _with_ones(x), np.concatenate([dx, np.zeros((len(dx), 1), dx.dtype)], -1)
        dy = head.factor * dx
        if softmax:
            dy = dy + head.factor * (scale * (k_[b] * dk_[b]).sum(-1, keepdims=True)) * x
        moved = head.filter_jvp(x, db_q, db_k, dy)
        if not normalize:
            out[b] = moved
            continue
        mean, inverse, some = _normalised(head.filter(x))
        out[b] = (moved[..., :-1] - mean * moved[..., -1:]) * inverse
        lse[b] = (moved[..., -1:] * inverse)[..., 0]
        if softmax:
            lse[b] += np.where(some[..., 0], scale * (q_[b] * dq_[b]).sum(-1), 0)
    return (out, lse) if return_lse else out


def _scale(q: Array, scale: float | None) -> float:
    return q.shape[-1] ** -0.5 if scale is None else scale


def _of(given: Simplices | None, lead: tuple[int, ...], b: tuple[int, ...]) -> Simplices | None:
    """Simplices of one head."""
    if given is None:
        return None
    return tuple(np.broadcast_to(x, lead + np.shape(x)[-2:])[b] for x in given)


def _heads(*arrays: Array) -> tuple[tuple[int, ...], list[Array]]:
    """The common leading axes, and the arrays broadcast to them."""
    lead = np.broadcast_shapes(*(x.shape[:-2] for x in arrays))
    return lead, [np.broadcast_to(x, lead + x.shape[-2:]) for x in arrays]


def _summed(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the axes along which an array of `shape` was broadcast."""
    gradient = gradient.sum(tuple(range(gradient.ndim - len(shape))))
    kept = tuple(i for i, size in enumerate(shape) if size == 1 != gradient.shape[i])
    return np.asarray(gradient.sum(kept, keepdims=True))
