"""Causal linear attention: sums over the keys before a block, and a triangle inside it.

One head is one task, its blocks follow each other. Sums are held in float64, relative to the
largest exponent met so far.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from nlattn._types import Bools, Floats, Ints, Scalar
from nlattn.engines.factored import offset, relative
from nlattn.engines.features import Block, ColumnExp, Identity, Random
from nlattn.engines.not_finite import cleaned, finite
from nlattn.runtime import threads

CausalChanges = tuple[Sequence[Floats], Sequence[Floats], Sequence[Floats]]
"""Of queries, keys and values, of each slice of a call."""
ROWS = 64
"""Rows of a block."""


class Causal(NamedTuple):
    """Feature maps, arrays, and what is added to every component of the running sum of keys."""

    queries: Identity
    keys: Identity
    q: Floats
    k: Floats
    v: Floats
    slices: Ints
    """(batch, 3) of q, k and v."""
    start: Floats
    """(batch, r) maxima that hold before the first key."""
    eps: float
    shift: Floats | None = None
    """(slices of v, 1, e) what has been taken from values."""

    def own_eps(self, top: Floats) -> Scalar:
        """`eps` in the units of features relative to `top`."""
        if isinstance(self.keys, Random):
            root = np.sqrt(len(self.keys.projection))
            return self.eps * root * (1 if self.keys.stabilizer == "max" else np.exp(-top[0]))
        return self.eps * (np.exp(-top[0]) if isinstance(self.keys, ColumnExp) else 1)


class Step(NamedTuple):
    """A block of one head."""

    rows: slice
    q: Block
    k: Block
    phi_q: Floats
    phi_k: Floats
    v: Floats
    values: Floats
    """(r, e) sums over the keys before, relative to ``k.top``."""
    features: Floats
    """(r,) likewise, with eps."""
    inside: Floats
    """(rows, rows) products of the block's features, lower triangle."""
    total: Floats
    """(rows, 1) denominators."""

    @property
    def out(self) -> Floats:
        """Outputs (rows, e)."""
        return (self.phi_q @ self.values + self.inside @ self.v) / self.total


def _fade(top: Floats, new: Floats) -> Floats:
    """What sums relative to `top` are multiplied by to be relative to `new`."""
    shift = np.full(len(top), -np.inf)
    return np.exp(np.subtract(top, new, where=top > -np.inf, out=shift))


def _steps(p: Causal, head: int) -> Iterator[Step]:
    """Blocks of a head in their order."""
    q, k, v = (x[part] for x, part in zip((p.q, p.k, p.v), p.slices[head], strict=True))
    r, e, dtype = p.queries.size(q.shape[1]), v.shape[1], q.dtype
    top, values, features = p.start[head], np.zeros((r, e)), np.zeros(r)
    for begin in range(0, len(q), ROWS):
        rows = slice(begin, min(begin + ROWS, len(q)))
        step = _step(p, q[rows], k[rows], v[rows], rows, top)
        old = _fade(top, step.k.top)
        values *= old[:, None]
        features *= old
        eps = p.own_eps(step.k.top)  # it stands for a key whose value is 0
        missing = 0 if p.shift is None else eps * p.shift[p.slices[head, 2]]
        sums = (values - missing).astype(dtype), (features + eps).astype(dtype)
        total = step.phi_q @ sums[1] + step.inside.sum(1)
        yield step._replace(values=sums[0], features=sums[1], total=total[:, None])
        values += step.phi_k.T @ step.v
        features += step.phi_k.sum(0)
        top = step.k.top


def _step(p: Causal, q: Floats, k: Floats, v: Floats, rows: slice, top: Floats) -> Step:
    """What a block is by itself."""
    block_q, block_k = p.queries(q, top), p.keys(k, top)
    phi_q, phi_k = block_q.whole, block_k.whole
    inside = np.tril(phi_q @ phi_k.T)
    none = np.empty(0, q.dtype)
    return Step(rows, block_q, block_k, phi_q, phi_k, v, none, none, inside, none)


def attend(p: Causal) -> Floats:
    """Output (batch, n, e); what is not finite reaches the rows after it alone."""
    if finite(p.q, p.k, p.v):
        return _attend(p)
    out = _attend(_clean(p))
    lost, values = _lost(p)
    return np.where(lost[..., None] | np.logical_or.accumulate(values, 1), np.nan, out)


def _clean(p: Causal) -> Causal:
    start = np.where(np.isnan(p.start) | np.isposinf(p.start), 0, p.start)
    return p._replace(q=cleaned(p.q), k=cleaned(p.k), v=cleaned(p.v), start=start)


def _lost(p: Causal) -> tuple[Bools, Bools]:
    """Rows (batch, n) that have NaN or infinities, or see a key that does; such values."""
    a, b, c = p.slices.T
    keys = np.logical_or.accumulate(~np.isfinite(p.k[b]).all(2), 1)
    return keys | ~np.isfinite(p.q[a]).all(2), ~np.isfinite(p.v[c])


def _attend(p: Causal) -> Floats:
    out = np.empty((len(p.slices), p.q.shape[1], p.v.shape[2]), p.q.dtype)

    def head(number: int) -> None:
        for step in _steps(p, number):
            out[number, step.rows] = step.out

    for _ in threads.each(head, len(out), len(out) * out.shape[1]):
        pass
    return out


def jvp(p: Causal, changes: CausalChanges, moving: list[Ints | None]) -> Floats:
    """Change (batch, n, e) along dq, dk, dv of each slice; `moving` as for `vjp`."""
    if finite(p.q, p.k, p.v, *(x for each in changes for x in each)):
        return _jvp(p, changes, moving)
    neat = tuple([cleaned(x) for x in each] for each in changes)
    out = _jvp(_clean(p), neat, moving)  # type: ignore[arg-type]
    lost, values = _lost(p)
    dq, dk, dv = (np.isfinite(np.stack(each)) for each in changes)
    lost |= np.logical_or.accumulate(~dk.all(2), 1) | ~dq.all(2)
    values = np.logical_or.accumulate(values | ~dv, 1)
    return np.where(lost[..., None] | values, np.nan, out)


def _jvp(p: Causal, changes: CausalChanges, moving: list[Ints | None]) -> Floats:
    dq, dk, dv = changes
    out: Floats = np.empty((len(p.slices), p.q.shape[1], p.v.shape[2]), p.q.dtype)

    def head(number: int) -> None:
        where, top = moving[number], p.start[number]
        fall = 0.0 if where is None else float(dk[number][where[0]] @ p.keys.projection[where[1]])  # type: ignore[attr-defined]
        values, features = np.zeros((len(top), out.shape[2])), np.zeros(len(top))
        for step in _steps(p, number):
            rows, old = step.rows, _fade(top, step.k.top)
            values, features, top = values * old[:, None], features * old, step.k.top
            dphi_q = p.queries.jvp(step.q, dq[number][rows])
            dphi_k = p.keys.jvp(step.k, dk[number][rows]) - step.k.phi * out.dtype.type(fall)
            inside = np.tril(dphi_q @ step.phi_k.T + step.phi_q @ dphi_k.T)
            moved = dphi_q @ step.values + step.phi_q @ values.astype(out.dtype)
            moved += inside @ step.v + step.inside @ dv[number][rows]
            total = dphi_q @ step.features + step.phi_q @ features.astype(out.dtype)
            total += inside.sum(1)
            out[number, rows] = (moved - step.out * total[:, None]) / step.total
            values += dphi_k.T @ step.v + step.phi_k.T @ dv[number][rows]
            features += dphi_k.sum(0)

    for _ in threads.each(head, len(out), len(out) * out.shape[1]):
        pass
    return out


def vjp(p: Causal, dout: Floats, moving: list[Ints | None]) -> tuple[Floats, Floats, Floats]:
    """Gradients (batch, n, d), (batch, n, d), (batch, n, e); `dout` (batch, n, e).

    `moving` holds key and feature of each head's maximum, or None where it is held fixed.
    """
    shift = offset(p.v)
    p = p._replace(v=relative(p.v, shift), shift=shift)
    if finite(p.q, p.k, p.v, dout):
        return _vjp(p, dout, moving)
    dq, dk, dv = _vjp(_clean(p), cleaned(dout), moving)
    lost, values = _lost(p)
    wild = ~np.isfinite(dout)
    struck = lost | np.logical_or.accumulate(values.any(2), 1) | wild.any(2)
    before = [np.logical_or.accumulate(x[:, ::-1], 1)[:, ::-1] for x in (struck, lost, wild)]
    return (
        np.where(struck[..., None], np.nan, dq),
        np.where(before[0][..., None], np.nan, dk),
        np.where(before[1][..., None] | before[2], np.nan, dv),
    )


def _vjp(p: Causal, dout: Floats, moving: list[Ints | None]) -> tuple[Floats, Floats, Floats]:
    shapes = p.q.shape[1:], p.k.shape[1:], p.v.shape[1:]
    dq, dk, dv = (np.empty((len(p.slices), *shape), p.q.dtype) for shape in shapes)

    def head(number: int) -> None:
        known = []
        for step in _steps(p, number):
            dn = dout[number, step.rows] / step.total
            dd = -np.einsum("ia,ia->i", step.out, dn)[:, None]
            known.append((step.rows, step.k.top, dn, dd))
            dphi = dn @ step.values.T + dd * step.features
            dphi += np.tril(dn @ step.v.T + dd) @ step.phi_k
            dq[number, step.rows] = p.queries.vjp(step.q, dphi)
        _keys_vjp(p, number, known, moving[number], dk[number], dv[number])

    for _ in threads.each(head, len(dq), len(dq) * dq.shape[1]):
        pass
    return dq, dk, dv


def _keys_vjp(
    p: Causal,
    head: int,
    known: Sequence[tuple[slice, Floats, Floats, Floats]],
    where: Ints | None,
    dk: Floats,
    dv: Floats,
) -> None:
    """Blocks in reverse: every key sums over the queries after it."""
    q, k, v = (x[part] for x, part in zip((p.q, p.k, p.v), p.slices[head], strict=True))
    r, dtype = p.queries.size(q.shape[1]), q.dtype
    later, beside, after, moved = np.zeros((r, v.shape[1])), np.zeros(r), p.start[head], 0.0
    for rows, top, dn, dd in reversed(known):
        step = _step(p, q[rows], k[rows], v[rows], rows, top)
        old = _fade(top, after) if later.any() else np.ones(r)
        later, beside, after = later * old[:, None], beside * old, top
        dphi = step.v @ later.T.astype(dtype) + beside.astype(dtype)
        dphi += np.tril(dn @ step.v.T + dd).T @ step.phi_q
        dv[rows] = step.phi_k @ later.astype(dtype) + step.inside.T @ dn
        dk[rows] = p.keys.vjp(step.k, dphi)
        moved += float(np.einsum("ic,ic->", dphi, step.k.phi))
        later += step.phi_q.T @ dn
        beside += (step.phi_q * dd).sum(0)
    if where is not None:
        dk[where[0]] -= dtype.type(moved) * p.keys.projection[where[1]]  # type: ignore[attr-defined]
