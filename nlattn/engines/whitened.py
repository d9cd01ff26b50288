"""A matrix as ``K = X root`` with orthonormal columns in X: leverage, with a bound of its error.

Square roots of two Gram matrices, the second that of the whitened matrix, are as accurate as a QR
factorisation while the condition is far below 1e8, and cost two passes. Else: Householder QR with
rows sorted by size and columns pivoted, which errs in every row relative to that row alone
[cox1998], so that keys of 1e-8 beside keys of 1e8 keep their scores.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import qr, solve_triangular

from nlattn import _check
from nlattn._types import Floats
from nlattn.kernels import whiten as kernels
from nlattn.runtime import jit, threads

U = 2.0**-53
_CONDITION = 1e6  # up to here the first root keeps four digits, and the second finds the rest
_LEAST = 2.0**-900  # of a row beside the largest column; smaller ones have no digits left
_NONE = _check.frozen(np.empty(0))


class Whitening(NamedTuple):
    """``K = X root``, ``X = K whiten``, ``X^T X = I``, all float64."""

    whiten: Floats
    """(d, r)"""
    root: Floats
    """(r, d)"""
    tau: Floats
    """(n,) leverage, ``|X_i|^2``."""
    error: Floats
    """(n,) bound of the error of ``X_i``, so of the root of leverage; 1 where nothing is known."""
    rows: Floats | None
    """X (n, r), if it came with the factorisation."""

    @property
    def rank(self) -> int:
        """Rank of K."""
        return len(self.root)

    @property
    def steep(self) -> float:
        """Largest stretch of a row by `whiten`, or a number larger than any that matters."""
        if not np.isfinite(self.whiten).all():
            return 1e300
        return float(np.linalg.norm(self.whiten, 2)) if self.rank else 0.0

    def basis(self, k: Floats) -> Floats:
        """X, (n, r), frozen."""
        if self.rows is not None:
            return self.rows
        return _check.frozen(project(k, _NONE, self.whiten))


@threads.serial_blas
def factor(k: Floats, row: Floats = _NONE) -> Whitening:
    """Whitening ``diag(row) k`` for finite frozen k (n, d)."""
    n, d = k.shape
    largest = np.maximum(k.max(0, initial=0), -k.min(0, initial=0)).astype(np.float64)
    D = magnitude_scales(largest)  # exact, and leverage does not see it
    fast = None
    if largest.all() and n >= d:
        with np.errstate(over="ignore", invalid="ignore"):
            fast = _by_gram(k, row, D)
    return _by_qr(k, row, D) if fast is None else fast


@threads.serial_blas
def project(k: Floats, row: Floats, T: Floats) -> Floats:
    """``diag(row) k T``, (n, r)."""
    if len(k) <= kernels.ROWS:
        return np.asarray((k if row.size == 0 else row[:, None] * k) @ T)
    X: Floats = np.empty((len(k), T.shape[1]))
    kernels.project(jit.blocks(len(k), kernels.ROWS), k, row, _check.frozen(T), X)
    return X


def gram(k: Floats, row: Floats, T: Floats) -> Floats:
    """``T^T k^T diag(row)^2 k T``, (r, r)."""
    if len(k) <= kernels.ROWS:
        X = project(k, row, T)
        return np.asarray(X.T @ X)
    blocks = jit.blocks(len(k), kernels.ROWS)
    partial = np.empty((blocks, T.shape[1], T.shape[1]))
    kernels.gram(blocks, k, row, _check.frozen(T), partial)
    return np.asarray(partial.sum(0))


class FirstRoot(NamedTuple):
    """What whitens all but for rounding."""

    whiten: Floats
    """(d, d)"""
    root: Floats
    """(d, d), its inverse."""
    condition: float


def magnitude_scales(largest: Floats) -> Floats:
    """Powers of two that bring each channel's largest magnitude near 1."""
    return np.ldexp(1.0, -np.clip(np.frexp(largest)[1], -1000, 1000))


@threads.serial_blas
def first_root(G: Floats, D: Floats) -> FirstRoot | None:
    """From the Gram matrix of keys times D; None where it would not be accurate."""
    E = np.ldexp(1.0, -(np.frexp(G.diagonal())[1] // 2))
    G = G * (E[:, None] * E)
    if not (np.isfinite(G).all() and (G.diagonal() > 0).all()):
        return None
    size, vectors = np.linalg.eigh(G)
    if not size[0] * _CONDITION**2 > size[-1]:
        return None
    condition = float(np.sqrt(size[-1] / size[0]))
    whiten = (D * E)[:, None] * (vectors / np.sqrt(size))
    return FirstRoot(whiten, (vectors * np.sqrt(size)).T / (D * E), condition)


@threads.serial_blas
def second_root(G: Floats, first: FirstRoot) -> tuple[Floats, Floats]:
    """`whiten` and `root`, from the Gram matrix of what the first root has whitened."""
    second = np.linalg.cholesky(G)
    # the second factor is close to I
    return first.whiten @ np.linalg.inv(second).T, second.T @ first.root


def _by_gram(k: Floats, row: Floats, D: Floats) -> Whitening | None:
    """Whitening by two Gram matrices; None where they would not be accurate."""
    first = first_root(gram(k, row, np.diag(D)), D)
    if first is None:
        return None
    T, root = second_root(gram(k, row, first.whiten), first)
    tau: Floats = np.empty(len(k))
    if len(k) <= kernels.ROWS:
        tau = (project(k, row, T) ** 2).sum(1)
    else:
        kernels.lengths(jit.blocks(len(k), kernels.ROWS), k, row, _check.frozen(T), tau)
    return Whitening(T, root, tau, np.full(len(k), k.shape[1] * U * first.condition), None)


def _by_qr(k: Floats, row: Floats, D: Floats) -> Whitening:
    """Whitening by QR, rows sorted and columns pivoted; the rank is that of rows of equal size."""
    n, d = k.shape
    A = k * D if row.size == 0 else row[:, None] * (k * D)
    size = abs(A).max(1, initial=0)
    order = np.argsort(-size, kind="stable")[: int(np.count_nonzero(size > _LEAST))]
    tau, error, rows = np.zeros(n), np.zeros(n), np.zeros((n, 0))
    error[(size <= _LEAST) & k.any(1)] = 1
    if not order.size:
        return Whitening(np.zeros((d, 0)), np.zeros((0, d)), tau, error, _check.frozen(rows))
    A, size = A[order], size[order]
    norms = size * np.sqrt(((A / size[:, None]) ** 2).sum(1))
    Q, R, pivots = qr(A, mode="economic", pivoting=True, check_finite=False)
    diagonal = abs(R.diagonal())
    seen = abs(Q) * diagonal / norms[:, None]  # share of a key's length in a direction
    tolerance = 16 * max(n, d) * U
    r = int(np.count_nonzero((seen.max(0) > tolerance) | (diagonal > diagonal[0] * tolerance)))
    Q, R = Q[:, :r], R[:r]
    rounded = np.where(seen[:, :r] <= 16 * d * U, Q, 0)  # what rounding may have made of long keys
    inverse = solve_triangular(R[:, :r], np.eye(r), check_finite=False)
    with np.errstate(over="ignore"):
        solutions = np.sqrt(((Q @ inverse.T) ** 2).sum(1))
    T = np.zeros((d, r))
    T[pivots[:r]] = inverse
    root = np.empty((r, d))
    root[:, pivots] = R
    rows = np.zeros((n, r))
    rows[order] = Q
    tau[order] = (Q**2).sum(1)
    error[order] = _row_errors(tau[order], solutions, norms, d * U)
    error[order] = np.minimum(error[order], d * U * (diagonal[0] / diagonal[r - 1] + 16))
    error[order] = np.minimum(error[order] + np.sqrt((rounded**2).sum(0)).sum(), 1)
    with np.errstate(over="ignore"):
        return Whitening(D[:, None] * T, root / D, tau, error, _check.frozen(rows))


@threads.serial_blas
def triangle(A: Floats) -> Floats:
    """At most d rows with the Gram matrix of A (n, d), each row's error relative to that row."""
    order = np.argsort(-abs(A).max(1), kind="stable")
    R, pivots = qr(A[order], mode="r", pivoting=True, check_finite=False)
    R = R[: A.shape[1]]
    out: Floats = np.empty(R.shape)
    out[:, pivots] = R
    return out


def _row_errors(tau: Floats, solutions: Floats, norms: Floats, unit: float) -> Floats:
    """Errors of the rows of Q when every row of A errs by 16 `unit` relative to itself.

    ``dQ_i = (I - P) dA G^+ a_i`` and ``|(I - P)_ij|^2 <= (1 - tau_i)(1 - tau_j)``; `solutions` are
    the norms of ``G^+ a_i``.
    """
    moved = np.ones(len(tau))
    for _ in range(12):  # tau itself errs by twice as much; a round tightens a bound that holds
        rest = np.sqrt(np.minimum(np.maximum(1 - tau, 0) + 2 * moved + U, 1))
        with np.errstate(over="ignore"):
            moved = np.minimum(16 * unit * (1 + 2 * solutions * (rest * norms).sum()), 1)
    return moved
