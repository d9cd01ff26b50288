"""``memory_efficient_attention`` of xFormers, on a GPU; gradients are autograd's."""

from __future__ import annotations

from typing import Any

import numpy as np

from nlattn._types import Options
from nlattn.conformance.backends.adapters import (
    Band,
    Module,
    Tensor,
    allowed_pairs,
    four_axes,
    torch,
)

_ALIGNED = 8
"""Rows of a bias begin at multiples of as many numbers."""


class Backend(torch.Backend):
    """Attention by whichever of its kernels it takes."""

    def __init__(self, device: str = "cuda"):
        import xformers.ops

        super().__init__(device)
        self._ops: Module = xformers.ops
        self._attend = self._asked
        self.name = "xformers"

    def capabilities(self) -> Options:
        """Head dimensions that are multiples of 8."""
        return {
            "operators": ["attention"],
            "dtypes": ["float32", "float16", "bfloat16"],
            "deterministic": False,
            "shapes": {"attention": {"d": {"multiple": 8, "least": 8}, "e": "d"}},
        }

    def _asked(
        self, torch: Module, q: Tensor, k: Tensor, v: Tensor, *,
        scale: float | None = None, bias: Tensor = None, mask: Tensor = None, causal: bool = False,
        causal_offset: int | str = 0, window: Band = None, return_lse: bool = False,
    ) -> Tensor:  # fmt: skip
        """Outputs, and lse if it is asked for."""
        lead = np.broadcast_shapes(*(tuple(x.shape[:-2]) for x in (q, k, v)))
        q, k, v = four_axes(q, k, v, False)
        n, m = q.shape[-2], k.shape[-2]
        if causal and not causal_offset and window is None and bias is None and mask is None:
            added: Any = self._ops.LowerTriangularMask()
        else:
            pairs = allowed_pairs(n, m, causal, causal_offset, window)
            if pairs is not None:
                pairs = torch.from_numpy(pairs).to(q.device)
                mask = pairs if mask is None else mask & pairs
            added = None if mask is None and bias is None else self._added(q, lead, m, bias, mask)
        given = [x.transpose(1, 2) for x in (q, k, v)]
        if return_lse:
            ask = self._ops.memory_efficient_attention_forward_requires_grad
            out, lse = ask(*given, attn_bias=added, scale=scale)
        else:
            out = self._ops.memory_efficient_attention(*given, attn_bias=added, scale=scale)
        out = out.transpose(1, 2).reshape(*lead, n, v.shape[-1])
        return (out, lse[..., :n].reshape(*lead, n)) if return_lse else out

    def _added(
        self, q: Tensor, lead: tuple[int, ...], m: int, bias: Tensor, mask: Tensor
    ) -> Tensor:
        """Bias (batch, heads, n, m), -inf where a mask says no."""
        torch, n = self._torch, q.shape[-2]
        whole = q.new_zeros(*q.shape[:-1], -(-m // _ALIGNED) * _ALIGNED)[..., :m]
        for x in (bias, mask):
            if x is not None:
                x = x.expand(*lead, n, m).reshape(*q.shape[:2], n, m)
                whole = torch.where(x, whole, -float("inf")) if x.dtype == torch.bool else whole + x
        return torch.nn.functional.pad(whole, (0, -m % _ALIGNED))[..., :m]
