"""Windows with learned queries: the folded arrays of one call, and what is summed with them.

Kernels see zeros in place of numbers that are not finite; windows that see such a number, and
pixels that these see, become NaN afterwards.
"""

from __future__ import annotations

import numpy as np

from nlattn import _check
from nlattn._types import Bools, Floats, Ints
from nlattn.engines.not_finite import cleaned, finite, wild
from nlattn.engines.window_geometry import WindowGeometry
from nlattn.kernels import window as kernels
from nlattn.kernels import window_attend, window_vjp
from nlattn.kernels.panel import groups

LANES = 256
"""Values of a row that a tile sums at once."""
ROWS = 16
"""Rows of a tile, at least."""


class Local:
    """Scores, bias and gate of one call, and what is summed with them over windows.

    `q` (Bq, t, d), `k` (Bk, H, W, d), `bias` and `gate` (B., t, kh kw), all frozen; `slices` (B, 6)
    says which slices of q, k, v, bias, gate and dout belong together.
    """

    def __init__(
        self,
        q: Floats,
        k: Floats,
        bias: Floats,
        gate: Floats,
        slices: Ints,
        scale: float,
        to: WindowGeometry,
    ):
        self.q, self.k, self.bias, self.gate = q, k, bias, gate
        self.slices, self.to, self.scale = slices, to, q.dtype.type(scale)
        self.bad: Bools | None = None
        if not finite(q, k, bias, gate):
            self.bad = _bad_pixels(q, k, bias, gate, slices)
            q, k, self.bias, self.gate = cleaned(q), cleaned(k), cleaned(bias), cleaned(gate)
        self.box = all(bool((x == x[..., :1]).all()) for x in (bias, gate))
        B, t, n = len(slices), q.shape[1], to.H * to.W
        score: Floats = np.empty((B, t, n), q.dtype)
        cost = kernels.PIXELS * q.shape[2] * 32
        for some in groups(B * -(-n // kernels.PIXELS), cost):
            kernels.score(some, q, k, slices, self.scale, score)
        self.score: Floats = _check.frozen(score.reshape(B, t, to.H, to.W))

    def attend(
        self, v: Floats, dout: Floats | None = None, *, out: bool, learn: bool = False
    ) -> tuple[Floats, ...]:
        """Outputs if `out`, else normalisers; with `dout` delta, and to `learn` dbias and dgate."""
        if self.bad is None and finite(v) and (dout is None or finite(dout)):
            return self._attend(v, dout, out=out, learn=learn)
        plain = None if dout is None else cleaned(dout)
        result, delta, dbias, dgate = self._attend(cleaned(v), plain, out=out, learn=learn)
        values: Bools = np.logical_not(np.isfinite(v[self.slices[:, 2]]))
        lost = self.to.seeing(self._spoilt()[..., None])
        struck = lost | self.to.seeing(values)
        if out:
            result[struck] = np.nan
        else:
            result[np.broadcast_to(lost[:, None, None, ..., 0], result.shape)] = np.nan
        if dout is not None:
            some = struck.any(3) | wild(dout[self.slices[:, 5]])
            delta[np.broadcast_to(some[:, None], delta.shape)] = np.nan
            dbias[some.any((1, 2))] = dgate[some.any((1, 2))] = np.nan
        return result, delta, dbias, dgate

    def _spoilt(self) -> Bools:
        """(B, H, W) pixels whose key is not finite."""
        none = np.zeros((len(self.slices), self.to.H, self.to.W), bool)
        return none if self.bad is None else self.bad

    def _attend(
        self, v: Floats, dout: Floats | None = None, *, out: bool, learn: bool = False
    ) -> tuple[Floats, ...]:
        to, (B, t) = self.to, self.score.shape[:2]
        g = self._plan(v.shape[3], learn)
        down, taps = -(-to.Ho // g.th), to.kh * to.kw if learn else 0
        none: Floats = np.empty((B, 0, 0, 0), v.dtype)
        given = _check.frozen(none if dout is None else dout)
        arrays = kernels.WindowArrays(self.score, v, self.bias, self.gate, given)
        size = (to.Ho, to.Wo)
        result: Floats = np.empty((B, *size, v.shape[3]), v.dtype) if out else none
        norm: Floats = np.empty((B, t, 2, *((0, 0) if out else size)), v.dtype)
        delta: Floats = np.empty((B, t, *((0, 0) if dout is None else size)), v.dtype)
        dbias, dgate = (np.empty((B, down, t, taps)) for _ in range(2))
        cost = g.th * to.Wo * t * to.kh * to.kw * v.shape[3]
        for some in groups(B * down, cost * (2 if learn else 1)):
            window_attend.attend(some, g, arrays, self.slices, result, norm, delta, dbias, dgate)
        return (result if out else norm), delta, dbias.sum(1), dgate.sum(1)

    def vjp(self, v: Floats, dout: Floats, norm: Floats, delta: Floats) -> tuple[Floats, Floats]:
        """Gradients of values (B, H, W, e) and scores (B, t, H, W)."""
        if finite(v, dout, norm, delta):
            return self._vjp(v, dout, norm, delta)
        lost = wild(norm, (1, 2))[..., None]
        given: Bools = lost | ~np.isfinite(dout[self.slices[:, 5]])
        struck = given.any(3) | wild(delta, 1)
        total = np.where(struck[:, None, None], 0, norm).astype(norm.dtype)
        dv, dscore = self._vjp(cleaned(v), cleaned(dout), _check.frozen(total), cleaned(delta))
        dv += self._spared(v, dout, norm, struck & ~lost[..., 0])
        dv[self.to.seen_by(given)] = np.nan
        seen = self.to.seen_by(struck[..., None])[..., 0]
        dscore[np.broadcast_to(seen[:, None], dscore.shape)] = np.nan
        return dv, dscore

    def _spared(self, v: Floats, dout: Floats, norm: Floats, windows: Bools) -> Floats:
        """What windows give to values whose weights are known though their delta is not."""
        total = np.where(windows[:, None, None], norm, 0).astype(norm.dtype)
        delta: Floats = np.zeros((*self.score.shape[:2], self.to.Ho, self.to.Wo), norm.dtype)
        none: Floats = _check.frozen(np.zeros_like(v))
        return self._vjp(none, cleaned(dout), _check.frozen(total), _check.frozen(delta))[0]

    def _vjp(self, v: Floats, dout: Floats, norm: Floats, delta: Floats) -> tuple[Floats, Floats]:
        to, (B, t) = self.to, self.score.shape[:2]
        g = self._plan(v.shape[3], False, back=True)
        rows = (to.H - 1 + to.ph) // to.sh - to.ph // to.sh + 1
        arrays = kernels.WindowArrays(self.score, v, self.bias, self.gate, dout)
        dv: Floats = np.empty((B, to.H, to.W, v.shape[3]), v.dtype)
        dscore: Floats = np.empty_like(self.score)
        known = _check.frozen(norm), _check.frozen(delta)
        cost = g.th * to.W * t * to.kh * to.kw * v.shape[3]
        for some in groups(B * -(-rows // g.th), cost):
            window_vjp.vjp(some, g, arrays, self.slices, *known, dv, dscore)
        return dv, dscore

    def project(self, dscore: Floats) -> tuple[Floats, Floats]:
        """Gradients of queries (B, t, d) and keys (B, H, W, d)."""
        B, t, H, W = dscore.shape
        q, k = (self.q, self.k) if self.bad is None else (cleaned(self.q), cleaned(self.k))
        k = k.reshape(len(k), H * W, k.shape[3])
        dk: Floats = np.empty((B, *k.shape[1:]), k.dtype)
        dq = np.empty((B, -(-H * W // window_vjp.PIXELS), t, k.shape[2]))
        flat = _check.frozen(dscore).reshape(B, t, H * W)
        window_vjp.project(B * dq.shape[1], q, k, self.slices, self.scale, flat, dk, dq)
        return dq.sum(1), dk.reshape(B, H, W, k.shape[2])

    def _plan(self, e: int, learn: bool, back: bool = False) -> kernels.Windows:
        """Tiles, from shapes alone: large windows need large ones, lest borders be most of it."""
        to = self.to
        chunk = min(e, 16)
        th = max(ROWS, min(64, kernels.rounded(to.kh, 8)))
        tw = max(min(64, kernels.rounded(LANES // chunk, 8)), min(64, kernels.rounded(to.kw, 8)))
        if back:
            high, wide = (-(-n // s) + 1 for n, s in ((to.H, to.sh), (to.W, to.sw)))
            th, tw = min(th, high), min(tw, wide)
            taps = min((to.kh - 1) // to.sh, to.Ho + th), min((to.kw - 1) // to.sw, to.Wo + tw)
            reach = th + taps[0], tw + taps[1]
        else:
            th, tw = min(th, to.Ho), min(tw, to.Wo)
            high, wide = (th - 1) * to.sh, (tw - 1) * to.sw
            reach = high + min(to.kh, to.H + high), wide + min(to.kw, to.W + wide)
        sizes = {**to._asdict(), "th": th, "tw": tw, "chunk": chunk}
        return kernels.windows(sizes, self.q.shape[1], self.box, learn, reach, self.q)


def _bad_pixels(q: Floats, k: Floats, bias: Floats, gate: Floats, slices: Ints) -> Bools:
    """(B, H, W) pixels whose scores are not finite; all, where something that all share is not."""
    parts = [wild(k)[slices[:, 1]]]
    for x, column in ((q, 0), (bias, 3), (gate, 4)):
        parts.append(wild(x, (1, 2))[slices[:, column], None, None])
    found: Bools = np.logical_or.reduce(np.broadcast_arrays(*parts))
    return found
