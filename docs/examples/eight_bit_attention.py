"""Attention of eight-bit queries, keys and values with a scale for each head, block by block.

As kernels for Hopper do it: codes are multiplied, scales are applied to scores and to the result,
the softmax's weights are rounded to E4M3 before they meet the values. Each class but `Backend`
makes one mistake.

    nlattn validate docs/examples/eight_bit_attention.py
    nlattn validate docs/examples/eight_bit_attention.py:NoScaleOfKeys
"""

from __future__ import annotations

from typing import Any

import numpy as np

BLOCK = 64


def numbers(codes: Any, dtype: str, flaw: str = "") -> Any:
    """What codes mean, before scales; bit by bit."""
    if codes.dtype == np.int8:
        return codes.astype(np.float32)
    mantissa = 2 if (dtype == "e5m2") != (flaw == "other format") else 3
    bits = codes.astype(np.int32)
    e = (bits & 127) >> mantissa
    f = bits & (2**mantissa - 1)
    bias = 2 ** (6 - mantissa) - 1 + (flaw == "bias")
    size = np.where(e > 0, np.ldexp(2.0**mantissa + f, e - bias - mantissa),
                    np.ldexp(f * 1.0, 1 - bias - mantissa))  # fmt: skip
    if flaw == "clipped":
        size = np.minimum(size, 240)
    return np.where(bits > 127, -size, size).astype(np.float32)


def rounded(p: Any) -> Any:
    """Weights up to 1 to the nearest numbers of E4M3: three bits, steps of 2^-9 at least."""
    _, exponent = np.frexp(p)
    step = np.ldexp(np.float32(1), np.maximum(exponent - 4, -9))
    return np.round(p / step) * step


class Backend:
    """Right."""

    name = "eight-bit"
    flaw = ""
    dtype = "e4m3"

    def capabilities(self) -> dict[str, Any]:
        """One dtype, a scale for each head, results in bfloat16."""
        return {
            "operators": ["attention"],
            "gradients": False,
            "dtypes": [self.dtype],
            "scales": "head",
            "weights": "e4m3",
            "results": "bfloat16",
            "options": {"attention": ["causal", "scale"]},
            "shapes": {"attention": {"d": {"multiple": 16, "most": 256}, "e": "d"}},
        }

    def attention(
        self, q: Any, k: Any, v: Any, *, q_scale: Any, k_scale: Any, v_scale: Any,
        scale: float | None = None, causal: bool = False,
    ) -> Any:  # fmt: skip
        """Heads one after the other."""
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        lead = np.broadcast_shapes(*(x.shape[:-2] for x in (q, k, v)))
        out = np.zeros((*lead, q.shape[-2], v.shape[-1]), np.float32)
        q, k, v, a, b, c = (
            np.broadcast_to(x, lead + x.shape[-2:]) for x in (q, k, v, q_scale, k_scale, v_scale)
        )
        for head in np.ndindex(lead):
            of = (*head[:-1], 0) if head and self.flaw == "first head" else head
            factor = scale * float(a[of][0, 0]) * float(b[of][0, 0])
            if self.flaw == "no scale of keys":
                factor = scale * float(a[head][0, 0])
            given = (numbers(x[head], self.dtype, self.flaw) for x in (q, k, v))
            whole = self._head(*given, factor, causal)
            out[head] = whole * (1 if self.flaw == "no scale of values" else c[head][0, 0])
        return out

    def _head(self, q: Any, k: Any, v: Any, factor: float, causal: bool) -> Any:
        n, m = len(q), len(k)
        top, total = np.full(n, -np.inf, np.float32), np.zeros(n, np.float32)
        acc = np.zeros((n, v.shape[1]), np.float32)
        for j in range(0, m, BLOCK):
            s = np.float32(factor) * (q @ k[j : j + BLOCK].T)
            if causal:
                s = np.where(np.arange(j, min(j + BLOCK, m)) <= np.arange(n)[:, None], s, -np.inf)
            new = np.maximum(top, s.max(1))
            shift = np.where(np.isneginf(new), 0, new)
            p, keep = np.exp(s - shift[:, None]), np.exp(top - shift)
            total = total * keep + p.sum(1)
            p = rounded(p)
            acc = acc * (1 if self.flaw == "not rescaled" else keep[:, None]) + p @ v[j : j + BLOCK]
            top = new
        return acc / np.where(total == 0, 1, total)[:, None]


class NoScaleOfKeys(Backend):
    """Keys count as their codes."""

    flaw = "no scale of keys"


class NoScaleOfValues(Backend):
    """So do values."""

    flaw = "no scale of values"


class FirstHead(Backend):
    """All heads take the scales of queries and keys of the first."""

    flaw = "first head"


class OtherFormat(Backend):
    """E4M3 is read as E5M2."""

    flaw = "other format"


class FiveBits(OtherFormat):
    """E5M2 is read as E4M3."""

    dtype = "e5m2"


class Bias(Backend):
    """The format of another maker, whose exponents are one lower."""

    flaw = "bias"


class Clipped(Backend):
    """That format's largest number is 240."""

    flaw = "clipped"


class NotRescaled(Backend):
    """The accumulator is not rescaled when the maximum rises."""

    flaw = "not rescaled"
