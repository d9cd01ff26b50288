"""A picky attention kernel, written in NumPy block by block: how a GPU's looks to nlattn validate.

It takes 16-bit arrays, channels that are multiples of 8 and as many of values, at least 16, and
lengths that need not fill its blocks of 64. Products and sums are in float32, weights are rounded
to 16 bits before they meet the values. Each of `FLAWS` makes it wrong in a way that real kernels
were wrong in; `triton_attention.py` is the same kernel in Triton.

    nlattn validate docs/examples/blocked_attention.py
    nlattn validate docs/examples/blocked_attention.py:Unscaled
"""

from __future__ import annotations

from typing import Any

import numpy as np

BLOCK = 64
FLAWS = ("tail", "rescale", "diagonal", "sentinel", "tf32")
"""The tail of the last block counts; the accumulator is not rescaled when the maximum rises; the
diagonal is left out; -1e4 stands for -inf; inputs lose bits."""


def attend(q: Any, k: Any, v: Any, scale: float, last: int | None, flaw: str) -> tuple[Any, Any]:
    """One head: output (n, e) and lse (n,), both float32; query i sees keys up to ``i + last``."""
    n, m, d = len(q), len(k), q.shape[1]
    never = np.float32(-1e4 if flaw == "sentinel" else -np.inf)
    out, lse = np.zeros((n, v.shape[1]), np.float32), np.zeros(n, np.float32)
    for i in range(0, n, BLOCK):
        rows = np.arange(i, min(i + BLOCK, n))
        top = np.full(len(rows), -np.inf, np.float32)
        total = np.zeros(len(rows), np.float32)
        acc = np.zeros((len(rows), v.shape[1]), np.float32)
        queries = _wide(q[rows], flaw)
        for j in range(0, m, BLOCK):
            keys = np.zeros((BLOCK, d), np.float32)
            values = np.zeros((BLOCK, v.shape[1]), np.float32)
            part = slice(j, min(j + BLOCK, m))
            keys[: part.stop - j], values[: part.stop - j] = _wide(k[part], flaw), v[part]
            s = (queries @ keys.T) * np.float32(scale)
            columns = np.arange(j, j + BLOCK)
            if flaw != "tail":
                s = np.where(columns < m, s, never)
            if last is not None:
                ahead = columns > rows[:, None] + last - (flaw == "diagonal")
                s = np.where(ahead, never, s)
            new = np.maximum(top, s.max(1))
            shift = np.where(np.isneginf(new), 0, new)
            p = np.exp(s - shift[:, None])
            keep = np.exp(top - shift)
            total = total * keep + p.sum(1)
            p = p.astype(q.dtype).astype(np.float32)
            acc = acc * (1 if flaw == "rescale" else keep[:, None]) + p @ values
            top = new
        some = total != 0
        out[rows] = np.where(some[:, None], acc / np.where(some, total, 1)[:, None], 0)
        lse[rows] = np.where(some, top + np.log(np.where(some, total, 1)), -np.inf)
    return out, lse


def _wide(x: Any, flaw: str) -> Any:
    """In float32; with the flaw "tf32" the last three bits of 16 are lost."""
    x = x.astype(np.float32)
    if flaw != "tf32":
        return x
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(mantissa * 2**7) / 2**7, exponent).astype(np.float32)


class Backend:
    """What nlattn validate is told, and the loop over heads."""

    name = "blocked"
    flaw = ""
    capabilities = {  # noqa: RUF012
        "operators": ["attention"],
        "gradients": False,
        "dtypes": ["float16", "bfloat16"],
        "options": {"attention": ["causal", "causal_offset", "scale", "return_lse"]},
        "shapes": {"attention": {"d": {"multiple": 8, "least": 16, "most": 256}, "e": "d"}},
    }

    def attention(
        self, q: Any, k: Any, v: Any, *,
        causal: bool = False, causal_offset: Any = 0, scale: float | None = None,
        return_lse: bool = False,
    ) -> Any:  # fmt: skip
        """Softmax attention."""
        if causal_offset == "bottom-right":
            causal_offset = k.shape[-2] - q.shape[-2]
        if not isinstance(causal_offset, int):
            raise ValueError("heads of different causality are not supported")
        if q.shape[-1] % 8 or q.shape[-1] != v.shape[-1]:
            raise ValueError(f"head dimensions {q.shape[-1]} and {v.shape[-1]} are not supported")
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        lead = np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
        q, k, v = (np.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (q, k, v))
        out = np.zeros((*lead, q.shape[-2], v.shape[-1]), q.dtype)
        lse = np.zeros((*lead, q.shape[-2]), np.float32)
        for head in np.ndindex(lead):
            last = causal_offset if causal else None
            out[head], lse[head] = attend(q[head], k[head], v[head], scale, last, self.flaw)
        return (out, lse) if return_lse else out


class Tail(Backend):  # noqa: D101
    flaw = "tail"


class Unscaled(Backend):  # noqa: D101
    flaw = "rescale"


class Diagonal(Backend):  # noqa: D101
    flaw = "diagonal"


class Sentinel(Backend):  # noqa: D101
    flaw = "sentinel"


class FewBits(Backend):  # noqa: D101
    flaw = "tf32"
