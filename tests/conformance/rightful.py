"""Attention computed rightly in many ways: what no judge may blame.

Each way is a set of choices that a kernel makes; `Rightful` is the backend. Nothing here is shared
with the oracle but the meaning of the options.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from nlattn.conformance.backends.backend import call

Array = np.ndarray[Any, Any]
LOG2E = 1.4426950408889634


@dataclass(frozen=True)
class Way:
    """How one kernel computes."""

    block: int = 0
    """Keys in a block of the online softmax; 0 for all at once."""
    base2: bool = False
    """Exponentials are powers of two, log2 e folded into the scale."""
    folded: bool = False
    """The scale is multiplied into the queries."""
    narrow: bool = True
    """16-bit weights and score gradients enter matrix products in 16 bits."""
    sums: str = "numpy"
    """"numpy", "ordered", "backwards" or "kahan"."""
    inner: Any = np.float32
    """In which 16-bit and float32 arrays are computed."""
    late: bool = True
    """The division by the sum comes after the product with the values."""
    reciprocal: bool = False
    split: int = 1
    """Parts of the keys that are computed apart and merged."""
    fast: bool = False
    """Exponentials are a little off, as those of a GPU."""
    saved: bool = True
    """The gradient takes delta from ``dout out``, not from ``P dP``."""


WAYS: dict[str, Way] = {
    "at once": Way(),
    "blocks of 4": Way(block=4),
    "blocks of 64": Way(block=64),
    "base 2": Way(base2=True),
    "base 2, blocks of 16, fast": Way(base2=True, block=16, fast=True),
    "folded scale": Way(folded=True),
    "folded base 2": Way(folded=True, base2=True, reciprocal=True),
    "wide weights": Way(narrow=False),
    "sums in order": Way(sums="ordered"),
    "sums backwards": Way(sums="backwards", block=8),
    "Kahan sums": Way(sums="kahan"),
    "float64 inside": Way(inner=np.float64, narrow=False),
    "divided first": Way(late=False),
    "reciprocals": Way(reciprocal=True),
    "split in 3": Way(split=3, block=4),
    "delta from P": Way(saved=False, block=4),
}


class Rightful:
    """The backend of one way."""

    def __init__(self, name: str):
        self.name, self.way = name, WAYS[name]

    def capabilities(self) -> dict[str, Any]:
        return {"operators": ["attention"]}

    def run(self, op: str, arrays: dict[str, Any], options: dict[str, Any]) -> Any:
        return call(self._vjp if op.endswith("_vjp") else self._forward, op, arrays, options)

    def _forward(
        self, q: Array, k: Array, v: Array, *, return_lse: bool = False,
        masked_rows: str = "zero", **options: Any,
    ) -> Any:  # fmt: skip
        out, lse, _ = self._attend(q, k, v, **options)
        if masked_rows == "nan":
            out = np.where(np.isneginf(lse)[..., None], np.nan, out)
        out = out.astype(q.dtype)
        return (out, lse.astype(q.dtype)) if return_lse else out

    def _scores(
        self, q: Array, k: Array, *, scale: float | None = None, softcap: float | None = None,
        bias: Array | None = None, mask: Array | None = None, causal: bool = False,
        causal_offset: int = 0, window: Any = None,
    ) -> tuple[Array, Array]:  # fmt: skip
        """Scores with their masks, in units of log 2 where `base2` says so; slope of the cap."""
        real = q.dtype.type
        n, m = q.shape[-2], k.shape[-2]
        factor = real(q.shape[-1] ** -0.5 if scale is None else scale)
        plain = softcap is None and bias is None
        unit = real(LOG2E) if self.way.base2 else real(1)
        if plain:
            factor = real(factor * unit)
        s = (q * factor) @ k.mT if self.way.folded else (q @ k.mT) * factor
        slope = np.ones_like(s)
        if softcap is not None:
            t = np.tanh(s / real(softcap))
            s, slope = t * real(softcap), 1 - t * t
        if bias is not None:
            s = s + bias.astype(q.dtype)
        if not plain:
            s = s * unit
        step = np.arange(m) - np.arange(n)[:, None]
        yes = np.ones((n, m), bool)
        if causal:
            yes &= step <= causal_offset
        if window is not None:
            left, right = window
            yes &= (step >= (-left if left is not None else -n)) & (
                step <= (right if right is not None else m)
            )
        if mask is not None:
            yes = yes & mask
        return np.where(yes, s, real(-np.inf)), slope

    def _exp(self, x: Array) -> Array:
        y = np.exp2(x) if self.way.base2 else np.exp(x)
        if self.way.fast and x.dtype == np.float32:
            y = y * (1 + np.float32(2**-22) * np.sin(1e3 * np.maximum(x, -99)))
        return y

    def _sum(self, x: Array) -> Array:
        if self.way.sums == "numpy":
            return x.sum(-1)
        total = lost = np.zeros(x.shape[:-1], x.dtype)
        parts = np.moveaxis(x, -1, 0)
        for part in parts[::-1] if self.way.sums == "backwards" else parts:
            if self.way.sums != "kahan":
                total = total + part
                continue
            y = part - lost
            t = total + y
            lost, total = (t - total) - y, t
        return total

    def _narrow(self, x: Array, dtype: Any) -> Array:
        return x.astype(dtype).astype(x.dtype) if self.way.narrow and dtype.itemsize == 2 else x

    def _attend(self, q: Array, k: Array, v: Array, **options: Any) -> tuple[Array, Array, Any]:
        """Output, lse in natural units, and what the gradient needs."""
        way, dtype = self.way, q.dtype
        inner = np.dtype(np.float64) if dtype == np.float64 else np.dtype(way.inner)
        q, k, v = (x.astype(inner) for x in (q, k, v))
        if options.pop("gqa", False) and k.ndim > 2:
            k, v = (np.repeat(x, q.shape[-3] // x.shape[-3], -3) for x in (k, v))
        s, slope = self._scores(q, k, **options)
        m = k.shape[-2]
        bounds = np.linspace(0, m, way.split + 1).astype(int)
        parts = [self._online(s[..., a:b], v[..., a:b, :], dtype) for a, b in
                 itertools.pairwise(bounds)]  # fmt: skip
        top, total, out = parts[0]
        for other, count, more in parts[1:]:
            new = np.maximum(top, other)
            safe = np.where(np.isneginf(new), 0, new)
            a, b = self._exp(top - safe), self._exp(other - safe)
            top, total = new, a * total + b * count
            out = a[..., None] * out + b[..., None] * more
        none = total == 0
        safe = np.where(none, 1, total).astype(inner)
        if not way.late:
            w = self._exp(s - np.where(none, 0, top)[..., None]) / safe[..., None]
            out = self._narrow(w, dtype) @ v
        elif way.reciprocal:
            out = out * (1 / safe)[..., None]
        else:
            out = out / safe[..., None]
        out = np.where(none[..., None], 0, out)
        log = np.log2(safe) / inner.type(LOG2E) if way.base2 else np.log(safe)
        unit = inner.type(1 / LOG2E if way.base2 else 1)
        lse = np.where(none, -np.inf, np.where(none, 0, top) * unit + log)
        shifted = (s, np.where(none, 0, top), safe, slope, q, k, v)
        return out, lse, shifted

    def _online(self, s: Array, v: Array, dtype: Any) -> tuple[Array, Array, Array]:
        top = np.full(s.shape[:-1], -np.inf, s.dtype)
        total = np.zeros(s.shape[:-1], s.dtype)
        lead = np.broadcast_shapes(s.shape[:-2], v.shape[:-2])
        out = np.zeros((*lead, s.shape[-2], v.shape[-1]), s.dtype)
        step = self.way.block or max(1, s.shape[-1])
        for at in range(0, s.shape[-1], step):
            part = s[..., at : at + step]
            new = np.maximum(top, part.max(-1))
            safe = np.where(np.isneginf(new), 0, new).astype(s.dtype)
            p = self._exp(part - safe[..., None])
            scale = self._exp(top - safe)
            total = scale * total + self._sum(p)
            out = scale[..., None] * out + self._narrow(p, dtype) @ v[..., at : at + step, :]
            top = new
        return top, total, out

    def _vjp(self, q: Array, k: Array, v: Array, dout: Array, **options: Any) -> Any:
        dtype, shapes = q.dtype, (q.shape, k.shape, v.shape)
        options.pop("masked_rows", None)
        bias, dlse = options.get("bias"), options.pop("dlse", None)
        out, _, (s, top, total, slope, q, k, v) = self._attend(q, k, v, **options)
        g = dout.astype(q.dtype)
        p = self._exp(s - top[..., None]) / total[..., None]
        dp = g @ v.mT
        if self.way.saved:
            out = self._narrow(out, dtype)
            delta = self._sum(g * out)
        else:
            delta = self._sum(p * dp)
        if dlse is not None:
            delta = delta - dlse.astype(delta.dtype)
        ds = p * (dp - delta[..., None])
        scale = options.get("scale")
        factor = q.dtype.type(q.shape[-1] ** -0.5 if scale is None else scale)
        draw = self._narrow(ds * slope, dtype)
        dq, dk = (draw @ k) * factor, (draw.mT @ q) * factor
        dv = self._narrow(p, dtype).mT @ g
        found = [_shared(x, shape) for x, shape in zip((dq, dk, dv), shapes, strict=True)]
        if bias is not None:
            found.append(_shared(ds, bias.shape))
        return tuple(x.astype(dtype) for x in found)


def _shared(x: Array, shape: tuple[int, ...]) -> Array:
    """Summed over axes along which an array of this shape was repeated."""
    if len(shape) > 2 and x.ndim == len(shape) and x.shape[-3] != shape[-3] > 1:
        x = x.reshape(*x.shape[:-3], shape[-3], -1, *x.shape[-2:]).sum(-3)
    x = x.sum(tuple(range(x.ndim - len(shape))))
    axes = tuple(a for a, size in enumerate(shape) if size == 1 != x.shape[a])
    return x.sum(axes, keepdims=True)
