"""Row sums of ``|<q,k>|^p`` over all keys, without a matrix of queries and keys."""

from __future__ import annotations

import math

import numpy as np

from nlattn import _check
from nlattn import _modes as modes
from nlattn._types import Floats, Ints
from nlattn.engines.sensitivity import Keys, monomials, tensor_size
from nlattn.engines.whitened import U, triangle
from nlattn.kernels import heavy as kernels
from nlattn.kernels.gemm import width
from nlattn.runtime import jit

_LOST = 1e-10  # relative error above which a factor's sum is not trusted
_ROWS = 1 << 22  # monomials of a block of queries or keys
_BLOCK = 256  # queries that share a factor of the keys before them


class PowerSums:
    """One head's sums, in the form that `kernels.heavy` reads."""

    def __init__(self, q: Floats, k: Floats, keys: Keys, p: float, causal: bool):
        self.q, self.k, self.keys, self.p, self.causal = q, k, keys, p, causal
        largest = float(max(k.max(initial=0), -k.min(initial=0)))
        unit = math.frexp(largest)[1] - (900 if keys.lost.any() else 0)
        self.scale = math.ldexp(1.0, -max(min(unit, 1000), -1000))
        """Power of two that brings the largest key near 1."""
        self.norm: Floats = np.zeros((4, len(q)))

    def scaled(self, chosen: Ints) -> Floats:
        """Some keys, float64, near 1."""
        return np.asarray(self.k[chosen].astype(np.float64) * self.scale)

    def cheaper(self, m: int) -> modes.Normaliser:
        """The exact way that takes fewer multiply-adds."""
        n, d = self.q.shape
        columns = tensor_size(self.p, self.keys.factor.rank)
        if self.p == 2:
            return "factor"
        if self.causal or not columns:
            return "dense"
        return "factor" if (n + 2 * m) * columns**2 < n * m * d else "dense"

    def dense(self, rows: Ints | None = None, k: Floats | None = None) -> None:
        """Sum over all keys, or those given, for all queries or some."""
        k = self.k.astype(np.float64) * self.scale if k is None else k
        index = np.arange(len(self.q)) if rows is None else rows
        error = 4 * (self.k.shape[1] + 16) * U * max(self.p, 1)
        arrays = _check.frozen(k), _check.frozen(index, np.int64), self.p, self.causal, error
        kernels.normalise(jit.blocks(len(index), width(k)), self.q, *arrays, self.norm)

    def factored(self) -> None:
        """Sum by a factor of the keys' or their monomials' Gram matrix; even p, causal 2.

        Rows in which the factor's terms cancel are summed over all keys.
        """
        root = self.keys.factor.root * self.scale
        if self.causal:
            self._prefixes()
        elif self.p == 2:
            _quadratic(self.q, root, len(root), self.norm)
        else:
            self._tensor(root, int(self.p) // 2)
        lost = np.flatnonzero(~(self.norm[3] <= _LOST) & np.isfinite(self.norm[1]))
        if len(lost):
            self.dense(lost)

    def _prefixes(self) -> None:
        """``Z_i`` by a factor of the keys before i's block, and the block's own keys one by one.

        Factors of blocks are joined in pairs, so that rounding grows with the logarithm of m.
        """
        joined: list[Floats] = []
        root: Floats = np.zeros((0, self.k.shape[1]))
        for b, start in enumerate(range(0, len(self.q), _BLOCK)):
            own = self.k[start : start + _BLOCK].astype(np.float64) * self.scale
            part = np.empty((4, len(self.q[start : start + _BLOCK])))
            rows = np.vstack([root, own])
            _quadratic(self.q[start : start + _BLOCK], rows, len(root), part)
            part[3] *= 1 + (b + 1).bit_length()
            self.norm[:, start : start + _BLOCK] = part
            if len(own):
                joined.append(triangle(own))
                pairs = b + 1
                while pairs % 2 == 0:
                    joined[-2:] = [triangle(np.vstack(joined[-2:]))]
                    pairs //= 2
                root = triangle(np.vstack(joined))

    def _tensor(self, root: Floats, h: int) -> None:
        """``Z = |R phi(root q)|^2`` with R a factor of the whitened keys' monomials."""
        X = self.keys.X
        columns = tensor_size(self.p, X.shape[1])
        step = max(1, _ROWS // max(columns, 1))
        G = np.zeros((columns, columns))
        for start in range(0, len(X), step):
            phi = monomials(X[start : start + step], h)
            G += phi.T @ phi
        size, vectors = np.linalg.eigh(G)
        R = (vectors * np.sqrt(np.maximum(size, 0))).T
        spread = float(np.sqrt(np.maximum(size, 0).sum()))
        for start in range(0, len(self.q), step):
            rows = self.q[start : start + step].astype(np.float64)
            exponent = np.clip(np.frexp(abs(rows).max(1, initial=0))[1], -1000, 1000)
            rows = np.ldexp(rows, -exponent[:, None])
            y = rows @ root.T
            top = np.frexp(abs(y).max(1, initial=0))[1]
            phi = monomials(np.ldexp(y, -top[:, None]), h)
            total = ((phi @ R.T) ** 2).sum(1)
            part = self.norm[:, start : start + step]
            part[0], part[1], part[2] = np.ldexp(1.0, top), total, exponent
            with np.errstate(divide="ignore", invalid="ignore"):
                cancelled = np.sqrt((root**2).sum() * (rows**2).sum(1) / (y**2).sum(1))
                lost = spread * np.sqrt((phi**2).sum(1)) / np.sqrt(total)
            # eigenvalues err by u |G|: squares of what is lost
            part[3] = 4 * (columns + len(X) ** 0.5) * U * lost**2
            part[3] += 4 * self.p * sum(root.shape) * U * cancelled

    def sample(self, chosen: Ints, upper: Floats, eta: float, failure: float, seed: int) -> float:
        """Estimate: the chosen keys, and others drawn by their bounds; returns the eta it has.

        A term of a draw is at most ``Z`` times the sum of the bounds: Bernstein's inequality.
        """
        others = np.setdiff1d(np.flatnonzero(self.keys.some), chosen)
        weight = upper[others]
        total = float(weight.sum())
        draws = 2 * total * (1 + eta / 3) * math.log(2 / failure) / eta**2
        if not draws < len(others):
            self.dense()
            return 0.0
        count = max(1, math.ceil(draws))
        uniform = np.random.Generator(np.random.Philox(seed)).random(count)
        drawn = np.searchsorted(np.cumsum(weight) / total, uniform, side="right")
        drawn = np.minimum(drawn, len(others) - 1)
        times, where = np.bincount(drawn, minlength=len(others)), np.unique(drawn)
        share = (times[where] * total / (count * weight[where])) ** (1 / self.p)
        self.dense(
            None, np.vstack([self.scaled(chosen), self.scaled(others[where]) * share[:, None]])
        )
        return eta


def _quadratic(q: Floats, root: Floats, seen: int, norm: Floats) -> None:
    root = _check.frozen(root)
    panels = jit.blocks(len(q), width(root))
    kernels.quadratic(panels, q, root, kernels.squares(root), seen, norm)
