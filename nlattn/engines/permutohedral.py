"""Gaussian attention on the permutohedral lattice, forward beside its gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Simplices, Work
from nlattn.engines.lattice import (
    MAX_BYTES,
    LatticePoints,
    Placed,
    barycentric_jvp,
    barycentric_vjp,
)


class PermutohedralOptions(NamedTuple):
    """Checked options of a call."""

    normalize: bool
    weight: str
    """"gaussian" or "softmax"."""
    scale: float
    """Of the softmax's scores."""
    complete: bool
    """Whether the lattice is closed under its blur."""
    query_vertices: bool


class GivenSimplices(NamedTuple):
    """Simplices of every slice that the caller has chosen, (batch, n, d + 1), or None."""

    q: Simplices | None = None
    k: Simplices | None = None

    def slice(self, b: int) -> GivenSimplices:
        """Those of one slice."""
        return GivenSimplices(*(x and Simplices(x.rem0[b], x.rank[b]) for x in self))


class Head:
    """The filter of one head: ``out = F[factor v]``, over ``F[factor]`` if normalised."""

    def __init__(
        self, op: str, q: Floats, k: Floats, options: PermutohedralOptions, given: GivenSimplices
    ):
        self.options = options
        size = 8 * (len(q) + len(k)) * (q.shape[1] + 1)
        what = f"lattice points of {len(q)} + {len(k)} points of {q.shape[1]} channels"
        _check.memory(op, size * (5 * q.shape[1] + 6), MAX_BYTES, what, "use fewer channels")
        q, k = q.astype(np.float64), k.astype(np.float64)
        self.root, self.factor, self.shift = 1.0, np.ones((len(k), 1)), np.zeros(len(q))
        if options.weight == "softmax":
            exponent = options.scale / 2 * (k * k).sum(1, keepdims=True)
            top = exponent.max(initial=0.0)
            with np.errstate(all="ignore"):
                self.factor = np.exp(exponent - top)
            self.shift = options.scale / 2 * (q * q).sum(1) + top
            self.root = options.scale**0.5
            q, k = self.root * q, self.root * k
        self.k = Placed.of(k, given.k)
        same = given.q is given.k is None and np.array_equal(q, k)
        self.q = self.k if same else Placed.of(q, given.q)
        self.lattice = LatticePoints.of(
            op, self.k, self.q, complete=options.complete, query_vertices=options.query_vertices
        )

    def filter(self, z: Floats) -> Floats:
        """Read the queries: ``alpha S_q z``."""
        return self.lattice.read(self.lattice.at_queries, self.lattice.q_weights, z)

    def splat(self, x: Floats) -> Floats:
        """``B_d .. B_0 S_k^T factor x``, of values (m, e)."""
        return self.lattice.forward(self.factor * x)

    def splat_vjp(self, X: Floats) -> Floats:
        """``factor alpha S_k X``: what the values get."""
        return self.factor * self.lattice.read(self.lattice.at_keys, self.lattice.k_weights, X)

    def features_vjp(self, x: Floats, g: Floats, Y: Floats, X: Floats) -> tuple[Floats, Floats]:
        """Gradients of queries and keys, through the weights of their vertices alone."""
        db_q = self.lattice.slopes(self.lattice.at_queries, g, Y)
        db_k = self.lattice.slopes(self.lattice.at_keys, self.factor * x, X)
        return tuple(  # type: ignore[return-value]
            self.root * barycentric_vjp(db, placed.rank)
            for db, placed in ((db_q, self.q), (db_k, self.k))
        )

    def work(self, e: int) -> Work:
        """Of embedding, and of one filter of `e` channels."""
        points, corners = len(self.q.b) + len(self.k.b), self.lattice.d + 1
        filtered = self.lattice.work(e)
        embedding = points * corners * self.lattice.d
        return Work(0, embedding + filtered.multiply_adds, 8 * embedding + filtered.bytes)


def normaliser(Z: Floats) -> tuple[Floats, Floats]:
    """``1 / Z`` and ``log Z`` (n,); 0 and -inf where no key reaches a query."""
    none = Z <= 0
    safe = np.where(none, 1, Z)
    return np.where(none, 0, 1 / safe), np.where(none, -np.inf, np.log(safe))


def with_ones(v: Floats) -> Floats:
    """(m, e + 1), the last column 1."""
    return np.concatenate([v, np.ones((len(v), 1))], 1)


def attend(
    fit: _check.Fit, options: PermutohedralOptions, given: GivenSimplices
) -> tuple[Floats, Floats]:
    """Outputs (batch, n, e), and log normalisers (batch, n)."""
    out, lse = fit.empty("n e"), fit.empty("n", np.float64)
    for b, head in _heads(fit, options, given):
        v = fit["v"][fit.slices("v")[b, 0]].astype(np.float64)
        with np.errstate(all="ignore"):
            if not options.normalize:
                out[b] = head.filter(head.splat(v))
                continue
            filtered = head.filter(head.splat(with_ones(v)))
            inverse, log = normaliser(filtered[:, -1])
            out[b], lse[b] = filtered[:, :-1] * inverse[:, None], log + head.shift
    return out, lse


def vjp(
    fit: _check.Fit, options: PermutohedralOptions, given: GivenSimplices, with_dlse: bool
) -> tuple[Floats, Floats, Floats]:
    """Gradients of queries, keys and values, each (batch, ...), the simplices held fixed."""
    dq, dk, dv = fit.empty("n d"), fit.empty("m d"), fit.empty("m e")
    names = ("v", "dout", *(["dlse"] if with_dlse else []))
    for b, head in _heads(fit, options, given):
        at = fit.slices(*names)[b]
        arrays = [fit[name][i].astype(np.float64) for name, i in zip(names, at, strict=True)]
        with np.errstate(all="ignore"):
            x, g, log = arrays[0], arrays[1], arrays[2] if with_dlse else 0.0
            if options.normalize:
                x = with_ones(x)
            Y = head.splat(x)
            if options.normalize:
                filtered = head.filter(Y)
                inverse, _ = normaliser(filtered[:, -1])
                out = filtered[:, :-1] * inverse[:, None]
                log = np.where(inverse == 0, 0.0, log)
                g = np.concatenate([g, (log - (g * out).sum(1))[:, None]], 1) * inverse[:, None]
            X = head.lattice.backward(g)
            dx = head.splat_vjp(X)
            dv[b] = dx[:, : dv.shape[2]]
            dq[b], dk[b] = head.features_vjp(x, g, Y, X)
            if options.weight == "softmax":
                q, k = (fit[name][i] for name, i in zip("qk", fit.slices("q", "k")[b], strict=True))
                dq[b] += options.scale * np.reshape(log, (-1, 1)) * q
                dk[b] += options.scale * (dx * x).sum(1, keepdims=True) * k
    return fit.reduce("q", dq), fit.reduce("k", dk), fit.reduce("v", dv)


def jvp(
    fit: _check.Fit, options: PermutohedralOptions, given: GivenSimplices
) -> tuple[Floats, Floats]:
    """Changes of outputs (batch, n, e) and of log normalisers (batch, n)."""
    out, lse = fit.empty("n e"), np.zeros((fit.batch, fit.dims["n"]))
    softmax, names = options.weight == "softmax", ("q", "k", "v", "dq", "dk", "dv")
    for b, head in _heads(fit, options, given):
        at = zip(names, fit.slices(*names)[b], strict=True)
        q, k, x, dq, dk, dx = (fit[name][i].astype(np.float64) for name, i in at)
        with np.errstate(all="ignore"):
            if options.normalize:
                x, dx = with_ones(x), np.concatenate([dx, np.zeros((len(dx), 1))], 1)
            if softmax:
                dx = dx + options.scale * (k * dk).sum(1, keepdims=True) * x
            lattice, db_q, db_k = (
                head.lattice,
                *(
                    barycentric_jvp(head.root * df, placed.rank)
                    for df, placed in ((dq, head.q), (dk, head.k))
                ),
            )
            Y, moved = head.splat(x), lattice.forward_jvp(head.factor * x, db_k, head.factor * dx)
            moved = head.filter(moved) + lattice.read(lattice.at_queries, db_q, Y)
            if not options.normalize:
                out[b] = moved
                continue
            filtered = head.filter(Y)
            inverse, _ = normaliser(filtered[:, -1])
            mean = filtered[:, :-1] * inverse[:, None]
            out[b] = (moved[:, :-1] - mean * moved[:, -1:]) * inverse[:, None]
            lse[b] = moved[:, -1] * inverse
            if softmax:
                lse[b] += np.where(inverse == 0, 0, options.scale * (q * dq).sum(1))
    return out, lse


def _heads(
    fit: _check.Fit, options: PermutohedralOptions, given: GivenSimplices
) -> Iterator[tuple[int, Head]]:
    """Every slice and its head; slices of the same queries and keys share one."""
    shared: dict[tuple[int, ...], Head] = {}
    chosen = given.q is not None or given.k is not None
    for b, pair in enumerate(fit.slices("q", "k").tolist()):
        key = (b,) if chosen else tuple(pair)
        if key not in shared:
            shared.clear()  # one lattice at a time
            arrays = fit["q"][pair[0]], fit["k"][pair[1]]
            shared[key] = Head(fit.op, *arrays, options, given.slice(b))
        yield b, shared[key]
