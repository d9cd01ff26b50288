"""Feature maps of linear attention on one block of rows, and their derivatives.

The maps are compiled (`rows`); derivatives are passes of NumPy over blocks that stay in cache,
between matrix products. Every exponential is taken relative to a maximum. Where rows share one it
may grow from block to block, and the caller rescales what it has summed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Bools, Floats, Ints, Scalar
from nlattn.kernels import factored_rows as rows
from nlattn.kernels.factored_rows import FeatureRows
from nlattn.runtime.helpers import remembered

_NOTHING: Floats = _check.frozen(np.empty((0, 1)))


class Block(NamedTuple):
    """Features of some rows."""

    rows: Floats
    """(rows, d) what they were made of."""
    phi: Floats
    """(rows, r) features without eps, relative to the maxima."""
    top: Floats
    """(r,) or (rows, 1) the maxima."""
    eps: Floats | Scalar = 0.0
    """What each feature still lacks, in the units of `phi`: a number, or (rows, 1)."""
    length: Floats = _NOTHING
    """(rows, 1) of the rows as they came, if they were brought to one length."""
    first: Ints | tuple[int, int] | None = None
    """Where a maximum that moves was attained: (rows,) features, or one (row, feature)."""

    @property
    def whole(self) -> Floats:
        """(rows, r) features with eps."""
        return self.phi + self.eps if np.any(self.eps) else self.phi


def amplified(x: Floats, amplitude: float, floor: float) -> tuple[Floats, Floats]:
    """``amplitude x / max(|x|, floor)`` for each row, and the lengths (rows, 1)."""
    length = np.sqrt(np.einsum("ic,ic->i", x, x))[:, None]
    return x * (x.dtype.type(amplitude) / np.maximum(length, x.dtype.type(floor))), length


def amplified_vjp(u: Floats, length: Floats, du: Floats, amplitude: float, floor: float) -> Floats:
    """Gradient with respect to the rows of `amplified` from that of its result u."""
    along = np.einsum("ic,ic->i", u, du)[:, None] / u.dtype.type(amplitude**2)
    along[length <= floor] = 0
    factor = u.dtype.type(amplitude) / np.maximum(length, u.dtype.type(floor))
    dx: Floats = (du - u * along) * factor
    return dx


EVERY = _check.frozen(np.empty((1, 0), bool))
"""The mask that keeps every row."""
_STABILIZERS = {"none": rows.NONE, "neutral": rows.NEUTRAL, "max": rows.MAX}


@dataclass(frozen=True)
class Identity:
    """The rows themselves, times a factor."""

    def size(self, d: int) -> int:
        """Number of features."""
        return d

    def top(self, d: int) -> Floats:
        """Shared maxima before any row was seen, (r,) float64; they are never raised here."""
        return np.zeros(self.size(d))

    def compiled(self, x: Floats) -> FeatureRows:
        """What kernels are told of the map, for rows x."""
        return self._told(x, rows.IdentityRows)

    def _told(self, x: Floats, kind: type[FeatureRows], *, joint: bool = False) -> FeatureRows:
        zero, one = x.dtype.type(0), x.dtype.type(1)
        none = np.empty((0, 0), x.dtype)
        return kind(rows.NONE, joint, False, none, zero, zero, one, zero, zero)

    def __call__(self, x: Floats, top: Floats, kept: Bools | None = None) -> Block:
        """Features relative to `top`, which is raised to maxima that rows share.

        Features of rows that are not `kept` (rows,) are 0.
        """
        m, r = self.compiled(x), self.size(x.shape[1])
        shared, space = top.astype(x.dtype), rows.space(len(x), x.shape[1], r, x)
        chosen = EVERY[0] if kept is None else _check.frozen(kept)
        rows.fill(m, _check.frozen(x), chosen, shared, space)
        return self._block(x, shared.astype(float), space.phi[:, :r], space)

    def _block(self, x: Floats, top: Floats, phi: Floats, space: rows.Space) -> Block:
        return Block(x, phi, top)

    def vjp(self, block: Block, dphi: Floats) -> Floats:
        """Gradient of ``sum(dphi * phi)`` with respect to the rows, the maxima held fixed."""
        return dphi

    def jvp(self, block: Block, dx: Floats) -> Floats:
        """Change of ``phi`` as rows move along dx, the maxima that rows share held fixed."""
        return dx


class RowSoftmax(Identity):
    """Softmax over the channels of each row."""

    def compiled(self, x: Floats) -> FeatureRows:
        return self._told(x, rows.SoftmaxRows)

    def vjp(self, block: Block, dphi: Floats) -> Floats:
        dx: Floats = dphi - np.einsum("ic,ic->i", dphi, block.phi)[:, None]
        dx *= block.phi
        return dx

    def jvp(self, block: Block, dx: Floats) -> Floats:
        return self.vjp(block, dx)  # its own transpose


class ColumnExp(Identity):
    """``exp(x)``, with one maximum for each channel."""

    def top(self, d: int) -> Floats:
        return np.full(d, -np.inf)

    def compiled(self, x: Floats) -> FeatureRows:
        return self._told(x, rows.ExpRows)

    def vjp(self, block: Block, dphi: Floats) -> Floats:
        return dphi * block.phi

    def jvp(self, block: Block, dx: Floats) -> Floats:
        return dx * block.phi


class JointExp(ColumnExp):
    """``exp(x)``, with one maximum for all rows and channels."""

    def compiled(self, x: Floats) -> FeatureRows:
        return self._told(x, rows.ExpRows, joint=True)


@dataclass(frozen=True)
class Random(Identity):
    """Positive random features: ``exp(c P x - |c x|^2 / 2 - M) + eps``."""

    projection: Floats
    """(r, d), the factor c included."""
    c: float
    eps: float
    stabilizer: str
    """"none": M = 0; "neutral": the largest exponent or log eps, and eps is over ``exp(M)`` too;
    "max": the largest ``c P x``."""
    joint: bool
    """Whether all rows share M, as keys do, or each has its own."""
    moving: bool = False
    """Whether the gradient includes that of the maximum of "max"."""
    amplitude: float = 0.0
    """Rows are first brought to this length; 0 leaves them."""
    floor: float = 1.0
    """Shorter rows count as this long."""

    def size(self, d: int) -> int:
        return len(self.projection)

    def top(self, d: int) -> Floats:
        lowest = {"none": 0.0, "neutral": self._log_eps, "max": -np.inf}[self.stabilizer]
        return np.full(len(self.projection), lowest)

    @property
    def _log_eps(self) -> float:
        return float(np.log(self.eps)) if self.eps > 0 else -np.inf

    @remembered
    def _panel(self) -> Floats:
        return rows.padded(self.projection.T)

    def compiled(self, x: Floats) -> FeatureRows:
        numbers = self.c * self.c / 2, self.amplitude, self.floor, self._log_eps, self.eps
        scalars = (x.dtype.type(number) for number in numbers)
        stabilizer = _STABILIZERS[self.stabilizer]
        return rows.RandomRows(stabilizer, self.joint, self.moving, self._panel, *scalars)

    def _block(self, x: Floats, top: Floats, phi: Floats, space: rows.Space) -> Block:
        own, length, first = space.top[:, None], _NOTHING, None
        relative = x.dtype.type(top[0]) if self.joint else own
        eps: Floats | Scalar = x.dtype.type(self.eps)
        if self.stabilizer == "neutral":
            eps = np.exp(self._log_eps - relative).astype(x.dtype)
        if self.moving:
            first = (space.here[0], space.where[space.here[0]]) if self.joint else space.where
        if self.amplitude:
            x, length = space.rows, space.length[:, None]
        return Block(x, phi, top if self.joint else own, eps, length, first)

    def vjp(self, block: Block, dphi: Floats) -> Floats:
        weight = dphi * block.phi
        total = weight @ np.ones(weight.shape[1], weight.dtype)
        if self.moving and not self.joint:
            weight[np.arange(len(weight)), block.first] -= total
        du = weight @ self.projection
        du -= (total * weight.dtype.type(self.c * self.c))[:, None] * block.rows
        if not self.amplitude:
            return du
        return amplified_vjp(block.rows, block.length, du, self.amplitude, self.floor)

    def jvp(self, block: Block, dx: Floats) -> Floats:
        if self.amplitude:  # its own transpose
            dx = amplified_vjp(block.rows, block.length, dx, self.amplitude, self.floor)
        moved: Floats = dx @ self.projection.T
        along = np.einsum("ic,ic->i", block.rows, dx)[:, None] * dx.dtype.type(self.c * self.c)
        if self.moving and not self.joint:
            along += moved[np.arange(len(moved)), block.first][:, None]
        moved -= along
        moved *= block.phi
        return moved


@dataclass(frozen=True)
class Relu(Identity):
    """``relu(c P x) + eps``."""

    projection: Floats
    """(r, d), the factor c included."""
    eps: float

    def size(self, d: int) -> int:
        return len(self.projection)

    @remembered
    def _panel(self) -> Floats:
        return rows.padded(self.projection.T)

    def compiled(self, x: Floats) -> FeatureRows:
        m = self._told(x, rows.ReluRows)
        return m._replace(panel=self._panel, eps=x.dtype.type(self.eps))

    def _block(self, x: Floats, top: Floats, phi: Floats, space: rows.Space) -> Block:
        return Block(x, phi, top, x.dtype.type(self.eps))

    def vjp(self, block: Block, dphi: Floats) -> Floats:
        return np.where(block.phi > 0, dphi, 0) @ self.projection

    def jvp(self, block: Block, dx: Floats) -> Floats:
        return np.where(block.phi > 0, dx @ self.projection.T, 0)
