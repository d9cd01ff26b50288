"""Windows with learned queries: the folded arrays of one call, and what is summed with them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Ints
from nlattn.kernels import window as kernels
from nlattn.kernels import window_attend, window_vjp
from nlattn.kernels.panel import groups

LANES = 256
"""Values of a row that a tile sums at once."""
ROWS = 16
"""Rows of a tile, at least."""


class WindowGeometry(NamedTuple):
    """Image, windows and outputs."""

    H: int
    W: int
    Ho: int
    Wo: int
    kh: int
    kw: int
    sh: int
    sw: int
    ph: int
    pw: int


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
        to, (B, t) = self.to, self.score.shape[:2]
        g = self._plan(v.shape[3], learn)
        down, taps = -(-to.Ho // g.th), to.kh * to.kw if learn else 0
        none: Floats = np.empty((B, 0, 0, 0), v.dtype)
        arrays = (
            self.score,
            v,
            self.bias,
            self.gate,
            _check.frozen(none if dout is None else dout),
        )
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
        to, (B, t) = self.to, self.score.shape[:2]
        g = self._plan(v.shape[3], False, back=True)
        rows = (to.H - 1 + to.ph) // to.sh - to.ph // to.sh + 1
        arrays = (self.score, v, self.bias, self.gate, dout)
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
        k = self.k.reshape(len(self.k), H * W, self.k.shape[3])
        dk: Floats = np.empty((B, *k.shape[1:]), k.dtype)
        dq = np.empty((B, -(-H * W // window_vjp.PIXELS), t, k.shape[2]))
        flat = _check.frozen(dscore).reshape(B, t, H * W)
        window_vjp.project(B * dq.shape[1], self.q, k, self.slices, self.scale, flat, dk, dq)
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
