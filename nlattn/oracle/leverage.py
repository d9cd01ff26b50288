"""Leverage scores of keys: how much of the quadratic kernel's attention each key can receive.

    tau_j = k_j^T (K^T K)^+ k_j = max_y <k_j, y>^2 / |K y|^2

Three ways to the same number, from an orthonormal basis Q of the column space of K:

    qr     K P = Q R with pivoted columns          tau_j = sum_{c < r} Q_jc^2
    svd    K = U S V^T by one-sided Jacobi         tau_j = sum_{c < r} U_jc^2
    gram   G = K^T K = L L^T with pivoted columns  tau_j = |L^-1 k_j|^2

The rank r counts the pivots, singular values or diagonal entries of L above ``rcond`` times the
largest. Sources: [drineas2012, section 1.1] for the definition and its use of Q; [chan1987] for the
rank from a pivoted QR. LevAttention [kannan2024] selects keys by it. Status: paper.
Real, longdouble and complex arrays alike; in complex arithmetic every line is analytic.
"""

from __future__ import annotations

import numpy as np

from nlattn.oracle.layout import any_layout
from nlattn.oracle.patchmatch import key

Array = np.ndarray


def equilibrated(K: Array) -> Array:
    """Columns times powers of two, so that the largest entry of each is near 1: no rounding."""
    top = np.abs(K.real).max(0, initial=0)
    exponent = np.where(top > 0, np.frexp(top)[1], 0)
    half = exponent // 2  # 2^-exponent itself may overflow
    one = K.real.dtype.type(1)
    return np.asarray(K * np.ldexp(one, -half) * np.ldexp(one, half - exponent))


def pivoted_basis(K: Array, rcond: float) -> Array:
    """Orthonormal columns (n, r) that span K's, by Gram-Schmidt on the longest column left."""
    left, Q = K.copy(), K[:, :0]
    first = None
    for _ in range(min(K.shape)):
        sizes = np.sqrt((left**2).sum(0))
        longest = int(sizes.real.argmax())
        first = sizes[longest] if first is None else first
        if not sizes[longest].real > rcond * first.real:
            break
        q = left[:, longest] / sizes[longest]
        for _ in range(2):  # twice is enough
            q = q - Q @ (Q.T @ q)
            q = q / np.sqrt((q**2).sum())
        Q = np.concatenate([Q, q[:, None]], 1)
        left = left - np.outer(q, q @ left)
    return Q


def jacobi_basis(K: Array, rcond: float) -> Array:
    """Left singular vectors (n, r): columns rotated in pairs until all are orthogonal."""
    U, u = K.copy(), np.finfo(K.dtype).eps
    lost = min(rcond, max(K.shape) * u)  # columns of rounding alone never settle
    nothing = (lost * np.sqrt((K**2).sum(0)).real.max(initial=0)) ** 2
    for _ in range(60):
        worst = 0.0
        for a in range(K.shape[1]):
            for b in range(a + 1, K.shape[1]):
                alpha, beta, gamma = U[:, a] @ U[:, a], U[:, b] @ U[:, b], U[:, a] @ U[:, b]
                cosine = float(abs(gamma)) / max(float(abs(np.sqrt(alpha * beta))), 1e-300)
                if cosine <= u or min(alpha.real, beta.real) <= nothing:
                    continue
                worst = max(worst, cosine)
                zeta = (beta - alpha) / (2 * gamma)
                sign = 1 if zeta.real >= 0 else -1
                t = sign / (sign * zeta + np.sqrt(1 + zeta**2))
                cosine = 1 / np.sqrt(1 + t**2)
                rotation = np.array([[cosine, cosine * t], [-cosine * t, cosine]])
                U[:, [a, b]] = U[:, [a, b]] @ rotation
        if worst <= 10 * u:
            break
    sizes = np.sqrt((U**2).sum(0))
    kept = sizes.real > rcond * sizes.real.max()
    return np.asarray(U[:, kept] / sizes[kept])


def cholesky_basis(K: Array, rcond: float) -> Array:
    """``K P L^-T`` (n, r) from the pivoted Cholesky factorisation of the Gram matrix."""
    left, basis = K.T @ K, K[:, :0]
    first, K = None, K.copy()
    for _ in range(min(K.shape)):
        pivot = int(np.diag(left).real.argmax())
        first = left[pivot, pivot] if first is None else first
        if not left[pivot, pivot].real > rcond**2 * first.real:
            break
        row = left[pivot] / np.sqrt(left[pivot, pivot])
        q = K[:, pivot] / row[pivot]
        left = left - np.outer(row, row)
        K = K - np.outer(q, row)
        basis = np.concatenate([basis, q[:, None]], 1)
    return basis


BASES = {"qr": pivoted_basis, "svd": jacobi_basis, "gram": cholesky_basis}


@any_layout
def leverage_scores(
    k: Array, *, method: str = "qr", rcond: float | None = None, return_rank: bool = False
) -> Array | tuple[Array, Array]:
    """Scores (..., n) of keys (..., n, d); with `return_rank` also the ranks (...)."""
    *lead, n, d = k.shape
    if rcond is None:
        rcond = max(n, d) * np.finfo(k.dtype).eps / 2
        rcond = np.sqrt(rcond) if method == "gram" else rcond
    scores, ranks = np.zeros((*lead, n), k.dtype), np.zeros(lead, int)
    for b in np.ndindex(*lead):
        Q = BASES[method](equilibrated(k[b]), rcond)
        scores[b], ranks[b] = (Q**2).sum(1), Q.shape[1]
    return (scores, ranks) if return_rank else scores


@any_layout
def sketched_leverage_scores(k: Array, S: Array, G: Array | None = None) -> Array:
    """Scores (n,) of keys (n, d) from a sketch ``S k``: ``|k^T T|^2`` or ``|k^T T G|^2 / columns``.

    T has ``T T^T = (k^T S^T S k)^+``: with S = 1 and no G these are the leverage scores. With an S
    that keeps lengths and a Gaussian G (d, columns) they are near, [drineas2012, section 3].
    """
    _, sizes, V = np.linalg.svd(S @ k, full_matrices=False)
    kept = sizes > sizes.max(initial=0) * max(k.shape) * np.finfo(k.dtype).eps / 2
    T = k @ V[kept].T / sizes[kept]
    return np.asarray((T**2).sum(1) if G is None else ((T @ G) ** 2).mean(1))


def countsketch_matrix(n: int, rows: int, seed: int) -> Array:
    """The (rows, n) matrix with one random sign in each column, at a random row."""
    S = np.zeros((rows, n))
    for j in range(n):
        S[key(seed, 1, j) % rows, j] = 1 - 2 * (key(seed, 2, j) >> 63)
    return S


def hadamard_matrix(n: int, rows: int, seed: int) -> Array:
    """``sqrt(N / rows) P H D`` (rows, n): signs D, orthonormal Hadamard H of order N, rows P."""
    N = 1 << max(0, n - 1).bit_length()
    H = np.ones((1, 1))
    while len(H) < N:
        H = np.block([[H, H], [H, -H]])
    chosen = sorted(range(N), key=lambda i: key(seed, 3, i))[:rows]
    signs = [1 - 2 * (key(seed, 2, j) >> 63) for j in range(n)]
    return np.asarray(H[sorted(chosen), :n] * signs / np.sqrt(min(rows, N)))
