"""What leverage scores are made of: a small factor of many keys, and the keys against it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, get_args

import numpy as np
from scipy.linalg import lapack, qr, solve_triangular

from nlattn import _check
from nlattn._modes import LeverageMethod
from nlattn._types import Floats, Ints
from nlattn.kernels import leverage as kernels
from nlattn.kernels.gemm import width
from nlattn.kernels.panel import groups
from nlattn.runtime import threads

METHODS: tuple[LeverageMethod, ...] = get_args(LeverageMethod)
PARTS = 32
"""States that are folded side by side, at most: enough for the threads of a large machine."""
UNIT = float(np.finfo(np.float64).eps) / 2
_CHANNEL_COST = 4  # a multiply-add of a reflection takes so many of a product's


class Factor(NamedTuple):
    """Keys' column space: ``|(k * scale)[order] @ inverse|^2`` is the leverage of a key k."""

    scale: Floats
    """(d,) powers of two that bring each channel's largest magnitude near 1."""
    order: Ints
    """(d,) channels in the order of the factor."""
    inverse: Floats
    """(d, r) float64; upper triangular unless it comes from an SVD."""
    triangle: Floats
    """(r, d) with ``(K scale)[:, order] = Q triangle``, Q's columns orthonormal."""
    rank: int
    condition: float
    """Largest over smallest pivot, or singular value, that counts; 1 for rank 0."""

    @property
    def d(self) -> int:
        """Channels."""
        return len(self.scale)


def channel_scales(k: Floats) -> Floats:
    """Power of two for each channel of keys (batch, n, d); NaN where one is not finite."""
    batch, n, d = k.shape
    parts: Floats = np.empty((batch, part_count(n, 1), d))
    kernels.peaks(batch * parts.shape[1], k, parts)
    return power_scales(parts.max(1))


def power_scales(top: Floats) -> Floats:
    """The power of two that brings each magnitude near 1; NaN for what is not finite."""
    exponent = np.frexp(np.where(np.isfinite(top), top, 1))[1]
    scale = np.ldexp(1.0, -np.clip(exponent, -1022, 1022))
    return np.where(np.isfinite(top), scale, np.nan)


def triangles(k: Floats, scale: Floats) -> Floats:
    """States (batch, parts, d, d) whose rows together have the Gram matrix of ``k * scale``."""
    R = _states(k)
    for some in _blocks(R, k.shape[1], _CHANNEL_COST):
        kernels.fold_triangle(len(k) * R.shape[1], k, scale, some.start, some.stop, R)
    return R


def part_triangle(k: Floats, scale: Floats, part: int) -> Floats:
    """One part's state of `triangles` of one slice (1, n, d), (d, d): the same bits."""
    R = _states(k)
    for some in _blocks(R, k.shape[1], _CHANNEL_COST):
        kernels.fold_triangle(range(part, part + 1), k, scale, some.start, some.stop, R)
    state: Floats = R[0, part]
    return state


def gram(k: Floats, scale: Floats) -> Floats:
    """Lower triangle of the Gram matrix of ``k * scale``, (batch, d, d)."""
    G = _states(k)
    for some in _blocks(G, k.shape[1], 1):
        kernels.fold_gram(len(k) * G.shape[1], k, scale, some.start, some.stop, G)
    whole: Floats = G[:, 0]
    for part in range(1, G.shape[1]):
        whole = whole + G[:, part]
    return whole


def _states(k: Floats) -> Floats:
    batch, n, d = k.shape
    return np.zeros((batch, part_count(n, d), d, d))


def part_count(n: int, d: int) -> int:
    """States for n rows: not so many that merging them would cost what folding does."""
    return max(1, min(PARTS, n // max(kernels.BLOCK, 4 * d)))


def _blocks(states: Floats, n: int, cost: int) -> Iterator[range]:
    batch, parts, d, _ = states.shape
    blocks = kernels.part_rows(n, parts) // kernels.BLOCK
    return groups(blocks, cost * batch * parts * kernels.BLOCK * d * d)


@threads.serial_blas
def of_triangle(R: Floats, scale: Floats, rcond: float, method: str = "qr") -> Factor:
    """Factor of keys of which R (rows, d), scaled by `scale`, has the Gram matrix."""
    d = len(scale)
    if method == "svd":
        _, sizes, V = np.linalg.svd(R, full_matrices=False)
        rank = int((sizes > sizes[:1] * rcond).sum())
        sizes, V = sizes[:rank], V[:rank]
        return Factor(scale, np.arange(d), V.T / sizes, sizes[:, None] * V, rank, _ratio(sizes))
    R, order = qr(R, mode="r", pivoting=True, check_finite=False)
    pivots = np.abs(np.diag(R))
    rank = int(np.logical_and.accumulate(pivots > pivots[0] * rcond).sum())
    return _upper(scale, order, R[:rank], rank)


@threads.serial_blas
def of_gram(G: Floats, scale: Floats, rcond: float) -> Factor:
    """Factor from the lower triangle of a Gram matrix, by pivoted Cholesky."""
    L, order, rank, _ = lapack.dpstrf(G, tol=rcond**2 * np.diag(G).max(), lower=1)
    return _upper(scale, order - 1, np.tril(L).T[:rank], rank)


def _upper(scale: Floats, order: Ints, triangle: Floats, rank: int) -> Factor:
    d = len(scale)
    inverse = np.zeros((d, rank))
    if rank:
        inverse[:rank] = solve_triangular(triangle[:, :rank], np.eye(rank), check_finite=False)
    pivots = np.abs(np.diag(triangle))
    return Factor(scale, order.astype(np.int64), inverse, triangle, rank, _ratio(pivots))


def _ratio(sizes: Floats) -> float:
    return float(sizes[0] / sizes[-1]) if len(sizes) else 1.0


def factors(k: Floats, method: str, rcond: float | None) -> tuple[list[Factor | None], bool]:
    """Factor of each slice of keys (batch, n, d), None where they are not finite.

    Also whether method "gram" gave way to "qr" somewhere: a small pivot, unless it is an exact
    zero or `rcond` says what to do with it, may be a rounding error.
    """
    n, d = k.shape[1:]
    cut = max(n, d) * UNIT if rcond is None else rcond
    scales = channel_scales(k)
    known = [int(b) for b in np.flatnonzero(np.all(np.isfinite(scales), 1))]
    safe = _check.frozen(np.where(np.isfinite(scales), scales, 1))
    found: list[Factor | None] = [None] * len(k)
    states = gram(k, safe) if method == "gram" else triangles(k, safe)
    doubtful = []

    @threads.serial_blas
    def find() -> None:
        for b in known:
            if method == "gram":
                f = of_gram(states[b], safe[b], cut**0.5 if rcond is None else cut)
                if rcond is None and f.rank < int((np.diag(states[b]) > 0).sum()):
                    doubtful.append(b)
            else:
                f = of_triangle(states[b].reshape(-1, d), safe[b], cut, method)
            found[b] = f

    find()
    for b in doubtful:
        found[b] = factors(k[b : b + 1], "qr", None)[0][0]
    return found, bool(doubtful)


def scores(k: Floats, factor: Sequence[Factor | None]) -> Floats:
    """Leverage (batch, n) of keys (batch, n, d) against a factor each, not clipped; NaN for None.

    ``batch n d r`` multiply-adds at most, workspace ``O(batch d r)`` and a block of rows.
    """
    batch, n, d = k.shape
    out: Floats = np.full((batch, n), np.nan)
    known = [b for b in range(batch) if factor[b] is not None]
    if not known or not n:
        return out
    some = [f for f in factor if f is not None]
    w = width(out)
    columns = -(-max(f.rank for f in some) // w) * w
    M = np.zeros((len(some), d, columns))
    for matrix, f in zip(M, some, strict=True):
        matrix[:, : f.rank] = f.inverse
    upper = all(not np.tril(f.inverse, -1).any() for f in some)
    scale, order = (_check.frozen(np.stack([f[i] for f in some])) for i in (0, 1))
    target = out if len(some) == batch else np.empty((len(some), n))
    chosen = k if len(some) == batch else _check.frozen(k[known])
    blocks = len(some) * -(-n // kernels.BLOCK)
    for rows in groups(blocks, kernels.BLOCK * d * max(columns, 1)):
        kernels.row_norms(rows, chosen, scale, order, _check.frozen(M), upper, target)
    if target is not out:
        out[known] = target
    return out
