"""The attention map of learned queries in overlapping windows."""

from __future__ import annotations

import numpy as np

from nlattn import _check
from nlattn._types import Bools, Floats, Ints, State, Work
from nlattn.engines.dense import log_normaliser
from nlattn.engines.window import Local
from nlattn.engines.window_geometry import WindowGeometry
from nlattn.maps.base import OP, AttentionMap
from nlattn.maps.state import Stored

_BLOCK = 1 << 22  # weights of a block of rows


class WindowMap(AttentionMap):
    """Sum over learned queries of gated softmax weights in the window of each output pixel.

    Holds keys, scores and normalisers, no weights: memory does not grow with the window. Rows sum
    to 1 if the map is of one query without a gate. ``lse`` and scores belong to single queries.
    """

    kind = "window"

    def __init__(self, local: Local, norm: Floats | None = None, work: Work | None = None):
        to, t = local.to, local.q.shape[1]
        if norm is None:
            none: Floats = _check.frozen(np.zeros((1, to.H, to.W, 1), local.q.dtype))
            norm = local.attend(none, out=False)[0]
        self._local, self._norm = local, _check.frozen(norm)
        self.normalised = t == 1 and bool((local.gate == 1).all())
        lse = log_normaliser(np.moveaxis(norm[0], 1, 0)).reshape(t, -1)
        n, m, d = to.Ho * to.Wo, to.H * to.W, local.q.shape[2]
        if work is None:
            pairs = t * _pairs(to)
            n_bytes = local.q.itemsize * (m * d + t * (m + 2 * n) + pairs)
            work = Work(t * m, t * m * d + pairs, n_bytes)
        super().__init__(local.q.dtype, lse[0], m, work, (to.Ho, to.Wo), (to.H, to.W))

    @property
    def lse(self) -> Floats:
        """(n,) log of the normaliser of a map of one query; AttributeError if it has several."""
        if self._local.q.shape[1] != 1:
            raise AttributeError(f"{OP}.lse: the map {self._several()}")
        return self._lse

    def _several(self) -> str:
        t = self._local.q.shape[1]
        return f"is a sum of {t} queries, expected one; make it with query="

    def _apply(self, x: Floats) -> Floats:
        to = self._local.to
        out = self._local.attend(x.reshape(1, to.H, to.W, -1), out=True)[0]
        return out.reshape(self.shape[0], -1)

    def _apply_adjoint(self, x: Floats) -> Floats:
        to, t = self._local.to, self._local.q.shape[1]
        none: Floats = _check.frozen(np.zeros((1, to.H, to.W, x.shape[1]), self.dtype))
        delta: Floats = np.zeros((1, t, to.Ho, to.Wo), self.dtype)
        dout = x.reshape(1, to.Ho, to.Wo, -1)
        return self._local.vjp(none, dout, self._norm, delta)[0].reshape(self.shape[1], -1)

    def _taps(self, index: Ints) -> tuple[Ints, Bools, Ints]:
        """Of some queries: each tap's key, (r, kh kw), whether it is inside, and the query."""
        to = self._local.to
        u, w = np.divmod(np.arange(to.kh * to.kw), to.kw)
        y = (index // to.Wo * to.sh - to.ph)[:, None] + u
        x = (index % to.Wo * to.sw - to.pw)[:, None] + w
        inside = (y >= 0) & (y < to.H) & (x >= 0) & (x < to.W)
        return np.where(inside, y * to.W + x, 0), inside, np.broadcast_to(index[:, None], y.shape)

    def _weights(self, index: Ints, raw: bool = False) -> tuple[Ints, Bools, Floats]:
        """Keys of some queries, which of them are inside, and their weights, or scores if `raw`."""
        local = self._local
        keys, inside, row = self._taps(index)
        total: Floats = np.zeros(keys.shape, self.dtype)
        for t in range(local.q.shape[1]):
            z = local.score[0, t].reshape(-1)[keys] + local.bias[0, t]
            if local.bad is not None:
                z = np.where(local.bad[0].reshape(-1)[keys], np.nan, z)
            if raw:
                return keys, inside, z
            top, norm = self._norm[0, t].reshape(2, -1)[:, row]
            with np.errstate(all="ignore"):
                total += np.where(inside, np.exp(z - top) / norm * local.gate[0, t], 0)
        return keys, inside, total

    def _filled(self, index: Ints, raw: bool) -> Floats:
        filled: Floats = np.full((len(index), self.shape[1]), -np.inf if raw else 0, self.dtype)
        step = max(1, _BLOCK // self._local.bias.shape[2])
        for start in range(0, len(index), step):
            keys, inside, values = self._weights(index[start : start + step], raw)
            row, tap = np.nonzero(inside)
            filled[start + row, keys[row, tap]] = values[row, tap]
        return filled

    def _rows(self, index: Ints) -> Floats:
        return self._filled(index, raw=False)

    def _scores(self, index: Ints) -> Floats:
        if self._local.q.shape[1] != 1:
            _check.fail(f"{OP}.scores", "the map", self._several())
        return self._filled(index, raw=True)

    def _topk(self, k: int) -> tuple[Floats, Ints]:
        n, taps = self.shape[0], self._local.bias.shape[2]
        value: Floats = np.zeros((n, k), self.dtype)
        index: Ints = np.full((n, k), -1, np.int64)
        some, step = min(k, taps), max(1, _BLOCK // taps)
        for start in range(0, n, step):
            stop = min(start + step, n)
            keys, inside, weights = self._weights(np.arange(start, stop))
            order = np.argsort(np.where(inside, -weights, np.inf), axis=1, kind="stable")[:, :some]
            valid = np.take_along_axis(inside, order, 1)
            value[start:stop, :some] = np.where(valid, np.take_along_axis(weights, order, 1), 0)
            index[start:stop, :some] = np.where(valid, np.take_along_axis(keys, order, 1), -1)
        return value, index

    @property
    def nbytes(self) -> int:
        """Bytes of queries, keys, scores, bias, gate and normalisers."""
        l = self._local
        held = (l.q, l.k, l.score, l.bias, l.gate, self._norm, self._lse)
        return sum(int(x.nbytes) for x in held)

    def state(self) -> State:
        """Arrays that rebuild the map."""
        l = self._local
        return {
            "q": l.q[0],
            "k": l.k[0],
            "bias": l.bias[0],
            "gate": l.gate[0],
            "norm": self._norm[0],
            "scale": np.array([l.scale], np.float64),
            "geometry": np.array(l.to, np.int64),
            "work": np.array(self.work[:3], np.int64),
        }

    @classmethod
    def from_state(cls, state: State, max_bytes: float = 4e9) -> WindowMap:
        """The map that gave this `state`; ValueError if the arrays do not fit."""
        stored = Stored(state, max_bytes)
        sizes = stored.array("geometry", "i", (10,))
        if sizes.min() < 0 or sizes[:8].min() < 1 or sizes.max() >= 1 << 31:
            raise ValueError(f"geometry is {sizes.tolist()}")
        to = WindowGeometry(*(int(size) for size in sizes))
        fits = (
            to.Ho == (to.H + 2 * to.ph - to.kh) // to.sh + 1
            and to.Wo == (to.W + 2 * to.pw - to.kw) // to.sw + 1
        )
        q = stored.array("q", "f", (None, None))
        k = stored.array("k", "f", (to.H, to.W, q.shape[1]))
        taps = (len(q), to.kh * to.kw)
        bias, gate = stored.array("bias", "f", taps), stored.array("gate", "f", taps)
        norm = stored.array("norm", "f", (len(q), 2, to.Ho, to.Wo))
        scale = stored.array("scale", "f", (1,))
        arrays = (q, k, bias, gate, norm)
        one = len({x.dtype for x in arrays}) == 1 and q.dtype in (np.float32, np.float64)
        if not fits or not one or not q.size:
            raise ValueError("its windows and arrays do not fit")
        work = stored.work(to.Ho * to.Wo)
        stored.done()
        stored.memory(len(q) * to.H * to.W * q.itemsize, f"scores of {len(q)} queries")
        none = _check.frozen(np.zeros((1, 6), np.int64))
        local = Local(q[None], k[None], bias[None], gate[None], none, float(scale[0]), to)
        return cls(local, norm[None], work)


def _pairs(to: WindowGeometry) -> int:
    """Taps inside the image, of all windows."""
    counts = []
    for size, outputs, taps, stride, padding in (
        (to.H, to.Ho, to.kh, to.sh, to.ph),
        (to.W, to.Wo, to.kw, to.sw, to.pw),
    ):
        first = np.arange(outputs) * stride - padding
        inside = np.minimum(first + taps, size) - np.maximum(first, 0)
        counts.append(int(np.maximum(inside, 0).sum()))
    return counts[0] * counts[1]
