"""Softmax attention in Triton, for nlattn validate on a machine with a GPU.

    nlattn validate docs/examples/triton_attention.py
    nlattn validate docs/examples/triton_attention.py:Unscaled

The same kernel as `blocked_attention.py`, which runs anywhere: one program for a block of queries,
a loop over blocks of keys, and five switches that make it wrong. Not run where this was written,
which has no GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl


@triton.jit
def attend(
    Q, K, V, Out, scale, n, m,
    D: tl.constexpr, CAUSAL: tl.constexpr, TF32: tl.constexpr,
    TAIL: tl.constexpr, RESCALE: tl.constexpr, DIAGONAL: tl.constexpr, SENTINEL: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """One block of queries of one head; arrays are contiguous (heads, length, D)."""
    head = tl.program_id(1)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    channels = tl.arange(0, D)
    q_at = Q + (head * n + rows[:, None]) * D + channels[None, :]
    q = tl.load(q_at, mask=rows[:, None] < n, other=0.0)
    top = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, D), tl.float32)
    never = -1.0e4 if SENTINEL else float("-inf")
    for start in range(0, m, BN):
        columns = start + tl.arange(0, BN)
        at = (head * m + columns[:, None]) * D + channels[None, :]
        k = tl.load(K + at, mask=columns[:, None] < m, other=0.0)
        v = tl.load(V + at, mask=columns[:, None] < m, other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision="tf32" if TF32 else "ieee") * scale
        if not TAIL:
            s = tl.where(columns[None, :] < m, s, never)
        if CAUSAL:
            ahead = columns[None, :] > rows[:, None] - (1 if DIAGONAL else 0)
            s = tl.where(ahead, never, s)
        new = tl.maximum(top, tl.max(s, 1))
        shift = tl.where(new == float("-inf"), 0.0, new)
        p = tl.exp(s - shift[:, None])
        keep = tl.exp(top - shift)
        total = total * keep + tl.sum(p, 1)
        if not RESCALE:
            acc = acc * keep[:, None]
        acc += tl.dot(p.to(v.dtype), v, input_precision="tf32" if TF32 else "ieee")
        top = new
    some = total > 0
    out = tl.where(some[:, None], acc / tl.where(some, total, 1.0)[:, None], 0.0)
    tl.store(Out + (q_at - Q), out.to(Out.dtype.element_ty), mask=rows[:, None] < n)


class Backend:
    """What nlattn validate is told, and the launch."""

    name = "triton"
    flaw = ""
    capabilities = {  # noqa: RUF012
        "operators": ["attention"],
        "gradients": False,
        "dtypes": ["float32", "float16", "bfloat16"],
        "options": {"attention": ["causal", "scale"]},
        "shapes": {"attention": {"d": (16, 32, 64, 128), "e": "d"}},
        "compiles": True,
    }

    def attention(
        self, q: Any, k: Any, v: Any, *, causal: bool = False, scale: float | None = None
    ) -> Any:
        """Softmax attention."""
        lead = np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
        n, m, d = q.shape[-2], k.shape[-2], q.shape[-1]
        a, b, c = (_tensor(np.broadcast_to(x, (*lead, *x.shape[-2:]))) for x in (q, k, v))
        out = torch.empty_like(a)
        heads = int(np.prod(lead, dtype=int))
        if out.numel():
            attend[(triton.cdiv(n, 64), heads)](
                a, b, c, out, d**-0.5 if scale is None else scale, n, m,
                D=d, CAUSAL=causal, TF32=self.flaw == "tf32", TAIL=self.flaw == "tail",
                RESCALE=self.flaw == "rescale", DIAGONAL=self.flaw == "diagonal",
                SENTINEL=self.flaw == "sentinel", BM=64, BN=64,
            )  # fmt: skip
        return _array(out, q.dtype).reshape(*lead, n, d)


def _tensor(x: Any) -> Any:
    x = np.array(x, order="C")
    if x.dtype.name == "bfloat16":
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16).cuda()
    return torch.from_numpy(x).cuda()


def _array(x: Any, dtype: Any) -> Any:
    x = x.cpu()
    return x.view(torch.int16).numpy().view(dtype) if x.dtype == torch.bfloat16 else x.numpy()


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
